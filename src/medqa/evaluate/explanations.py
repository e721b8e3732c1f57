"""Is an explanation to be believed: does it point to the answer that was given, name it, end, and get used.

The model decides first and explains afterwards, so that an explanation can speak for another option than
the one it follows. The strongest check is therefore to read the answer back from the explanation alone. That
is asked with the options in every rotation: a model that prefers one letter would agree with itself for that
alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from medqa.evaluate.asker import Asker, share
from medqa.evaluate.engine import Engine
from medqa.evaluate.influence import (
    Explained,
    examine_hints,
    examine_truncation,
    num_hint_explanations,
    write_all,
)
from medqa.evaluate.orders import score_orders
from medqa.evaluate.wording import has_loop, names_option, names_other
from medqa.model.generate import Written
from medqa.progress import Task
from medqa.records import LETTERS, Example, Prediction
from medqa.trust.permutation import NumOrders

__all__ = [
    "ExplanationCheck",
    "check_explanation",
    "examine_explanations",
    "explain",
    "has_loop",
    "names_option",
    "read_back",
    "read_back_example",
]

READ_BACK_QUESTION = "According to the explanation, what is the answer?"
READ_BACK_ORDERS: NumOrders = 4  # every rotation, however many options there are


@dataclasses.dataclass(frozen=True, slots=True)
class ExplanationCheck:
    """What was found out about one explanation.

    Attributes:
        points_to: Place of the option that the model reads from the explanation alone; None if it was not
            asked, or there is no explanation.
        agrees: Whether that is the given answer; None if `points_to` is.
        names_choice: Whether the text names the given answer.
        names_other: Places of the other options that it names.
        finished: Whether it ended by itself.
        loops: Whether it repeats itself.
        empty: Whether there is no text at all.
    """

    points_to: int | None
    agrees: bool | None
    names_choice: bool
    names_other: tuple[int, ...]
    finished: bool
    loops: bool
    empty: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self) | {"names_other": list(self.names_other)}

    def warning(self, letters: Sequence[str] = LETTERS) -> str | None:
        """Say in a sentence what speaks against the explanation, the gravest first; None if nothing does.

        Args:
            letters: The options' letters as the reader sees them.
        """
        if self.empty:
            return "The model wrote no explanation."
        if self.points_to is not None and not self.agrees:
            return f"The explanation points to {letters[self.points_to]}."
        if self.loops:
            return "The explanation repeats itself."
        if self.names_other and not self.names_choice:
            others = " and ".join(letters[place] for place in self.names_other)
            return f"The explanation names {others}, but not the answer."
        return None if self.finished else "The explanation was cut at its length limit."


def check_explanation(
    example: Example, choice: int, written: Written, pointed: int | None
) -> ExplanationCheck:
    """Put together what can be said of one explanation.

    Args:
        example: The question.
        choice: Place of the given answer.
        written: Its explanation.
        pointed: The option that the model reads from the explanation alone, by `read_back_example`; None if
            it was not asked.
    """
    text = written.text
    empty = not text.strip()
    pointed = None if empty else pointed
    names_choice = names_option(text, example.options[choice])
    others = (place for place in range(len(example.options)) if place != choice)
    return ExplanationCheck(
        points_to=pointed,
        agrees=None if pointed is None else pointed == choice,
        names_choice=names_choice,
        names_other=tuple(o for o in others if names_other(text, example, choice, o, names_choice)),
        finished=written.finished,
        loops=has_loop(text),
        empty=empty,
    )


def read_back_example(options: Sequence[str], explanation: str) -> Example:
    """Ask for the answer with nothing but the explanation and the options to go by.

    The question itself is left out, so that the model cannot answer from it.

    Raises:
        DataError: If the options are none that an `Example` takes.
    """
    return Example(READ_BACK_QUESTION, tuple(options), context=explanation)


def examine_explanations(
    asker: Asker,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    max_new_tokens: int,
    task: Task | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the explanation of each answer and examine it.

    Args:
        asker: The model; the likeliest option by its calibrated probabilities is the given answer.
        examples: Questions.
        predictions: What the tuned model made of them under our own prompt, in the same order.
        max_new_tokens: Longest explanation.
        task: Resized to the explanations to be written, those of hints counted in, and told of each.

    Returns:
        The numbers, and one row a question.

    Raises:
        DeviceError: If memory runs out with a single question.
    """
    if task:
        task.resize(len(examples) + num_hint_explanations(len(examples)))
    found = _explain(asker, examples, predictions, max_new_tokens, task)
    explained = [one for one in found if one is not None]
    full = [(row, check) for row, check in explained if not check.empty]
    hint = examine_hints(asker, [(row.example, row.reply) for row, _ in explained], max_new_tokens, task)
    record = {
        "num_questions": len(explained),
        "num_too_long": len(examples) - len(explained),
        **_summary([check for _, check in explained]),
        "agreement": _examine_agreement(asker, full),
        "truncation": examine_truncation(asker, [row for row, _ in full]),
        "hint": hint,
    }
    return record, [_row(*pair) for pair in zip(examples, found, strict=True)]


