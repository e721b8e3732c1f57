"""Find questions that say the same, within a corpus and between a corpus and a benchmark.

Texts are compared as sets of three-word runs of the question and its options, whatever the options'
order; MinHash (Broder 1997, through datasketch) finds the candidates, the sets themselves decide.
"""

import dataclasses
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from datasketch import MinHash, MinHashLSH

from medqa.data.vocabulary import LOST
from medqa.records import Example

__all__ = ["Fingerprint", "Groups", "NearIndex", "group_duplicates", "normalise", "same_meaning", "sketches"]

RUN_WORDS = 3
NUM_PERMUTATIONS = 64
GROUP_FROM = 0.5
"""Jaccard similarity from which two questions go into the same split."""

_WORD = re.compile(r"[^\W_]+")
_LOST = re.compile("|".join(LOST))
_CHUNK = 4096
# Questions that differ in one of these words ask for something else.
_TURNS = frozenset(
    [
        "not",
        "no",
        "except",
        "false",
        "true",
        "incorrect",
        "correct",
        "wrong",
        "least",
        "most",
        "never",
        "without",
        "non",
        "neither",
        "nor",
        "all",
        "none",
        "increased",
        "decreased",
        "increase",
        "decrease",
        "left",
        "right",
        "upper",
        "lower",
        "anterior",
        "posterior",
        "medial",
        "lateral",
        "male",
        "female",
        "agonist",
        "antagonist",
        "hyper",
        "hypo",
        "first",
        "second",
        "third",
        "earliest",
        "last",
        "best",
        "worst",
        "more",
        "less",
        "before",
        "after",
    ]
)


def normalise(text: str) -> str:
    """Write a text so that copies are equal: words in lower case, without signs, or letters that get lost."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return " ".join(_WORD.findall(_LOST.sub("", folded)))


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a question is compared by.

    Attributes:
        question: Normalised question.
        options: Normalised options, sorted.
        key: Normalised text of the right option, or "".
        runs: Checksums of the three-word runs.
        turns: Numbers and words that turn a question's meaning.
    """

    question: str
    options: tuple[str, ...]
    key: str
    runs: frozenset[int]
    turns: frozenset[str]

    @classmethod
    def of(cls, example: Example) -> "Fingerprint":
        """Take the fingerprint of a question."""
        question = normalise(f"{example.context or ''} {example.question}")
        options = [normalise(option) or option.strip() for option in example.options]
        key = options[example.answer] if example.answer is not None else ""
        runs: set[int] = set()
        for text in (question, *options):
            words = text.split()
            for i in range(max(1, len(words) - RUN_WORDS + 1)):
                runs.add(zlib.crc32(" ".join(words[i : i + RUN_WORDS]).encode()))
        turns = frozenset(w for w in question.split() if w in _TURNS or any(c.isdigit() for c in w))
        return cls(question, tuple(sorted(options)), key, frozenset(runs), turns)

    @property
    def exact(self) -> bytes:
        """Checksum of question and options, whatever the options' order."""
        text = "\n".join((self.question, *self.options))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def similarity(self, other: "Fingerprint") -> float:
        """Measure the Jaccard similarity of the runs, in [0, 1]."""
        common = len(self.runs & other.runs)
        return common / (len(self.runs) + len(other.runs) - common)


def same_meaning(a: Fingerprint, b: Fingerprint) -> bool:
    """Say whether two similar questions ask the same: no number, "not" or "left" in only one of them."""
    return a.turns == b.turns


class NearIndex:
    """Fingerprints that can be asked for those similar to another one.

    Args:
        threshold: Jaccard similarity that counts.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.2, 0.8))
        self._prints: list[Fingerprint] = []

    def add(self, fingerprint: Fingerprint, sketch: MinHash) -> None:
        """Add one; it is known by its number, counted from 0."""
        self._lsh.insert(len(self._prints), sketch)
        self._prints.append(fingerprint)

    def similar(self, fingerprint: Fingerprint, sketch: MinHash) -> Iterator[tuple[int, float]]:
        """List number and similarity of those that are similar."""
        for number in self._lsh.query(sketch):
            similarity = fingerprint.similarity(self._prints[number])
            if similarity >= self.threshold:
                yield number, similarity


def sketches(fingerprints: Iterable[Fingerprint]) -> Iterator[tuple[Fingerprint, MinHash]]:
    """Pair fingerprints with their MinHash, some thousand at a time."""
    chunk: list[Fingerprint] = []

    def flush() -> Iterator[tuple[Fingerprint, MinHash]]:
        hashes = MinHash.generator(
            [list(f.runs) for f in chunk], num_perm=NUM_PERMUTATIONS, hashfunc=_as_it_is
        )
        yield from zip(chunk, hashes, strict=True)

    for fingerprint in fingerprints:
        chunk.append(fingerprint)
        if len(chunk) == _CHUNK:
            yield from flush()
            chunk = []
    yield from flush()


def _as_it_is(checksum: int) -> int:
    return checksum


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
    index = NearIndex(min(GROUP_FROM, threshold))
    for number, (fingerprint, sketch) in enumerate(sketches(fingerprints)):
        tight.join(number, seen_exact.setdefault(fingerprint.exact, number))
        if fingerprint.question.count(" ") >= RUN_WORDS:
            loose.join(number, seen_question.setdefault(fingerprint.question, number))
        for other, similarity in index.similar(fingerprint, sketch):
            loose.join(number, other)
            if similarity >= threshold and same_meaning(fingerprint, fingerprints[other]):
                tight.join(number, other)
        index.add(fingerprint, sketch)
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
            rows.sort(key=lambda r: (-len(examples[r].explanation or ""), examples[r].content_hash()))
            duplicates.append(rows)
    return Groups([loose.root(number) for number in range(len(examples))], duplicates, conflicts)


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
