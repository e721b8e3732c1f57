"""Choose rows, and the order of their options, by hash: the order of a file never matters."""

import collections
import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

from medqa.data.markers import is_anchored, names_letters
from medqa.records import Example

__all__ = [
    "draw_hash",
    "examples_hash",
    "free_places",
    "plain_values",
    "reordered",
    "sample",
    "shuffled",
    "stratified_rows",
    "weighted",
]

_FIELDS = [field.name for field in dataclasses.fields(Example)]
_ENCODE = json.JSONEncoder(sort_keys=True).encode


def draw_hash(example: Example, seed: int, purpose: str = "") -> str:
    """Hash of seed, id and content, by which rows are drawn; another one for each purpose."""
    return hashlib.sha256(f"{purpose}{seed}:{example.id}:{example.content_hash()}".encode()).hexdigest()


def sample(examples: Sequence[Example], max_rows: int | None, seed: int, purpose: str = "") -> list[Example]:
    """Draw rows by hash of seed, id and content.

    Args:
        examples: The rows.
        max_rows: How many; all if None.
        seed: Chooses among the draws.
        purpose: Draws for different purposes are independent: what one drew is not what the next prefers.
    """
    if max_rows is None or max_rows >= len(examples):
        return list(examples)
    copies: collections.Counter[str] = collections.Counter()
    keyed: list[tuple[str, int]] = []
    for row, example in enumerate(examples):
        key = draw_hash(example, seed, purpose)
        copies[key] += 1
        if copies[key] > 1:  # a row that is used twice is drawn twice, or once, by chance
            key = hashlib.sha256(f"{key}:{copies[key]}".encode()).hexdigest()
        keyed.append((key, row))
    return [examples[row] for _, row in sorted(keyed)[:max_rows]]


def weighted(examples: Sequence[Example], weight: float, seed: int) -> list[Example]:
    """Use each row `weight` times: all rows so often as whole numbers go, of the rest a drawn part."""
    whole = math.floor(weight)
    part = round((weight - whole) * len(examples))
    return list(examples) * whole + (sample(examples, part, seed, "weight") if part else [])


def examples_hash(examples: Iterable[Example]) -> str:
    """Hash everything in the questions, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_ENCODE(plain_values(example)).encode())
    return digest.hexdigest()


def plain_values(example: Example) -> dict[str, Any]:
    """Return what `Example.to_json` does, by name; several times faster, since nothing is copied."""
    values = ((name, getattr(example, name)) for name in _FIELDS)
    return {name: value for name, value in values if value is not None and value != ""}


def reordered(example: Example, order: Sequence[int]) -> Example:
    """Put the options into another order; the key goes with its text.

    Args:
        example: The question.
        order: For each new place, the place that its option had.
    """
    answer = None if example.answer is None else list(order).index(example.answer)
    return dataclasses.replace(
        example,
        options=tuple(example.options[place] for place in order),
        answer=answer,
        id=example.id,
        original=example.original or (example.question, *example.options),
    )


def shuffled(example: Example, seed: int) -> Example:
    """Shuffle the options by hash; a question whose options speak of each other stays as it is.

    "All of the above" keeps its place. Where options are named by letter ("both A and B"), or the explanation
    still does so, no option can move.
    """
    free = free_places(example)
    if not free or names_letters(example.explanation or ""):
        return example
    mixed = list(free)
    random.Random(f"order:{draw_hash(example, seed)}").shuffle(mixed)
    order = list(range(len(example.options)))
    for place, source in zip(free, mixed, strict=True):
        order[place] = source
    return reordered(example, order)


def free_places(example: Example) -> list[int]:
    """List the places whose options may move: not "all of the above", and none beside "both A and B"."""
    if any(_is_combination(option) for option in example.options):
        return []
    return [place for place, option in enumerate(example.options) if not is_anchored(option)]


def _is_combination(option: str) -> bool:
    return is_anchored(option) and any(len(word.strip("()[]'\".,")) == 1 for word in option.split())


def stratified_rows(examples: Sequence[Example], max_rows: int | None, seed: int) -> list[int]:
    """Draw rows by hash, from every subject its share; the row numbers stay in their order.

    Args:
        examples: The rows.
        max_rows: How many; all if None.
        seed: Chooses among the draws.
    """
    if max_rows is None or max_rows >= len(examples):
        return list(range(len(examples)))
    strata: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for row, example in enumerate(examples):
        strata[example.subject or ""].append((draw_hash(example, seed), row))
    # Each row stands at its rank's place in its subject: the first places hold every subject's share.
    placed = [
        ((rank + 0.5) / len(rows), key, row)
        for rows in strata.values()
        for rank, (key, row) in enumerate(sorted(rows))
    ]
    return sorted(row for _, _, row in sorted(placed)[:max_rows])
