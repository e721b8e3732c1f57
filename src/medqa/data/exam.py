"""Split one exam question, as it is pasted or sent as a message, into question, options and context.

What could be read in two ways is refused, never guessed. A key in the text is cut and told of; nobody looks
at it. Every pattern looks at each character a bounded number of times: texts may come from strangers.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from medqa.data.exam_marks import BULLET, LABEL, Mark, find_lists, find_marks, goes_on, rank, without_tick
from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["Pasted", "split_exam"]

MAX_CHARACTERS = 100_000
"""Longest text that is looked at: the longest exam questions have some thousand characters."""
MAX_PLAIN_OPTION = 200
"""Longest option, in characters, that is taken for one with no mark before it: more is prose."""

KEY_NOTE = "The answer key in the text was left out."
TICK_NOTE = "A mark at the right option was left out."
REST_NOTE = "What stood after the options was left out."
NUMBER_NOTE = "The number of the question was left out."
_HINT = "begin each option with A., B., C., and leave out the key and what is neither question nor option"

_NAMES = (
    r"(?:the\s)?(?:(?P<best>correct|right|best)\s(?:answer|ans|option|choice)|answers?|ans|key)(?:\skey)?\b"
)
# What names the key: "Answer: ...", "Ans. b", "the answer is (b)"; not "the answer is a matter of".
_NAMED = (
    rf"(?:(?:[:.=]|[-\u2013\u2014])\s{{0,3}}[(\[]?(?:{LABEL})(?!\w)"
    rf"|(?:is\s{{1,3}}|[ \t]{{0,3}})(?:[(\[](?:{LABEL})[)\]]|(?:{LABEL})(?=[.:)\],;\n]|$)))"
)
_KEY_LINE = re.compile(
    rf"(?i)\W{{0,4}}(?P<name>{_NAMES}|(?:solution|sol|correct)(?=:))(?:\*\*)?\s{{0,3}}"
    rf"(?:{_NAMED}|(?(best)(?::|is\b)|:)(?=\W*(?P<text>\w?)))"
)
_KEY_WITHIN = re.compile(
    rf"(?i)(?<=\s)(?P<open>[(\[])?(?P<name>{_NAMES})[ \t]{{0,3}}(?P<key>{_NAMED}|(?(open):|(?!)))[)\]]{{0,2}}"
)
_COMMENT_LINE = re.compile(
    r"(?im)^\W{0,4}(?P<name>(?:(?:answers? (?:and|with) )?explanations?|rationale|source|references?|refs?)"
    r"(?=\W{0,3}:)|(?:option|choice) [(]?[a-j][)]? is (?:the )?(?:correct|right|best)\b)"
)
_TO_MARK = re.compile(r"\W{0,4}(?:is\b)?\W{0,40}", re.IGNORECASE)
_NO_MORE_WORDS = re.compile(r"[^\w\n]*(?:\n|$)")
_ASKING = re.compile(r"\?[ \t]*(?:\n|$)")
_HEADING = re.compile(
    r"(?i)\W{0,4}(?:(?:(?:select|choose|pick|mark|tick|give) )?(?:the )?(?:single |possible )?"
    r"(?:correct |right |best )?(?:answers?|ans|options?|choices?|key)(?: choices| options)?"
    r"|(?:select|choose) one(?: of the following)?)[ \t]{0,3}[-:.\u2013\u2014*]{0,4}"
)
_CONTEXT = re.compile(r"context[ \t]{0,3}:", re.IGNORECASE)
_LABELLED = re.compile(r"\n[ \t]{0,8}question[ \t]{0,3}:", re.IGNORECASE)
_TITLE = re.compile(
    r"(?:question|q)[ \t]{0,3}(?:(\d{1,4})(?: (?:of|/) \d{1,4})?[ \t]{0,3}[.):]?|[.:])(?=\s)", re.IGNORECASE
)
_NUMBER = re.compile(r"(\d{1,4})[.)](?=\s)")
_EMPTY_LINE = re.compile(r"\n[ \t]*\n")


@dataclasses.dataclass(frozen=True, slots=True)
class Pasted:
    """A question that was split.

    Attributes:
        example: Question, options and, if the text names one, context. It has no key, whatever the text had.
        notes: What was left out of the text, in sentences.
    """

    example: Example
    notes: tuple[str, ...] = ()


def split_exam(text: str) -> Pasted:
    """Split one pasted exam question.

    Args:
        text: Question and options; a context, a number, a key or an explanation may be with them.

    Raises:
        DataError: If it is not clear what the question and its options are.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            f"the text has {len(text):,} characters, expected at most {MAX_CHARACTERS:,}",
            "paste one question",
        )
    notes: list[str] = []
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    if not text.strip():
        raise DataError("there is no text to split", "paste one question with its options")
    cut = _first_cut(text)
    kept = text[: cut.start] if cut else text
    marks = find_marks(kept)
    if cut:
        _check_rest(marks, cut, text[cut.name_end :])
        notes += _cut_notes(cut, text)
    if marks:
        ends = [*(mark.start for mark in marks[1:]), len(kept)]
        options = [_option(kept, mark, end) for mark, end in zip(marks, ends, strict=True)]
        stem = kept[: marks[0].start]
    else:
        stem, options = _unmarked(kept)
    unticked = [without_tick(option) for option in options]
    if unticked != options or any(mark.ticked for mark in marks):
        notes.append(TICK_NOTE)
    context, question = _context(_without_key(stem.strip(), unticked, notes))
    question = _without_number(question, notes)
    if not question or _HEADING.fullmatch(question):
        raise DataError("there is no question before the options", "paste the question with its options")
    return Pasted(Example(question, tuple(unticked), context=context), tuple(dict.fromkeys(notes)))


