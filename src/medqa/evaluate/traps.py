"""Known traps of multiple-choice models, measured: questions changed so that it is known what should happen.

Each trap makes another question of a question. All of them are scored in one go and compared with the same
questions untouched. What is drawn is drawn by hash: the order of the questions never matters.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from medqa.data.draw import draw_hash, reordered
from medqa.data.fingerprints import normalise
from medqa.data.markers import is_anchored
from medqa.evaluate.asker import Asker, Reply, mean, share
from medqa.progress import Task
from medqa.records import Example, Prediction
from medqa.trust import bootstrap_interval

__all__ = ["LANGUAGES", "NONE_OF_THE_ABOVE", "TRAPS", "Donors", "Trap", "language_questions", "spring_traps"]

NONE_OF_THE_ABOVE = "None of the above"
NO_QUESTION = "Choose the best option."
NO_OPTION = "(not shown)"
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "hi": "Hindi"}

Expected = Literal["falls", "stays", "chance"]


@functools.lru_cache(maxsize=65536)
def _plain(option: str) -> str:
    return normalise(option) or option.strip()


class Donors:
    """The questions that may lend their options to others, in an order by hash.

    Options that speak of others mean something else beside other options, so that their questions lend none.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        fit = [example for example in examples if not any(map(is_anchored, example.options))]
        self._all = sorted(fit, key=lambda example: draw_hash(example, 0, "donor"))
        self._by_subject: dict[str, list[Example]] = {}
        for example in self._all:
            if example.subject:
                self._by_subject.setdefault(example.subject, []).append(example)

    def right_option(self, example: Example) -> str | None:
        """Draw another question's right option, of the same subject where possible, that is not there yet."""
        taken = set(map(_plain, example.options))
        for donors in (self._by_subject.get(example.subject or "", []), self._all):
            for donor in _from_hash(donors, example, "right option"):
                if donor.answer is not None and _plain(donor.options[donor.answer]) not in taken:
                    return donor.options[donor.answer]
        return None

    def other_options(self, example: Example) -> tuple[str, ...] | None:
        """Draw all options of a question of another subject; none of them is one of the question's own."""
        if not example.subject or not self._by_subject.keys() - {example.subject}:
            return None
        taken = set(map(_plain, example.options))
        for donor in _from_hash(self._all, example, "other options"):
            elsewhere = donor.subject and donor.subject != example.subject
            if elsewhere and taken.isdisjoint(map(_plain, donor.options)):
                return donor.options
        return None


def _from_hash(donors: Sequence[Example], example: Example, purpose: str) -> Iterator[Example]:
    """Go once round the donors, from a place that the question's hash gives."""
    start = int(draw_hash(example, 0, purpose), 16) % max(1, len(donors))
    for number in range(len(donors)):
        yield donors[(start + number) % len(donors)]


class Trap(NamedTuple):
    """One way to change a question.

    Attributes:
        name: Short name, for programs.
        title: What is done, in a sentence.
        expected: What confidence should do: "falls", "stays", or "chance", where what is left of the question
            says nothing of the answer.
        change: Makes the changed question; None of a question that is not fit for it.
    """

    name: str
    title: str
    expected: Expected
    change: Callable[[Example, Donors], Example | None]


def _options_only(example: Example, _: Donors) -> Example | None:
    keyed = example.answer is not None
    return dataclasses.replace(example, question=NO_QUESTION, context=None) if keyed else None


def _question_only(example: Example, _: Donors) -> Example | None:
    # Options that speak of others do no harm here: no option keeps its text.
    keyed = example.answer is not None
    return dataclasses.replace(example, options=(NO_OPTION,) * len(example.options)) if keyed else None


def _may_change_options(example: Example) -> bool:
    """Say whether options can be moved and replaced: none speaks of others, none is there twice."""
    free = example.answer is not None and example.repeated_option() is None
    return free and not any(map(is_anchored, example.options))


def _none_instead_of(example: Example, place: int) -> Example:
    """Replace an option by "None of the above", at the last place; the key goes with its text."""
    order = [other for other in range(len(example.options)) if other != place] + [place]
    moved = reordered(example, order)
    return dataclasses.replace(moved, options=(*moved.options[:-1], NONE_OF_THE_ABOVE))


def _none_right(example: Example, _: Donors) -> Example | None:
    if example.answer is None or not _may_change_options(example):
        return None
    return _none_instead_of(example, example.answer)


def _none_wrong(example: Example, _: Donors) -> Example | None:
    if not _may_change_options(example):
        return None
    wrong = [place for place in range(len(example.options)) if place != example.answer]
    return _none_instead_of(example, wrong[int(draw_hash(example, 0, "none wrong"), 16) % len(wrong)])


def _no_right_option(example: Example, donors: Donors) -> Example | None:
    if example.answer is None or not _may_change_options(example):
        return None
    if (foreign := donors.right_option(example)) is None:
        return None
    options = list(example.options)
    options[example.answer] = foreign
    return dataclasses.replace(example, options=tuple(options), answer=None)


def _absurd(example: Example, donors: Donors) -> Example | None:
    options = donors.other_options(example)
    return None if options is None else dataclasses.replace(example, options=options, answer=None)


