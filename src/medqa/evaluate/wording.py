"""What can be read off the words of an explanation, without a model: which options it names, does it loop."""

import functools
import itertools
import re
from collections import Counter

from medqa.data.fingerprints import normalise
from medqa.records import Example

__all__ = ["has_loop", "names_option", "names_other"]

LOOP_WORDS = 6
LOOP_TIMES = 3
MIN_SENTENCE_WORDS = 3
MIN_CONTENT_LETTERS = 4

_FILLERS = frozenset(
    re.findall(r"\w+", "with from that than this these those which both into when have been none above only")
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
# What tells "Type 1" from "Type 2", "Factor IX" from "Factor X" and "Hepatitis B" from "Hepatitis C".
_MARK = re.compile(r".*\d.*|[a-z]|[ivx]{2,4}")


def names_other(text: str, example: Example, choice: int, other: int, names_choice: bool) -> bool:
    """Say whether a text names another option by more than the words that the given answer holds as well.

    "Acute myocardial infarction" holds "Myocardial infarction", and shares two of its words with it.

    Args:
        text: An explanation.
        example: The question.
        choice: Place of the given answer.
        other: Place of the other option.
        names_choice: Whether the text names the given answer.
    """
    option = example.options[other]
    own = set(_words(option)) - set(_words(example.options[choice]))
    if not names_option(text, option):
        return False
    return bool(own & set(_words(text))) if own else not names_choice


def _words(text: str) -> list[str]:
    """Normalised words, plurals without their s."""
    return [word[:-1] if len(word) > 4 and word.endswith("s") else word for word in normalise(text).split()]


def names_option(text: str, option: str) -> bool:
    """Say whether a text names an option: whole, or at least two thirds of its words that mean something.

    Numbers, single letters and Roman numerals have to be there beside a word that they stand by in the
    option: "type 1 diabetes" is not named by "type 2 diabetes". Options without a word of four letters
    ("4", "IgA", "K+") must be there as they are, as whole words.
    """
    words = _words(option)
    content = {w for w in words if len(w) >= MIN_CONTENT_LETTERS and w not in _FILLERS}
    if not content:
        return _literal(option.strip()).search(text) is not None
    found = _words(text)
    if f" {' '.join(words)} " in f" {' '.join(found)} ":
        return True
    said = set(found)
    if 3 * len(content & said) < 2 * len(content):
        return False
    pairs = set(itertools.pairwise(found)) & set(itertools.pairwise(words))
    beside = {word for pair in pairs for word in pair}
    return all(word in beside for word in words if _MARK.fullmatch(word))


@functools.lru_cache(maxsize=4096)
def _literal(option: str) -> re.Pattern[str]:
    """Find a short option as it is written: not "5" in "1.5", "K+" in "K", or group A in "A patient"."""
    tokens = [re.escape(token) for token in _TOKEN.findall(option)]
    core = r"\s*".join(tokens) or r"(?!)"
    if option in ("A", "a"):
        return re.compile(rf"(?<!\w)(?:(?<=[a-z] )A(?!\w)|{core}(?!\s*\w))")
    # Letter case tells one letter from another: "D" and "d" are two antigens.
    return re.compile(rf"(?<!\w)(?<!\d[.,]){core}(?!\w)(?![.,]\d)", re.IGNORECASE if len(option) > 1 else 0)


def has_loop(text: str) -> bool:
    """Say whether a text goes in circles: a run of six words three times or more, or a sentence so."""
    words = normalise(text).split()
    runs = Counter(zip(*(words[start:] for start in range(LOOP_WORDS)), strict=False))
    sentences = Counter(normalise(sentence) for sentence in _SENTENCE_END.split(text))
    long = (count for sentence, count in sentences.items() if len(sentence.split()) >= MIN_SENTENCE_WORDS)
    return max([*runs.values(), *long], default=0) >= LOOP_TIMES
