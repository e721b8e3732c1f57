"""Find questions that say the same, within a corpus."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence

from medqa.data.fingerprints import RUN_WORDS, Fingerprint, NearIndex
from medqa.records import Example

__all__ = ["Groups", "group_duplicates", "same_meaning"]

GROUP_FROM = 0.5
"""Jaccard similarity from which two questions go into the same split."""

_SPELLING = 0.75
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        """
        the a an is are was were be of in on at for to with by as from and or it its this that
        these which what who following seen found one mc mcc commonly usually true statement
        regarding about aiims pgi jipmer nov may june dec jan feb march s
        """,
    )
)


def same_meaning(a: Fingerprint, b: Fingerprint) -> bool:
    """Say whether two similar questions ask the same.

    They don't if a number, "not" or "left" is in only one of them, if they are about different cases, or if
    they differ in a word that is no other spelling of one in the other.
    """
    if a.context != b.context or a.turns != b.turns:
        return False
    if a.question == b.question:
        return True
    own, other = set(a.question.split()), set(b.question.split())
    return _only_spelling(own - other, other - own) and _only_spelling(other - own, own - other)


def _keys_meet(a: Fingerprint, b: Fingerprint) -> bool:
    """Say whether two keys are the same, another spelling, or one is a wrong option of the other question."""
    if a.key == b.key or a.key in b.options or b.key in a.options:
        return True
    return difflib.SequenceMatcher(None, a.key, b.key).ratio() >= _SPELLING


def _only_spelling(words: set[str], others: set[str]) -> bool:
    return all(
        word in _FILLERS or difflib.get_close_matches(word, others, n=1, cutoff=_SPELLING) for word in words
    )


@dataclasses.dataclass(frozen=True)
class Groups:
    """What belongs together in a corpus.

    Attributes:
        split: For each row, the number of its group; a group is never cut by a split.
        duplicates: Groups of rows that say the same and agree in their key; the row to keep comes first.
        conflicts: Groups of rows that say the same and give different keys.
    """

    split: list[int]
    duplicates: list[list[int]]
    conflicts: list[list[int]]

    @property
    def copies(self) -> set[int]:
        """Rows that another one stands for."""
        return {row for rows in self.duplicates for row in rows[1:]}

    @property
    def conflicting(self) -> set[int]:
        """Rows of groups with different keys."""
        return {row for rows in self.conflicts for row in rows}


def group_duplicates(
    examples: Sequence[Example],
    fingerprints: Sequence[Fingerprint],
    threshold: float,
    advance: Callable[[int], None] = lambda n: None,
) -> Groups:
    """Group the rows of a corpus that say the same.

    Args:
        examples: The rows.
        fingerprints: Theirs.
        threshold: Jaccard similarity from which two rows with the same numbers and turns are duplicates.
        advance: Told how many rows are done.
    """
    loose, tight = _Sets(len(examples)), _Sets(len(examples))
    seen_exact: dict[bytes, int] = {}
    seen_question: dict[str, int] = {}
    seen_context: dict[str, int] = {}
    index = NearIndex(min(GROUP_FROM, threshold))
    for number, fingerprint in enumerate(fingerprints):
        tight.join(number, seen_exact.setdefault(fingerprint.exact, number))
        if fingerprint.question.count(" ") >= RUN_WORDS:
            loose.join(number, seen_question.setdefault(fingerprint.question, number))
        if fingerprint.context:
            loose.join(number, seen_context.setdefault(fingerprint.context, number))
        for other, similarity in index.similar(fingerprint):
            loose.join(number, other)
            found = fingerprints[other]
            if (
                similarity >= threshold
                and same_meaning(fingerprint, found)
                and _keys_meet(fingerprint, found)
            ):
                tight.join(number, other)
        index.add(fingerprint)
        if number % 1000 == 999:
            advance(1000)
    advance(len(examples) % 1000)
    duplicates, conflicts = [], []
    for rows in tight.groups():
        for row in rows[1:]:
            loose.join(rows[0], row)
        if _disagree([fingerprints[row] for row in rows]):
            conflicts.append(rows)
        else:
            # The fullest row stays: with the longest explanation, then the first by content.
            rows.sort(key=lambda r: _rank(examples[r]))
            duplicates.append(rows)
    return Groups([loose.root(number) for number in range(len(examples))], duplicates, conflicts)


def _rank(example: Example) -> tuple[int, str, str, str]:
    text = example.explanation or ""
    return -len(text), example.content_hash(), text, example.id


def _disagree(group: list[Fingerprint]) -> bool:
    """Say whether one row's key is another one's wrong option."""
    keys = {f.key for f in group if f.key}
    return any(key != f.key and key in f.options for f in group if f.key for key in keys)


class _Sets:
    """Disjoint sets of numbers (union-find)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, number: int) -> int:
        while (parent := self._parent[number]) != number:
            self._parent[number] = number = self._parent[parent]
        return number

    def join(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self._parent[max(a, b)] = min(a, b)

    def groups(self) -> list[list[int]]:
        """List the sets of two and more."""
        members: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            members.setdefault(self.root(number), []).append(number)
        return [rows for rows in members.values() if len(rows) > 1]
