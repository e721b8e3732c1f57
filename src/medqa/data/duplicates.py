"""Find questions that say the same, within a corpus and between a corpus and a benchmark.

Texts are compared as sets of three-word runs of the question and its options, whatever the options'
order; MinHash (Broder 1997, through datasketch) finds the candidates, the sets themselves decide.
"""

import dataclasses
import difflib
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from datasketch import MinHash, MinHashLSH

from medqa.data.layout import strip_markup
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
_SPELLING = 0.75
_SIGNS = {"<": "below", ">": "above", "+": "plus", "-": "minus", "=": "equals", ".": "point"}
# Next to a digit, or as a charge at the end of a symbol: nowhere else do signs mean anything.
_SIGN = re.compile(r"[<>=]\s*(?=\d)|(?<![\w)])-(?=\d)|(?<=[A-Za-z0-9])[+-](?=$|\s|[,;)])|(?<=\d)\.(?=\d)")
_FILLERS = frozenset(
    _WORD.findall(
        """
        the a an is are was were be of in on at for to with by as from and or it its this that
        these which what who following seen found one mc mcc commonly usually true statement
        regarding about aiims pgi jipmer nov may june dec jan feb march s
        """
    )
)
# Questions that differ in one of these words ask for something else.
_TURNS = frozenset(
    _WORD.findall(
        """
        not no except false true incorrect correct wrong least most never without non neither
        nor all none increased decreased increase decrease left right upper lower anterior
        posterior medial lateral male female agonist antagonist hyper hypo first second third
        earliest last best worst more less before after positive negative acute chronic systolic
        diastolic
        """
    )
)


def normalise(text: str) -> str:
    """Write a text so that copies are equal: words in lower case, without signs, or letters that get lost."""
    folded = unicodedata.normalize("NFKC", strip_markup(text)).lower()
    return " ".join(_WORD.findall(_LOST.sub("", folded)))


def _normalise_option(text: str) -> str:
    """Write an option so; "> 10" and "< 10", "Fe2+" and "Fe2-", "1.5" and "15" stay apart."""
    signed = _SIGN.sub(lambda match: f" {_SIGNS[match[0].strip()]} ", text)
    return normalise(signed) or text.strip()


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a question is compared by.

    Attributes:
        question: Normalised question.
        options: Normalised options, sorted.
        key: Normalised text of the right option, or "".
        context: Normalised context; questions on one case are different questions.
        runs: Checksums of the three-word runs of question and options.
        turns: Numbers and words that turn a question's meaning.
    """

    question: str
    options: tuple[str, ...]
    key: str
    context: str
    runs: frozenset[int]
    turns: frozenset[str]

    @classmethod
    def of(cls, example: Example) -> "Fingerprint":
        """Take the fingerprint of a question."""
        question = normalise(example.question)
        options = [_normalise_option(option) for option in example.options]
        key = options[example.answer] if example.answer is not None else ""
        runs: set[int] = set()
        for text in (question, *options):
            words = text.split()
            for i in range(max(1, len(words) - RUN_WORDS + 1)):
                runs.add(zlib.crc32(" ".join(words[i : i + RUN_WORDS]).encode()))
        turns = frozenset(w for w in question.split() if w in _TURNS or any(c.isdigit() for c in w))
        context = normalise(example.context or "")
        return cls(question, tuple(sorted(options)), key, context, frozenset(runs), turns)

    @property
    def exact(self) -> bytes:
        """Checksum of question and options, whatever the options' order."""
        text = "\n".join((self.context, self.question, *self.options))
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def similarity(self, other: "Fingerprint") -> float:
        """Measure the Jaccard similarity of the runs, in [0, 1]."""
        common = len(self.runs & other.runs)
        return common / (len(self.runs) + len(other.runs) - common)


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
    for number, (fingerprint, sketch) in enumerate(sketches(fingerprints)):
        tight.join(number, seen_exact.setdefault(fingerprint.exact, number))
        if fingerprint.question.count(" ") >= RUN_WORDS:
            loose.join(number, seen_question.setdefault(fingerprint.question, number))
        if fingerprint.context:
            loose.join(number, seen_context.setdefault(fingerprint.context, number))
        for other, similarity in index.similar(fingerprint, sketch):
            loose.join(number, other)
            found = fingerprints[other]
            if (
                similarity >= threshold
                and same_meaning(fingerprint, found)
                and _keys_meet(fingerprint, found)
            ):
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
