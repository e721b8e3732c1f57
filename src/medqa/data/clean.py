"""The cleaning rules in their order: what they do, each by its name.

`medqa data` counts and shows what each of them did; `data.skip_rules` switches one off.
"""

import dataclasses
import functools
from collections.abc import Callable

from medqa.data import citations, judge, layout, markers
from medqa.data.repair import Lexicon
from medqa.data.rules import Rule
from medqa.data.vocabulary import Vocabulary, row_text
from medqa.records import Example

__all__ = ["cleaning_rules", "minimal_rules"]

# Rules are applied again until nothing changes: most texts of a row come back as they were.
_MEMORY = 32

TextRule = Callable[[str, Example], str]


def _everywhere(change: Callable[[str], str]) -> Callable[[Example], Example]:
    """Apply a change to question, options, explanation and context; a question or option never empties."""
    remembered = functools.lru_cache(maxsize=_MEMORY)(change)
    return lambda example: _changed(example, remembered)


def _changed(example: Example, change: Callable[[str], str]) -> Example:
    question = change(example.question)
    options = tuple(map(change, example.options))
    explanation = change(example.explanation) if example.explanation else example.explanation
    context = change(example.context) if example.context else example.context
    before = (example.question, example.options, example.explanation, example.context)
    if (question, options, explanation, context) == before:
        return example
    return dataclasses.replace(
        example,
        question=question if question.strip() else example.question,
        options=tuple(new if new.strip() else old for new, old in zip(options, example.options, strict=True)),
        explanation=explanation if explanation and explanation.strip() else None,
        context=context if context and context.strip() else None,
    )


def _explanation(change: TextRule) -> Callable[[Example], Example]:
    """Apply a change to the explanation; one that is left empty is none."""

    def apply(example: Example) -> Example:
        if example.explanation is None:
            return example
        text = change(example.explanation, example)
        if text == example.explanation and text.strip():
            return example
        return dataclasses.replace(example, explanation=text if text.strip() else None)

    return apply


def _repair(lexicon: Lexicon) -> Callable[[Example], Example]:
    touches = functools.lru_cache(maxsize=_MEMORY)(lexicon.touches)

    def apply(example: Example) -> Example:
        texts = (example.question, *example.options, example.explanation or "", example.context or "")
        if not any(map(touches, texts)):
            return example
        row = row_text(example)
        return _changed(example, lambda text: lexicon(text, row))

    return apply


def minimal_rules() -> list[Rule]:
    """List what is left out even where nothing is cleaned: no letter could be the answer."""
    return [Rule("repeated option", "Left out: two options are the same.", judge.repeated_option)]


def cleaning_rules(vocabulary: Vocabulary, lexicon: Lexicon) -> list[Rule]:
    """List the rules for a corpus.

    Args:
        vocabulary: The corpus's words, to tell glued words from names.
        lexicon: Its damaged words.
    """
    return [
        Rule("markup", "HTML tags and entities are resolved.", _everywhere(layout.strip_markup)),
        Rule("spaces", "Runs of blanks and empty lines become one.", _everywhere(layout.collapse_space)),
        Rule(
            "lost letters", 'Letters that the source lost are put back: "aery" is artery.', _repair(lexicon)
        ),
        Rule(
            "glued words",
            "Words joined where a line ended are parted.",
            _everywhere(lambda text: layout.split_glued(text, vocabulary)),
        ),
        *minimal_rules(),
        Rule("picture", "Left out: the question is about a picture.", judge.picture_question),
        Rule("several answers", "Left out: the explanation names several answers.", judge.several_answers),
        Rule(
            "contradicted key",
            "Left out: the explanation names another option than the key does.",
            judge.contradicted_key,
        ),
        Rule(
            "answer marker",
            "Openings that only name the key go: \"Ans. is 'b' i.e.,\".",
            _explanation(markers.strip_opening),
        ),
        Rule("citation", "Books, editions and pages go.", _explanation(citations.strip_citations)),
        Rule(
            "pointer", "Sentences that point at an image or table go.", _explanation(citations.strip_pointers)
        ),
        Rule("bullets", "What is left of lists becomes lines with dashes.", _explanation(layout.set_bullets)),
        Rule(
            "letter reference",
            'An option named by its letter is named by its text: "option B".',
            _explanation(markers.spell_out_references),
        ),
        Rule("first capital", "Explanations begin with a capital.", _explanation(layout.capitalise)),
        Rule(
            "restated key",
            "An explanation that only repeats the right option goes; the question stays.",
            _explanation(judge.restates_key),
        ),
    ]
