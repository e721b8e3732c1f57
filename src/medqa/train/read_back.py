"""Train the model to read an answer back from an explanation: the check that its own go through."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from medqa.data.draw import draw_hash, shuffled
from medqa.evaluate.explanations import names_option, read_back_example
from medqa.records import Example

__all__ = ["read_back_questions"]


def read_back_questions(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """Make questions that ask which option an explanation points to, the question itself left out.

    Only explanations that name the right option are taken: the others don't tell. Options are shuffled, so
    that the text alone leads to the letter.

    Args:
        examples: Training questions.
        share: Share of them to make such a question of, as far as there are explanations that tell.
        seed: Chooses among them, and the order of their options.

    Returns:
        New questions, at most that share, drawn by hash.
    """
    count = math.ceil(share * len(examples))
    explained = [e for e in examples if e.explanation and e.answer is not None]
    if not count:
        return []
    found = _questions(sorted(explained, key=lambda e: draw_hash(e, seed, "read back")), seed)
    return [example for _, example in zip(range(count), found, strict=False)]


def _questions(examples: Sequence[Example], seed: int) -> Iterator[Example]:
    for example in examples:
        text, key = example.explanation or "", example.answer
        if key is None or not names_option(text, example.options[key]):
            continue
        mixed = shuffled(example, seed)
        yield dataclasses.replace(
            read_back_example(mixed.options, text),
            answer=mixed.answer,
            id=f"{example.id}, read back",
            subject=example.subject,
            source=example.source,
            licence=example.licence,
        )
