"""Turn the configured source into the questions to train on and to be measured on."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from medqa.config import DataConfig
from medqa.data.clean import clean
from medqa.data.sources import read_split
from medqa.errors import DataError
from medqa.records import Example

__all__ = ["QuestionSet", "evaluation_set", "examples_hash", "sample", "training_set"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Questions and how they came about.

    Attributes:
        examples: The questions.
        record: Source, counts and hash, for run.json.
    """

    examples: list[Example]
    record: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether these are all usable questions of the split, not a drawn part."""
        return bool(self.record["num_used"] == self.record["num_with_key"])


def sample(examples: Sequence[Example], max_rows: int | None, seed: int) -> list[Example]:
    """Draw rows by hash of seed, id and content, so that the order of the file does not matter."""
    if max_rows is None or max_rows >= len(examples):
        return list(examples)

    def draw(example: Example) -> str:
        return hashlib.sha256(f"{seed}:{example.id}:{example.content_hash()}".encode()).hexdigest()

    return sorted(examples, key=draw)[:max_rows]


def examples_hash(examples: Iterable[Example]) -> str:
    """Hash everything in the questions, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.to_json(), sort_keys=True).encode())
    return digest.hexdigest()


def training_set(config: DataConfig, seed: int) -> QuestionSet:
    """Read, draw and clean the questions to train on; those without a key are left out.

    Raises:
        DataError: If nothing is left.
    """
    split = read_split(config, config.train_split)
    keyed = [example for example in split.examples if example.answer is not None]
    if not keyed:
        raise DataError(f"{config.name} {config.train_split}: no question has a key", "training needs keys")
    drawn = sample(keyed, config.max_train_rows, seed)
    cleaned, rules = clean(drawn) if config.clean else (drawn, {})
    if no_key := len(split.examples) - len(keyed):
        log.warning("%s: %d rows without a key are left out of training", config.name, no_key)
    return QuestionSet(
        cleaned,
        {
            "name": config.name,
            "split": config.train_split,
            "files": split.files,
            "licences": sorted({example.licence for example in cleaned}),
            "num_read": len(split.examples) + len(split.broken),
            "num_broken": len(split.broken),
            "num_without_key": no_key,
            "num_with_key": len(keyed),
            "num_used": len(cleaned),
            "num_with_explanation": sum(example.explanation is not None for example in cleaned),
            "cleaned": rules,
            "sha256": examples_hash(cleaned),
        },
    )


def evaluation_set(config: DataConfig, seed: int) -> QuestionSet:
    """Read the questions to be measured on, untouched; those without a key are left out.

    Raises:
        DataError: If no question has a key.
    """
    split = read_split(config, config.eval_split, allow_repeated_options=True)
    keyed = [example for example in split.examples if example.answer is not None]
    if not keyed:
        raise DataError(
            f"{config.name} {config.eval_split}: no question has a key",
            "measure on a split with keys: --set data.eval_split=validation",
        )
    drawn = sample(keyed, config.max_eval_rows, seed)
    num_twice = len(drawn) - len({example.content_hash() for example in drawn})
    if num_twice:
        log.warning(
            "%s %s: %d questions occur more than once and count each time; data.subset chooses among subsets",
            config.name,
            config.eval_split,
            num_twice,
        )
    return QuestionSet(
        drawn,
        {
            "name": config.name,
            "split": config.eval_split,
            "files": split.files,
            "num_read": len(split.examples) + len(split.broken),
            "num_broken": len(split.broken),
            "num_without_key": len(split.examples) - len(keyed),
            "num_repeated_options": sum(e.repeated_option() is not None for e in drawn),
            "num_occurring_again": num_twice,
            "num_with_key": len(keyed),
            "num_used": len(drawn),
            "sha256": examples_hash(drawn),
        },
    )
