"""Abstention: the risk-coverage curve against its definition, and thresholds that keep their promise."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import control_fwer, proportion_confint

from medqa.trust.selective import (
    THRESHOLDS,
    RiskCounts,
    accuracy_at_coverage,
    answered_from,
    aurc,
    clopper_pearson_upper,
    count_risk,
    risk_coverage,
    threshold_for_risk,
)

ROWS = st.lists(st.tuples(st.sampled_from([0.3, 0.5, 0.8, 0.9]), st.booleans()), min_size=1, max_size=6)
UNLIKE = st.lists(
    st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40, unique_by=lambda r: r[0]
)


def columns(rows):
    return np.array([c for c, _ in rows]), np.array([right for _, right in rows])


def slow_risks(rows):
    """Risk at each coverage by the definition: answer the surest first."""
    ordered = [right for _, right in sorted(rows, key=lambda row: -row[0])]
    return [ordered[:number].count(False) / number for number in range(1, len(ordered) + 1)]


@given(UNLIKE)
def test_the_curve_equals_its_definition(rows):
    coverage, risk = risk_coverage(*columns(rows))
    assert coverage == pytest.approx(np.arange(1, len(rows) + 1) / len(rows))
    assert risk == pytest.approx(slow_risks(rows))
    assert aurc(*columns(rows)) == pytest.approx(np.mean(slow_risks(rows)))


@settings(deadline=None, max_examples=40)
@given(ROWS)
def test_ties_count_as_the_mean_over_all_their_orders(rows):
    # Python's sort keeps the order of equals, so that every order of the rows is an order of the ties.
    orders = [slow_risks(order) for order in itertools.permutations(rows)]
    assert risk_coverage(*columns(rows))[1] == pytest.approx(np.mean(orders, axis=0))
    assert aurc(*columns(rows)) == pytest.approx(np.mean(orders))


@given(ROWS, st.randoms())
def test_the_order_of_the_questions_does_not_matter(rows, random):
    mixed = random.sample(rows, len(rows))
    assert aurc(*columns(rows)) == pytest.approx(aurc(*columns(mixed)))


def test_aurc_by_hand():
    assert aurc(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])) == pytest.approx(
        (0 + 0 + 1 / 3 + 1 / 4) / 4
    )
    assert aurc(np.full(4, 0.5), np.array([True, True, False, True])) == pytest.approx(0.25)


def test_accuracy_at_coverage_by_hand():
    confidence, correct = np.array([0.6, 0.9, 0.8, 0.7, 0.5]), np.array([True, True, True, False, False])
    found = [accuracy_at_coverage(confidence, correct, c) for c in (0.01, 0.4, 0.6, 0.8, 1)]
    assert found == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5])


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.2, 0.05, 0.05 / 4, 0.001]))
def test_clopper_pearson_equals_statsmodels(n, share, delta):
    wrong = round(share * n)
    two_sided = proportion_confint(wrong, n, alpha=2 * delta, method="beta")
    assert clopper_pearson_upper(wrong, n, delta) == pytest.approx(two_sided[1])


def test_clopper_pearson_by_hand():
    # None wrong of n: the rate at which that happens with probability delta.
    assert clopper_pearson_upper(0, 10, 0.05) == pytest.approx(1 - 0.05 ** (1 / 10))
    assert clopper_pearson_upper(9, 10, 0.05) == pytest.approx(0.95 ** (1 / 10))
    assert clopper_pearson_upper(10, 10, 0.05) == 1
    assert clopper_pearson_upper(0, 0, 0.05) == 1


@pytest.mark.parametrize(("wrong", "n", "delta"), [(3, 40, 0.05), (17, 90, 0.01), (0, 8, 0.1)])
def test_clopper_pearson_is_where_so_few_errors_would_be_that_unlikely(wrong, n, delta):
    bound = clopper_pearson_upper(wrong, n, delta)
    assert scipy.stats.binom.cdf(wrong, n, bound) == pytest.approx(delta)


def test_counts_by_hand():
    counts = count_risk(np.array([0.9, 0.55, 0.3]), np.array([True, False, False]))
    assert counts.num_questions == 3
    found = {t: (a, w) for t, a, w in zip(THRESHOLDS, counts.num_answered, counts.num_wrong, strict=True)}
    assert [found[t] for t in (0, 0.3, 0.31, 0.55, 0.56, 0.9, 0.91)] == [
        (3, 2),
        (3, 2),
        (2, 1),
        (2, 1),
        (1, 0),
        (1, 0),
        (0, 0),
    ]


def test_answered_are_those_from_the_threshold_on():
    assert answered_from([0.5, 0.6, 0.7], 0.6).tolist() == [False, True, True]
    assert answered_from([0.5, 0.6], None).tolist() == [False, False]


def sure(num_right, num_wrong, confidence=1.0):
    n = num_right + num_wrong
    return count_risk(np.full(n, confidence), np.arange(n) < num_right)


def test_threshold_by_hand():
    # 0 wrong of n, tested at 0.05 / 4: the bound is 1 - (0.05 / 4) ** (1 / n), at 10 % from n = 42 on.
    assert math.ceil(math.log(0.05 / 4) / math.log(0.9)) == 42
    assert threshold_for_risk(sure(42, 0), 0.1) == 0
    assert threshold_for_risk(sure(41, 0), 0.1) is None


def test_a_threshold_lies_above_the_confidence_of_the_wrong_answers():
    confidence = np.repeat([0.95, 0.4], 200)
    assert threshold_for_risk(count_risk(confidence, confidence > 0.5), 0.05) == 0.41


def test_a_model_that_is_never_sure_is_promised_what_it_reaches():
    # All of it lies below 0.55: the search that starts at 0.3 finds that all of it may be answered.
    confidence = np.repeat([0.4, 0.35], [30, 1000])
    assert threshold_for_risk(count_risk(confidence, np.arange(1030) % 2 == 0), 0.6) == 0


def test_a_gap_of_doubt_at_the_top_does_not_hide_what_lies_below():
    # Too few answers from 0.85 on to prove anything; the search that starts at 0.7 goes on its own.
    confidence = np.repeat([0.9, 0.75, 0.3], [5, 300, 300])
    assert threshold_for_risk(count_risk(confidence, confidence > 0.5), 0.05) == 0.31


@pytest.mark.parametrize(
    "counts",
    [sure(0, 500), sure(350, 150), sure(2, 0), sure(0, 0), RiskCounts(0, (0,) * 101, (0,) * 101)],
    ids=["all wrong", "too many wrong", "too few", "none", "no counts"],
)
def test_no_threshold_where_the_risk_is_out_of_reach(counts):
    assert threshold_for_risk(counts, 0.2) is None


@given(st.integers(0, 9), st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.01, 0.05, 0.2]))
@settings(deadline=None, max_examples=30)
def test_the_threshold_is_the_one_that_mapie_s_fixed_sequences_find(seed, max_risk, delta):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1, 400)
    counts = count_risk(confidence, rng.random(400) < confidence**0.7)
    # The p-value that the risk is higher: how likely so few errors are at the risk itself.
    p = scipy.stats.binom.cdf(counts.num_wrong, counts.num_answered, max_risk)
    found = []
    for start in (85, 70, 55, 30):  # MAPIE tests from the first place on; ours from the start downwards
        steps = p[start::-1]
        passed = control_fwer(steps, delta / 4, "fixed_sequence")
        found += [THRESHOLDS[start - place] for place in passed]
    assert threshold_for_risk(counts, max_risk, delta) == (min(found) if found else None)


NUM_DRAWS = 1000


def num_allowed(delta, num_draws=NUM_DRAWS):
    """The most broken promises that are still plausible if each is broken with probability delta."""
    return scipy.stats.binom(num_draws, delta).ppf(0.9999)


def test_the_promise_is_kept_by_a_model_whose_confidence_comes_true():
    # Confidence is even on [0, 1], so that the risk from t on is (1 - t) / 2: at most 20 % from 0.6 on.
    rng = np.random.default_rng(0)
    broken, found = 0, []
    for _ in range(400):
        confidence = rng.random(1000)
        threshold = threshold_for_risk(count_risk(confidence, rng.random(1000) < confidence), 0.2)
        if threshold is not None:
            found.append(threshold)
            broken += (1 - threshold) / 2 > 0.2 + 1e-9
    assert broken <= num_allowed(0.05, 400)
    assert len(found) > 0.9 * 400  # and it is not kept by saying nothing
    assert np.median(found) < 0.75


@pytest.mark.parametrize(("max_risk", "delta"), [(0.1, 0.05), (0.3, 0.05), (0.3, 0.2)])
def test_the_promise_is_kept_where_every_threshold_would_break_it(max_risk, delta):
    # The hardest case: confidence says nothing, and the risk is just above what is allowed everywhere.
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(NUM_DRAWS):
        correct = rng.random(200) >= max_risk + 1e-9
        broken += threshold_for_risk(count_risk(rng.random(200), correct), max_risk, delta) is not None
    assert broken <= num_allowed(delta)
