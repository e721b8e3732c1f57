"""Several option orders: what reads option texts is steady and right, what likes a letter is not."""

import dataclasses

import numpy as np
import pytest

from medqa.evaluate import orders as orders_module
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.orders import OrderedPrediction, count_askings, score_orders
from medqa.evaluate.score import score_items
from medqa.model.tuned import load_tuned
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction
from medqa.testing import make_examples

ABOVE = Example("Which of these beat?", ("atria", "ventricles", "auricles", "All of the above"), 3, "above")
BOUND = Example("Which of these beat?", ("atria", "ventricles", "bones", "Both A and B"), 3, "bound")
NUM_ASKED = {1: 1, 4: 4, 24: 24}


class StandIn:
    """Scores what it is asked by a rule, and keeps what it was asked."""

    def __init__(self, choose):
        self.choose, self.asked = choose, []

    def score(self, items, *, task):
        self.asked += [item.example for item in items]
        return [self.predict(item.example, len(item.prefix) < self.max_length_tokens) for item in items]

    def predict(self, example, fits=True):
        n = len(example.options)
        logs = tuple(-1.0 - 2.0 * (place != self.choose(example)) for place in range(n)) if fits else ()
        return Prediction(
            example.id, example.subject, n, example.answer, "scored" if fits else "too_long", logs
        )


@pytest.fixture
def ask(tokenizer):
    def asked(stand_in, examples, number, *, max_length_tokens=10_000, **more):
        stand_in.renderer, stand_in.max_length_tokens = PromptRenderer(tokenizer), max_length_tokens
        return score_orders(stand_in, examples, number, **more)

    return asked


def oracle(examples):
    """Know the right option by its text, wherever it stands."""
    right = {e.question + str(sorted(e.options)): e.options[e.answer] for e in examples}
    return StandIn(lambda e: e.options.index(right[e.question + str(sorted(e.options))]))


@pytest.mark.parametrize("number", [1, 4, 24])
def test_an_oracle_is_right_and_steady_in_every_order(ask, number):
    examples = [*make_examples(8), ABOVE, BOUND, Example("Two?", ("yes", "no"), 1, "two")]
    stand_in = oracle(examples)
    found = ask(stand_in, examples, number)
    assert [one.prediction.choice for one in found] == [e.answer for e in examples]
    assert [one.consistency() for one in found] == [1] * len(examples)
    assert [one.prediction.id for one in found] == [e.id for e in examples]
    assert [one.num_orders for one in found[:8]] == [NUM_ASKED[number]] * 8
    assert [one.num_orders for one in found[8:]] == {1: [1, 1, 1], 4: [3, 1, 2], 24: [6, 1, 2]}[number]
    assert len(stand_in.asked) == count_askings(examples, number) == sum(one.num_orders for one in found)
    assert all(e.options[3] == "All of the above" for e in stand_in.asked if e.id == "above")
    assert all(e.options == BOUND.options for e in stand_in.asked if e.id == "bound")
    if number > 1:  # each option stood at each place equally often
        placed = np.array([one.placed for one in found[:8]])
        assert all(np.bincount(row).tolist() == [number // 4] * 4 for row in placed)


@pytest.mark.parametrize("number", [4, 24])
def test_a_liking_for_a_letter_is_no_choice_and_not_steady(ask, number):
    [found] = ask(StandIn(lambda e: 1), make_examples(1), number)
    assert found.prediction.probabilities == pytest.approx([0.25] * 4)
    assert found.placed == (1,) * number
    assert [found.consistency(option) for option in range(4)] == [0.25] * 4


def test_the_mean_is_of_log_probabilities_by_option(ask):
    example = make_examples(1)[0]
    draw = np.random.default_rng(0)
    shown = {}

    def predict(e, fits=True):
        values = draw.normal(size=4)
        shown[e.options] = dict(zip(e.options, values - np.log(np.exp(values).sum()), strict=True))
        return Prediction(e.id, None, 4, e.answer, "scored", tuple(values + 5))

    stand_in = StandIn(None)
    stand_in.predict = predict
    [found] = ask(stand_in, [example], 4)
    by_hand = [np.mean([seen[option] for seen in shown.values()]) for option in example.options]
    assert found.prediction.log_likelihoods == pytest.approx(by_hand)
    assert found.choices == tuple(example.options.index(max(s, key=s.get)) for s in shown.values())


def test_known_predictions_are_not_asked_again(ask):
    examples = [*make_examples(3), BOUND]
    stand_in = oracle(examples)
    known = [stand_in.predict(e) for e in examples]
    found = ask(stand_in, examples, 4, known=known)
    assert len(stand_in.asked) == 3 * 3  # and nothing of what can't be moved
    assert not {e.options for e in stand_in.asked} & {e.options for e in examples}
    assert found == ask(oracle(examples), examples, 4)
    assert ask(oracle(examples), examples, 1, known=known)[0].prediction == known[0]


def test_one_order_leaves_what_the_model_gave(ask):
    [found] = ask(StandIn(lambda e: 2), make_examples(1), 1)
    assert found.prediction.log_likelihoods == (-3.0, -3.0, -1.0, -3.0)  # not normalised


def test_what_is_too_long_in_any_order_is_so_in_all(ask):
    long = dataclasses.replace(make_examples(2)[1], question="long " * 300)
    found = ask(StandIn(lambda e: 0), [make_examples(1)[0], long], 4, max_length_tokens=700)
    assert [one.prediction.status for one in found] == ["scored", "too_long"]
    assert (found[1].choices, found[1].placed, found[1].num_orders) == ((), (), 4)
    assert found[1].prediction.log_likelihoods == ()


def test_consistency_goes_by_the_answer_that_was_given():
    one = OrderedPrediction(
        Prediction("q", None, 3, 0, "scored", (0.0, -1.0, -2.0)), (0, 0, 1, 0), (0, 2, 2, 1), 4
    )
    assert (one.consistency(), one.consistency(1), one.consistency(2)) == (0.75, 0.25, 0)


def test_a_tiny_model_in_the_order_given_scores_as_ever(finished_run):
    tuned = load_tuned(finished_run)
    engine = LocalEngine(tuned)
    examples = make_examples(4)
    one, four = (score_orders(engine, examples, number) for number in (1, 4))
    items = orders_module.make_items(tuned.renderer, examples, "medqa")
    plain = score_items(
        tuned.model, items, tuned.device, max_length_tokens=tuned.base.max_length_tokens, batch_tokens=2048
    )
    for a, b in zip(one, plain, strict=True):
        assert a.prediction.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-4)
    known = score_orders(engine, examples, 4, known=[p.prediction for p in one])
    for a, b in zip(known, four, strict=True):
        assert a.prediction.log_likelihoods == pytest.approx(b.prediction.log_likelihoods, abs=1e-4)
        assert (a.choices, a.placed) == (b.choices, b.placed)
