"""Take out of explanations what points elsewhere: books, pages, pictures and tables.

A small model that learns citations makes them up.
"""

import itertools
import re

from medqa.data.vocabulary import word_set
from medqa.records import Example

__all__ = ["points_at_picture", "strip_citations", "strip_pointers"]

_PAGE = (
    r"(?:pages?|pgs?|pp?|pno|pgno)(?![a-z])\s*[.:]?\s*(?:nos?|numbers?)?\s*[-.:;#/]*\s*"
    r"\d+(?:\s*[-\u2013,&/.]\s*\d+)*"
)
_EDITION = (
    r"(?:\d+|[A-Za-z]+th|first|second|third|ninth)\s*(?:st|nd|rd|th)?\s*[-/]?\s*"
    r"(?:e(?![a-oq-z])|eds?\b|edn\b|edi?tion\b|editon\b)\.?"
)
_LOCATOR = re.compile(
    rf"""\b(?:{_EDITION}(?:\s*[/,;]\s*(?:\d+(?:\s*[-\u2013,&]\s*\d+)*))?
            | {_PAGE} | \d+(?:st|nd|rd|th)\s*(?:/\s*)?\d+(?:\s*-\s*\d+)?
            | (?:chap(?:ter)?s?|ch|vol(?:ume)?|fig(?:ure)?|table|edition)\s*[-.:]*\s*\d+(?:[-.]\d+)*
            | www\.\S+ | ISBN\b\S*)
       | https?://\S+
       | \(\s*(?:(?:19|20)\d\d|Eds?\.?)\s*\)""",
    re.IGNORECASE | re.VERBOSE,
)
_START = re.compile(
    r"""[({\[]?\s{0,3}(?:\b|(?<=[a-z]))(?:\b(?:[Ii]mage|[Aa]lso|[Tt]ext)\s+)?
        (?:(?:REF(?:ERENCE|ER)?S?|Ref(?:erence|er)?s?|Reff|Source|SOURCE)(?:\s*[-.:;,]+\s*|\s+(?=[A-Z\d])|(?=[A-Z][a-z]))
          |\bref(?:erence|er)?s?\s*[-.:;,]+\s*)""",
    re.VERBOSE,
)
_BOOKS = (
    r"harrison|robbins|park|bailey|ganong|guyton|ghai|nelson|kdt|tripathi|schwar|sabiston|dutta|shaw|novak|"
    r"williams|gray|snell|bdc|chau?rasia|khurana|parson|dhingra|anan?tha|panic?k|harper|lippincott|reddy|parikh|"
    r"maheshwari|apley|katzung|goodman|cmdt|devita|oxford|moore|inderbir|langman|satyanarayan|vasudevan|wintrobe|"
    r"miller|morgan|lange|jawetz|roxburgh|fitzpatrick|rook|kaplan|sadock|srb|harsh\s?mohan|baveja|ajay|cecil|"
    r"textbook|text book|handbook|manual of|review of|principles of|essentials? of|synopsis"
)
# One branch a letter: most places are over with its first look, where one a book would take seventy.
_BY_LETTER = itertools.groupby(sorted(_BOOKS.split("|"), key=lambda book: book[0]), key=lambda book: book[0])
_BRANCHES = [f"{letter}(?:{'|'.join(book[1:] for book in books)})" for letter, books in _BY_LETTER]
_BOOK = re.compile(rf"\b(?:{'|'.join(_BRANCHES)})", re.IGNORECASE)
# "Cancer Cell Biology. In D.L. Longo, A.S. Fauci (Eds), Harrison's Principles of Internal Medicine, 18e."
_IN_BOOK = re.compile(
    r"[^\n]{0,160}?\bIn:?\s+(?:[A-Z]\.\s?)+[A-Z][^\n]{0,400}?(?:\(Eds?\.?\)[^\n]{0,120}?\b(?:\d+\s?e\b|$)|$)"
)
_CLOSING = re.compile(r"(?:\s*[)\]},.;:-]+)*(?:\s*</?\\?p>)?")
_BRACKETS = re.compile(r"(?<!\s)\s{0,3}(?:\([^()]{4,200}\)|\[[^\[\]]{4,200}\]|\{[^{}]{4,200}\})")
_SMALL_IN_TITLES = frozenset(["of", "and", "in", "the", "by", "for", "edition", "ed", "medicine", "to", "on"])
_MAX_SMALL = 4
_SENTENCE_END = re.compile(r"[.!?](?=\s+[A-Z(*])|\n")
_WINDOW, _GAP, _MAX_TAIL = 320, 90, 200
_MAX_HEAD, _MAX_BEHIND = 80, 25
_ANNOUNCES = re.compile(r"REF|Ref|SOURCE|Source|ref(?<!\wref)(?:erence|er)?s?\s*[-.:;,]")
_MAX_BEFORE = len("( ") + 3 + len("Image")
# Most texts hold nothing of the kind: a quick look spares them the long patterns.
_WORDS = ("ref", "source", "edition", "http", "www", "text")
_NUMBERS = re.compile(r"\d\s?(?:st|nd|rd|th)?\s?/?\s?[eE]|[Pp][AaGgNnOoEePpSs.]{0,4}\W{0,3}\d")


