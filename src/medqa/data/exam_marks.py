"""Find where the options of a pasted question begin: marks such as "A." or "(b)" that run in order.

A list whose marks begin lines is taken before one within lines; letters before numbers, which also count
statements. What could be read in two ways is refused, never guessed.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from medqa.errors import DataError

__all__ = ["BULLET", "LABEL", "Mark", "find_marks", "line_marks"]

MIN_UNMARKED = 4
"""Options it takes for a list that begins in the middle of a sentence: "vitamin A." begins none."""

LABEL = r"[A-Za-z]|[1-9]\d?"
BULLET = re.compile("[-*\u2022\u25cf\u25cb\u25aa\u00b7\u2013][ \\t]{1,8}")

_HINT = "write each option on a line of its own, beginning with A., B., C. and so on"
_AT_START = re.compile(
    rf"(?:\*\*)?(?:(?P<open>[(\[])(?P<inner>{LABEL})[)\]]|(?P<label>{LABEL})"
    r"(?P<close>\.(?!\d)|\)|:(?!\d)|[ \t]{0,3}[-\u2013\u2014](?=[ \t])|\t|$))(?:\*\*)?"
)
_WITHIN = re.compile(
    rf"(?<!\S)(?:(?P<open>[(\[])(?P<inner>{LABEL})[)\]]|(?P<label>{LABEL})(?P<close>[.):])(?=[ \t]))"
)
# In "E. coli" and its like the letter is a genus, wherever it stands.
_SPECIES = re.compile(
    r"[ \t]{1,2}(?:coli|histolytica|faecalis|faecium|granulosus|difficile|diphtheriae|perfringens|tetani"
    r"|botulinum|albicans|trachomatis|jejuni|cereus|anthracis|fragilis|pertussis|burgdorferi|henselae|abortus"
    r"|fumigatus|baumannii|lumbricoides|duodenale|pylori|influenzae|ducreyi|lamblia|tularensis|medinensis)\b"
)
_STOPS = tuple("?:.!;)]_\u2026")


class Mark(NamedTuple):
    """What may begin an option.

    Attributes:
        start: Where it begins, with its line if it opens one.
        end: Where its option begins.
        kind: Its alphabet, "A", "a" or "1", and its form; those of a list are of one kind.
        number: Its place in the alphabet, from 0.
        opens_line: Whether it stands at the beginning of a line.
        after_stop: Whether a sentence ends before it.
    """

    start: int
    end: int
    kind: str
    number: int
    opens_line: bool
    after_stop: bool

    @property
    def may_begin(self) -> bool:
        """Whether a list may begin with it."""
        return self.number == 0 and (self.opens_line or self.after_stop)


def find_marks(text: str) -> list[Mark]:
    """Find the marks of the options; none if the options carry none.

    Raises:
        DataError: If they can be read in several ways.
    """
    by_kind: dict[str, list[Mark]] = {}
    for mark in _all_marks(text):
        by_kind.setdefault(mark.kind, []).append(mark)
    lists, unclear = _lists(by_kind, text, within=False)
    if not lists:
        if unclear:
            raise unclear[0][1]
        lists, unclear = _lists(by_kind, text, within=True)
    if not lists:
        stray = [m for marks in by_kind.values() for m in marks if m.opens_line and m.kind[0] != "1"]
        if unclear or stray:
            raise unclear[0][1] if unclear else _unclear(text, stray[0], "stands alone")
        return []
    lists.sort(key=lambda marks: marks[0].start)
    ranks = [_rank(marks[0].kind) for marks in lists]
    apart = all(a[-1].start < b[0].start for a, b in itertools.pairwise(lists))
    if not apart or any(a >= b for a, b in itertools.pairwise(ranks)):
        raise _several(len(lists))
    if graver := [error for kind, error in unclear if _rank(kind) >= ranks[-1]]:
        raise graver[0]
    return lists[-1]


def line_marks(text: str) -> Iterator[Mark]:
    """Find what looks like the beginning of an option at the beginning of a line."""
    return (mark for mark in _all_marks(text) if mark.opens_line)


def _rank(kind: str) -> int:
    """Numbered statements stand before lettered options, and small letters before capitals."""
    return "1aA".index(kind[0])


def _lists(
    by_kind: dict[str, list[Mark]], text: str, *, within: bool
) -> tuple[list[list[Mark]], list[tuple[str, DataError]]]:
    """Look for a list of each kind; returns the lists, and of which kinds none is clear."""
    found, unclear = [], []
    for kind, marks in by_kind.items():
        run = _one_list(marks, text, within)
        if isinstance(run, DataError):
            unclear.append((kind, run))
        elif run:
            found.append(run)
    return found, unclear


def _one_list(marks: Sequence[Mark], text: str, within: bool) -> list[Mark] | DataError:
    # What is wrong with one kind of marks may not matter beside another.
    try:
        return _list_within(marks, text) if within else _list_of_lines(marks, text)
    except DataError as exc:
        return exc


def _all_marks(text: str) -> Iterator[Mark]:
    """Find what looks like the beginning of an option, in order."""
    begin = 0
    for line in text.split("\n"):
        stop, place = begin + len(line), begin + len(line) - len(line.lstrip())
        if bullet := BULLET.match(text, place, stop):
            place = bullet.end()
        if found := _AT_START.match(text, place, stop):
            place = found.end()
            yield from _mark(text, found, begin, opens_line=True)
        for found in _WITHIN.finditer(text, place, stop):
            yield from _mark(text, found, found.start(), opens_line=False)
        begin = stop + 1


def _mark(text: str, found: re.Match[str], start: int, *, opens_line: bool) -> Iterator[Mark]:
    label, close = found["inner"] or found["label"], found["close"] or ""
    if close == "." and label.isupper() and _SPECIES.match(text, found.end()):
        return
    alphabet = "1" if label.isdigit() else "A" if label.isupper() else "a"
    number = int(label) - 1 if alphabet == "1" else ord(label) - ord(alphabet)
    before = text[max(0, start - 40) : start].rstrip()
    form = found["open"] or close.strip().replace("\u2013", "-").replace("\u2014", "-")
    yield Mark(start, found.end(), alphabet + form, number, opens_line, before.endswith(_STOPS))


def _list_of_lines(marks: Sequence[Mark], text: str) -> list[Mark]:
    """Take the list whose marks begin lines, and those within that belong to it; nothing if there is none.

    Raises:
        DataError: If a letter begins two lines, or one is left out.
    """
    run = [mark for mark in marks if mark.opens_line]
    if len(run) > 1 and run[0].kind[0] == "1" and run[1].number == 0 and not text[: run[0].start].strip():
        run = run[1:]  # that was the number of the question itself
    run = list(itertools.dropwhile(lambda mark: mark.number, run))
    if not run:
        return []
    whole = [mark.number for mark in run] == list(range(len(run)))
    goes_on = any(m.number == len(run) and m.start > run[-1].start and not m.opens_line for m in marks)
    if whole and len(run) > 1 and not goes_on:
        return run
    own = [mark for mark in marks if mark.start >= run[0].start]
    mixed = _list_within(own, text) if whole or len(own) > len(run) else []
    if mixed and set(run) <= set(mixed):
        if whole and 1 < len(run) == len(mixed) - 1:
            raise _unclear(text, mixed[-1], "may be an option, or part of the one before")
        return mixed
    if whole and len(run) > 1:
        return run
    if sum(mark.number == 0 for mark in run) > 1 and len(run) > 3:
        raise _several(2)
    if len(run) > 1:
        wrong = next(mark for number, mark in enumerate(run) if mark.number != number)
        raise _unclear(text, wrong, "does not come next in the order of the letters")
    return []


def _list_within(marks: Sequence[Mark], text: str) -> list[Mark]:
    """Take the list whose marks stand anywhere; nothing if there is none.

    Raises:
        DataError: If there are two, or a mark of it is there twice.
    """
    parts: list[list[Mark]] = [[]]
    for mark in marks:
        if mark.may_begin:
            parts.append([])
        parts[-1].append(mark)
    runs = [run for part in parts[1:] if len(run := _run(part, text)) > 1]
    if len(runs) > 1:
        raise _several(len(runs))
    if not runs:
        run = _run(itertools.dropwhile(lambda mark: mark.number, parts[0]), text)
        runs = [run] if len(run) >= MIN_UNMARKED else []
    if not runs:
        return []
    [run] = runs
    own, inside = set(run), {mark.number for mark in run}
    for mark in marks:
        if mark.start > run[0].start and mark.number in inside and mark not in own:
            raise _unclear(text, mark, "is there twice")
    return run


def _run(marks: Iterable[Mark], text: str) -> list[Mark]:
    """Follow a list from its first mark."""
    run: list[Mark] = []
    for mark in marks:
        # Nothing between two marks: the second is text, as in "D. E. coli".
        if mark.number == len(run) and (not run or text[run[-1].end : mark.start].strip()):
            run.append(mark)
    return run


def _several(number: int) -> DataError:
    return DataError(
        f"the text holds {number} lists of options", "paste one question, with nothing after its options"
    )


def _unclear(text: str, mark: Mark, why: str) -> DataError:
    shown = text[mark.start : mark.start + 40].strip().split("\n")[0]
    return DataError(f"it is not clear what the options are: {shown!r} {why}", _HINT)