class _Name(NamedTuple):
    """A name of the key, or of a comment: what belongs to the question may end before it."""

    start: int  # with its line if it opens one
    name_end: int
    end: int  # with what it names
    opens_line: bool
    is_key: bool
    is_bare: bool  # nothing that it could name stands in its line
    plain: int | None  # lines between a question and it


def _names(text: str) -> Iterator[_Name]:
    """Find the names of keys and comments, in order."""
    lines = text.split("\n")
    within = _KEY_WITHIN.finditer(text)
    inside = next(within, None)
    begin, plain = 0, None
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        stop = begin + len(line)
        key = _KEY_LINE.match(line)
        if named := key or _COMMENT_LINE.match(line):
            is_bare = key is not None and key["text"] == ""
            yield _Name(begin, begin + named.end("name"), stop, True, key is not None, is_bare, plain)
        while inside and inside.start() < stop:
            start = inside.start()
            own = None if plain is None else plain + bool(text[max(begin, start - 40) : start].strip())
            yield _Name(start, inside.end("name"), inside.end(), False, True, False, own)
            inside = next(within, None)
        line = line.strip()
        if line.endswith("?") or (line.endswith(":") and BULLET.match(following.lstrip())):
            plain = 0
        elif plain is not None and line and (plain or not _HEADING.fullmatch(line)):
            plain += 1
        begin = stop + 1


def _first_cut(text: str) -> _Name | None:
    """Find the name after the options; one before them is a heading, or part of the question."""
    lists = find_lists(text)
    starts = {run[0].start for run in lists}
    options = max(lists, key=lambda run: rank(run[0].kind), default=())
    end = options[0].start if options else len(text)
    asked = max((found.start() for found in _ASKING.finditer(text, 0, end)), default=-1)
    for name in _names(text):
        asks, plain = asked > name.start, name.plain or 0
        if options and name.start > options[1].start:
            return name
        to_mark = _TO_MARK.match(text, name.name_end)
        if to_mark and not starts.isdisjoint(range(name.name_end, to_mark.end() + 1)):
            continue
        if not options:
            unclear = asks and plain > 1
            if not asks and name.plain is not None and (plain or not name.is_bare):
                return name
        elif options[0].start < name.start:
            unclear = name.opens_line or _NO_MORE_WORDS.match(text, name.end) is not None
        elif lists[0][1].start < name.start:  # statements may have a range of reference after them
            unclear = not asks or "ref" not in text[name.start : name.name_end].lower()
        else:
            unclear = plain > 1 and not asks
        if unclear:
            raise _unclear(text[name.start :], "stands before the options or after them")
    return None


def _check_rest(marks: Sequence[Mark], cut: _Name, rest: str) -> None:
    """Refuse a text whose options go on, or that holds another list, after what looks like its key."""
    if marks and goes_on(marks, rest):
        raise DataError("options stand after what looks like the key", _HINT)
    word = next((found.start() for found in re.finditer(r"\w", rest)), 0)
    comment = next((found.start() for found in _COMMENT_LINE.finditer(rest)), len(rest)) if cut.is_key else 0
    for run in find_lists(rest):
        # "Answer: A. foo" begins no list with a "B." somewhere in the reason.
        if cut.is_key and run[0].start <= word and not (run[1].opens_line or run[1].after_stop):
            continue
        # Numbered reasons and books are no options of a question that has lettered ones.
        numbered = marks and rank(run[0].kind) == 0 < rank(marks[0].kind)
        if not numbered or run[0].start < comment:
            raise DataError("another list stands after what looks like the key", _HINT)


