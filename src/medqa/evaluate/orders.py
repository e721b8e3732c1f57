"""Questions asked in several option orders: one answer from all of them, and how steady it is."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from medqa.data.draw import free_places, reordered
from medqa.errors import DeviceError, MedQAError, RefusedByEngineError
from medqa.evaluate.engine import Engine
from medqa.evaluate.score import make_items
from medqa.progress import Task
from medqa.records import Example, Prediction
from medqa.trust.permutation import NumOrders, mapped_back, option_orders

__all__ = ["OrderedPrediction", "count_askings", "score_each", "score_orders"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class OrderedPrediction:
    """What a model made of one question in several orders.

    Attributes:
        prediction: Over all orders: the mean log-probability of each option. "too_long" if any order was.
        choices: The option chosen in each order, by its place in the order given.
        placed: Where it stood in each order.
        num_orders: Orders that it was asked in: fewer where options must keep their place.
    """

    prediction: Prediction
    choices: tuple[int, ...]
    placed: tuple[int, ...]
    num_orders: int

    def consistency(self, choice: int | None = None) -> float:
        """Share of the orders with the same answer as was given.

        Args:
            choice: The option that was given as the answer; the likeliest over all orders if not given.
        """
        given = self.prediction.choice if choice is None else choice
        return sum(one == given for one in self.choices) / len(self.choices)


def count_askings(examples: Sequence[Example], num_orders: NumOrders) -> int:
    """Count the questions to be scored, each order by itself."""
    return sum(len(option_orders(len(e.options), num_orders, free_places(e))) for e in examples)


def score_orders(
    engine: Engine,
    examples: Sequence[Example],
    num_orders: NumOrders | Sequence[NumOrders],
    *,
    known: Sequence[Prediction] | None = None,
    task: Task | None = None,
) -> list[OrderedPrediction]:
    """Score every question in every order, all of them in the same passes.

    Args:
        engine: The model.
        examples: Questions.
        num_orders: As `option_orders` takes it; one for all, or one a question.
        known: Predictions in the order given, which then are not made again.
        task: Told of progress.
    """
    numbers = [num_orders] * len(examples) if isinstance(num_orders, int) else num_orders
    orders = [
        option_orders(len(e.options), number, free_places(e))
        for e, number in zip(examples, numbers, strict=True)
    ]
    first = 1 if known is not None else 0
    asked = [reordered(e, order) for e, own in zip(examples, orders, strict=True) for order in own[first:]]
    scored = iter(engine.score(make_items(engine.renderer, asked, "medqa"), task=task))
    return [
        _together(
            example,
            own,
            [*([known[number]] if known is not None else []), *(next(scored) for _ in own[first:])],
        )
        for number, (example, own) in enumerate(zip(examples, orders, strict=True))
    ]


def score_each(
    engine: Engine, examples: Sequence[Example], num_orders: NumOrders | Sequence[NumOrders]
) -> list[OrderedPrediction | MedQAError]:
    """Score as `score_orders` does, but let no question spoil the others: its error is in its place.

    Raises:
        MedQAError: If it is not for a question that they can't be scored: the engine can't be reached, say.
    """
    numbers = [num_orders] * len(examples) if isinstance(num_orders, int) else num_orders
    try:
        return list(score_orders(engine, examples, numbers))
    except (DeviceError, RefusedByEngineError) as exc:
        if len(examples) == 1:
            return [exc]
        log.warning(
            "Of %d questions one or more can't be scored; asking each by itself: %s", len(examples), exc
        )
    return [score_each(engine, [e], [n])[0] for e, n in zip(examples, numbers, strict=True)]


def _together(
    example: Example, orders: Sequence[tuple[int, ...]], predictions: Sequence[Prediction]
) -> OrderedPrediction:
    """Put what was given by place back to options, and take the mean."""
    blank = Prediction(example.id, example.subject, len(example.options), example.answer, "too_long")
    if any(p.status != "scored" for p in predictions):
        return OrderedPrediction(blank, (), (), len(orders))
    values = np.array(
        [mapped_back(np.log(p.probabilities).tolist(), o) for p, o in zip(predictions, orders, strict=True)]
    )
    # One order is left as the model gave it: nothing is to be averaged.
    mean = predictions[0].log_likelihoods if len(orders) == 1 else tuple(map(float, values.mean(axis=0)))
    prediction = dataclasses.replace(blank, status="scored", log_likelihoods=mean)
    return OrderedPrediction(
        prediction,
        tuple(order[p.choice] for p, order in zip(predictions, orders, strict=True)),
        tuple(p.choice for p in predictions),
        len(orders),
    )