TRAPS = (
    Trap("options_only", "The question is taken away: only the options are shown.", "chance", _options_only),
    Trap(
        "question_only", "The options are taken away: only their letters are shown.", "chance", _question_only
    ),
    Trap("none_right", 'The right option becomes "None of the above".', "stays", _none_right),
    Trap("none_wrong", 'A wrong option becomes "None of the above".', "stays", _none_wrong),
    Trap(
        "no_right_option",
        "The right option is replaced by one of another question: no option is right.",
        "falls",
        _no_right_option,
    ),
    Trap("absurd", "All options are those of a question of another subject.", "falls", _absurd),
)


def language_questions() -> dict[str, list[Example]]:
    """Read the same textbook questions in English ("en") and in each of `LANGUAGES`."""
    text = (importlib.resources.files("medqa.evaluate") / "languages.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return {
        code: [
            Example(
                row[code]["question"],
                tuple(row[code]["options"]),
                answer=row["answer"],
                id=f"{row['id']}-{code}",
                subject=row["subject"],
                source="medqa",
                licence="Apache-2.0",
            )
            for row in rows
        ]
        for code in ("en", *LANGUAGES)
    }


class _Sprung(NamedTuple):
    """A trap with its questions, before they are asked."""

    name: str
    title: str
    expected: Expected
    changed: list[Example]
    plain: list[Reply | None]
    answers: list[int | None]
    num_left_out: int


def spring_traps(
    asker: Asker,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    task: Task | None = None,
) -> list[dict[str, Any]]:
    """Ask changed questions and compare with the same ones untouched.

    Args:
        asker: The model.
        examples: Questions.
        predictions: What the tuned model made of them under our own prompt, in the same order.
        task: Resized to the number of changed questions, and told of progress.

    Returns:
        One record a trap, of `TRAPS` and then of `LANGUAGES`, whose untouched questions are the English ones.

    Raises:
        DeviceError: If memory runs out with a single question.
    """
    plain, donors = asker.replies(predictions), Donors(examples)
    sprung = [_spring(trap, examples, plain, donors) for trap in TRAPS]
    languages = language_questions()
    english = languages["en"]
    asked = [*english, *(example for trap in sprung for example in trap.changed)]
    asked += [example for code in LANGUAGES for example in languages[code]]
    if task:
        task.resize(len(asked))
    replies = iter(asker.ask(asked, task))
    in_english = [next(replies) for _ in english]
    answers = [example.answer for example in english]
    sprung += [
        _Sprung(f"language_{code}", f"Textbook questions in {name}, not English.", "stays", *parts, 0)
        for code, name in LANGUAGES.items()
        for parts in [(languages[code], in_english, answers)]
    ]
    return [_measure(trap, [next(replies) for _ in trap.changed]) for trap in sprung]


def _spring(
    trap: Trap, examples: Sequence[Example], plain: Sequence[Reply | None], donors: Donors
) -> _Sprung:
    changed = [trap.change(example, donors) for example in examples]
    return _Sprung(
        trap.name,
        trap.title,
        trap.expected,
        [example for example in changed if example],
        [reply for reply, example in zip(plain, changed, strict=True) if example],
        [before.answer for before, example in zip(examples, changed, strict=True) if example],
        changed.count(None),
    )


def _measure(trap: _Sprung, replies: Sequence[Reply | None]) -> dict[str, Any]:
    """Count over the questions that were short enough, both untouched and changed."""
    columns = zip(trap.changed, replies, trap.plain, trap.answers, strict=True)
    rows = [(changed, new, old, answer) for changed, new, old, answer in columns if new and old]
    right = [new.choice == changed.answer for changed, new, _, _ in rows if changed.answer is not None]
    right_plain = [old.choice == answer for _, _, old, answer in rows if answer is not None]
    chosen = [changed.options[new.choice] == NONE_OF_THE_ABOVE for changed, new, _, _ in rows]
    accuracy, interval = share(right)
    chose_none, chose_none_interval = share(chosen if trap.name in ("none_right", "none_wrong") else [])
    before, after = [old.confidence for _, _, old, _ in rows], [new.confidence for _, new, _, _ in rows]
    return {
        "name": trap.name,
        "title": trap.title,
        "expected": trap.expected,
        "num_questions": len(rows),
        "num_left_out": trap.num_left_out,
        "num_too_long": len(trap.changed) - len(rows),
        "accuracy": accuracy,
        "accuracy_interval": interval,
        "accuracy_plain": share(right_plain)[0],
        "chance": mean([1 / len(changed.options) for changed, *_ in rows]),
        "confidence": mean(after),
        "confidence_plain": mean(before),
        **_change(before, after),
        "chose_none": chose_none,
        "chose_none_interval": chose_none_interval,
    }


def _change(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return the mean change, with an interval by pairs; None of no question."""
    if not before:
        return {"confidence_change": None, "confidence_change_interval": None}
    change = np.array(after) - np.array(before)
    interval = bootstrap_interval(lambda drawn: float(drawn.mean()), change)
    return {"confidence_change": float(change.mean()), "confidence_change_interval": list(interval)}
