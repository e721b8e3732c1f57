"""How a file names the right option: counted from 0, from 1, by letter or by the option's text.

The style is decided once, over all rows: a 1 alone may be A or B. Where the values leave it open, the
explanations decide, if they agree with one reading clearly more often; nothing is guessed.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

from medqa.errors import DataError
from medqa.records import LETTERS

__all__ = [
    "STYLES",
    "KeyRow",
    "KeyStyle",
    "first_lines",
    "has_key",
    "named_option",
    "read_key",
    "resolve_keys",
]

log = logging.getLogger(__name__)

STYLES = ("0-based", "1-based", "letter", "text")
MAX_P_VALUE = 0.01
MIN_NAMED_CHARACTERS = 4  # shorter option texts are found in other words too
NUM_LINES_SHOWN = 3

_READ = {"0-based": "from 0", "1-based": "from 1", "letter": "as letters", "text": "as the options' texts"}
_NUMBER = re.compile(r"([+-]?\d{1,3})(?:\.0*)?", re.ASCII)  # longer ones name something else, or someone
_LETTER = re.compile(r"(?:(?:option|choice|answer|ans)\b[\s.:]*)?[(\[]?([a-j])[)\]]?[.:)]?")
# "Ans. B", "Answer: (d)", "Ans. is 'a' i.e.", "(c) ..."; a bare "a" must not be the article.
_NAMED = re.compile(
    r"\W*(?:(?:ans(?:wer)?|correct (?:answer|option))\b[\s.:\-]*(?:is\b)?[\s.:\-]*(?:option\b\s*)?"
    r"""[(\['"]*([a-j])(?=[)\].,:;'"]|\s*$|\s+i\.?e)"""
    r"|\(([a-j])\))"
)
_FURTHER = re.compile(r"\([a-j]\)")


@dataclasses.dataclass(frozen=True, slots=True)
class KeyRow:
    """What the decision sees of a row: its place, its key as written, options and explanation."""

    where: str
    key: Any
    options: tuple[str, ...]
    explanation: str | None


@dataclasses.dataclass(frozen=True)
class KeyStyle:
    """How the keys are read, and why.

    Attributes:
        style: One of STYLES, or "none" where no row has a readable key.
        evidence: What decided it, for the record; counts only, nothing of the rows.
    """

    style: str
    evidence: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Reading:
    row: KeyRow
    by_style: dict[str, int]
    named: int | None


def has_key(key: Any) -> bool:
    """Tell whether a cell holds a key; empty and -1 mean that none is known."""
    return _plain(key) not in ("", "-1", "-1.0")


def read_key(style: str, key: Any, options: Sequence[str], column: str = "answer") -> int | None:
    """Read one key in a known style, as an index; None where none is known.

    Raises:
        DataError: If it can't be read so. The message holds no text of the cell.
    """
    readings = _readings(key, options)
    if style in readings:
        return readings[style]
    if not has_key(key):
        return None
    if number := _NUMBER.fullmatch(_plain(key)):
        counted = f", counted {_READ[style]}" if style in ("0-based", "1-based") else ""
        what = f"{column} {int(number[1])} is outside the {len(options)} options{counted}"
        reason = f"{column} is a number, not read {_READ[style]}" if style in ("letter", "text") else what
    elif style == "none":
        reason = f"{column} is none of the options, a letter or a number"
    elif style == "text":
        reason = f"{column} is not the text of one option"
    elif style == "letter":
        reason = f"{column} is no letter of the {len(options)} options"
    else:
        reason = f"{column} is no number, counted {_READ[style]}"
    raise DataError(reason, "mend the row, or leave the key empty")


def resolve_keys(
    rows: Sequence[KeyRow], keys: str = "auto", *, column: str = "answer", name: str = "the file"
) -> KeyStyle:
    """Decide how the keys of a split are read.

    Args:
        rows: All rows of the split, those without a key too.
        keys: What `data.keys` says: a style, or "auto".
        column: The file's name of the key column, for messages.
        name: The file's name, for messages.

    Raises:
        DataError: If no style fits all readable keys, more than one fits and the explanations decide
            nothing, or the explanations contradict the one that fits.
    """
    found = [
        _Reading(row, _readings(row.key, row.options), named_option(row.explanation, row.options))
        for row in rows
        if has_key(row.key)
    ]
    readable = [reading for reading in found if reading.by_style]
    if not readable:
        none = "no key is an option's text, a letter or a number in range" if found else "no row has a key"
        return KeyStyle(keys if found and keys != "auto" else "none", none)
    told = [reading for reading in readable if reading.named is not None]
    if keys != "auto":
        return _given(keys, told, name)
    fitting = _different(readable, [s for s in STYLES if all(s in r.by_style for r in readable)])
    if not fitting:
        raise _mixed(readable, column, name)
    if len(fitting) == 1:
        return _by_values(fitting[0], told, column, name)
    for style in fitting:
        rivals = [other for other in fitting if other != style]
        if all(_agrees_more(told, style, other) for other in rivals):
            return KeyStyle(style, f"the explanations decide: {_agreement(told, style, *rivals)}")
    raise _ambiguous(readable, told, fitting, column, name)


def named_option(explanation: str | None, options: Sequence[str]) -> int | None:
    """Return the option that an explanation speaks for, or None where that is not plain.

    It does by the letter it begins with ("Ans. B") or by the text of one option and no other.
    """
    if not explanation:
        return None
    text = explanation.casefold()
    letter = None
    if (match := _NAMED.match(text)) and not (match[2] and _FURTHER.search(text, match.end())):
        index = LETTERS.lower().index(match[1] or match[2])
        letter = index if index < len(options) else None
    folded = [option.strip().casefold() for option in options]
    inside = [index for index, option in enumerate(folded) if option in text]
    alone = inside[0] if len(inside) == 1 and len(folded[inside[0]]) >= MIN_NAMED_CHARACTERS else None
    if letter is not None and alone is not None and letter != alone:
        return None
    return alone if letter is None else letter


def first_lines(lines: Sequence[str]) -> str:
    """Name the first few places of a list."""
    return ", ".join(lines[:NUM_LINES_SHOWN]) + ", ..." * (len(lines) > NUM_LINES_SHOWN)


def _plain(key: Any) -> str:
    if key is None or key != key:  # NaN, as pandas writes an empty cell
        return ""
    return str(key).strip().casefold()


def _readings(key: Any, options: Sequence[str]) -> dict[str, int]:
    text, found = _plain(key), {}
    if number := _NUMBER.fullmatch(text):
        value = int(number[1])
        if 0 <= value < len(options):
            found["0-based"] = value
        if 1 <= value <= len(options):
            found["1-based"] = value - 1
    elif letter := _LETTER.fullmatch(text):
        index = LETTERS.lower().index(letter[1])
        if index < len(options):
            found["letter"] = index
    same = [index for index, option in enumerate(options) if option.strip().casefold() == text]
    if len(same) == 1 and text:
        found["text"] = same[0]
    return found


def _different(readable: list[_Reading], styles: list[str]) -> list[str]:
    """Drop styles that mean the same as an earlier one in every row."""
    kept: list[str] = []
    for style in styles:
        if not any(all(r.by_style[style] == r.by_style[k] for r in readable) for k in kept):
            kept.append(style)
    return kept


def _given(style: str, told: list[_Reading], name: str) -> KeyStyle:
    evidence = "set by data.keys"
    for other in STYLES:
        if _agrees_more(told, other, style):
            evidence = f"set by data.keys, against the explanations: {_agreement(told, style, other)}"
            log.warning("%s: keys are read %s as set, but %s", name, _READ[style], evidence)
    return KeyStyle(style, evidence)


def _by_values(style: str, told: list[_Reading], column: str, name: str) -> KeyStyle:
    for other in STYLES:
        if _agrees_more(told, other, style):
            raise DataError(
                f"{name}: {column} holds {_agreement(told, style, other)}",
                f"look at some rows; if the values are right as they are: --set data.keys={style}",
            )
    fits = {
        "0-based": "0 occurs, and no key equals the number of its options",
        "1-based": "a key equals the number of its options, and 0 does not occur",
        "letter": "every key is a letter of an option",
        "text": "every key is the text of an option",
    }[style]
    rival = {"0-based": ["1-based"], "1-based": ["0-based"]}.get(style, [])
    proof = f"; {_agreement(told, style, *rival)}" if told else "; no explanation names an option"
    return KeyStyle(style, f"{fits}{proof}")


def _agrees_more(told: list[_Reading], style: str, other: str) -> bool:
    """Sign test: do the explanations agree with `style` clearly more often than with `other`?"""
    first = second = 0
    for reading in told:
        one = reading.by_style.get(style) == reading.named
        two = reading.by_style.get(other) == reading.named
        first += one and not two
        second += two and not one
    if first <= second:
        return False
    from scipy.stats import binomtest

    return bool(binomtest(first, first + second).pvalue < MAX_P_VALUE)


def _agreement(told: list[_Reading], *styles: str) -> str:
    counts = [sum(r.by_style.get(style) == r.named for r in told) for style in styles]
    first = f"keys read {_READ[styles[0]]} agree with {counts[0]} of {len(told)} explanations"
    return ", ".join([first, *(f"{_READ[s]} with {c}" for s, c in zip(styles[1:], counts[1:], strict=True))])


def _mixed(readable: list[_Reading], column: str, name: str) -> DataError:
    kinds: dict[str, list[str]] = {}
    for reading in readable:
        kinds.setdefault(_kind(reading), []).append(reading.row.where)
    if set(kinds) == {"a number"}:
        kinds = {
            "0, which only counting from 0 has": [
                r.row.where for r in readable if "1-based" not in r.by_style
            ],
            "the number of options, which only counting from 1 has": [
                r.row.where for r in readable if "0-based" not in r.by_style
            ],
        }
    counts = "; ".join(
        f"{len(lines)} {'is' if len(lines) == 1 else 'are'} {what} ({first_lines(lines)})"
        for what, lines in kinds.items()
    )
    return DataError(
        f"{name}: {column} mixes ways to name the right option: of {len(readable)} keys, {counts}",
        "mend the file so that one way is used; "
        f"or choose, and rows that don't fit count as broken: --set data.keys={'|'.join(STYLES)}",
    )


def _kind(reading: _Reading) -> str:
    if {"0-based", "1-based"} & set(reading.by_style):
        return "a number"
    return "a letter" if "letter" in reading.by_style else "an option's text"


def _ambiguous(
    readable: list[_Reading], told: list[_Reading], fitting: list[str], column: str, name: str
) -> DataError:
    numbers = sorted({int(_plain(r.row.key).split(".")[0]) for r in readable if _kind(r) == "a number"})
    values = f"keys {', '.join(map(str, numbers))} fit" if numbers else "the keys fit"
    words = {
        "0-based": "counting from 0",
        "1-based": "from 1",
        "letter": "letters",
        "text": "the options' texts",
    }
    both = " and ".join(words[style] for style in fitting)
    proof = f"and the explanations don't decide ({_agreement(told, *fitting)})" if told else ""
    return DataError(
        f"{name}: {column}: {values} both {both}{', ' if proof else ''}{proof}",
        "say which: " + " or ".join(f"--set data.keys={style}" for style in fitting),
    )
