"""The words of a corpus: what is known, how common it is, and in which rows letters may be missing.

Learnt in one pass from the very questions that will be cleaned, beside a general English word list
(pyspellchecker's, from OpenSubtitles), so that rules can tell a term from a damaged word.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

from medqa.data.workers import map_in_processes
from medqa.records import Example

__all__ = ["INNER_CAPITAL", "LOST", "TOKEN", "Vocabulary", "fold", "row_text", "runs", "tokens", "word_set"]

LOST = ("rt", "via", "fav")
"""Strings that MedMCQA's source lost wherever they stood, in lower case: the words that tidy a tweet."""

# Glued words part at a capital: "bihStructure" is two words, "POAL" is one.
TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# A quick look for such words: to begin with a capital is quick to search for.
INNER_CAPITAL = re.compile(r"[A-Z](?<=[a-z]{3}[A-Z])[a-z]{2}")
_INNER_CAPITAL = re.compile(r"\b[A-Z]?[a-z]{3,}[A-Z][a-z]{2,}")
_BLANKED = bytes(code if chr(code).isalpha() and code < 128 else ord(" ") for code in range(256))
_NUM_LENGTHS = 24
_MIN_ROWS_NAME = 8
_MAX_ABBREVIATION = 4
_MIN_ENGLISH = 100
_NUM_CHUNKS, _MIN_CHUNK = 8, 2000


def runs(text: str) -> list[str]:
    """Split a text into runs of letters A to Z; words may be glued in them. Ten times as fast as `tokens`."""
    return text.encode("ascii", "replace").translate(_BLANKED).decode("ascii").split()


@functools.lru_cache(maxsize=32)
def word_set(text: str) -> frozenset[str]:
    """Collect the runs of letters of a text in lower case, for a quick look whether a rule may apply."""
    return frozenset(runs(text.lower()))


@functools.lru_cache(maxsize=1 << 17)
def _folded(run: str) -> tuple[str, ...]:
    return tuple(fold(word) for word in tokens(run))


@functools.lru_cache(maxsize=1 << 17)
def _folded_names(run: str) -> tuple[str, ...]:
    return tuple(fold(word) for word in tokens(run) if word[0].isupper())


def tokens(text: str) -> list[str]:
    """Split a text into words as they are written."""
    return TOKEN.findall(text)


def row_text(example: Example) -> str:
    """Join everything that a row says: letters are lost from whole rows, never from parts of one."""
    return "\n".join((example.context or "", example.question, *example.options, example.explanation or ""))


def fold(word: str) -> str:
    """Write a word in lower case, unless it is a short abbreviation: PA is not pa."""
    return word if word.isupper() and len(word) <= _MAX_ABBREVIATION else word.lower()


def _length(text: str) -> int:
    return min(_NUM_LENGTHS - 1, int(2 * math.log2(len(text) + 1)))


@functools.cache
def _english() -> dict[str, int]:
    from spellchecker import SpellChecker

    words: dict[str, int] = SpellChecker().word_frequency.dictionary
    return words


def _lengths() -> list[collections.Counter[str]]:
    return [collections.Counter() for _ in range(_NUM_LENGTHS)]


@dataclasses.dataclass
class _Counts:
    """What is counted of some rows, by folded word; `having`: in rows that hold a string of LOST."""

    by_length: list[collections.Counter[str]] = dataclasses.field(default_factory=_lengths)
    names: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    inner_capital: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    having: dict[str, collections.Counter[str]] = dataclasses.field(
        default_factory=lambda: {lost: collections.Counter() for lost in LOST}
    )
    num_rows: list[int] = dataclasses.field(default_factory=lambda: [0] * _NUM_LENGTHS)
    num_having: dict[str, list[int]] = dataclasses.field(
        default_factory=lambda: {lost: [0] * _NUM_LENGTHS for lost in LOST}
    )

    def add(self, other: "_Counts") -> None:
        """Add the counts of further rows."""
        for mine, theirs in zip(self.by_length, other.by_length, strict=True):
            mine.update(theirs)
        self.names.update(other.names)
        self.inner_capital.update(other.inner_capital)
        self.num_rows = [a + b for a, b in zip(self.num_rows, other.num_rows, strict=True)]
        for lost in LOST:
            self.having[lost].update(other.having[lost])
            pairs = zip(self.num_having[lost], other.num_having[lost], strict=True)
            self.num_having[lost] = [a + b for a, b in pairs]


