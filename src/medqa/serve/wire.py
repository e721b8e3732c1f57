"""The API's own messages: what is asked, what is answered, and how an error looks.

Types are strict and unknown fields are refused: a misspelt `alhpa` would otherwise change nothing and be
believed to have. What the fields of an answer mean is said once, in `medqa.records.Answer`.
"""

import logging
import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medqa.config import ServeConfig
from medqa.errors import (
    BusyError,
    CalibrationError,
    ConfigError,
    DataError,
    EngineError,
    MedQAError,
    RefusedByEngineError,
    TimeLimitError,
)
from medqa.records import Answer, Example
from medqa.serve.askable import MAX_CHARACTERS
from medqa.serve.audit import AuditError

__all__ = [
    "STREAMED",
    "AnswerReply",
    "AnswerRequest",
    "BatchReply",
    "BatchRequest",
    "ErrorReply",
    "Failure",
    "answer_json",
    "error_reply",
    "for_clients",
    "retry_after",
    "status_of",
]

MAX_BATCH = 256

_EVENT = {
    "type": "object",
    "description": "Each event; its data is JSON, or [DONE] at the end of a chat",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
# What a description says of a reply that can also come piece by piece.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, as server-sent events",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}

log = logging.getLogger(__name__)

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Asked(Message):
    """A question and how to answer it."""

    question: Text
    """The question."""
    options: Annotated[list[Text], Field(min_length=2, max_length=10)]
    """The options, in the order of their letters; each must differ."""
    context: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    """Text that the question is about."""
    explain: bool = False
    """Whether to write an explanation too, which takes seconds; the letter takes milliseconds."""
    orders: Literal[1, 4, 24] | None = None
    """Option orders that the answer is averaged over; as the server is set to if not given."""
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the answer sets that may miss the right option: 0.2, 0.1 or 0.05."""
    max_risk: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the given answers that may be wrong: below the confidence that takes, it abstains."""

    def example(self) -> Example:
        """Return the question.

        Raises:
            DataError: If it is none that an `Example` takes, or an option is given twice.
        """
        return Example(self.question, tuple(self.options), context=self.context).require_distinct_options()

    def settings(self, defaults: ServeConfig) -> ServeConfig:
        """Return how to answer."""
        named = {"orders": self.orders, "alpha": self.alpha, "max_risk": self.max_risk}
        return defaults.model_copy(update={key: value for key, value in named.items() if value is not None})


class AnswerRequest(Asked):
    """A question, and whether its answer is to be streamed."""

    stream: bool = False
    """Send the letter at once and the explanation as it is written, as server-sent events: `answer`, then
    `token` with pieces of text, then `done` with the whole answer; or `error`."""

    @model_validator(mode="after")
    def _something_to_stream(self) -> "AnswerRequest":
        if self.stream and not self.explain:
            raise ValueError("stream without explain has nothing to stream: set explain to true")
        return self


class BatchRequest(Message):
    """Many questions at once."""

    questions: Annotated[list[Asked], Field(min_length=1, max_length=MAX_BATCH)]
    """The questions."""


class AnswerReply(BaseModel):
    """An answer."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Names this answer, in the audit log too."""
    letter: str
    """The likeliest option's letter; where `abstain` is true, only the best guess."""
    option: str
    """Its text."""
    confidence: float
    """Probability that it is right, in [0, 1]: calibrated if `calibration` is given."""
    probabilities: dict[str, float]
    """Probability of each option, by letter."""
    answer_set: list[str] | None
    """Letters that stay in question, the likeliest first; null without a calibration."""
    alpha: float | None
    """Share of such sets that may miss the right option."""
    abstain: bool
    """Whether the model is not sure enough for the stated risk."""
    reason: str | None
    """Why it abstains or not; null if no risk was stated."""
    caveat: str | None
    """Why even the confidence is in doubt."""
    num_orders: int
    """Option orders that the answer is averaged over."""
    consistency: float | None
    """Share of these orders with the same option; null of a single order."""
    explanation: str | None
    """The explanation, if it was asked for. It can be wrong where the letter is right."""
    explanation_finished: bool | None
    """Whether it ended by itself; false if it was cut at the length limit."""
    explanation_check: dict[str, Any] | None
    """What was found of it: `points_to`, `agrees`, `names_choice`, `loops`, and `warning` as a sentence."""
    model: str
    """Base model and run."""
    calibration: str | None
    """The calibration that was applied; null if the confidence is the model's raw one."""
    notice: str
    """What no answer goes without."""


class Failure(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    type: str
    """A word for programs."""
    message: str
    """A sentence for people."""
    hint: str
    """What cures it; may be empty."""


class ErrorReply(BaseModel):
    """The body of every response that is not an answer."""

    model_config = ConfigDict(frozen=True)

    error: Failure


def answer_json(answer: Answer, id: str) -> dict[str, Any]:
    """Return an `AnswerReply` as plain values; not through the model, which takes longer than the answer."""
    return {"id": id, **{name: getattr(answer, name) for name in _FIELDS}}


_FIELDS = tuple(name for name in AnswerReply.model_fields if name != "id")


class BatchReply(BaseModel):
    """One entry a question, in the order given: its answer, or why it has none."""

    model_config = ConfigDict(frozen=True)

    answers: list[AnswerReply | ErrorReply]


_STATUS: tuple[tuple[type[MedQAError], int, str], ...] = (
    (BusyError, 429, "busy"),
    (TimeLimitError, 504, "timeout"),
    (DataError, 422, "bad_question"),
    (CalibrationError, 422, "not_calibrated"),
    (ConfigError, 422, "bad_setting"),
    (EngineError, 502, "engine"),
)


def status_of(exc: MedQAError) -> tuple[int, str]:
    """Return the HTTP status of an error, and the word for it; 503 where the server itself is at fault."""
    return next(((status, word) for kind, status, word in _STATUS if isinstance(exc, kind)), (503, "server"))


# Errors in words about the question itself, or meant for whoever asks.
_TOLD = (AuditError, BusyError, ConfigError, DataError, TimeLimitError)
# Where such a word stands for a run, its folder stood.
_RUN = re.compile(r".+(?= is not calibrated)", re.DOTALL)
_RUN_TO_CALIBRATE = re.compile(r"(?<=`medqa calibrate )(?!RUN\b)[^`]+")
_LOG_SAYS = "ask again later; the operator finds the cause in the server's log"


def for_clients(exc: MedQAError) -> MedQAError:
    """Return an error in the words that may leave this machine.

    They hold no local path, no address and nothing that an engine said. What they leave out goes to the log.
    """
    if isinstance(exc, CalibrationError):
        return CalibrationError(_RUN.sub("this model", exc.message), _RUN_TO_CALIBRATE.sub("RUN", exc.hint))
    if isinstance(exc, _TOLD):
        return exc
    log.error("a question could not be answered: %s (%s)", exc.message, exc.hint or "no hint")
    if isinstance(exc, RefusedByEngineError):
        return EngineError(
            "the engine behind this server refuses this question",
            "ask it in other words; the operator finds the cause in the server's log",
        )
    if isinstance(exc, EngineError):
        return EngineError("the engine behind this server does not answer as it should", _LOG_SAYS)
    return MedQAError("this server's model can't answer now", _LOG_SAYS)


def error_reply(exc: MedQAError) -> ErrorReply:
    """Make the body that tells a client of an error."""
    told = for_clients(exc)
    return ErrorReply(error=Failure(type=status_of(exc)[1], message=told.message, hint=told.hint))


def retry_after(exc: MedQAError) -> dict[str, str]:
    """Return the header that says when to try again, where that is known."""
    return {"Retry-After": str(max(1, math.ceil(exc.retry_after_s)))} if isinstance(exc, BusyError) else {}
