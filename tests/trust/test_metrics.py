"""Metrics against hand-worked cases, identities and independent libraries."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from medqa.trust.metrics import (
    brier_score,
    expected_calibration_error,
    mcnemar_p,
    negative_log_likelihood,
    wilson_interval,
)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (870, 2071)])
def test_wilson_equals_statsmodels(k, n):
    assert wilson_interval(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"))


def test_mcnemar_equals_statsmodels():
    rng = np.random.default_rng(0)
    for n in (5, 60, 500):
        a, b = rng.random(n) < 0.5, rng.random(n) < 0.6
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
        assert mcnemar_p(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_mcnemar_of_models_that_never_differ_is_one():
    same = np.array([True, False])
    assert mcnemar_p(same, same) == 1.0


def random_probabilities(n=300, k=4):
    rng = np.random.default_rng(1)
    return rng.dirichlet(np.ones(k), n), rng.integers(0, k, n)


def test_nll_and_brier_equal_scikit_learn():
    p, y = random_probabilities()
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p, labels=range(4)))
    one_against_rest = sum(brier_score_loss(y == option, p[:, option]) for option in range(4))
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
