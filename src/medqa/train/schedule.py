"""Which rows each optimizer step takes, and at what learning rate: fixed by the settings alone."""

import math
import random
from collections.abc import Sequence

from medqa.config import TrainConfig

__all__ = ["deal", "learning_rate", "plan_epoch", "plan_steps"]

SORTED_BATCHES = 64


def plan_steps(lengths: Sequence[int], config: TrainConfig, *, balanced: bool) -> list[list[int]]:
    """List the rows of every optimizer step of all epochs."""
    return [
        batch
        for epoch in range(config.epochs)
        for batch in plan_epoch(lengths, config.batch_size, config.seed, epoch, balanced=balanced)
    ]


def plan_epoch(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, balanced: bool
) -> list[list[int]]:
    """Group rows into batches, in random order; every row once.

    Balanced batches hold long and short rows and about the same number of tokens each: laid end to end
    they need no padding, and all fit into one shape. The others hold rows of like length, sorted within
    stretches of 64 batches, so that padding them costs little.

    Args:
        lengths: Tokens of each row.
        batch_size: Most rows of a batch.
        seed: Together with the epoch, chooses the order.
        epoch: Number of the epoch.
        balanced: Which of the two.
    """
    rng = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    stretch = len(order) if balanced else batch_size * SORTED_BATCHES
    batches = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        if balanced:
            dealt = deal([lengths[row] for row in part], math.ceil(len(part) / batch_size))
            batches += [[part[index] for index in batch] for batch in dealt]
        else:
            part.sort(key=lambda row: -lengths[row])
            batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    rng.shuffle(batches)
    return batches


def deal(lengths: Sequence[int], num_parts: int) -> list[list[int]]:
    """Part rows into parts of equal counts, or one less, and about equal totals.

    In rounds of one row a part, from the longest rows to the shortest; in each, the part with the
    fewest tokens takes the longest row.

    Source:
        Graham 1969, longest processing time first, in rounds so that the counts come out equal.

    Returns:
        Row numbers of each part, in rising order.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for start in range(0, len(order), num_parts):
        poorest = sorted(range(num_parts), key=lambda part: totals[part])
        for part, row in zip(poorest, order[start : start + num_parts], strict=False):
            parts[part].append(row)
            totals[part] += lengths[row]
    return [sorted(part) for part in parts]


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Give the learning rate of a step: linear warm-up, then a cosine to zero.

    Args:
        step: Number of the step, from 0.
        num_steps: Steps of the whole run.
        config: Peak rate and share of warm-up steps.
    """
    warmup = math.ceil(config.warmup_fraction * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
