"""How a text is set: markup, entities, bullets, blanks, glued words."""

import html
import re

from medqa.data.vocabulary import INNER_CAPITAL, Vocabulary, fold, word_set
from medqa.records import Example

__all__ = ["capitalise", "collapse_space", "set_bullets", "split_glued", "strip_markup"]

_TAG = re.compile(
    r"</?\\?(?:p|br|b|i|u|em|strong|sub|sup|span|div|font|img|a|ul|ol|li|table|tbody|thead|tr|td|th|h[1-6]|hr|center)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
# "&;" is an apostrophe that lost its name; "&nbsp" often lost its semicolon.
_BROKEN_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|#\d{2,4})(?!;)(?=\W|$)", re.IGNORECASE)
# Line breaks that were written out, and what is left of a dash that was read in the wrong encoding.
_WRITTEN_BREAK = re.compile(r"(?:\\[rn])+(?![a-z])")
_BROKEN_DASH = re.compile(r"aEUR(?:\(tm\)|[\"'\u2122\u00a6]|cent)?")
# Whole entities only: unescape would read "&ether" as one too.
_ENTITY = re.compile(r"&(?:#x?[0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});")
_SPACE = re.compile(r"[ \t\r\f\v\u00a0\u200b]+")
# Not the sign of multiplication, nor "blood group O".
_BULLET = re.compile(
    r"(?:(?<=[\s.:;,)])|^)(?<!\d\s)(?<!=\s)"
    r"(?:[\u2022\u25cf\u25aa\u25ba\u25e6\u25a0\u00a7\u00d8\u27a2\u27a4\u2714\u2713\uf0b7\uf0a7\uf0d8*#\u00ae]+\s*(?=[^\s\d])"
    r"|(?<!group\s)(?<!type\s)(?:o|\u00d8)\s+(?=[A-Z][a-z]))|(?<=[a-z)])\*\s+(?=[A-Z])",
    re.MULTILINE,
)
# A quick look: a pattern that begins with a character is searched many times faster.
_SIGN = re.compile(
    r"[\u2022\u25cf\u25aa\u25ba\u25e6\u25a0\u00a7\u00d8\u27a2\u27a4\u2714\u2713\uf0b7\uf0a7\uf0d8*#\u00ae]"
)
_GLUED_O = re.compile(r"o(?=\s+[A-Z][a-z])(?<=[a-z]{4}o)")
_LAST_WORD = re.compile(r"[a-z]+$")
_GLUED = re.compile(r"(?<![A-Za-z])([A-Z]?[a-z]{3,})([A-Z][a-z]{2,})")
_PLAIN_WORD = re.compile(r"[a-z]{2,}(?![\w-])|a\s")
_MARK_Q = re.compile(r"(?<=[a-z)])Q(?=[\s.,;:)]|$|[A-Z])")
_PUNCTUATION = re.compile(r"([.?!;,:)])(?=[A-Z][a-z]{2})(?<=[a-z]{3}[.?!;,:)])")


def strip_markup(text: str, example: Example | None = None) -> str:
    """Remove HTML tags and resolve entities."""
    if "\\" in text:
        text = _WRITTEN_BREAK.sub(" ", text)
    if "aEUR" in text:
        text = _BROKEN_DASH.sub(" ", text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if "&" in text:
        text = text.replace("&;", "'")
        text = _BROKEN_ENTITY.sub(lambda m: m[0] + ";", text)
        text = _ENTITY.sub(lambda m: html.unescape(m[0]), text)
        if "<" in text:
            text = _TAG.sub(" ", text)
    return text.replace("\ufffd", " ")


def collapse_space(text: str, example: Example | None = None) -> str:
    """Write runs of blanks as one, and drop empty lines."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    lines = (_SPACE.sub(" ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def capitalise(text: str, example: Example) -> str:
    """Begin with a capital, unless the first word is a symbol: mRNA, p53, c-myc."""
    return text[:1].upper() + text[1:] if _PLAIN_WORD.match(text) else text


def set_bullets(text: str, example: Example) -> str:
    """Write what bullets are left of a list as lines that begin with a dash."""
    if not _SIGN.search(text) and "o" not in word_set(text):
        return text
    parts = [part.strip(" \t") for part in _BULLET.split(text)]
    if len(parts) == 1:
        return text
    filled = [part for part in parts if part.strip()]
    if len(parts) == 2:
        # One sign is a list only where it begins the text.
        return text if parts[0] else parts[1]
    if len(filled) < 2:
        return " ".join(filled)
    head, items = (parts[0], parts[1:]) if parts[0].strip() else ("", parts[1:])
    lines = [head.strip()] if head.strip() else []
    lines += [f"- {item.strip()}" for item in items if item.strip(" -")]
    return "\n".join(lines)


def split_glued(text: str, vocabulary: Vocabulary) -> str:
    """Part words that were joined where a line or a cell of a table ended: "diseaseFranklin"."""

    def part(match: re.Match[str]) -> str:
        known = all(vocabulary.is_known(fold(word)) for word in match.groups())
        # MacConkey, LeFort: names that are written so.
        return (
            f"{match[1]} {match[2]}" if known and not vocabulary.is_name_with_capital(match[0]) else match[0]
        )

    def part_o(match: re.Match[str]) -> str:
        last = _LAST_WORD.search(text, max(0, match.start() - 30), match.start())
        word = last[0] if last else ""
        known = vocabulary.is_known(word) and vocabulary.rows[word] > 20 * vocabulary.rows[word + "o"]
        return "\n- " if known else "o"

    if "Q" in text:
        text = _MARK_Q.sub("", text)
    text = _PUNCTUATION.sub(r"\1 ", text)
    text = _GLUED_O.sub(part_o, text)
    for _ in range(4):
        if not INNER_CAPITAL.search(text):
            break
        longer = _GLUED.sub(part, text)
        if longer == text:
            break
        text = longer
    return text
