"""Metrics against hand-worked cases, identities and independent libraries."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    brier_score_loss,
    calibration_curve,
    ece_of_mapie,
    log_loss,
    mcnemar,
    proportion_confint,
    roc_auc_score,
)

from medqa.trust.metrics import (
    auroc,
    bootstrap_interval,
    brier_score,
    calibration_error_by_chance,
    expected_calibration_error,
    mcnemar_p,
    negative_log_likelihood,
    reliability_bins,
    wilson_interval,
)

SEEDS = range(4)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (870, 2071)])
def test_wilson_equals_statsmodels(k, n):
    assert wilson_interval(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"))


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_statsmodels_at_any_level(n, share, level):
    k = round(share * n)
    expected = proportion_confint(k, n, alpha=1 - level, method="wilson")
    assert wilson_interval(k, n, level) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_equals_statsmodels():
    rng = np.random.default_rng(0)
    for n in (5, 60, 500):
        a, b = rng.random(n) < 0.5, rng.random(n) < 0.6
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
        assert mcnemar_p(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_mcnemar_of_models_that_never_differ_is_one():
    same = np.array([True, False])
    assert mcnemar_p(same, same) == 1.0


def test_mcnemar_by_hand():
    # one differs for, five against: 2 * (1 + 6) / 2**6
    a = np.array([True] + [False] * 5 + [True] * 9)
    b = np.array([False] + [True] * 5 + [True] * 9)
    assert mcnemar_p(a, b) == pytest.approx(2 * 7 / 64)


def random_probabilities(seed=1, n=300, k=4):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(k), n), rng.integers(0, k, n)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [2, 4, 7])
def test_nll_and_brier_equal_scikit_learn(seed, k):
    p, y = random_probabilities(seed, k=k)
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p, labels=range(k)))
    one_against_rest = sum(brier_score_loss(y == option, p[:, option]) for option in range(k))
    assert brier_score(p, y) == pytest.approx(one_against_rest)


def test_brier_bounds_by_hand():
    assert brier_score([(1.0, 0.0)], [0]) == 0
    assert brier_score([(1.0, 0.0)], [1]) == 2


def test_questions_may_differ_in_their_number_of_options():
    assert negative_log_likelihood([(0.5, 0.5), (0.25, 0.5, 0.25)], [0, 2]) == pytest.approx(
        (np.log(2) + np.log(4)) / 2
    )


def test_ece_by_hand():
    confidence = np.array([0.95, 0.85, 0.35, 0.35])
    correct = np.array([True, False, True, False])
    # bins: 0.95 alone, 0.85 alone, two at 0.35 of which half are right
    assert expected_calibration_error(confidence, correct) == pytest.approx((0.05 + 0.85 + 2 * 0.15) / 4)


def test_ece_edges_belong_to_the_lower_bin():
    assert expected_calibration_error(np.array([0.5]), np.array([True]), 2) == pytest.approx(0.5)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_ece_of_perfectly_calibrated_draws_is_small():
    rng = np.random.default_rng(2)
    confidence = rng.random(200_000)
    assert expected_calibration_error(confidence, rng.random(200_000) < confidence) < 0.01


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_bins", [1, 5, 10, 15])
@pytest.mark.parametrize("binning", ["equal-width", "equal-mass"])
def test_ece_equals_mapie(seed, num_bins, binning):
    p, y = random_probabilities(seed)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    if binning == "equal-width":  # MAPIE counts the edges, not what is between them
        expected = ece_of_mapie(correct.astype(int), confidence, num_bins + 1, "uniform")
    else:  # it cuts the questions in the order that they come in
        order = np.argsort(confidence)
        expected = ece_of_mapie(correct[order].astype(int), confidence[order], num_bins, "array split")
    assert expected_calibration_error(confidence, correct, num_bins, binning) == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_reliability_bins_equal_scikit_learn_s_curve(seed):
    p, y = random_probabilities(seed)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    accuracies, confidences = calibration_curve(correct, confidence, n_bins=8, strategy="uniform")
    bins = reliability_bins(confidence, correct, 8)
    assert [b.accuracy for b in bins] == pytest.approx(list(accuracies))
    assert [b.confidence for b in bins] == pytest.approx(list(confidences))
    assert sum(b.num_questions for b in bins) == 300
    assert all(b.low < b.confidence <= b.high for b in bins)


def test_equal_mass_bins_by_hand():
    confidence = np.array([0.9, 0.3, 0.5, 0.7, 0.8])
    correct = np.array([True, False, True, False, True])
    low, high = reliability_bins(confidence, correct, 2, "equal-mass")
    assert low[:3] == (0.3, 0.7, 3)
    assert low[3:] == pytest.approx((0.5, 1 / 3))
    assert high[:3] == (0.8, 0.9, 2)
    assert high[3:] == pytest.approx((0.85, 1.0))


def test_there_are_never_more_equal_mass_bins_than_questions():
    assert len(reliability_bins(np.array([0.3, 0.4]), np.array([True, False]), 10, "equal-mass")) == 2


@pytest.mark.parametrize("binning", ["equal-width", "equal-mass"])
def test_calibration_error_by_chance_is_what_mapie_measures_on_perfect_models(binning):
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.uniform(0.25, 1, 150))
    strategy = ("uniform", 11) if binning == "equal-width" else ("array split", 10)
    draws = [(rng.random(150) < confidence).astype(int) for _ in range(400)]
    errors = [ece_of_mapie(draw, confidence, strategy[1], strategy[0]) for draw in draws]
    found = calibration_error_by_chance(confidence, binning=binning)
    # Two means of independent draws: five standard errors of their difference.
    assert found == pytest.approx(np.mean(errors), abs=5 * np.std(errors) * (1 / 400 + 1 / 200) ** 0.5)


def test_calibration_error_by_chance_falls_with_the_number_of_questions():
    rng = np.random.default_rng(0)
    few, many = (calibration_error_by_chance(rng.random(n), num_draws=50) for n in (50, 5000))
    assert few > 3 * many > 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("digits", [1, 8], ids=["with ties", "without"])
def test_auroc_equals_scikit_learn(seed, digits):
    p, y = random_probabilities(seed)
    confidence, correct = p.max(axis=1).round(digits), p.argmax(axis=1) == y
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence))


@given(st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=2, max_size=12))
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows):
    right = [c for c, correct in rows if correct]
    wrong = [c for c, correct in rows if not correct]
    pairs = [(a > b) + (a == b) / 2 for a in right for b in wrong]
    found = auroc(np.array([c for c, _ in rows]), np.array([correct for _, correct in rows]))
    assert found == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_bootstrap_interval_is_close_to_scipy_s():
    values = np.random.default_rng(0).exponential(size=200)
    ours = bootstrap_interval(lambda v: float(v.mean()), values, num_draws=4000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, random_state=np.random.default_rng(1)
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.05 * width)


def test_bootstrap_keeps_columns_paired():
    values = np.random.default_rng(0).normal(size=50)
    low, high = bootstrap_interval(lambda a, b: float((a - b).mean()), values, values - 2)
    assert (low, high) == pytest.approx((2, 2))


def test_a_bootstrap_interval_is_the_same_each_time_and_wider_at_a_higher_level():
    values = np.random.default_rng(0).normal(size=50)
    low, high = bootstrap_interval(np.mean, values, level=0.8)
    assert (low, high) == bootstrap_interval(np.mean, values, level=0.8)
    lower, higher = bootstrap_interval(np.mean, values, level=0.99)
    assert lower < low < high < higher


def test_a_reflected_interval_by_hand():
    assert bootstrap_interval(lambda _: 3.0, np.zeros(5), reflected=True) == (3.0, 3.0)
    values = np.random.default_rng(0).exponential(size=60)
    low, high = bootstrap_interval(np.mean, values)
    mean = values.mean()
    found = bootstrap_interval(np.mean, values, reflected=True)
    assert found == pytest.approx((2 * mean - high, 2 * mean - low))
    # The measure is 2 and the draws go from 1 to 7: 5 above and 1 below become 1 above and all below.
    found = iter([*[1.0, 7.0] * 500, 2.0])
    assert bootstrap_interval(lambda _: next(found), np.zeros(5), reflected=True) == (0.0, 3.0)


def test_of_a_model_without_calibration_error_the_reflected_interval_holds_none_more_often():
    rng = np.random.default_rng(0)
    plain, reflected = [], []
    for _ in range(40):
        confidence = rng.uniform(0.25, 1, 200)
        correct = rng.random(200) < confidence
        settings = {"num_draws": 40}
        columns = (expected_calibration_error, confidence, correct)
        plain.append(bootstrap_interval(*columns, **settings)[0] == 0)
        reflected.append(bootstrap_interval(*columns, **settings, reflected=True)[0] == 0)
    assert np.mean(plain) == 0  # noise alone always shows some error, and resampled noise more
    assert np.mean(reflected) > 0.35  # not in 95 % of the cases either: at the bound no such interval does
