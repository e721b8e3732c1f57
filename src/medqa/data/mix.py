"""The sources of a corpus: what was read from each, under which label its rows travel."""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from medqa.config import DataConfig, MixConfig
from medqa.data.draw import sample
from medqa.data.sources import Split, read_split
from medqa.records import Example

__all__ = ["Source", "read_sources"]

log = logging.getLogger(__name__)

_NUM_BROKEN_KEPT = 100
_NUM_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of training rows.

    Attributes:
        config: Where it is and how it is used.
        label: `source` of its rows; no two sources have the same.
        split_name: Name of the split that was read.
        split: What was read.
        examples: The rows that have a key, as many as `max_rows` allows.
    """

    config: DataConfig | MixConfig
    label: str
    split_name: str
    split: Split
    examples: list[Example]

    def record(self, train: Sequence[Example]) -> dict[str, Any]:
        """Describe the source: where from, how read, how much of it is used."""
        split = self.split
        return {
            "name": self.config.name,
            "label": self.label,
            "split": self.split_name,
            "files": split.files,
            "licences": sorted({example.licence for example in self.examples}),
            "keys": {"style": split.keys.style, "evidence": split.keys.evidence},
            "num_read": len(split.examples) + len(split.broken),
            "num_broken": len(split.broken),
            "broken": split.broken[:_NUM_BROKEN_KEPT],
            "num_without_key": len(split.no_key),
            "num_drawn": len(self.examples),
            "weight": self.config.weight,
            "num_used": sum(example.source == self.label for example in train),
        }


def read_sources(config: DataConfig) -> list[Source]:
    """Read the training split of every source of a recipe.

    Raises:
        DataError: If one can't be read.
        HubError: If one is neither on disk nor to be had from the Hub.
    """
    sources: list[Source] = []
    labels: collections.Counter[str] = collections.Counter()
    parts: list[DataConfig | MixConfig] = [config, *config.mix]
    for part in parts:
        name = part.split if isinstance(part, MixConfig) else config.train_split
        split = read_split(part, name, allow_repeated_options=True)
        if split.no_key:
            shown = ", ".join(split.no_key[:_NUM_SHOWN]) + (", ..." if len(split.no_key) > _NUM_SHOWN else "")
            log.warning(
                "%s: rows without a key are left out of training: %d (%s)",
                part.name,
                len(split.no_key),
                shown,
            )
        keyed = [example for example in split.examples if example.answer is not None]
        if isinstance(part, MixConfig):
            keyed = sample(keyed, part.max_rows, 0, "max_rows")
        label = keyed[0].source if keyed else part.name
        labels[label] += 1
        if labels[label] > 1:  # another split or subset of the same name
            label = f"{label} ({part.subset or name}, {labels[label]})"
            keyed = [dataclasses.replace(example, source=label) for example in keyed]
        sources.append(Source(part, label, name, split, keyed))
    return sources
