"""Which rows each optimizer step takes, and at what learning rate: fixed by the settings alone."""

import math
from collections.abc import Sequence

from medqa.config import TrainConfig
from medqa.model.batch import TokenisedRow, plan_epoch

__all__ = ["learning_rate", "plan_steps"]


def plan_steps(rows: Sequence[TokenisedRow], config: TrainConfig) -> list[list[int]]:
    """List the rows of every optimizer step of all epochs."""
    lengths = [len(row) for row in rows]
    return [
        batch
        for epoch in range(config.epochs)
        for batch in plan_epoch(lengths, config.batch_size, config.seed, epoch)
    ]


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