def _count(texts: Iterable[str]) -> _Counts:
    counts = _Counts()
    for text in texts:
        length = _length(text)
        written = set(runs(text))
        words = set(filter(str.islower, written))  # most: one word each, as it stands
        capital = written - words
        words.update(itertools.chain.from_iterable(map(_folded, capital)))
        counts.by_length[length].update(words)
        counts.names.update(set(itertools.chain.from_iterable(map(_folded_names, capital))))
        if INNER_CAPITAL.search(text):
            counts.inner_capital.update(set(_INNER_CAPITAL.findall(text)))
        counts.num_rows[length] += 1
        for lost in LOST:
            if lost in text:
                counts.having[lost].update(words)
                counts.num_having[lost][length] += 1
    return counts


class Vocabulary:
    """How many rows hold each word.

    Attributes:
        rows: Rows that hold a word, by folded word.
        names: Rows that hold it with a capital, by folded word.
        num_rows: Rows in all.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        written = list(texts)
        size = max(_MIN_CHUNK, math.ceil(len(written) / _NUM_CHUNKS))
        counts = _Counts()
        starts = range(0, len(written), size)
        for part in map_in_processes(lambda start: _count(written[start : start + size]), starts):
            counts.add(part)
        self.num_rows = len(written)
        self.names, self._inner_capital = counts.names, counts.inner_capital
        self._with, self._by_length = counts.having, counts.by_length
        self.rows: collections.Counter[str] = collections.Counter()
        for counter in self._by_length:
            self.rows.update(counter)
        # One more row of each kind, so that no share is 0 or 1.
        self._share = {
            lost: [(a + 0.02) / (n + 1) for a, n in zip(having, counts.num_rows, strict=True)]
            for lost, having in counts.num_having.items()
        }

    def is_english(self, word: str) -> bool:
        """Say whether general English knows a word well."""
        return _english().get(word, 0) >= _MIN_ENGLISH

    def is_known(self, word: str, min_rows: int = 5) -> bool:
        """Say whether a word stands in enough rows, or is English."""
        return self.rows[word] >= min_rows or self.is_english(word)

    def is_name(self, word: str) -> bool:
        """Say whether a word is nearly always written with a capital."""
        return self.names[word] > 0.9 * self.rows[word]

    def is_name_with_capital(self, word: str) -> bool:
        """Say whether a word with a capital in its middle is so common that it must be a name."""
        return self._inner_capital[word] >= _MIN_ROWS_NAME

    def absence(self, word: str, lost: str, mixed: float = 0.01) -> float:
        """Weigh how the rows of a word do without a string, in nats.

        Rows that lost a string don't hold it anywhere. So a damaged word stands (nearly) only in
        rows without it, and a real word stands in rows with it as often as any word of rows that long.

        Args:
            word: Folded word.
            lost: The string.
            mixed: Share of damaged rows that hold the string all the same.

        Returns:
            Log of the likelihood ratio, damaged against real.
        """
        with_lost, total = self._with[lost][word], 0.0
        weights: list[Any] = []
        for length, counter in enumerate(self._by_length):
            if n := counter[word]:
                share = self._share[lost][length]
                total += n * math.log((1 - mixed) / (1 - share))
                weights.append((n, share))
        if with_lost:
            mean = sum(n * share for n, share in weights) / sum(n for n, _ in weights)
            total += with_lost * (math.log(mixed / mean) - math.log((1 - mixed) / (1 - mean)))
        return total

    def english_words(self) -> Iterable[str]:
        """List the words of general English."""
        return (word for word, count in _english().items() if count >= _MIN_ENGLISH)
