"""Reasons to leave a question, or its explanation, out of training."""

import itertools
import re

from medqa.data.citations import points_at_picture
from medqa.data.markers import is_anchored, opening, overlap
from medqa.data.rules import Drop
from medqa.records import LETTERS, Example

__all__ = ["contradicted_key", "picture_question", "repeated_option", "restates_key", "several_answers"]

_WORD = re.compile(r"[^\W_]+")
_MIN_WORDS = 4
_ROOM = 15


def repeated_option(example: Example) -> Example | Drop:
    """Leave out a question that gives an option twice."""
    seen = [" ".join(option.split()) for option in example.options]
    return Drop("two options are the same") if len(set(seen)) < len(seen) else example


def picture_question(example: Example) -> Example | Drop:
    """Leave out a question about a picture."""
    return Drop("asks about a picture that isn't there") if points_at_picture(example.question) else example


def several_answers(example: Example) -> Example | Drop:
    """Leave out a question whose explanation opens with several letters, unless an option says so."""
    if example.explanation is None or any(is_anchored(option) for option in example.options):
        return example
    letters, _ = opening(example.explanation)
    known = [letter for letter in letters if LETTERS.index(letter) < len(example.options)]
    return Drop(f"the explanation names {len(known)} answers") if len(known) > 1 else example


def contradicted_key(example: Example) -> Example | Drop:
    """Leave out a question whose explanation opens with another letter than the key's.

    What follows the letter is the evidence: the words of the option that the letter names make a wrong
    key likely, those of the keyed option a slip in the letter only, which is no reason to drop.
    """
    if example.explanation is None or example.answer is None:
        return example
    if is_anchored(example.options[example.answer]):
        return example
    letters, rest = opening(example.explanation)
    if len(letters) != 1 or LETTERS.index(letters[0]) >= len(example.options):
        return example
    named = LETTERS.index(letters[0])
    if named == example.answer:
        return example
    options = (example.options[named], example.options[example.answer])
    directly = rest[: max(map(len, options)) + _ROOM]
    for_named, for_key = (overlap(option, directly) for option in options)
    if for_key and for_key >= for_named:
        return example
    score = 0.95 if for_named >= 0.5 > for_key else 0.75 if for_named > for_key else 0.6
    return Drop(f"the explanation says {letters[0]}, the key {LETTERS[example.answer]}", score)


def restates_key(text: str, example: Example) -> str:
    """Drop an explanation that says nothing beyond the right option's own words."""
    words = (match[0] for match in _WORD.finditer(text.lower()))
    key = set(_WORD.findall(example.options[example.answer].lower())) if example.answer is not None else set()
    own = itertools.islice((word for word in words if word not in key), _MIN_WORDS)
    return text if sum(1 for _ in own) == _MIN_WORDS else ""