def _cut_notes(cut: _Name, text: str) -> list[str]:
    after = re.search(r"\S" if cut.opens_line else r"\w", text[cut.end :])
    notes = [KEY_NOTE] if cut.is_key and (after or not cut.is_bare) else []
    return [*notes, REST_NOTE] if after or not cut.is_key else notes


def _without_key(stem: str, options: Sequence[str], notes: list[str]) -> str:
    """Take a key before the question off, and refuse one within it."""
    said = {_words(option) for option in options}
    first, *lines = stem.split("\n")
    if _is_key(_KEY_LINE.match(first), first, said):
        notes.append(KEY_NOTE)
        first = ""
    for line in (first, *lines):
        within = [m for m in _KEY_WITHIN.finditer(line) if m["open"] or m["key"][0] in ":="]
        if any(_is_key(found, line, said) for found in (_KEY_LINE.match(line), *within)):
            raise _unclear(line, "is the key")
    return "\n".join((first, *lines)).strip()


def _is_key(found: re.Match[str] | None, line: str, options: set[str]) -> bool:
    """Tell whether what is named is a letter or an option, and nothing more."""
    named = _words(line[found.end() : found.end() + MAX_PLAIN_OPTION]) if found else ""
    return found is not None and (named in options or not (named or found[0].endswith(":")))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _option(text: str, mark: Mark, end: int) -> str:
    """Join the lines of an option, and refuse a paragraph after it."""
    option = text[mark.end : end].strip()
    if "**" in text[mark.start : mark.end]:
        option = option.replace("**", "")
    first, *more = _EMPTY_LINE.split(option, maxsplit=1)
    if more:
        raise _unclear(more[0], "is an option")
    return " ".join(line.strip() for line in first.split("\n"))


def _unmarked(text: str) -> tuple[str, list[str]]:
    """Take the lines after the question for options, each with a bullet before it or none of them."""
    lines = [line.strip() for line in text.strip().split("\n")]
    ends = [place for place, line in enumerate(lines) if line.endswith("?")]
    if not ends:
        ends = [n for n, line in enumerate(lines[:-1]) if line.endswith(":") and BULLET.match(lines[n + 1])]
    after = [line for line in lines[ends[-1] + 1 :] if line] if ends else []
    if _HEADING.fullmatch(after[0] if after else ""):
        del after[0]
    if len(after) < 2:
        raise DataError("no options were found in the text", "begin each option with A., B., C. and so on")
    options: list[str] = []
    first = BULLET.match(after[0])
    bulleted = bool(first and first[0])
    for line in after:
        bullet = BULLET.match(line)
        if bulleted and not bullet:
            options[-1] += f" {line}"
        elif bulleted or not (bullet and bullet[0]):
            options.append(line[bullet.end() :] if bullet else line)
        else:
            raise _unclear(line, "is an option")
    if len(options) > len(LETTERS) or any(len(option) > MAX_PLAIN_OPTION for option in options):
        raise _unclear(after[0], "is an option")
    return "\n".join(lines[: ends[-1] + 1]), options


def _unclear(line: str, what: str) -> DataError:
    shown = " ".join(line[:200].split("\n")[0].split())[:60]
    return DataError(f"it is not clear whether {shown!r} {what}", _HINT)


def _context(stem: str) -> tuple[str | None, str]:
    """Take the context off the question, where the text names one."""
    head, _, last = stem.rpartition("\n")
    if _HEADING.fullmatch(last.strip()):
        stem = head.rstrip()
    named = _CONTEXT.match(stem)
    if not named:
        return None, stem
    stem = stem[named.end() :].strip()
    if labelled := _LABELLED.search(stem):
        return stem[: labelled.start()].strip() or None, stem[labelled.end() :].strip()
    context, _, question = stem.partition("\n")
    return context.strip() or None, question.strip()


def _without_number(question: str, notes: list[str]) -> str:
    """Take "12." or "Question 12:" off, unless it counts statements."""
    titled = _TITLE.match(question)
    found = titled or _NUMBER.match(question)
    if not found:
        return question
    number = found[1]
    if not titled and re.search(rf"(?<!\S){int(number) + 1}[.)]\s", question):
        return question
    if number:
        notes.append(NUMBER_NOTE)
    return question[found.end() :].strip()