def strip_citations(text: str, example: Example) -> str:
    """Remove references to books, editions and pages."""
    lowered = text.lower()
    if not any(word in lowered for word in _WORDS) and not _NUMBERS.search(text):
        return text
    return _unmarked(_announced(_parenthesised(text)))


def _parenthesised(text: str) -> str:
    """Remove brackets that hold a page or an edition."""

    def cut(match: re.Match[str]) -> str:
        cites = _LOCATOR.search(match[0]) and (_BOOK.search(match[0]) or _START.search(match[0]))
        return " " if cites else match[0]

    return _BRACKETS.sub(cut, text)


def _announced(text: str) -> str:
    """Remove what "Ref:", "Refer" or "Source:" announce, if it names a book or a page."""
    pieces: list[str] = []
    done = 0
    announces = _ANNOUNCES.search(text)
    if announces is None:
        return text
    # No match begins far before its word: blanks aside, "(", and "Image" or the like.
    begin = max(0, len(text[: announces.start()].rstrip()) - _MAX_BEFORE)
    for match in _START.finditer(text, begin):
        if match.start() < done:
            continue
        end = _citation_end(text, match.end())
        if end is not None:
            pieces.append(text[done : match.start()])
            done = end
    if not pieces:
        return text
    pieces.append(text[done:])
    return " ".join(piece.strip(" ") for piece in pieces if piece.strip(" "))


def _citation_end(text: str, start: int) -> int | None:
    """Find where a citation that begins at `start` ends, or None if it is none."""
    end = None
    for locator in _LOCATOR.finditer(text, start, min(len(text), start + _WINDOW)):
        between = text[end or start : locator.start()]
        if len(between) > _GAP or _is_prose(between):
            break
        end = locator.end()
    if end is None:
        return _end_without_page(text, start)
    chapter = _IN_BOOK.match(text, end, min(len(text), end + 2 * _WINDOW))
    rest = _CLOSING.match(text, chapter.end() if chapter else end)
    return rest.end() if rest else end


def _end_without_page(text: str, start: int) -> int | None:
    """Find where a book's name ends that stands without a page: at the line's, sentence's or text's end."""
    tail = text[start : start + _MAX_TAIL + 1]
    line = _SENTENCE_END.search(tail)
    name = tail[: line.end()] if line else tail
    if len(name) > _MAX_TAIL or not _BOOK.search(name) or _is_prose(name):
        return None
    return start + len(name)


def _is_prose(text: str) -> bool:
    """Say whether a text says something beyond a book's name: small words behind the last one."""
    books = list(_BOOK.finditer(text))
    words = re.findall(r"[A-Za-z']{2,}", text[books[-1].end() :] if books else text)
    small = [w for w in words if w[0].islower() and w not in _SMALL_IN_TITLES]
    return len(small) > _MAX_SMALL


def _unmarked(text: str) -> str:
    """Remove a book with its page from the beginning or the end, where no word announces it."""
    # The book is looked for first: its pattern is the quicker one.
    first = _LOCATOR.search(text, 0, _MAX_TAIL) if _BOOK.search(text[:_MAX_HEAD]) else None
    if first is not None:
        head = text[: first.start()]
        if len(head) <= _MAX_HEAD and _BOOK.search(head) and not re.search(r"[.!?]\s+[A-Z]", head[:-1]):
            end = _citation_end(text, 0)
            if end is not None:
                return text[end:].lstrip(" .,;:*-")
    tail = max(0, len(text) - _MAX_TAIL)
    booked = _BOOK.search(text, max(0, tail - _GAP - 50))
    locators = list(_LOCATOR.finditer(text, tail)) if booked else []
    last = locators[-1] if locators else None
    if last is not None and len(text) - last.end() <= _MAX_BEHIND:
        book = _BOOK.search(text, max(0, last.start() - _GAP - 50), last.start())
        if book is not None:
            start = book.start()
            opened = max(text.rfind(mark, 0, start) for mark in (". ", "\n", "? ", '" ', "("))
            authors = opened >= 0 and not re.search(r"\b[a-z]{3,}", text[opened + 1 : start])
            return text[: opened + 1 if authors else start].rstrip(" (-*,;\"'")
    return text


