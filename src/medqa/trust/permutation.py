"""The same question with its options in other orders: what of an answer is knowledge, and what is place.

An order is a tuple: for each new place, the place that its option had. Values that a model gives by place are
put back with `mapped_back` before anything is compared, so that an answer is an option and never a letter.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from medqa.errors import ConfigError

__all__ = ["NUM_ORDERS", "NumOrders", "consistency", "letter_shares", "mapped_back", "option_orders"]

NumOrders = Literal[1, 4, 24]
NUM_ORDERS: tuple[NumOrders, ...] = (1, 4, 24)

FloatArray = npt.NDArray[np.float64]


def option_orders(
    num_options: int, num_orders: NumOrders = 1, free: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """List the orders to ask in; the first is always the one given.

    Args:
        num_options: Options of the question.
        num_orders: 1 is the order as given. 4 is every rotation, as many as there are options that move: each
            of them stands at each place once. 24 is every order of up to four options; of more, 24 are drawn,
            the same ones each time.
        free: Places whose options may move; all if not given. "All of the above" has to keep its place.

    Raises:
        ConfigError: If the number of orders is none of these.
    """
    if num_orders not in NUM_ORDERS:
        raise ConfigError(
            f"{num_orders!r} option orders", "1 takes the order given, 4 every rotation, 24 every order"
        )
    places = sorted(range(num_options) if free is None else free)
    if num_orders == 1 or len(places) < 2:
        moves = [tuple(places)]
    elif num_orders == 4:
        moves = [tuple(places[shift:] + places[:shift]) for shift in range(len(places))]
    elif math.factorial(len(places)) <= num_orders:
        moves = list(itertools.permutations(places))
    else:
        moves = _drawn(places, num_orders)
    orders = []
    for move in moves:
        order = list(range(num_options))
        for place, source in zip(places, move, strict=True):
            order[place] = source
        orders.append(tuple(order))
    return orders


def _drawn(places: list[int], num_orders: int) -> list[tuple[int, ...]]:
    """Draw different orders, the given one first, rotation by rotation: hardly any place is preferred."""
    draw = random.Random(len(places))
    found: dict[tuple[int, ...], None] = {}
    base = list(places)
    while len(found) < num_orders:
        for shift in range(len(base)):
            found.setdefault(tuple(base[shift:] + base[:shift]))
        draw.shuffle(base)
    return list(found)[:num_orders]


def mapped_back(values: Sequence[float], order: Sequence[int]) -> list[float]:
    """Put values given by place into the order that the options had at first."""
    back = [0.0] * len(order)
    for value, source in zip(values, order, strict=True):
        back[source] = value
    return back


def consistency(log_likelihoods: FloatArray, choice: int | None = None) -> float:
    """Share of the orders in which the same option is the likeliest as over all of them.

    Args:
        log_likelihoods: Of each option, mapped back, in each order.
        choice: The option that was chosen; the likeliest on average if not given.

    Shapes:
        log_likelihoods: (orders, options).
    """
    chosen = int(np.argmax(log_likelihoods.mean(axis=0))) if choice is None else choice
    return float(np.mean(np.argmax(log_likelihoods, axis=1) == chosen))


def letter_shares(choices: Sequence[int], num_letters: int) -> FloatArray:
    """Share of the questions in which each letter was chosen: what a model without bias gives to all alike.

    Args:
        choices: Place of the chosen option, in the order that the model saw.
        num_letters: Letters there are.

    Shapes:
        Returns (num_letters,).
    """
    return np.bincount(np.asarray(choices, dtype=np.int64), minlength=num_letters) / max(1, len(choices))
