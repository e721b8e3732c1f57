"""What the page does when it is asked: the form is read, the service answers, and pieces of HTML come of it.

Nothing here knows gradio, and nothing is kept between two calls: what a visitor asked before is handed in
and handed back.
"""

import contextlib
import dataclasses
import functools
import importlib.resources
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal, Protocol

from medqa.config import ServeConfig
from medqa.data.formats import recognise
from medqa.errors import CalibrationError, DataError, MedQAError
from medqa.records import LETTERS, Answer, Example
from medqa.serve.page_parts import (
    Asked,
    after_part,
    answer_part,
    part,
    problem_part,
    reason_part,
)
from medqa.serve.wire import for_clients

__all__ = ["PLACES", "Answering", "Form", "FormError", "Shown", "asking", "examples", "read_form", "stopped"]

EXAMPLES = ("psychiatry-12", "pathology-13", "pharmacology-05", "anatomy-07")
"""Built-in questions to try; no training question of theirs resembles them."""
MAX_CHARACTERS = 20_000
"""Longest question with its context and options; the model's own limit is found by asking it."""
MAX_HISTORY = 50
EVERY_S = 0.1
"""The explanation is shown anew this often at most: a browser can't keep up with every word."""

Place = Literal["question", "options", "settings", "asking"]
PLACES: tuple[Place, ...] = ("question", "options", "settings", "asking")
"""Where on the page something can be wrong."""

log = logging.getLogger(__name__)


class Answering(Protocol):
    """What the page needs of a service."""

    defaults: ServeConfig
    calibrated: bool

    def stream(
        self, example: Example, *, explain: bool = True, settings: ServeConfig | None = None
    ) -> AsyncIterator[Answer | str]:
        """Give the answer, then pieces of its explanation, then the whole answer."""


