r"""Make explanations fit to train on: pure, named rules, each counted.

MedMCQA's explanations open with the key ("Ans. is 'b' i.e., ..."), a third of them; a model tuned
on that learns to open so as well. The rules touch explanations only; questions and options stay
as published.
"""

import collections
import dataclasses
import html
import re
from collections.abc import Callable, Iterable

from medqa.records import LETTERS, Example

__all__ = ["RULES", "clean", "clean_explanation"]

# One or more openings of the kind "Ans. is 'b' i.e.,", "Answer: (C)", "(a)", "Option D:", "B. ",
# each only where what follows shows that the letter stands for an option.
_LETTER = r"[\"'`(\[\u2018\u2019\u201c\u201d]*\s*[a-eA-E]\s*[\"'`)\]\u2018\u2019\u201c\u201d]*"
_IE = r"(?:\s*[.,:;-]*\s*(?:i\s*\.?\s*e\b\s*\.?|that is)\s*[.,:;-]*)"
_ANSWER = r"(?:(?:the\s+)?(?:correct\s+)?(?:ans(?:wer)?s?\b|option\b|choice\b)\s*(?:key\b)?)"
_MARKER = re.compile(
    rf"""^\s*(?:
        {_ANSWER}\s*[.:;,)-]*\s*(?:(?:is|are)\b\s*)?(?:option\b\s*)?[.:;,-]*\s*
            {_LETTER}(?![\w'\u2019-]){_IE}?\s*[.,:;)>=-]*
      | [(\[\"'\u2018\u201c]\s*[a-eA-E]\s*[)\]\"'\u2019\u201d]{_IE}?\s*[.,:;-]*
      | (?P<bare>[a-eA-E])\s*(?:\)|[.:](?=\s*(?-i:[A-Z(])))  # "E. coli" goes on in lower case
      | [a-eA-E]{_IE}
      | ans(?:wer)?\s*[.:-]+(?:\s*(?:is|are)\b)?{_IE}?
      | i\s*\.\s*e\s*[.,:]+
    )\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_TAG = re.compile(
    r"</?(?:p|br|b|i|u|em|strong|sub|sup|span|div|font|img|a|ul|ol|li|table|tbody|thead|tr|td|th|h[1-6]|hr|center)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_SPACE = re.compile(r"[ \t\r\f\v\u00a0]+")
_WORD = re.compile(r"[^\W_]+")
_MAX_OPENINGS = 3
_MIN_WORDS = 4

Rule = Callable[[str, Example], str]


def _strip_markup(text: str, example: Example) -> str:
    """Remove HTML tags and resolve entities."""
    return html.unescape(_TAG.sub(" ", text)).replace("\ufffd", " ")


def _strip_answer_marker(text: str, example: Example) -> str:
    """Remove openings that only name the key."""
    for _ in range(_MAX_OPENINGS):
        match = _MARKER.match(text)
        if match is None:
            break
        # A letter alone may begin a name, "C. difficile": it is a marker if it is the key's.
        bare = match["bare"]
        if bare and example.answer is not None and bare.upper() != LETTERS[example.answer]:
            break
        text = text[match.end() :]
    return text


def _capitalise(text: str, example: Example) -> str:
    """Begin with a capital, unless the first word is one of mixed case, such as mRNA."""
    first = text.split(maxsplit=1)[0] if text.split() else ""
    return text[:1].upper() + text[1:] if first.islower() else text


def _collapse_space(text: str, example: Example) -> str:
    """Write runs of blanks as one."""
    lines = (_SPACE.sub(" ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _drop_bare_key(text: str, example: Example) -> str:
    """Drop an explanation that says nothing beyond the right option's own words."""
    words = _WORD.findall(text.lower())
    key = set(_WORD.findall(example.options[example.answer].lower())) if example.answer is not None else set()
    return "" if sum(word not in key for word in words) < _MIN_WORDS else text


@dataclasses.dataclass(frozen=True)
class NamedRule:
    """A rule with the name it is counted under."""

    name: str
    apply: Rule


RULES = (
    NamedRule("markup", _strip_markup),
    NamedRule("spaces", _collapse_space),
    NamedRule("answer marker", _strip_answer_marker),
    NamedRule("first capital", _capitalise),
    NamedRule("bare key", _drop_bare_key),
)


def clean_explanation(example: Example) -> tuple[Example, list[str]]:
    """Apply every rule to one explanation.

    Returns:
        The example (its explanation None if nothing was left), and the names of the rules that
        changed it.
    """
    if example.explanation is None:
        return example, []
    text, changed_by = example.explanation, []
    for rule in RULES:
        shorter = rule.apply(text, example)
        if shorter != text:
            changed_by.append(rule.name)
        text = shorter
    return dataclasses.replace(example, explanation=text.strip() or None), changed_by


def clean(examples: Iterable[Example]) -> tuple[list[Example], dict[str, int]]:
    """Clean all explanations and count how many each rule changed."""
    counts: collections.Counter[str] = collections.Counter({rule.name: 0 for rule in RULES})
    cleaned = []
    for example in examples:
        better, changed_by = clean_explanation(example)
        cleaned.append(better)
        counts.update(changed_by)
    return cleaned, dict(counts)
