"""The words of a corpus: what is known, how common it is, and in which rows letters may be missing.

Learnt in one pass from the very questions that will be cleaned, beside a general English word list
(pyspellchecker's, from OpenSubtitles), so that rules can tell a term from a damaged word.
"""

import collections
import functools
import math
import re
from collections.abc import Iterable
from typing import Any

from medqa.records import Example

__all__ = ["LOST", "Vocabulary", "fold", "row_text", "tokens"]

LOST = ("rt", "via", "fav")
"""Strings that MedMCQA's source lost wherever they stood, in lower case: the words that tidy a tweet."""

# Glued words part at a capital: "bihStructure" is two words, "POAL" is one.
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_INNER_CAPITAL = re.compile(r"\b[A-Z]?[a-z]{3,}[A-Z][a-z]{2,}")
_NUM_LENGTHS = 24
_MIN_ROWS_NAME = 8
_MAX_ABBREVIATION = 4
_MIN_ENGLISH = 100


def tokens(text: str) -> list[str]:
    """Split a text into words as they are written."""
    return _TOKEN.findall(text)


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


class Vocabulary:
    """How many rows hold each word.

    Attributes:
        rows: Rows that hold a word, by folded word.
        names: Rows that hold it with a capital, by folded word.
        num_rows: Rows in all.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.rows: collections.Counter[str] = collections.Counter()
        self.names: collections.Counter[str] = collections.Counter()
        self._inner_capital: collections.Counter[str] = collections.Counter()
        self.num_rows = 0
        self._with: dict[str, collections.Counter[str]] = {s: collections.Counter() for s in LOST}
        self._by_length: list[collections.Counter[str]] = [collections.Counter() for _ in range(_NUM_LENGTHS)]
        num_rows, num_with = [0] * _NUM_LENGTHS, {s: [0] * _NUM_LENGTHS for s in LOST}
        for text in texts:
            self.num_rows += 1
            length = _length(text)
            written = set(tokens(text))
            words = {fold(word) for word in written}
            self._by_length[length].update(words)
            self.names.update({fold(word) for word in written if word[0].isupper()})
            self._inner_capital.update(set(_INNER_CAPITAL.findall(text)))
            num_rows[length] += 1
            for lost in LOST:
                if lost in text:
                    self._with[lost].update(words)
                    num_with[lost][length] += 1
        for counter in self._by_length:
            self.rows.update(counter)
        # One more row of each kind, so that no share is 0 or 1.
        self._share = {
            lost: [(a + 0.02) / (n + 1) for a, n in zip(num_with[lost], num_rows, strict=True)]
            for lost in LOST
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
