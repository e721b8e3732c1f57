"""Ask the tuned model changed questions, and count what it answers: what explanations and traps stand on."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from medqa.evaluate.engine import Engine
from medqa.evaluate.score import make_items
from medqa.progress import Task
from medqa.records import Example, Prediction
from medqa.trust import wilson_interval

__all__ = ["Asker", "Probabilities", "Reply", "mean", "share"]

Probabilities = Callable[[Sequence[Sequence[float]]], list[list[float]]]
"""Turns the log-likelihoods of each question's options into calibrated probabilities."""


class Reply(NamedTuple):
    """What the model answers to one question.

    Attributes:
        choice: Place of the chosen option: the likeliest after calibration, the first of equals.
        probabilities: Of each option.
    """

    choice: int
    probabilities: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """Probability of the chosen option."""
        return self.probabilities[self.choice]


@dataclasses.dataclass(frozen=True)
class Asker:
    """A tuned model and the way its likelihoods become confidence.

    Attributes:
        engine: The model.
        probabilities: From log-likelihoods to calibrated probabilities.
    """

    engine: Engine
    probabilities: Probabilities

    def score(self, examples: Sequence[Example], task: Task | None = None) -> list[Prediction]:
        """Score questions under our own prompt, in the order given."""
        return self.engine.score(make_items(self.engine.renderer, examples, "medqa"), task=task)

    def ask(self, examples: Sequence[Example], task: Task | None = None) -> list[Reply | None]:
        """Answer questions, in the order given; None for one that is too long."""
        return self.replies(self.score(examples, task))

    def replies(self, predictions: Sequence[Prediction]) -> list[Reply | None]:
        """Turn predictions into answers; None for a question that was too long."""
        scored = [p.log_likelihoods for p in predictions if p.status == "scored"]
        rows = iter(self.probabilities(scored) if scored else [])
        return [_reply(next(rows)) if p.status == "scored" else None for p in predictions]


def _reply(probabilities: Sequence[float]) -> Reply:
    return Reply(max(range(len(probabilities)), key=probabilities.__getitem__), tuple(probabilities))


def share(flags: Sequence[bool]) -> tuple[float | None, list[float] | None]:
    """Return the share that is true, with Wilson's interval; None for both where there is nothing."""
    if not flags:
        return None, None
    return sum(flags) / len(flags), list(wilson_interval(sum(flags), len(flags)))


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return sum(values) / len(values) if values else None
