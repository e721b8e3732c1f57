"""Leak audit: which evaluation questions a model may know from training, or answer without knowing.

Four ways in from the training rows (the same question exactly, nearly, with other options, or only the same
options and key), and one flaw of the question itself (its own text holds the answer).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from medqa.data.fingerprints import RUN_WORDS, Fingerprint, NearIndex
from medqa.records import Example

__all__ = ["DROPPED", "KINDS", "LeakAudit", "audit_leaks"]

KINDS = {
    "exact": "the same question with the same options is in the training rows",
    "near": "nearly the same question with nearly the same options is in the training rows; a number or a "
    '"not" may differ',
    "stem": "the same question with other options but the same answer is in the training rows",
    "options": "the same options with the same answer are in the training rows, under another question",
    "answer in stem": "the question's own text holds the right option and no other one",
}
"""Kinds of leaks, most serious first, with their meaning."""

DROPPED = ("exact", "near", "stem")
"""Kinds for which the training rows are left out."""

_MIN_KEY_LETTERS = 6
_MIN_OPTION_LETTERS = 16


@dataclasses.dataclass(frozen=True)
class LeakAudit:
    """What an audit found.

    Attributes:
        flagged: Ids of the evaluation questions, by kind; each under its most serious kind only.
        train_rows: Training rows to leave out: kind of leak by number.
        pairs: Of each kind, pairs of training row and evaluation question.
        num_evaluation: Evaluation questions in all.
    """

    flagged: dict[str, list[str]]
    train_rows: dict[int, str]
    pairs: dict[str, list[tuple[int, int]]]
    num_evaluation: int

    @property
    def ids(self) -> set[str]:
        """Ids of all flagged questions."""
        return {id for ids in self.flagged.values() for id in ids}

    def record(self) -> dict[str, Any]:
        """Counts and ids, for data.json."""
        return {
            "num_questions": self.num_evaluation,
            "num_flagged": len(self.ids),
            "counts": {kind: len(ids) for kind, ids in self.flagged.items()},
            "num_train_rows_left_out": len(self.train_rows),
            "flagged": self.flagged,
        }


def audit_leaks(train: Iterable[Fingerprint], evaluation: Sequence[Example], threshold: float) -> LeakAudit:
    """Look for evaluation questions in the training rows.

    The evaluation questions are held in memory, the training rows pass by.

    Args:
        train: Fingerprints of the training rows.
        evaluation: Questions to be measured on.
        threshold: Jaccard similarity that counts as nearly the same.
    """
    prints = [Fingerprint.of(example) for example in evaluation]
    index = NearIndex(threshold)
    exact: dict[bytes, list[int]] = {}
    stems: dict[tuple[str, str, str], list[int]] = {}
    options: dict[tuple[tuple[str, ...], str], list[int]] = {}
    for number, fingerprint in enumerate(prints):
        index.add(fingerprint)
        exact.setdefault(fingerprint.exact, []).append(number)
        if fingerprint.question.count(" ") >= RUN_WORDS:
            stems.setdefault((fingerprint.context, fingerprint.question, fingerprint.key), []).append(number)
        if len("".join(fingerprint.options)) >= _MIN_OPTION_LETTERS:  # "A", "B", "C", "D" says nothing
            options.setdefault((fingerprint.options, fingerprint.key), []).append(number)
    pairs: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}
    train_rows: dict[int, str] = {}
    for row, fingerprint in enumerate(train):
        found = {
            "exact": exact.get(fingerprint.exact, []),
            "near": [
                number
                for number, _ in index.similar(fingerprint)
                if prints[number].context == fingerprint.context
            ],
            "stem": stems.get((fingerprint.context, fingerprint.question, fingerprint.key), []),
            "options": options.get((fingerprint.options, fingerprint.key), []),
        }
        for kind, numbers in found.items():
            pairs[kind] += [(row, number) for number in numbers]
            if numbers and kind in DROPPED:
                train_rows.setdefault(row, kind)
    given_away = [n for n, f in enumerate(prints) if _holds_its_answer(f)]
    return LeakAudit(_by_kind(pairs, given_away, evaluation), train_rows, pairs, len(evaluation))


def _by_kind(
    pairs: dict[str, list[tuple[int, int]]], given_away: list[int], evaluation: Sequence[Example]
) -> dict[str, list[str]]:
    """List each flagged question under its most serious kind."""
    flagged: dict[str, list[str]] = {}
    taken: set[int] = set()
    for kind in KINDS:
        numbers = given_away if kind == "answer in stem" else [number for _, number in pairs[kind]]
        new = sorted(set(numbers) - taken)
        taken.update(new)
        flagged[kind] = [evaluation[number].id for number in new]
    return flagged


def _holds_its_answer(fingerprint: Fingerprint) -> bool:
    """Say whether the question's text holds the right option, and no other one."""

    def holds(option: str) -> bool:
        return len(option) >= _MIN_KEY_LETTERS and f" {option} " in f" {fingerprint.question} "

    return holds(fingerprint.key) and not any(
        holds(option) for option in fingerprint.options if option != fingerprint.key
    )