class FormError(DataError):
    """The form is filled in wrongly.

    Args:
        place: What of it is wrong.
        message: What is wrong.
        hint: What cures it.
    """

    def __init__(self, place: Place, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.place: Place = place


@dataclasses.dataclass(frozen=True, slots=True)
class Form:
    """What a visitor typed in and chose."""

    question: str
    options: Sequence[str]
    context: str = ""
    explain: bool = True
    alpha: float | None = None
    max_risk: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows from now on.

    Attributes:
        status: One sentence for screen readers; None leaves what is there. So it is with the others.
        answer: The letter and all around it.
        reason: The explanation as far as it is written.
        after: Its check, the notice and the JSON.
        history: What was asked on this visit, the newest first.
        written: The words of the explanation so far; None as long as there is no letter.
        problems: What is wrong, by place; those left out are cleared.
        running: Whether more is to come.
    """

    status: str | None = None
    answer: str | None = None
    reason: str | None = None
    after: str | None = None
    history: tuple[Asked, ...] | None = None
    written: str | None = None
    problems: dict[Place, str] = dataclasses.field(default_factory=dict)
    running: bool = True


@functools.cache
def examples() -> tuple[Example, ...]:
    """Read the built-in questions to try, without their keys."""
    file = importlib.resources.files("medqa.data") / "starter" / "validation.jsonl"
    rows = {row["id"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    read = (recognise(set(rows[name]), str(file)).example(rows[name]) for name in EXAMPLES)
    return tuple(dataclasses.replace(example, answer=None, explanation=None) for example in read)


def read_form(form: Form) -> Example:
    """Make a question of the form.

    Raises:
        FormError: If it is not filled in as it should be.
    """
    question, context = form.question.strip(), form.context.strip()
    options = [option.strip() for option in form.options]
    while options and not options[-1]:  # empty lines at the end are not meant
        options.pop()
    if not question:
        raise FormError("question", "There is no question yet.", "Type it in, paste one or take an example.")
    length = len(question) + len(context) + sum(map(len, options))
    if length > MAX_CHARACTERS:
        raise FormError(
            "question",
            f"The question is too long: {length:,} characters with context and options.",
            f"At most {MAX_CHARACTERS:,} can be read. Shorten it.",
        )
    if len(options) < 2:
        raise FormError("options", "A question needs at least two options.", "Fill in A and B.")
    for place, option in enumerate(options):
        if not option:
            raise FormError("options", f"Option {LETTERS[place]} is empty.", "Fill it in or remove it.")
        if (first := options.index(option)) < place:
            raise FormError(
                "options",
                f"Options {LETTERS[first]} and {LETTERS[place]} are the same.",
                "Change or remove one of them.",
            )
    try:
        return Example(question, tuple(options), context=context or None)
    except DataError as exc:
        raise FormError("question", exc.message, exc.hint) from exc


def _settings(form: Form, service: Answering) -> ServeConfig:
    if not service.calibrated:
        return service.defaults
    alpha = service.defaults.alpha if form.alpha is None else form.alpha
    return service.defaults.model_copy(update={"alpha": alpha, "max_risk": form.max_risk})


def _place(error: MedQAError) -> Place:
    if isinstance(error, FormError):
        return error.place
    if isinstance(error, CalibrationError):
        return "settings"
    return "question" if isinstance(error, DataError) else "asking"


async def asking(service: Answering, form: Form, history: Sequence[Asked]) -> AsyncGenerator[Shown, None]:
    """Ask, and tell step by step what to show. Never fails: what goes wrong is said on the page."""
    shown_letter = False
    try:
        example = read_form(form)
        yield Shown("Asking.", part("asking"), "", "")
        async with contextlib.aclosing(_answered(service, form, example, tuple(history))) as steps:
            async for shown in steps:
                shown_letter = True
                yield shown
    except MedQAError as exc:
        yield _failed(for_clients(exc), _place(exc), shown_letter)
    except Exception:
        # A bug. The visitor can do nothing about it and must not see what is inside.
        log.exception("The page could not answer a question")
        error = MedQAError("Something is wrong with this program.", "Its log says what. Try again later.")
        yield _failed(error, "asking", shown_letter)


def _failed(error: MedQAError, place: Place, shown_letter: bool) -> Shown:
    problems = {place: problem_part(error)}
    if shown_letter:  # the letter stands; only the explanation is missing
        return Shown("The explanation could not be finished.", problems=problems, running=False)
    nothing = part("start") if isinstance(error, FormError) else part("failed")
    return Shown("No answer.", nothing, "", "", problems=problems, running=False)


async def _answered(
    service: Answering, form: Form, example: Example, history: tuple[Asked, ...]
) -> AsyncGenerator[Shown, None]:
    stream = service.stream(example, explain=form.explain, settings=_settings(form, service))
    text, last, shown_at = "", None, 0.0
    # A visitor who stops or leaves ends this generator; the service must hear of it at once.
    async with contextlib.aclosing(stream) as parts:  # type: ignore[type-var]
        async for found in parts:
            if isinstance(found, Answer):
                text, last = found.explanation or "", found
                done = found.explanation is not None or not form.explain
                kept = (Asked(example, found), *history)[:MAX_HISTORY]
                yield _with_answer(example, found, kept, done=done)
            else:
                text += found
                if time.monotonic() - shown_at >= EVERY_S:
                    shown_at = time.monotonic()
                    yield Shown(reason=reason_part(text, "writing"), written=text)
    if last is None:
        raise AssertionError("the service gave no answer")


def _with_answer(example: Example, answer: Answer, kept: tuple[Asked, ...], *, done: bool) -> Shown:
    best = f"{answer.letter}, {answer.option}"
    said = f"Not sure enough to answer. Best guess: {best}." if answer.abstain else f"Answer: {best}."
    reason = ""
    if not done:
        reason = reason_part("", "writing")
        said += " The explanation is being written."
    elif answer.explanation is not None:
        reason = reason_part(answer.explanation, "done")
        said = "The explanation is written."
    written = answer.explanation or ""
    return Shown(
        said, answer_part(answer, example), reason, after_part(answer), kept, written, running=not done
    )


def stopped(written: str | None) -> Shown:
    """Say how far it came when the visitor stopped it.

    Args:
        written: The words of the explanation so far; None if there was no letter yet.
    """
    if written is None:
        return Shown("Stopped.", part("stopped"), "", "", running=False)
    return Shown("Stopped. The letter stands.", reason=reason_part(written, "stopped"), running=False)