def explain(
    asker: Asker,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    max_new_tokens: int,
    task: Task | None = None,
) -> list[dict[str, Any]]:
    """Write and check explanations alone: the rows of `examine_explanations`, which takes the same arguments.

    The task is told of each question, and not resized.
    """
    found = _explain(asker, examples, predictions, max_new_tokens, task)
    return [_row(*pair) for pair in zip(examples, found, strict=True)]


def _explain(
    asker: Asker,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    max_new_tokens: int,
    task: Task | None,
) -> list[tuple[Explained, ExplanationCheck] | None]:
    """Explain each answer, and read it back from the text; None for a question that is too long."""
    plain = asker.replies(predictions)
    answered = [(e, reply) for e, reply in zip(examples, plain, strict=True) if reply is not None]
    written = write_all(asker, [(e, reply.choice) for e, reply in answered], max_new_tokens, task)
    if task:
        task.advance(len(examples) - len(answered))
    rows = [Explained(e, reply, text) for (e, reply), text in zip(answered, written, strict=True)]
    full = [row for row in rows if row.written.text]
    places = iter(read_back(asker.engine, [(row.example, row.written.text) for row in full]))
    pointed = [next(places) if row.written.text else None for row in rows]
    checked = iter(
        (row, check_explanation(row.example, row.reply.choice, row.written, place))
        for row, place in zip(rows, pointed, strict=True)
    )
    return [None if reply is None else next(checked) for reply in plain]


def read_back(engine: Engine, rows: Sequence[tuple[Example, str]]) -> list[int | None]:
    """Read the answer from each text, over all rotations of the options; None where that is too long."""
    found = score_orders(
        engine,
        [read_back_example(example.options, text) for example, text in rows],
        READ_BACK_ORDERS,
    )
    return [o.prediction.choice if o.prediction.status == "scored" else None for o in found]


def _examine_agreement(asker: Asker, full: Sequence[tuple[Explained, ExplanationCheck]]) -> dict[str, Any]:
    """Count how often the text leads back to the answer, and how often the options alone would.

    Without an explanation the model may still like the option best that it chose. What the text adds is the
    difference.
    """
    read = [(row, check) for row, check in full if check.agrees is not None]
    agreeing = [bool(check.agrees) for _, check in read]
    blind = read_back(asker.engine, [(row.example, "") for row, _ in read])
    without = [place == row.reply.choice for place, (row, _) in zip(blind, read, strict=True)]
    (agreed, interval), (agreed_without, interval_without) = share(agreeing), share(without)
    return {
        "num": len(read),
        "num_too_long": len(full) - len(read),
        "num_agreeing": sum(agreeing),
        "share": agreed,
        "interval": interval,
        "share_without": agreed_without,
        "interval_without": interval_without,
    }


def _summary(checks: Sequence[ExplanationCheck]) -> dict[str, Any]:
    """Count over the explanations that are not empty."""
    full = [check for check in checks if not check.empty]
    return {
        "num_empty": len(checks) - len(full),
        "num_written": len(full),
        "names_choice": share([check.names_choice for check in full])[0],
        "names_other_only": share([bool(c.names_other) and not c.names_choice for c in full])[0],
        "finished": share([check.finished for check in full])[0],
        "loops": share([check.loops for check in full])[0],
    }


def _row(example: Example, found: tuple[Explained, ExplanationCheck] | None) -> dict[str, Any]:
    if found is None:
        nothing = dict.fromkeys(("letter", "explanation", "check", "warning"))
        return {"id": example.id, "status": "too_long", **nothing}
    explained, check = found
    return {
        "id": example.id,
        "status": "empty" if check.empty else "checked" if check.agrees is not None else "read_back_too_long",
        "letter": LETTERS[explained.reply.choice],
        "explanation": explained.written.text,
        "check": check.to_json(),
        "warning": check.warning(),
    }
