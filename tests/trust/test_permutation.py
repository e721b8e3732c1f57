"""Option orders: what reads the text never changes its mind, what reads the place does so always."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medqa.errors import ConfigError
from medqa.trust.permutation import NUM_ORDERS, consistency, letter_shares, mapped_back, option_orders

SIZES = (2, 3, 4, 5, 10)
RIGHT = "metformin"


def options(num_options, last=None):
    texts = [RIGHT, *(f"wrong {number}" for number in range(num_options - 1))]
    return [*texts[:-1], last] if last else texts


def ask(model, texts, orders):
    """Ask in each order, and put what the model says by place back to the options."""
    return np.array([mapped_back(model([texts[source] for source in order]), order) for order in orders])


def reader(shown):
    """A model that knows the right text wherever it stands."""
    return [-0.1 if text == RIGHT else -5.0 - len(text) / 100 for text in shown]


def always_a(shown):
    """A model that says A whatever it is asked."""
    return [-0.1, *(-4.0 - place / 10 for place in range(1, len(shown)))]


@pytest.mark.parametrize("num_options", SIZES)
@pytest.mark.parametrize("num_orders", NUM_ORDERS)
@pytest.mark.parametrize("last", [None, "all of the above"])
def test_a_model_that_reads_the_text_is_always_right_and_never_flips(num_options, num_orders, last):
    free = range(num_options - 1) if last else None
    texts = options(num_options, last)
    free_texts = texts[: len(texts) - bool(last)]
    for shown in (texts, [*free_texts[::-1], *texts[len(free_texts) :]]):
        orders = option_orders(num_options, num_orders, free)
        found = ask(reader, shown, orders)
        assert (found.argmax(axis=1) == shown.index(RIGHT)).all()
        assert consistency(found) == 1
        assert consistency(found, shown.index(RIGHT)) == 1
        for row in found[1:]:
            assert row == pytest.approx(found[0])  # the very same values, order by order


@pytest.mark.parametrize("num_options", SIZES)
def test_a_model_that_always_says_a_holds_to_one_of_n_rotations(num_options):
    orders = option_orders(num_options, 4)
    assert consistency(ask(always_a, options(num_options), orders)) == pytest.approx(1 / num_options)


def test_a_model_that_always_says_a_holds_to_a_quarter_of_all_orders():
    found = ask(always_a, options(4), option_orders(4, 24))
    for choice in range(4):
        assert consistency(found, choice) == 0.25


def test_averaging_over_rotations_takes_the_place_away():
    found = ask(always_a, options(4), option_orders(4, 4)).mean(axis=0)
    assert found == pytest.approx(np.full(4, found[0]))


@pytest.mark.parametrize("num_options", [1, *SIZES])
@pytest.mark.parametrize("num_orders", NUM_ORDERS)
def test_orders_are_different_whole_and_begin_with_the_given_one(num_options, num_orders):
    orders = option_orders(num_options, num_orders)
    assert orders[0] == tuple(range(num_options))
    assert len(set(orders)) == len(orders)
    assert all(sorted(order) == list(range(num_options)) for order in orders)
    expected = {1: 1, 4: num_options, 24: min(24, math.factorial(num_options))}[num_orders]
    assert len(orders) == expected
    assert orders == option_orders(num_options, num_orders)


@pytest.mark.parametrize("num_options", SIZES)
def test_rotations_put_each_option_at_each_letter_once(num_options):
    seen = Counter(
        (place, source) for order in option_orders(num_options, 4) for place, source in enumerate(order)
    )
    assert seen == Counter(itertools.product(range(num_options), repeat=2))


@pytest.mark.parametrize("num_options", [2, 3, 4])
def test_24_orders_are_all_orders_of_up_to_four_options(num_options):
    assert set(option_orders(num_options, 24)) == set(itertools.permutations(range(num_options)))


@pytest.mark.parametrize("num_options", [5, 6, 10, 26])
def test_drawn_orders_prefer_no_place(num_options):
    # Whole rotations, the last one maybe cut short: each option at each place about as often.
    seen = Counter(
        (place, source) for order in option_orders(num_options, 24) for place, source in enumerate(order)
    )
    counts = [seen[pair] for pair in itertools.product(range(num_options), repeat=2)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("num_orders", NUM_ORDERS)
@pytest.mark.parametrize("free", [[], [2], [0, 1, 2], [1, 3], [3, 0]])
def test_options_that_may_not_move_keep_their_place(num_orders, free):
    orders = option_orders(4, num_orders, free)
    assert orders[0] == (0, 1, 2, 3)
    assert len(set(orders)) == len(orders)
    for order in orders:
        assert all(order[place] == place for place in range(4) if place not in free)
    moved = max(1, len(free))
    assert len(orders) == {1: 1, 4: moved, 24: math.factorial(len(free))}[num_orders]


@pytest.mark.parametrize("num_orders", [0, 2, 12, -1])
def test_another_number_of_orders_is_refused(num_orders):
    with pytest.raises(ConfigError, match=f"{num_orders} option orders"):
        option_orders(4, num_orders)


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=10), st.randoms())
def test_mapping_back_undoes_an_order(values, random):
    order = random.sample(range(len(values)), len(values))
    assert mapped_back([values[source] for source in order], order) == values


def test_mapping_back_by_hand():
    # C is shown first, then A, then B.
    assert mapped_back([-1.0, -2.0, -3.0], (2, 0, 1)) == [-2.0, -3.0, -1.0]
    with pytest.raises(ValueError, match="zip"):
        mapped_back([-1.0], (1, 0))


def test_consistency_by_hand():
    found = np.log([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    assert consistency(found) == pytest.approx(1 / 3)  # on average, the second is likelier
    assert consistency(found, 0) == pytest.approx(2 / 3)


def test_letter_shares_by_hand():
    assert letter_shares([0, 0, 2, 0], 4).tolist() == [0.75, 0, 0.25, 0]
    assert letter_shares([], 3).tolist() == [0, 0, 0]
