"""Calibrators against independent fits of the same models, and what they must never do."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import conditional_logit_model, isotonic_regression

from medqa.trust.calibrators import (
    CALIBRATORS,
    Isotonic,
    Temperature,
    VectorScaling,
    cross_fitted,
    padded,
    row_losses,
    softmax_rows,
)


def questions(seed, n=200, width=4, temperature=2.0, bias=0.0, mixed=False):
    """Log-likelihoods of a model that is too sure, likes A, and has the answers that its own odds say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, width))
    if mixed:
        logits[np.arange(width) >= rng.integers(2, width + 1, (n, 1))] = -np.inf
    answers = (softmax_rows(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    shown = logits * temperature + bias * np.eye(width)[0]
    return shown - rng.uniform(1, 9, (n, 1)), answers


def conditional_logit(values, answers, by_letter):
    """Fit the same model as a choice among options, by statsmodels: one group a question."""
    groups, letters = np.nonzero(np.isfinite(values))
    logs = (values - values.max(axis=1, keepdims=True))[groups, letters]
    letter = np.eye(values.shape[1])[letters]
    features = np.hstack([letter * logs[:, None], letter[:, 1:]]) if by_letter else logs[:, None]
    right = (answers[groups] == letters).astype(int)
    return conditional_logit_model(right, features, groups=groups).fit(disp=0)


@pytest.mark.parametrize("mixed", [False, True], ids=["four options", "two to four"])
@pytest.mark.parametrize("seed", range(3))
def test_temperature_equals_statsmodels_conditional_logit(seed, mixed):
    values, answers = questions(seed, mixed=mixed)
    fitted = conditional_logit(values, answers, by_letter=False)
    assert Temperature.fit(values, answers).temperature == pytest.approx(1 / fitted.params[0], rel=1e-4)


@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_temperature_equals_another_optimiser_from_any_start(start):
    values, answers = questions(5)

    def loss(parameters):
        return row_losses(softmax_rows(values * parameters[0]), answers).mean()

    found = scipy.optimize.minimize(loss, [1 / start], method="Nelder-Mead", options={"xatol": 1e-7})
    assert Temperature.fit(values, answers).temperature == pytest.approx(1 / found.x[0], rel=1e-4)


@pytest.mark.parametrize("gap", [30, 300, 3000])
def test_temperature_is_found_however_sure_the_model_is(gap):
    # Wrong with a likelihood of e^-300: a bound on the loss would make all temperatures look alike.
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 4, 200)
    chosen = np.where(rng.random(200) < 0.7, answers, (answers + 1) % 4)
    assert Temperature.fit(np.eye(4)[chosen] * gap, answers).temperature > 15


def test_an_option_without_any_likelihood_leaves_the_temperature_to_the_others():
    values, answers = questions(1)
    impossible = np.array([[0.0, -np.inf, -1.0, -2.0]])
    more = Temperature.fit(np.vstack([values, impossible]), np.append(answers, 1))
    assert more.temperature == pytest.approx(Temperature.fit(values, answers).temperature, rel=1e-4)


def test_a_model_that_is_always_right_gets_the_lowest_temperature_and_a_useless_one_the_highest():
    answers = np.arange(100) % 4
    assert Temperature.fit(np.eye(4)[answers], answers).temperature == pytest.approx(0.05, rel=1e-3)
    assert Temperature.fit(np.eye(4)[(answers + 1) % 4], answers).temperature == pytest.approx(20, rel=1e-3)


@pytest.mark.parametrize("mixed", [False, True], ids=["four options", "two to four"])
@pytest.mark.parametrize("seed", range(2))
def test_vector_scaling_equals_statsmodels_conditional_logit(seed, mixed):
    values, answers = questions(seed, bias=2.0, mixed=mixed)
    ours, theirs = VectorScaling.fit(values, answers), conditional_logit(values, answers, by_letter=True)
    biases = np.append(0, theirs.params[4:])
    assert ours.scales == pytest.approx(theirs.params[:4], abs=3e-3)
    assert ours.biases == pytest.approx(biases - biases.mean(), abs=3e-3)
    losses = row_losses(ours.probabilities(values), answers)
    assert losses.sum() == pytest.approx(-theirs.llf, abs=1e-4)


def test_vector_scaling_takes_away_a_bias():
    values, answers = questions(0, n=4000, temperature=1.0, bias=3.0)
    fitted = VectorScaling.fit(values, answers)
    assert fitted.biases[0] - np.mean(fitted.biases[1:]) == pytest.approx(-3, abs=0.4)
    before, after = softmax_rows(values), fitted.probabilities(values)
    assert np.mean(after.argmax(axis=1) == answers) > np.mean(before.argmax(axis=1) == answers) + 0.1


def test_letters_that_vector_scaling_never_saw_take_the_mean_scale_and_no_bias():
    fitted = VectorScaling((1.0, 2.0, 0.6), (0.5, -0.4, -0.1))
    shown = np.array([[-1.0, -2.0, -3.0, -0.5, -4.0]])
    scaled = shown - shown.max()  # scales and biases apply to distances from the likeliest
    by_hand = scaled * [1, 2, 0.6, 1.2, 1.2] + [0.5, -0.4, -0.1, 0, 0]
    assert fitted.probabilities(shown) == pytest.approx(softmax_rows(by_hand))
    assert fitted.probabilities(shown[:, :2]).shape == (1, 2)


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_steps_equal_scikit_learn(seed):
    values, answers = questions(seed, mixed=True)
    ours = Isotonic.fit(values, answers)
    there = np.isfinite(values)
    inputs = softmax_rows(values)[there]
    right = (np.arange(4) == answers[:, None])[there].astype(float)
    steps = isotonic_regression().fit(inputs, right).predict(inputs)
    assert sorted(set(np.round(steps, 9))) == pytest.approx(list(ours.outputs))
    middles = [inputs[np.isclose(steps, level)].mean() for level in ours.outputs]
    assert ours.inputs == pytest.approx(middles)


def test_isotonic_by_hand():
    # Options at 0.2, 0.4 and 0.6 are right 0, 1 and 1 times of 2: the first step is 0, the others are 1/2.
    values = np.log([[0.4, 0.6], [0.4, 0.6], [0.2, 0.8], [0.2, 0.8]])
    fitted = Isotonic.fit(values, np.array([0, 1, 1, 1]))
    assert fitted.inputs == pytest.approx((0.2, 0.5, 0.8))
    assert fitted.outputs == pytest.approx((0, 0.5, 1))
    [row] = fitted.probabilities(np.log([[0.35, 0.65]]))  # half way up each of the two lines
    curve = np.array([0.25 + 0.35e-3, 0.75 + 0.65e-3])
    assert row == pytest.approx(curve / curve.sum())


LOGS = arrays(float, (30, 4), elements=st.floats(-30, 0, width=32))


@settings(max_examples=60, deadline=None)
@given(LOGS, st.integers(0, 9))
def test_temperature_and_isotonic_never_change_an_answer(values, seed):
    draw = np.random.default_rng(seed)
    values = np.vstack([values, draw.normal(0, 3, (10, 4))])  # hardly any of these is a tie
    best = np.sort(values, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-5  # rounding may break closer ties
    assert clear.sum() > 5
    answers = draw.integers(0, 4, len(values))
    for kind in (Temperature, Isotonic):
        found = kind.fit(values, answers).probabilities(values)
        assert (found.argmax(axis=1) == values.argmax(axis=1))[clear].all()


@settings(max_examples=40, deadline=None)
@given(LOGS, st.integers(0, 9), st.sampled_from(sorted(CALIBRATORS)))
def test_padding_never_gets_probability_and_rows_add_up_to_one(values, seed, name):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 5, len(values))
    values = np.where(np.arange(4) < sizes[:, None], values, -np.inf)
    fitted = CALIBRATORS[name].fit(values, rng.integers(0, sizes))
    found = fitted.probabilities(values)
    assert (found[np.isneginf(values)] == 0).all()
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(len(values)))
    # A question by itself, without padding, is judged as in the company of longer ones.
    for row, size, whole in zip(values, sizes, found, strict=True):
        alone = fitted.probabilities(row[None, :size])[0]
        assert alone == pytest.approx(whole[:size])


def test_padded_rows_keep_their_values():
    rows = padded([[1.0], [2.0, 3.0], []])
    assert np.array_equal(rows, [[1, -np.inf], [2, 3], [-np.inf, -np.inf]])
    assert padded([]).shape == (0, 0)


@pytest.mark.parametrize("name", sorted(CALIBRATORS))
def test_cross_fitting_judges_no_question_by_itself(name):
    values, answers = questions(3, n=57)
    found = cross_fitted(CALIBRATORS[name], values, answers)
    for row in (0, 13, 56):
        others = np.arange(57) % 10 != row % 10
        fitted = CALIBRATORS[name].fit(values[others], answers[others])
        assert found[row] == pytest.approx(fitted.probabilities(values[[row]])[0])
        changed = answers.copy()
        changed[row] = (changed[row] + 1) % 4
        assert np.array_equal(cross_fitted(CALIBRATORS[name], values, changed)[row], found[row])


def test_cross_fitting_takes_fewer_questions_than_folds():
    values, answers = questions(3, n=6)
    assert np.isfinite(cross_fitted(Temperature, values, answers)).all()
