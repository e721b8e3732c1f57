"""What questions are compared by: words without their dress, three-word runs, and MinHash to find candidates.

Texts are compared as sets of three-word runs of the question and its options, whatever the options'
order; MinHash (Broder 1997, through datasketch) finds the candidates, the sets themselves decide.
"""

import array
import collections
import functools
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from medqa.data.layout import strip_markup
from medqa.data.vocabulary import LOST
from medqa.records import Example

__all__ = ["RUN_WORDS", "Fingerprint", "NearIndex", "normalise"]

RUN_WORDS = 3
NUM_PERMUTATIONS = 64

_WORD = re.compile(r"[^\W_]+")
_LOST = re.compile("|".join(LOST))
_SIGNS = {"<": "below", ">": "above", "+": "plus", "-": "minus", "=": "equals", ".": "point"}
# Next to a digit, or as a charge at the end of a symbol: nowhere else do signs mean anything.
_SIGN = re.compile(r"[<>=]\s*(?=\d)|(?<![\w)])-(?=\d)|(?<=[A-Za-z0-9])[+-](?=$|\s|[,;)])|(?<=\d)\.(?=\d)")
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
    plain = strip_markup(text)
    folded = (plain if plain.isascii() else unicodedata.normalize("NFKC", plain)).lower()
    return " ".join(_WORD.findall(_LOST.sub("", folded)))


def _normalise_option(text: str) -> str:
    """Write an option so; "> 10" and "< 10", "Fe2+" and "Fe2-", "1.5" and "15" stay apart."""
    signed = _SIGN.sub(lambda match: f" {_SIGNS[match[0].strip()]} ", text)
    return normalise(signed) or text.strip()


class Fingerprint(NamedTuple):
    """What a question is compared by; made to be sent between processes.

    Attributes:
        question: Normalised question.
        options: Normalised options, sorted.
        key: Normalised text of the right option, or "".
        context: Normalised context; questions on one case are different questions.
        turns: Numbers and words that turn a question's meaning.
        exact: Checksum of context, question and options, whatever the options' order.
        packed: Checksums of the three-word runs of question and options, 4 bytes each.
        sketch: Their MinHash.
    """

    question: str
    options: tuple[str, ...]
    key: str
    context: str
    turns: frozenset[str]
    exact: bytes
    packed: bytes
    sketch: bytes

    @classmethod
    def of(cls, example: Example) -> "Fingerprint":
        """Take the fingerprint of a question."""
        question = normalise(example.question)
        normalised = [_normalise_option(option) for option in example.options]
        key = normalised[example.answer] if example.answer is not None else ""
        options = tuple(sorted(normalised))
        runs: set[int] = set()
        for text in (question, *options):
            words = text.split()
            for i in range(max(1, len(words) - RUN_WORDS + 1)):
                runs.add(zlib.crc32(" ".join(words[i : i + RUN_WORDS]).encode()))
        turns = frozenset(w for w in question.split() if w in _TURNS or _has_digit(w))
        context = normalise(example.context or "")
        exact = hashlib.blake2b("\n".join((context, question, *options)).encode(), digest_size=16).digest()
        packed = array.array("I", runs).tobytes()
        return cls(question, options, key, context, turns, exact, packed, _sketch(runs))

    @property
    def runs(self) -> frozenset[int]:
        """Checksums of the three-word runs."""
        return frozenset(array.array("I", self.packed))


def _has_digit(word: str) -> bool:
    return not word.isalpha() and any(character.isdigit() for character in word)


@functools.cache
def _minhash() -> Any:
    from datasketch import MinHash  # loads scipy: only where questions are compared

    return MinHash(num_perm=NUM_PERMUTATIONS, hashfunc=_as_it_is)


def _as_it_is(checksum: int) -> int:
    return checksum


def _sketch(runs: Iterable[int]) -> bytes:
    minhash = _minhash()  # making one takes longer than using it
    minhash.clear()
    minhash.update_batch(runs)
    values: bytes = minhash.hashvalues.tobytes()
    return values


class NearIndex:
    """Fingerprints that can be asked for those similar to another one.

    Args:
        threshold: Jaccard similarity that counts.
    """

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = threshold
        # datasketch says how many bands of how many values; its tables hold far more than is asked of them.
        lsh = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.2, 0.8))
        width = lsh.r * _minhash().hashvalues.itemsize
        self._bands = [slice(i * width, (i + 1) * width) for i in range(lsh.b)]
        self._tables: list[dict[bytes, list[int]]] = [collections.defaultdict(list) for _ in self._bands]
        self._prints: list[Fingerprint] = []

    def add(self, fingerprint: Fingerprint) -> None:
        """Add one; it is known by its number, counted from 0."""
        number = len(self._prints)
        for band, table in zip(self._bands, self._tables, strict=True):
            table[fingerprint.sketch[band]].append(number)
        self._prints.append(fingerprint)

    def similar(self, fingerprint: Fingerprint) -> Iterator[tuple[int, float]]:
        """List number and similarity of those that are similar."""
        numbers: set[int] = set()
        for band, table in zip(self._bands, self._tables, strict=True):
            if (found := table.get(fingerprint.sketch[band])) is not None:
                numbers.update(found)
        if not numbers:
            return
        own = fingerprint.runs
        for number in numbers:
            other = self._prints[number].runs
            common = len(own & other)
            similarity = common / (len(own) + len(other) - common)
            if similarity >= self.threshold:
                yield number, similarity