_PICTURE = (
    r"(?:image|picture|photo(?:graph)?|figure|fig|diagram|flow\s?chart|table|chart|graph|video"
    r"|illustration)s?"
)
_DETERMINER = r"(?:the|this|these|our|a|given|above|below|following|attached|adjacent|next|same)"
_POINTER = re.compile(
    rf"""\b(?:see|refer(?:\s+to)?
              |(?:shown|given|depicted|seen|illustrated|described|explained|summari[sz]ed)\s+(?:in|by))
            \s+(?:{_DETERMINER}\s+){{0,3}}{_PICTURE}\b(?!\s+of\s+eight)
        | \b{_DETERMINER}\s+(?!clinical)(?:\w+\s+)?{_PICTURE}\s+(?:is\s+|are\s+)?
            (?:below|above|shows?\b|showing|depict\w*|given|illustrat\w*)
        | \b{_PICTURE}\s+(?:is\s+|are\s+)?(?:given\s+|shown\s+)?below\b
        | \b(?:image|picture|diagram)\s+shown\b
        | \b(?:below|above|following)\s+(?:given\s+|mentioned\s+|shown\s+)?
            (?:image|figure|diagram|table|flow\s?chart)s?\b
        | \b(?:fig(?:ure)?|image|table|diagram)\b\s*[-.:]*\s*\d+(?:[-.]\d+)+
        | ^\s*(?:fig(?:ure)?|image|table|diagram)\b\s*[-.:]*\s*\d*\s*[-:.]+
        | <img\b[^>]*>?""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_POINTER_WORDS = ("image", "pic", "photo", "fig", "diagram", "chart", "table", "graph", "video", "<img")
# One of these stands by itself, or "<img" does: to look for whole words spares most texts the pattern.
_PICTURE_WORDS = {
    f"{word}{s}"
    for word in (
        *("image", "picture", "photo", "photograph", "figure", "fig", "diagram", "flowchart"),
        *("table", "chart", "graph", "video", "illustration"),
    )
    for s in ("", "s")
}
_MAX_SENTENCE = 160
_SMALL_BRACKETS = re.compile(r"(?<!\s)\s{0,3}\([^()]{1,120}\)")
_QUESTION_POINTER = re.compile(
    r"""\b(?:shown|given|seen|depicted|marked|labell?ed|displayed|provided|attached|visible)\b[^.?\n]{0,25}?
            \b(?:in|on|by)\b\s+(?:the\s+|this\s+)?(?:\w+\s+)?
            (?:image|picture|photo(?:graph)?|figure|diagram|illustration)\b
        | \b(?:image|picture|photograph|figure|diagram)\b\s+(?:is\s+|are\s+)?
            (?:shown|given|below|above|depicts?|shows?)\b
        | \b(?:below|above|following|given)\s+(?:given\s+|shown\s+)?
            (?:image|picture|photograph|figure|diagram)\b
        | \bidentify\b[^.?\n]{0,40}\b(?:image|picture|photo(?:graph)?|figure|diagram|shown|marked|arrow)\b
        | \b(?:condition|structure|area|lesion|instrument|sign|finding|device|x-?ray|ct|mri|ecg)\s+
            (?:is\s+)?shown\s+(?:above|below|here)\b
        | \b(?:marked|shown)\b[^.?\n]{0,20}\barrow\b | \bspot\s+the\s+diagnosis\b | <img\b""",
    re.IGNORECASE | re.VERBOSE,
)
_QUESTION_WORDS = (
    *("image", "picture", "photo", "figure", "diagram", "illustration"),
    *("shown", "marked", "arrow", "spot", "<img"),
)


def points_at_picture(question: str) -> bool:
    """Say whether a question can't be answered without a picture that isn't there."""
    lowered = question.lower()
    return any(word in lowered for word in _QUESTION_WORDS) and bool(_QUESTION_POINTER.search(question))


def strip_pointers(text: str, example: Example) -> str:
    """Remove sentences that point at an image or a table; of long ones the clause that does."""
    lowered = text.lower()
    if _PICTURE_WORDS.isdisjoint(word_set(text)) and "<img" not in lowered:
        return text
    if not any(word in lowered for word in _POINTER_WORDS) or not _POINTER.search(text):
        return text
    text = _SMALL_BRACKETS.sub(lambda m: "" if _POINTER.search(m[0]) else m[0], text)
    kept: list[str] = []
    for piece in re.split(r"(?<=[.!?])(\s+)(?=[A-Z*(\d-])|(\n+)", text):
        if piece is None or not _POINTER.search(piece):
            kept.append(piece or "")
        elif len(piece) > _MAX_SENTENCE:
            clauses = re.split(r"(?<=[,;:])(?=\s)", piece)
            kept.append("".join(clause for clause in clauses if not _POINTER.search(clause)))
    return "".join(kept).strip().lstrip(".,;:) ")
