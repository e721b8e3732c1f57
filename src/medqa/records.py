"""The records that travel between stages: Example, Prediction, Answer.

All are frozen and hold plain Python values, so that each can be written as one JSON line and read
back equal. Nothing here knows about models or files of a particular data set.
"""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any, Literal

from medqa.errors import DataError

__all__ = ["LETTERS", "NOTICE", "Answer", "Example", "Prediction", "softmax"]

LETTERS = "ABCDEFGHIJ"

_SURROGATE = re.compile("[\ud800-\udfff]")

NOTICE = (
    "Not medical advice. A research model's answer to an exam question; it can be wrong "
    "while sounding sure. Do not use it for decisions about patients."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One multiple-choice question.

    `answer` is the index of the right option, or None where no key is known. Texts are kept as
    the source has them: lm-eval's prompt needs the untouched characters.

    Raises:
        DataError: If the question is empty, has fewer than 2 or more than 10 options, an empty
            option, or a key outside the options. Repeated options are not refused here, since
            published benchmarks hold some: see `repeated_option`.
    """

    question: str
    options: tuple[str, ...]
    answer: int | None = None
    id: str = ""
    subject: str | None = None
    topic: str | None = None
    explanation: str | None = None
    context: str | None = None
    source: str = ""
    licence: str = ""
    original: tuple[str, ...] | None = None
    """Question and options as published, where cleaning changed them."""

    def __post_init__(self) -> None:
        texts = {"question": self.question, "explanation": self.explanation, "context": self.context}
        texts |= {f"option {a}": b for a, b in zip(LETTERS, self.options, strict=False)}
        for name, text in texts.items():
            _check_text(name, text, required=name not in ("explanation", "context"))
        if not self.question.strip():
            raise DataError("the question is empty", "every question needs a text")
        if not 2 <= len(self.options) <= len(LETTERS):
            raise DataError(
                f"{len(self.options)} option(s), expected 2 to {len(LETTERS)}",
                "give each option once, in the order of the letters",
            )
        for letter, option in zip(LETTERS, self.options, strict=False):
            if not option.strip():
                raise DataError(f"option {letter} is empty", "fill it in or leave the option out")
        if self.answer is not None and not 0 <= self.answer < len(self.options):
            raise DataError(
                f"key {self.answer!r} is outside the {len(self.options)} options",
                "keys count from 0: 0 = A, 1 = B, ...; leave the key out if it isn't known",
            )
        if not self.id:
            object.__setattr__(self, "id", self.content_hash()[:16])

    @property
    def num_characters(self) -> int:
        """Characters of what a model is asked: question, context and options."""
        return sum(map(len, (self.question, self.context or "", *self.options)))

    def content_hash(self) -> str:
        """Hash the question and its options, whatever the id, key or explanation."""
        return hashlib.sha256(json.dumps([self.question, self.context, self.options]).encode()).hexdigest()

    def repeated_option(self) -> str | None:
        """Return an option that occurs more than once, or None.

        Letter case counts: "D" and "d" are two antigens.
        """
        seen: set[str] = set()
        for option in self.options:
            if option.strip() in seen:
                return option
            seen.add(option.strip())
        return None

    def require_distinct_options(self) -> "Example":
        """Return self, or raise DataError if an option occurs more than once."""
        if (option := self.repeated_option()) is not None:
            raise DataError(
                f"option {option!r} is given more than once",
                "each option must differ, or no letter can be the answer",
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, empty ones left out."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, "")}


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """What one model, under one prompt, made of one question.

    `status` is "scored", or "too_long" where the prompt exceeds what the model takes; such a
    question is counted apart and never as wrong.
    """

    id: str
    subject: str | None
    num_options: int
    answer: int | None
    status: Literal["scored", "too_long"]
    log_likelihoods: tuple[float, ...] = ()
    """Natural-log likelihood of each option's letter, in the order of the options."""

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Confidence in each option: the softmax of the log-likelihoods."""
        return softmax(self.log_likelihoods)

    @property
    def choice(self) -> int:
        """Index of the likeliest option; the first of equals."""
        return max(range(len(self.log_likelihoods)), key=self.log_likelihoods.__getitem__)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answered question, as shown to a person or sent to a program."""

    question: str
    letter: str
    option: str
    confidence: float
    """Probability of the chosen option, in [0, 1]."""
    probabilities: dict[str, float]
    """Probability of each option, by letter; they add up to 1."""
    explanation: str | None
    explanation_finished: bool | None
    """Whether the explanation ended by itself; False if it was cut at the length limit."""
    model: str
    calibration: str | None = None
    """The calibration that was applied; None if the confidence is the model's raw one."""
    answer_set: tuple[str, ...] | None = None
    """Letters that stay in question, the likeliest first; None without a calibration."""
    alpha: float | None = None
    """Share of such sets that may miss the right option."""
    abstain: bool = False
    """Whether the model is not sure enough for the stated risk: the letter is only its best guess."""
    reason: str | None = None
    """Why it abstains or not; None if no risk was stated."""
    caveat: str | None = None
    """Why even the confidence is in doubt; None if nothing is known against it."""
    num_orders: int = 1
    """Option orders that the answer is averaged over."""
    consistency: float | None = None
    """Share of these orders with the same option; None of a single order."""
    explanation_check: dict[str, Any] | None = None
    """What was found of the explanation: `points_to`, `agrees`, `names_choice`, `warning` and more."""
    notice: str = NOTICE

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


def _check_text(name: str, text: object, *, required: bool) -> None:
    if text is None and not required:
        return
    if not isinstance(text, str):
        raise DataError(f"{name} is a {type(text).__name__}, expected a text", "write it in quotes")
    if not text.isascii() and _SURROGATE.search(text):
        raise DataError(f"{name} holds half a character (a lone surrogate)", "save the file as UTF-8 again")


def softmax(log_likelihoods: tuple[float, ...]) -> tuple[float, ...]:
    """Turn log-likelihoods of the options into probabilities that add up to 1."""
    highest = max(log_likelihoods)
    weights = [math.exp(value - highest) for value in log_likelihoods]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
