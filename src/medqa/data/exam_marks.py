"""Find where the options of a pasted question begin: marks such as "A." or "(b)" that run in order.

A list whose marks begin lines is taken before one within lines; letters before numbers, which also count
statements. What could be read in two ways is refused, never guessed.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from medqa.errors import DataError

__all__ = ["BULLET", "LABEL", "Mark", "find_lists", "find_marks", "goes_on", "rank", "without_tick"]

MIN_UNMARKED = 4
"""Options it takes for a list that begins in the middle of a sentence: "vitamin A." begins none."""

LABEL = r"[A-Za-z]|[1-9]\d?"
# Signs that people put at the right option, in the place of its bullet.
_TICKS = "\u2713\u2714\u2705\u2611"
BULLET = re.compile(rf"[-*\u2022\u25cf\u25cb\u25aa\u00b7\u2013\u2610\u25a1][ \t]{{1,8}}|(?=[{_TICKS}])")

_HINT = "write each option on a line of its own, beginning with A., B., C. and so on"
_AT_START = re.compile(
    rf"(?:\*\*)?(?:(?P<open>[(\[])(?P<inner>{LABEL})[)\]]|(?P<label>{LABEL})"
    r"(?P<close>\.(?!\d)|\)|:(?!\d)|[ \t]{0,3}[-\u2013\u2014](?=[ \t])|\t|$))(?:\*\*)?"
)
_TICKED = re.compile(rf"(?:[{_TICKS}]|\*(?!\*))[ \t]?")
_TICK_LAST = re.compile(
    rf"\s{{0,4}}(?:[{_TICKS}]|\s\*|[(\[](?:(?:correct|right)(?: answer| option| choice)?|answer|ans|key)[)\]]"
    r"|(?:\u2190|<[-=]{1,2})\s?(?:correct|right)?(?: answer)?)\.?$",
    re.IGNORECASE,
)
_WITHIN = re.compile(
    rf"(?<![^\s{_TICKS}])"
    rf"(?:(?P<open>[(\[])(?P<inner>{LABEL})[)\]]|(?P<label>{LABEL})(?P<close>[.):])(?=[ \t]))"
)
# In "E. coli" and its like the letter is a genus, wherever it stands.
_SPECIES = re.compile(
    r"[ \t]{1,2}(?:coli|histolytica|faecalis|faecium|granulosus|difficile|diphtheriae|perfringens|tetani"
    r"|botulinum|albicans|trachomatis|jejuni|cereus|anthracis|fragilis|pertussis|burgdorferi|henselae|abortus"
    r"|fumigatus|baumannii|lumbricoides|duodenale|pylori|influenzae|ducreyi|lamblia|tularensis|medinensis)\b"
)
_STOPS = tuple("?:.!;)]_\u2026-\u2013\u2014")


class Mark(NamedTuple):
    """What may begin an option.

    Attributes:
        start: Where it begins, with its line if it opens one.
        end: Where its option begins.
        kind: Its alphabet, "A", "a" or "1", and its form; those of a list are of one kind.
        number: Its place in the alphabet, from 0.
        opens_line: Whether it stands at the beginning of a line.
        after_stop: Whether a sentence ends before it.
        ticked: Whether a sign before it says that its option is right.
    """

    start: int
    end: int
    kind: str
    number: int
    opens_line: bool
    after_stop: bool
    ticked: bool

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
    ranks = [rank(marks[0].kind) for marks in lists]
    apart = all(a[-1].start < b[0].start for a, b in itertools.pairwise(lists))
    if not apart or any(a >= b for a, b in itertools.pairwise(ranks)):
        raise _several(len(lists))
    if graver := [error for kind, error in unclear if rank(kind) >= ranks[-1]]:
        raise graver[0]
    return _after(by_kind, lists[-1], text)


def find_lists(text: str) -> list[list[Mark]]:
    """Find what looks like a list of two marks or more, by where the second mark stands."""
    open_lists: dict[str, list[Mark]] = {}
    found: list[list[Mark]] = []
    for mark in _all_marks(text):
        run = open_lists.get(mark.kind)
        if mark.may_begin or (mark.number == 0 and not run):
            run = open_lists[mark.kind] = [mark]
        elif run and mark.number == len(run) and text[run[-1].end : mark.start].strip():
            run.append(mark)
            if len(run) == (2 if run[0].may_begin else MIN_UNMARKED):
                found.append(run)
    return sorted(found, key=lambda run: run[1].start)


def goes_on(marks: Sequence[Mark], text: str) -> bool:
    """Tell whether a list goes on in the first line of a text, or where another line begins."""
    line, wanted = len(text.partition("\n")[0]), (marks[0].kind, len(marks))
    return any(
        (mark.kind, mark.number) == wanted and (mark.opens_line or mark.start < line)
        for mark in _all_marks(text)
    )


def without_tick(option: str) -> str:
    """Take a sign at the beginning or the end that this is the right option off."""
    option = option[1:].lstrip() if option[:1] in tuple(_TICKS) else option
    last = _TICK_LAST.search(option, max(0, len(option) - 40))
    return option[: last.start()] if last else option


def rank(kind: str) -> int:
    """Numbered statements stand before lettered options, and small letters before capitals."""
    return "1aA".index(kind[0])


def _after(by_kind: dict[str, list[Mark]], chosen: list[Mark], text: str) -> list[Mark]:
    """Take the list within the last option's lines, where what seemed the options are statements.

    Raises:
        DataError: If the list there may not be the options either.
    """
    last = chosen[-1]
    # An option may be a list itself, as in "C. (a) and (b)": such a list begins with the option.
    begin = len(text) - len(text[last.end :].lstrip())
    runs = [run for run in find_lists(text) if run[0].start > begin]
    if not runs:
        return chosen
    if any(rank(run[0].kind) <= rank(last.kind) for run in runs):
        raise _several(len(runs) + 1)
    later = {kind: [mark for mark in marks if mark.start >= last.end] for kind, marks in by_kind.items()}
    lists, unclear = _lists({run[0].kind: later[run[0].kind] for run in runs}, text, within=True)
    if unclear:
        raise unclear[0][1]
    if len(lists) != 1:
        raise _several(len(lists) + 1)
    return lists[0]


def _lists(
    by_kind: dict[str, list[Mark]], text: str, *, within: bool
) -> tuple[list[list[Mark]], list[tuple[str, DataError]]]:
    """Look for a list of each kind; returns the lists, and of which kinds none is clear."""
    found, unclear = [], []
    for kind, marks in by_kind.items():
        try:
            run = _list_within(marks, text) if within else _list_of_lines(marks, text)
        except DataError as exc:  # what is wrong with one kind may not matter beside another
            unclear.append((kind, exc))
            continue
        if run:
            found.append(run)
    return found, unclear


def _all_marks(text: str) -> Iterator[Mark]:
    """Find what looks like the beginning of an option, in order."""
    begin = 0
    for line in text.split("\n"):
        stop, place = begin + len(line), begin + len(line) - len(line.lstrip())
        if bullet := BULLET.match(text, place, stop):
            place = bullet.end()
        if ticked := _TICKED.match(text, place, stop):
            place = ticked.end()
        if found := _AT_START.match(text, place, stop):
            place = found.end()
            yield from _mark(text, found, begin, opens_line=True, ticked=ticked is not None)
        for found in _WITHIN.finditer(text, place, stop):
            yield from _mark(text, found, found.start(), opens_line=False)
        begin = stop + 1


def _mark(
    text: str, found: re.Match[str], start: int, *, opens_line: bool, ticked: bool = False
) -> Iterator[Mark]:
    label, close = found["inner"] or found["label"], found["close"] or ""
    if close == "." and label.isupper() and _SPECIES.match(text, found.end()):
        return
    alphabet = "1" if label.isdigit() else "A" if label.isupper() else "a"
    number = int(label) - 1 if alphabet == "1" else ord(label) - ord(alphabet)
    before = text[max(0, start - 40) : start].rstrip()
    form = found["open"] or close.strip().replace("\u2013", "-").replace("\u2014", "-")
    yield Mark(start, found.end(), alphabet + form, number, opens_line, before.endswith(_STOPS), ticked)


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
        beside = [m for m in marks if m.start > run[0].start and m.number in (len(run), len(run) + 1)]
        if len({mark.number for mark in beside}) > 1:  # two columns: A and C, then B and D
            raise _unclear(text, beside[0], "may be an option, or part of the one before")
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
