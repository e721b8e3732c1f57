"""Split one exam question, as it is pasted or sent as a message, into question, options and context.

What could be read in two ways is refused, never guessed. A key in the text is cut and told of; nobody looks
at it. Every pattern looks at each character a bounded number of times: texts may come from strangers.
"""

import dataclasses
import re
from collections.abc import Sequence

from medqa.data.exam_marks import BULLET, LABEL, Mark, find_marks, line_marks
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

_NAMES = r"(?:the\s)?(?:(?:correct|right|best)\s(?:answer|ans|option|choice)|answers?|ans|key)(?:\skey)?"
# What names the key: "Answer: ...", "Ans. b", "the answer is (b)"; not "the answer is a matter of".
_NAMED = (
    rf"(?:(?:[:.=]|[-\u2013\u2014])\s{{0,3}}[(\[]?(?:{LABEL})(?!\w)"
    rf"|(?:is\s)?\s{{0,3}}(?:[(\[](?:{LABEL})[)\]]|(?:{LABEL})(?=[.:)\],;]|$)))"
)
_KEY_LINE = re.compile(rf"\W{{0,4}}{_NAMES}\s{{0,3}}(?P<key>{_NAMED}|:(?=\s*(?P<text>\S?)))", re.IGNORECASE)
_KEY_WITHIN = re.compile(rf"(?<=\s)[(\[]?{_NAMES}\s{{0,3}}{_NAMED}[)\]]{{0,2}}", re.IGNORECASE)
_COMMENT_LINE = re.compile(r"\W{0,4}(?:explanation|rationale|references?)\s{0,3}:", re.IGNORECASE)
_TICK = re.compile(
    "[\u2713\u2714\u2705\u2611][ \\t]?|[ \\t]?[(\\[]correct(?: answer| option)?[)\\]]", re.IGNORECASE
)
_HEADING = re.compile(
    r"(?:(?:answer )?(?:choices|options)|(?:select|choose) one(?: of the following)?)[ \t]{0,3}:?",
    re.IGNORECASE,
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
    text, rest = _without_key(text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff"), notes)
    if not text.strip():
        raise DataError("there is no text to split", "paste one question with its options")
    marks = find_marks(text)
    if marks:
        _check_rest(marks, rest)
        ends = [*(mark.start for mark in marks[1:]), len(text)]
        options = [_option(text, mark, end) for mark, end in zip(marks, ends, strict=True)]
        stem = text[: marks[0].start]
    else:
        stem, options = _unmarked(text)
    context, question = _context(stem.strip())
    question = _without_number(question, notes)
    if not question:
        raise DataError("there is no question before the options", "paste the question with its options")
    return Pasted(Example(question, tuple(options), context=context), tuple(notes))


def _without_key(text: str, notes: list[str]) -> tuple[str, str]:
    """Cut the key off, and all that follows it; returns the text before it and what was cut."""
    if _TICK.search(text):
        text = _TICK.sub("", text)
        notes.append(TICK_NOTE)
    begin = 0
    for line in text.split("\n"):
        key = _KEY_LINE.match(line)
        if key and not text[:begin].strip():  # before the question: only this line goes
            notes.append(KEY_NOTE)
            return text[begin + len(line) :], ""
        if begin and (key or _COMMENT_LINE.match(line)):
            after = text[begin + len(line) :].strip()
            if key and (key["text"] != "" or after):
                notes.append(KEY_NOTE)
            if not key or after:
                notes.append(REST_NOTE)
            return text[:begin], after
        begin += len(line) + 1
    if found := _KEY_WITHIN.search(text):
        after = text[found.end() :]
        notes += [KEY_NOTE, REST_NOTE] if re.search(r"\w", after) else [KEY_NOTE]
        return text[: found.start()], after
    return text, ""


def _check_rest(marks: Sequence[Mark], rest: str) -> None:
    """Refuse a text whose options go on after what looks like its key."""
    if any(mark.kind == marks[0].kind and mark.number == len(marks) for mark in line_marks(rest)):
        raise DataError(
            "options stand after what looks like the key", "leave out what is neither question nor option"
        )


def _option(text: str, mark: Mark, end: int) -> str:
    """Join the lines of an option.

    Raises:
        DataError: If a paragraph follows it.
    """
    option = text[mark.end : end].strip()
    if "**" in text[mark.start : mark.end]:
        option = option.replace("**", "")
    first, *more = _EMPTY_LINE.split(option, maxsplit=1)
    if more:
        raise _unclear_line(more[0])
    return " ".join(line.strip() for line in first.split("\n"))


def _unmarked(text: str) -> tuple[str, list[str]]:
    """Take the lines after the question for options, each with a bullet before it or none of them.

    Raises:
        DataError: If that is not clear.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    ends = [place for place, line in enumerate(lines) if line.endswith("?")]
    if not ends:
        ends = [
            place
            for place, line in enumerate(lines[:-1])
            if line.endswith(":") and BULLET.match(lines[place + 1])
        ]
    after = [line for line in lines[ends[-1] + 1 :] if line] if ends else []
    if _HEADING.fullmatch(after[0] if after else ""):
        del after[0]
    if len(after) < 2:
        raise DataError("no options were found in the text", "begin each option with A., B., C. and so on")
    options: list[str] = []
    bulleted = BULLET.match(after[0]) is not None
    for line in after:
        bullet = BULLET.match(line)
        if bulleted and not bullet:
            options[-1] += f" {line}"
        elif bool(bullet) == bulleted:
            options.append(line[bullet.end() :] if bullet else line)
        else:
            raise _unclear_line(line)
    if len(options) > len(LETTERS) or any(len(option) > MAX_PLAIN_OPTION for option in options):
        raise _unclear_line(after[0])
    return "\n".join(lines[: ends[-1] + 1]), options


def _unclear_line(line: str) -> DataError:
    shown = " ".join(line[:200].split())[:60]
    return DataError(
        f"it is not clear whether {shown!r} is an option",
        "begin each option with A., B., C., and leave out what is neither question nor option",
    )


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
