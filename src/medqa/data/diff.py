"""Show what changed between two texts, word by word, shortened to the places that matter."""

import dataclasses
import difflib
import itertools
import re

__all__ = ["Piece", "clip", "compare", "marked_loss"]

SHOWN = 400
"""Characters of each text that are shown, about."""

# Compared is a window that begins a little before the first change: whole explanations would take minutes.
_LEAD, _WINDOW = 80, 1600
_LONGEST_CHANGE, _LONGEST_SAME = 260, 140
_TAIL = 50
_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")
_WORDS = re.compile(r"\w")
_END = "\u00a0…"  # stays with the last word
_BLANKS = str.maketrans({"\n": "↵\n", "\r": "↵", "\t": "⇥", " ": "␣", "\u00a0": "␣"})


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of a text, and whether it is what changed."""

    text: str
    changed: bool = False


def clip(text: str | None, size: int = SHOWN) -> str:
    """Shorten a text at a blank, with an ellipsis where something is left out."""
    text = (text or "").strip()
    if len(text) <= size:
        return text
    return _head(text, size) + _END


def compare(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Mark in two texts the words that differ.

    Args:
        before: The text as it was.
        after: The text as it became.

    Returns:
        Both texts from a little before the first change on, in pieces; long ones are shortened.
    """
    start = _window_start(before, after)
    old, new = (_TOKEN.findall(text[start : start + _WINDOW]) for text in (before, after))
    left = [Piece("… ")] if start else []
    right = list(left)
    runs, shown = _runs(old, new), 0
    beyond = max(len(before), len(after)) > start + _WINDOW
    if beyond and len(runs) > 1 and not runs[-1][0]:
        runs.pop()  # the two windows end at different words; that is no change
    for number, (same, a, b) in enumerate(runs):
        last = number == len(runs) - 1
        if same:
            text = _end(a, beyond) if last or shown >= SHOWN else _middle(a, _LONGEST_SAME)
            pieces = ([Piece(text)], [Piece(text)])
        else:
            pieces = (_changed(a), _changed(b))
        left += pieces[0]
        right += pieces[1]
        if same and shown >= SHOWN:
            break
        shown += max(sum(len(piece.text) for piece in side) for side in pieces)
    return left, right


def marked_loss(whole: str, lost: str) -> list[Piece]:
    """Mark in a word the letters that were put back."""
    parts = [Piece(part) for part in whole.split(lost)]
    joined = itertools.chain.from_iterable((Piece(lost, changed=True), part) for part in parts[1:])
    return [piece for piece in (parts[0], *joined) if piece.text]


def _window_start(before: str, after: str) -> int:
    common = sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    )
    start = max(0, common - _LEAD)
    # At a word's beginning, so that no half word is shown.
    blank = before.find(" ", start, common) if start else -1
    return blank + 1 if blank >= 0 else start


def _runs(old: list[str], new: list[str]) -> list[tuple[bool, str, str]]:
    """List stretches that are the same and stretches that differ, by turns."""
    runs: list[tuple[bool, str, str]] = []
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for number, (tag, i1, i2, j1, j2) in enumerate(codes):
        a, b = "".join(old[i1:i2]), "".join(new[j1:j2])
        inner = 0 < number < len(codes) - 1
        # A lone blank or comma between two changes is no common ground.
        same = tag == "equal" and not (inner and not _WORDS.search(a))
        if runs and runs[-1][0] == same:
            a, b = runs[-1][1] + a, runs.pop()[2] + b
        runs.append((same, a, b))
    return runs


def _changed(text: str) -> list[Piece]:
    if not text:
        return []
    return [Piece(_middle(text, _LONGEST_CHANGE) if text.strip() else text.translate(_BLANKS), changed=True)]


def _end(text: str, beyond: bool) -> str:
    """Leave out the end of a long text, or of one that goes on beyond the window."""
    if len(text) > _LONGEST_SAME:
        return _head(text, _LONGEST_SAME) + _END
    return text + _END * beyond


def _middle(text: str, size: int) -> str:
    """Leave out the middle of a long text."""
    if len(text) <= size + _TAIL:
        return text
    tail = text[-_TAIL:]
    return _head(text, size - _TAIL) + " … " + tail[tail.find(" ") + 1 :].lstrip()


def _head(text: str, size: int) -> str:
    """Keep the beginning of a text, up to a blank where there is one."""
    cut = text[:size]
    return (cut[: cut.rfind(" ")] if " " in cut[size // 2 :] else cut).rstrip()
