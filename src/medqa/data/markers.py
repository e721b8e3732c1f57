r"""Letters that stand for an option inside an explanation: openings to cut, references to spell out.

MedMCQA's explanations open with the key ("Ans. is 'b' i.e., ..."), a third of them; a model tuned on
that learns to open so as well. Letters later in the text ("option B is wrong") tie it to one order of the
options; spelt out, the options can be put into any order.
"""

import functools
import re

from medqa.data.vocabulary import word_set
from medqa.records import LETTERS, Example

__all__ = ["is_anchored", "names_letters", "opening", "overlap", "spell_out_references", "strip_opening"]

# One or more openings of the kind "Ans. is 'b' i.e.,", "Answer: (C)", "(a)", "Option D:", "B. ",
# each only where what follows shows that the letter stands for an option.
_QUOTES = r"\"'`\u2018\u2019\u201c\u201d"
_LETTER = rf"[{_QUOTES}(\[]*\s*[a-eA-E]\s*[{_QUOTES})\]]*"
_IE = r"(?:\s*[.,:;-]*\s*(?:i\s*\.?\s*e\b\s*\.?|that is)\s*[.,:;-]*)"
_ANSWER = r"(?:(?:the\s+)?(?:correct\s+)?(?:ans(?:wer)?s?\b|option\b|choice\b)\s*(?:key\b)?)"
_MARKER = re.compile(
    rf"""^(?:[\s.,:;-]|\d{{1,3}}[.)]\s)*(?:
        {_ANSWER}\s*[.:;,)-]*\s*(?:(?:is|are)\b\s*)?(?:option\b\s*)?[.:;,-]*\s*
            {_LETTER}(?![\w'\u2019-]){_IE}?\s*[.,:;)>=-]*
      | {_ANSWER}\s*[.:;,)-]*\s*(?:(?:is|are)\b\s*)?option\s*[1-5](?!\d)\s*[.,:;)>=-]*
      | [(\[{_QUOTES}]\s*[a-eA-E]\s*[)\]{_QUOTES}]{_IE}?\s*[.,:;-]*
      | (?P<bare>[a-eA-E])\s*(?:\)|[.:](?=\s*(?-i:[A-Z(])))  # "E. coli" goes on in lower case
      | [a-eA-E]{_IE}
      | [&]\s*[{_QUOTES}(]\s*[a-eA-E]\s*[{_QUOTES})]{_IE}?
      | ans(?:wer)?\s*[.:-]+(?:\s*(?:is|are)\b)?{_IE}?
      | i\s*\.\s*e\s*[.,:]+
    )\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_MAX_OPENINGS = 4

# Several letters: "Ans. A, B and D". "Answer is a D (...)" names D.
_NAMED = re.compile(
    rf"""^\W*(?:\d{{1,3}}[.)]\s+)?(?:the\s+)?(?:correct\s+)?ans(?:wer)?s?\b\s*(?:key\b)?\s*[.:;,)-]*\s*(?:(?:is|are)\b\s*)?
         (?:a\s+(?=(?-i:[B-E])\b))?(?:options?\b\s*)?[.:;,-]*\s*
         (?P<letters>{_LETTER}(?:\s*(?:,|;|&|/|\band\b|\bor\b)\s*{_LETTER}(?![\w'\u2019]))*)(?![\w'\u2019-])""",
    re.IGNORECASE | re.VERBOSE,
)
_PARENTHESISED = re.compile(r"^\s*[(\[]\s*(?P<letters>[a-eA-E])\s*[)\]]")
_ENUMERATED = re.compile(r"[(\[](?<![A-Za-z0-9][(\[])\s*([a-eA-E])\s*[)\]]\s*[-:.]*\s*")

_MARKED = rf"(?:[{_QUOTES}(\[]\s*[A-Ea-e]\s*[{_QUOTES})\]]|(?-i:\b[A-E]\b|\b[b-e]\b)(?!\.\s*[a-z]))"
_REFERENCE = re.compile(
    rf"""\b(?P<word>(?-i:[Oo])ptions?|(?<!of\ )(?-i:[Cc])hoices?|OPTIONS?|ans(?:wer)?s?(?:\s+is)?)\b
         \s*(?:[:-]+\s*)?(?:no\.?\s*)?
         (?P<letters>{_MARKED}|(?<=\s)[1-5]\b(?![.]?\d|\s*[%\w]))
         (?P<more>(?:\s*(?:,|&|/|\band\b|\bor\b)\s*(?:options?\s*)?{_MARKED}(?![.]\w))*)
         (?![\w{_QUOTES}-])(?P<colon>\s*[:-]\s*)?""",
    re.VERBOSE | re.IGNORECASE,
)
_REFERENCE_WORDS = {f"{word}{s}" for word in ("option", "choice", "ans", "answer") for s in ("", "s")}
_ONE = re.compile(r"\b(?:[A-Ea-e]|[1-5])\b")
_WORD = re.compile(r"[^\W_]+")
_CERTAIN = re.compile(r"^\W*(?:\d+\W+)?(?:the\s+)?(?:correct\s+)?ans|\bi\s*\.?\s*e\b", re.IGNORECASE)
_EXPLANATION = re.compile(r"[\s.:;,-]*\bExplanations?\s*[:-]+\s*")
_NEXT_CHARACTERS = 120
_MAX_ANCHORED = 200
_BARE_END = re.compile(r"\b[a-eA-E]\s+$")

_ANCHORED = re.compile(
    r"""\b(?:all|none|any|both|neither|either|some)\b.{0,25}\b(?:above|below|these|them|options?|mentioned|following)\b
      | ^\W*(?:all|none|both|any|neither|either|nil|n\.?o\.?t\.?a|a\.?o\.?t\.?a)\W*(?:of\b.{0,12})?$
      | ^\W*(?:both|only|all|either|neither)?\W*(?:options?\s*)?[(\['"]?[a-e][)\]'"]?\s*
            (?:(?:,|&|\+|/|and|or|nor|but\s+not)\s*[(\['"]?[a-e][)\]'"]?\s*)+(?:only|both|are\s+\w+|is\s+\w+)?\W*$
      | ^\W*(?:both|only|all|either|neither)?\W*(?:options?\s*)?\(?[1-5]\)?\s*
            (?:(?:,|&|\+|and|or)\s*\(?[1-5]\)?\s*)+(?:only|both)?\W*$
      | \b(?:both|only|either|neither|options?)\s+[(\['"]?(?-i:[A-E])[)\]'"]?(?:\s|$)""",
    re.IGNORECASE | re.VERBOSE,
)


def strip_opening(text: str, example: Example) -> str:
    """Remove openings that only name the key, and the word "Explanation:" behind them."""
    certain = False
    for _ in range(_MAX_OPENINGS):
        match = _MARKER.match(text)
        if match is None or not (_is_key(match, text, example) or (certain and not match["bare"])):
            break
        # "Answer is a common drug", "Ans. B cells": a word, not a letter, unless the right option follows.
        rest = text[match.end() :]
        follows = example.answer is not None and overlap(example.options[example.answer], rest[:60]) >= 0.5
        if _BARE_END.search(match[0]) and rest[:1].islower() and not follows:
            break
        certain = certain or bool(_CERTAIN.search(match[0]))
        text = text[match.end() :]
    if "xplanation" in text:
        text = _EXPLANATION.sub(lambda m: ". " if m.start() else "", text)
    return _unwrap(text, example)


def _is_key(match: re.Match[str], text: str, example: Example) -> bool:
    """Say whether an opening names the key, and is not the first of a list that goes through the options."""
    if example.answer is None or _CERTAIN.search(match[0]):
        return True
    found = re.search(r"\b[a-eA-E]\b", match[0])
    if found is None:
        return not re.search(r"\d", match[0])
    others = {letter.upper() for letter in _ENUMERATED.findall(text)} - {found[0].upper()}
    others |= {m["letters"].strip(" ()[]'\"").upper() for m in _REFERENCE.finditer(text, match.end())}
    return found[0].upper() == LETTERS[example.answer] and not others - {found[0].upper()}


def _unwrap(text: str, example: Example) -> str:
    """Write "(Aspergillosis) ..." without its brackets, where they hold the right option."""
    match = re.match(r"\s*\(([^()]{2,120})\)\s*[:.;-]*\s*", text)
    if match is None or example.answer is None:
        return text
    if overlap(example.options[example.answer], match[1]) < 0.5:
        return text
    rest = text[match.end() :]
    return f"{match[1]}. {rest}" if rest else match[1]


def overlap(option: str, text: str) -> float:
    """Measure which share of an option's words a text holds."""
    own, words = set(_WORD.findall(option.lower())), set(_WORD.findall(text.lower()))
    return len(own & words) / len(own) if own else 0.0


def names_letters(text: str) -> bool:
    """Say whether a text still names options by their letters."""
    if _NAMED.match(text) or _ENUMERATED.search(text):
        return True
    return _may_refer(text) and _REFERENCE.search(text) is not None


def _may_refer(text: str) -> bool:
    """Take a quick look for what _REFERENCE begins with."""
    return not _REFERENCE_WORDS.isdisjoint(word_set(text))


def opening(text: str) -> tuple[list[str], str]:
    """Read the letters that an explanation's opening names as the answer, and the text behind them."""
    match = _NAMED.match(text)
    if match is None:
        match = _PARENTHESISED.match(text)
        # "(a) ... (b) ...": a list that goes through the options.
        if match is None or len({letter.upper() for letter in _ENUMERATED.findall(text)}) > 1:
            return [], text
    if match[0][-1].isalpha() and re.match(r"\s+(?!i\s*\.?\s*e\b)[a-z]", text[match.end() :]):
        return [], text  # "Ans. B cells": a word, not a letter
    letters = dict.fromkeys(letter.upper() for letter in re.findall(r"\b[a-eA-E]\b", match["letters"]))
    return list(letters), text[match.end() :]


def spell_out_references(text: str, example: Example) -> str:
    """Write the option's own text where an explanation names its letter: "option B" -> "Metformin"."""

    def follows(index: int, position: int) -> bool:
        return overlap(example.options[index], text[position : position + _NEXT_CHARACTERS]) >= 0.5

    def spell(match: re.Match[str]) -> str:
        marks = _ONE.findall(match["letters"] + match["more"])
        numbered = any(m.isdigit() for m in marks)
        indices = [int(m) - 1 if m.isdigit() else LETTERS.index(m.upper()) for m in marks]
        if any(i >= len(example.options) for i in indices) or (numbered and match["word"][0] not in "oOcC"):
            return match[0]
        colon = (match["colon"] or "").strip()
        is_answer = match["word"][0] in "aA"
        if len(indices) == 1 and colon and not is_answer and follows(indices[0], match.end()):
            return ""
        quoted = [f'"{example.options[i].strip().rstrip(".")}"' for i in dict.fromkeys(indices)]
        spelt = " and ".join((", ".join(quoted[:-1]), quoted[-1])) if len(quoted) > 1 else quoted[0]
        return (f"{match['word']} " if is_answer else "") + spelt + (f"{colon} " if colon else "")

    def unmark(match: re.Match[str]) -> str:
        index = LETTERS.index(match[1].upper())
        known = index < len(example.options) and follows(index, match.end())
        return "" if known else match[0]

    refers, enumerates = _may_refer(text), _ENUMERATED.search(text) is not None
    if not refers and not enumerates:
        return text
    # "(2 and 4)": options that speak of statements; a number in the text is a statement's, not an option's.
    if any(is_anchored(option) or _REFERENCE.search(option) for option in example.options):
        return text
    if refers:
        text = _REFERENCE.sub(spell, text)
    return _ENUMERATED.sub(unmark, text)


@functools.lru_cache(maxsize=4096)
def is_anchored(option: str) -> bool:
    """Say whether an option speaks of other options and has to keep its place: "all of the above"."""
    return len(option) <= _MAX_ANCHORED and bool(_ANCHORED.search(option))
