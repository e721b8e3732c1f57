"""Answer sets against MAPIE's, by hand, and the coverage that they promise."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import split_conformal_classifier

from medqa.trust.calibration import ALPHAS
from medqa.trust.conformal import (
    conformal_quantile,
    conformity_scores,
    coverage_of_sets,
    group_quantiles,
    prediction_sets,
)

METHODS = ("lac", "aps")
SEEDS = range(5)


def given_probabilities(num_options):
    """Make a classifier whose inputs are its probabilities."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        def __init__(self):
            self.classes_ = np.arange(num_options)
            self.is_fitted_ = True

        def predict_proba(self, X):
            return X

        def predict(self, X):
            return X.argmax(axis=1)

    return Given()


class Constant(np.random.RandomState):
    """Draws that are always the same: MAPIE's random share of the last option, held still."""

    def __init__(self, value):
        super().__init__(0)
        self.value = value

    def uniform(self, size):
        return np.full(size, self.value)


def draws(seed, n=200, k=4):
    """Probabilities, and answers that come true less often than these say."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, 0.6), n)
    truth = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    return p, (truth.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def sets_of_mapie(p, y, new, method, share=0.5, **parameters):
    theirs = split_conformal_classifier(
        given_probabilities(p.shape[1]), [1 - a for a in ALPHAS], method, random_state=Constant(share)
    )
    _, sets = theirs.conformalize(p, y).predict_set(new, conformity_score_params=parameters)
    return np.moveaxis(sets, 2, 0)  # one array for each alpha


def own_quantile(p, y, method, alpha, share=0.5):
    return conformal_quantile(conformity_scores(p, method, share)[np.arange(len(y)), y], alpha)


def likeliest(p):
    return np.arange(p.shape[1]) == p.argmax(axis=1)[:, None]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [2, 4, 6])
def test_lac_sets_equal_mapie_s(seed, k):
    (p, y), (new, _) = draws(seed, k=k), draws(seed + 100, k=k)
    for alpha, theirs in zip(ALPHAS, sets_of_mapie(p, y, new, "lac"), strict=True):
        ours = prediction_sets(new, own_quantile(p, y, "lac", alpha), "lac")
        assert np.array_equal(ours, theirs | likeliest(new))  # only MAPIE's may be empty


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [3, 4, 6])
def test_aps_sets_equal_mapie_s_with_its_random_share_held_at_its_mean(seed, k):
    (p, y), (new, _) = draws(seed, k=k), draws(seed + 100, k=k)
    found = sets_of_mapie(p, y, new, "aps", include_last_label="randomized")
    for alpha, theirs in zip(ALPHAS, found, strict=True):
        ours = prediction_sets(new, own_quantile(p, y, "aps", alpha), "aps")
        assert np.array_equal(ours, theirs | likeliest(new))


@pytest.mark.parametrize("seed", SEEDS)
def test_aps_scores_with_the_whole_share_give_mapie_s_plain_sets(seed):
    (p, y), (new, _) = draws(seed), draws(seed + 100)
    found = sets_of_mapie(p, y, new, "aps", share=0.0, include_last_label=False)
    for alpha, theirs in zip(ALPHAS, found, strict=True):
        scores = conformity_scores(new, "aps", 1.0)
        ours = scores <= own_quantile(p, y, "aps", alpha, 1.0) + 1e-12
        assert np.array_equal(ours | likeliest(new), theirs)


def test_scores_by_hand():
    p = np.array([[0.2, 0.5, 0.3]])
    assert conformity_scores(p, "lac")[0] == pytest.approx([0.8, 0.5, 0.7])
    assert conformity_scores(p, "aps", 1.0)[0] == pytest.approx([1.0, 0.5, 0.8])
    assert conformity_scores(p, "aps", 0.0)[0] == pytest.approx([0.8, 0.0, 0.5])
    assert conformity_scores(p, "aps")[0] == pytest.approx([0.9, 0.25, 0.65])


def test_quantile_by_hand():
    scores = [0.9, 0.1, 0.5, 0.7, 0.3, 0.2, 0.8, 0.4, 0.6]  # nine: 10 * 0.8 is the 8th smallest
    assert conformal_quantile(scores, 0.2) == 0.8
    assert conformal_quantile(scores, 0.1) == 0.9
    assert conformal_quantile(scores, 0.05) == math.inf
    assert conformal_quantile([], 0.2) == math.inf


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.sampled_from(ALPHAS))
def test_quantile_equals_numpy_s_inverted_distribution(scores, alpha):
    n = len(scores)
    level = math.ceil(round((n + 1) * (1 - alpha), 9)) / n
    expected = np.quantile(scores, level, method="inverted_cdf") if level <= 1 else math.inf
    assert conformal_quantile(scores, alpha) == expected


def test_sets_by_hand():
    p = np.array([[0.6, 0.3, 0.1], [0.4, 0.35, 0.25]])
    assert prediction_sets(p, 0.7, "lac").tolist() == [[True, True, False], [True, True, False]]
    assert prediction_sets(p, np.array([0.2, 0.75]), "lac").tolist() == [
        [True, False, False],
        [True, True, True],
    ]
    assert prediction_sets(p, 0.6, "aps").tolist() == [[True, False, False], [True, True, False]]
    assert prediction_sets(p, math.inf, "aps").all()


@settings(max_examples=50)
@given(
    arrays(float, (12, 5), elements=st.floats(0, 1)),
    st.lists(st.integers(1, 5), min_size=12, max_size=12),
    st.one_of(st.floats(-1, 2), st.just(math.inf)),
    st.sampled_from(METHODS),
)
def test_the_likeliest_is_always_in_and_padding_never(weights, sizes, quantile, method):
    there = np.arange(5) < np.array(sizes)[:, None]
    p = np.where(there, weights + 1e-3, 0)
    p /= p.sum(axis=1, keepdims=True)
    sets = prediction_sets(p, quantile, method)
    assert sets[likeliest(p)].all()
    assert not sets[~there].any()
    if quantile == math.inf:
        assert np.array_equal(sets, there)


@pytest.mark.parametrize("method", METHODS)
def test_sets_grow_as_fewer_may_miss(method):
    p, y = draws(0)
    small, middle, large = (prediction_sets(p, own_quantile(p, y, method, a), method) for a in ALPHAS)
    assert (small <= middle).all()
    assert (middle <= large).all()
    assert small.sum() < large.sum()


def test_groups_have_quantiles_of_their_own_where_they_have_rows_enough():
    scores = np.arange(250) / 250
    groups = ["a"] * 100 + ["b"] * 99 + [None] * 51
    assert group_quantiles(scores, groups, 0.1) == {"a": conformal_quantile(scores[:100], 0.1)}
    assert set(group_quantiles(scores, groups, 0.1, min_rows=99)) == {"a", "b"}
    assert set(group_quantiles(scores, groups, 0.1, min_rows=1)) == {"a", "b"}


def test_coverage_of_sets_by_hand():
    sets = np.array([[True, False, False], [True, True, False], [False, True, True], [True, True, True]])
    assert coverage_of_sets(sets, [0, 2, 1, 2]) == {
        "num_questions": 4,
        "num_covered": 3,
        "coverage": 0.75,
        "mean_size": 2.0,
        "sizes": {"1": 1, "2": 2, "3": 1},
    }


NUM_DRAWS, NUM_FITTED, NUM_NEW = 1000, 99, 25


def coverages(method, alpha):
    """Over many draws: how many of new questions have the score, and how many sets hold the answer."""
    p, y = draws(7, n=NUM_DRAWS * (NUM_FITTED + NUM_NEW))
    scores = conformity_scores(p, method)[np.arange(len(y)), y].reshape(NUM_DRAWS, -1)
    quantiles = [conformal_quantile(row[:NUM_FITTED], alpha) for row in scores]
    inside = (scores[:, NUM_FITTED:] <= np.array(quantiles)[:, None]).sum(axis=1)
    new_p = p.reshape(NUM_DRAWS, -1, 4)[:, NUM_FITTED:].reshape(-1, 4)
    new_y = y.reshape(NUM_DRAWS, -1)[:, NUM_FITTED:].ravel()
    sets = prediction_sets(new_p, np.repeat(quantiles, NUM_NEW), method)
    covered = sets[np.arange(len(new_y)), new_y].reshape(NUM_DRAWS, -1).sum(axis=1)
    return inside, covered


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("method", METHODS)
def test_coverage_holds_within_its_beta_binomial_band_over_a_thousand_draws(method, alpha):
    # Vovk 2012: coverage of one draw is Beta(k, n + 1 - k), k the rank of the quantile.
    rank = math.ceil(round((NUM_FITTED + 1) * (1 - alpha), 9))
    law = scipy.stats.betabinom(NUM_NEW, rank, NUM_FITTED + 1 - rank)
    inside, covered = coverages(method, alpha)
    spread = 4 * law.std() / math.sqrt(NUM_DRAWS)
    assert inside.mean() == pytest.approx(law.mean(), abs=spread)
    assert inside.mean() / NUM_NEW == pytest.approx(1 - alpha, abs=spread / NUM_NEW)
    assert covered.mean() >= law.mean() - spread  # the likeliest is in by force: never less
    # Not the mean alone: each draw's coverage follows the law.
    cuts = np.unique([law.ppf(q) for q in (0.1, 0.3, 0.5, 0.7, 0.9)])
    counts = np.bincount(np.searchsorted(cuts, inside, side="right"), minlength=len(cuts) + 1)
    shares = np.diff([0, *law.cdf(cuts - 1), 1])
    assert scipy.stats.chisquare(counts, shares * NUM_DRAWS).pvalue > 1e-4


def test_coverage_is_lost_if_the_questions_are_of_another_kind():
    # What docs/trust.md warns of: the promise is for questions like those it was learnt from.
    (p, y), (new, answers) = draws(0, n=2000), draws(1, n=2000)
    harder = np.where(np.arange(2000) % 2, answers, (answers + 1) % 4)
    sets = prediction_sets(new, own_quantile(p, y, "lac", 0.1), "lac")
    assert coverage_of_sets(sets, answers)["coverage"] == pytest.approx(0.9, abs=0.03)
    assert coverage_of_sets(sets, harder)["coverage"] < 0.8
