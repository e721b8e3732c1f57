"""The whole calibration: what is chosen, what is kept on disk, and whether its promises hold."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.errors import CalibrationError
from medqa.trust.calibration import ALPHAS, Calibration, LogLikelihoods
from medqa.trust.calibrators import CALIBRATORS, cross_fitted, softmax_rows
from medqa.trust.conformal import conformal_quantile, conformity_scores
from medqa.trust.fitting import fit_calibration
from medqa.trust.selective import THRESHOLDS

METHODS = sorted(CALIBRATORS)
METHODS_OF_SETS = ("lac", "aps")


def questions(seed, n=200, temperature=2.0, bias=0.0, subjects=None, sizes=(4, 4)):
    """What a model that is too sure makes of questions; `bias` is its liking for the letter A."""
    rng = np.random.default_rng(seed)
    num_options = rng.integers(sizes[0], sizes[1] + 1, (n, 1))
    logits = np.where(np.arange(sizes[1]) < num_options, rng.normal(0, 1.5, (n, sizes[1])), -np.inf)
    answers = (softmax_rows(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    shown = logits * temperature + bias * np.eye(sizes[1])[0] - 3
    return LogLikelihoods(shown, answers, tuple(subjects or [None] * n))


def of_method(name, found=None):
    """Make a calibration with one of the methods, whichever would be chosen."""
    found = found or questions(0, sizes=(2, 4))
    calibration = fit_calibration(found)
    return dataclasses.replace(calibration, calibrator=CALIBRATORS[name].fit(found.values, found.answers))


@pytest.mark.parametrize("name", METHODS)
def test_a_round_trip_through_json_gives_the_same_judgements(name):
    subjects = ["Surgery"] * 120 + ["Anatomy"] * 50 + [None] * 30
    made = of_method(name, questions(0, subjects=subjects, sizes=(2, 4)))
    read = Calibration.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False)))
    assert read == made
    for row in questions(1, n=30).values:
        for settings_ in ({}, {"alpha": 0.05}, {"max_risk": 0.3}, {"alpha": 0.2, "max_risk": 0.01}):
            assert read.judge(row, **settings_) == made.judge(row, **settings_)


def test_infinite_quantiles_survive():
    few = fit_calibration(questions(0, n=50))
    made = dataclasses.replace(
        few, quantiles={m: {**few.quantiles[m], "0.1": math.inf} for m in METHODS_OF_SETS}
    )
    assert made.to_json()["quantiles"]["lac"] == {**few.quantiles["lac"], "0.1": None}
    read = Calibration.from_json(json.loads(json.dumps(made.to_json())))
    assert read.quantiles["aps"]["0.1"] == math.inf
    assert sorted(read.judge([-0.01, -9.0, -20.0, -15.0]).answer_set) == [0, 1, 2, 3]


def test_a_judgement_by_hand():
    made = of_method("temperature", questions(0, n=400, sizes=(3, 3)))
    made = dataclasses.replace(
        made,
        calibrator=CALIBRATORS["temperature"].from_json({"temperature": 2.0}),
        quantiles={m: {"0.1": 0.75} for m in ("lac", "aps")},
    )
    weights = np.array([0.09, 0.36, 0.04])  # at a temperature of 2: 0.3, 0.6 and 0.2 of 1.1
    found = made.judge(np.log(weights))
    assert found.probabilities == pytest.approx((3 / 11, 6 / 11, 2 / 11))
    assert (found.choice, found.confidence) == (1, pytest.approx(6 / 11))
    assert found.answer_set == (1, 0)
    assert (found.abstain, found.reason, found.caveat) == (False, None, None)


def test_abstaining_goes_by_the_threshold_and_says_so():
    made = fit_calibration(questions(0, n=1000))
    threshold = made.threshold(0.2)
    sure, unsure = made.judge([0, -30, -30, -30], max_risk=0.2), made.judge([0, 0, 0, 0], max_risk=0.2)
    assert not sure.abstain
    assert unsure.abstain
    assert unsure.reason == f"25.0% sure, {threshold:.0%} is needed for at most 20 % wrong answers"
    hopeless = made.judge([0, -30, -30, -30], max_risk=0.0005)
    assert hopeless.abstain
    assert hopeless.reason == (
        "no confidence is enough for at most 0.05 % wrong answers, as far as 1,000 questions can tell"
    )


@pytest.mark.parametrize("n", [0, 1, 49])
def test_too_few_questions_are_refused_with_a_way_out(n):
    found = questions(0)
    few = LogLikelihoods.of(found.values[:n].tolist(), found.answers[:n].tolist())
    with pytest.raises(CalibrationError, match=f"{n} questions to calibrate on, at least 50") as error:
        fit_calibration(few)
    assert "data.calibration_share" in error.value.hint


@pytest.mark.parametrize("alpha", [0.3, 0.0, 1, -0.1, math.nan, "0.10"])
def test_an_unknown_alpha_is_refused(alpha):
    made = of_method("temperature")
    with pytest.raises(CalibrationError, match="no answer sets for alpha") as error:
        made.judge([0, -1], alpha=alpha)
    assert "0.2, 0.1, 0.05" in error.value.hint


@pytest.mark.parametrize("risk", [0, 1, -0.2, 20, math.nan, math.inf])
def test_a_risk_outside_0_and_1_is_refused(risk):
    made = of_method("temperature")
    with pytest.raises(CalibrationError, match="a risk of"):
        made.judge([0, -1], max_risk=risk)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_options", [2, 3, 5, 10])
def test_a_number_of_options_that_was_not_fitted_gets_all_of_them_a_caveat_and_no_promise(name, num_options):
    made = of_method(name, questions(0))  # all of four options
    row = [0.0, *[-9.0 - place for place in range(num_options - 1)]]
    found = made.judge(row)
    assert sorted(found.answer_set) == list(range(num_options))
    assert found.caveat == f"calibrated on questions of 4 options, and this one has {num_options}"
    assert (found.choice, found.abstain, found.reason) == (0, False, None)
    promised = made.judge(row, max_risk=0.5)
    assert (promised.abstain, promised.reason) == (True, found.caveat)
    assert made.judge([0.0, -9, -9, -9], max_risk=0.5).caveat is None


@pytest.mark.parametrize(("num_rows", "known"), [(19, False), (20, True)])
def test_twenty_questions_make_a_number_of_options_known(num_rows, known):
    few, many = questions(0, n=num_rows, sizes=(2, 2)), questions(1, n=100)
    wide = np.hstack([few.values, np.full((num_rows, 2), -np.inf)])
    answers = np.concatenate([few.answers, many.answers])
    made = fit_calibration(LogLikelihoods(np.vstack([wide, many.values]), answers, (None,) * len(answers)))
    assert made.option_counts == {2: num_rows, 4: 100}
    assert (made.knows(2), made.knows(4), made.knows(3)) == (known, True, False)
    assert set(made.count_quantiles) == ({2, 4} if known else {4})
    assert (made.judge([0.0, -0.1]).caveat is None) == known
    assert made.judge([0.0, -0.1, -0.2]).caveat == (
        f"calibrated on questions of {'2 or 4' if known else '4'} options, and this one has 3"
    )
    assert dataclasses.replace(made, option_counts={}).judge([0.0, -0.1, -0.2]).caveat is None


def test_each_number_of_options_has_sets_by_its_own_quantile():
    found = questions(0, n=300, sizes=(2, 4))
    made = fit_calibration(found)
    sizes = np.isfinite(found.values).sum(axis=1)
    honest = cross_fitted(type(made.calibrator), found.values, found.answers)
    for method in METHODS_OF_SETS:
        scores = conformity_scores(honest, method)[np.arange(300), found.answers]
        for size in (2, 3, 4):
            for alpha in ALPHAS:
                expected = conformal_quantile(scores[sizes == size], alpha)
                assert made.count_quantiles[size][method][str(alpha)] == expected
    p = made.probabilities(found.values)
    sets = made.sets(p, 0.1)
    for row, size in enumerate(sizes):
        limit = made.count_quantiles[size]["lac"]["0.1"]
        inside = ((1 - p[row] <= limit + 1e-12) & (p[row] > 0)) | (p[row] == p[row].max())
        assert np.array_equal(sets[row], inside)


def test_the_account_says_what_calibration_changed_and_in_which_subjects():
    found = questions(0, subjects=["Surgery"] * 150 + [None] * 50)
    made = fit_calibration(found)
    before, after = made.account["before"], made.account["after"]
    shown = softmax_rows(found.values)
    assert before["accuracy"] == np.mean(shown.argmax(axis=1) == found.answers)
    assert before["mean_confidence"] == pytest.approx(shown.max(axis=1).mean())
    assert before["nll"] == pytest.approx(-np.log(shown[np.arange(200), found.answers]).mean())
    assert after["accuracy"] == before["accuracy"]  # a temperature changes no answer
    assert (after["ece"], after["nll"]) < (before["ece"], before["nll"])
    assert {name: part["num_questions"] for name, part in after["subjects"].items()} == {
        "Surgery": 150,
        "(none)": 50,
    }


@pytest.mark.parametrize("name", METHODS)
def test_questions_with_different_numbers_of_options_share_one_calibration(name):
    made = of_method(name, questions(0, sizes=(2, 4)))
    for row in ([-0.1, -3.0], [-0.5, -2.0, -1.0], [-1.0, -2.0, -3.0, -0.5]):
        alone = made.judge(row)
        beside = made.judge([*row, *[-math.inf] * (4 - len(row))])
        assert len(alone.probabilities) == len(row)
        assert math.fsum(alone.probabilities) == pytest.approx(1)
        assert beside.probabilities[len(row) :] == (0.0,) * (4 - len(row))
        assert beside.probabilities[: len(row)] == pytest.approx(alone.probabilities)
        assert beside.answer_set == alone.answer_set


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-40, 0), min_size=2, max_size=4),
    st.sampled_from(METHODS),
    st.sampled_from(ALPHAS),
    st.sampled_from([math.inf, -1.0, 0.0, 0.4]),
)
def test_the_choice_is_in_the_set_first_and_the_set_goes_by_probability(row, name, alpha, quantile):
    by_method = {m: {str(alpha): quantile} for m in METHODS_OF_SETS}
    made = dataclasses.replace(CACHED[name], quantiles=by_method, count_quantiles={})
    found = made.judge([*row, -math.inf], alpha=alpha) if len(row) < 4 else made.judge(row, alpha=alpha)
    assert found.answer_set[0] == found.choice
    assert found.confidence == max(found.probabilities) == found.probabilities[found.choice]
    assert len(row) not in found.answer_set
    chosen = [found.probabilities[place] for place in found.answer_set]
    assert chosen == sorted(chosen, reverse=True)
    if quantile == math.inf and min(found.probabilities[: len(row)]) > 0:
        assert len(found.answer_set) == len(row)


CACHED = {name: of_method(name) for name in METHODS}


def test_subjects_with_questions_enough_have_quantiles_of_their_own():
    easy, hard = questions(0, n=150, temperature=4.0), questions(1, n=150, temperature=0.2)
    few = questions(2, n=99)
    found = LogLikelihoods(
        np.vstack([easy.values, hard.values, few.values]),
        np.concatenate([easy.answers, hard.answers, few.answers]),
        ("easy",) * 150 + ("hard",) * 150 + ("few",) * 90 + (None,) * 9,
    )
    made = fit_calibration(found)
    assert set(made.subject_quantiles) == {"easy", "hard"}
    honest = cross_fitted(type(made.calibrator), found.values, found.answers)
    scores = conformity_scores(honest, "lac")[np.arange(399), found.answers]
    for alpha in ALPHAS:
        assert made.quantiles["lac"][str(alpha)] == conformal_quantile(scores, alpha)
        for name, rows in (("easy", slice(0, 150)), ("hard", slice(150, 300))):
            own = made.subject_quantiles[name]["lac"][str(alpha)]
            assert own == conformal_quantile(scores[rows], alpha)
    p = made.probabilities(np.tile([0.0, -1.0, -2.0, -5.0], (4, 1)))
    sets = made.sets(p, 0.1, subjects=["easy", "hard", "few", None])
    plain = made.sets(p, 0.1)
    assert np.array_equal(sets[2:], plain[2:])
    for row, name in enumerate(("easy", "hard")):
        limit = made.subject_quantiles[name]["lac"]["0.1"]
        assert np.array_equal(sets[row], (1 - p[row] <= limit) | (p[row] == p[row].max()))


def test_the_counts_of_risk_come_from_cross_fitted_confidence():
    found = questions(0)
    made = fit_calibration(found)
    honest = cross_fitted(CALIBRATORS["temperature"], found.values, found.answers)
    sure = honest.max(axis=1) >= 0.7
    wrong = honest.argmax(axis=1) != found.answers
    place = THRESHOLDS.index(0.7)
    assert made.risk.num_answered[place] == sure.sum()
    assert made.risk.num_wrong[place] == (sure & wrong).sum()


def test_vector_scaling_is_chosen_where_a_letter_is_liked_in_both_parts():
    made = fit_calibration(questions(0, n=400, bias=4.0), questions(1, n=400, bias=4.0))
    assert made.calibrator.method == "vector"
    candidates = made.account["candidates"]
    assert candidates["vector"]["nll"] < candidates["temperature"]["nll"] < candidates["none"]["nll"]
    assert candidates["vector"]["gain_over_temperature"][0] > 0


@pytest.mark.parametrize("seed", range(4))
def test_temperature_is_kept_where_no_letter_is_liked(seed):
    made = fit_calibration(questions(seed, n=300), questions(seed + 50, n=300))
    assert made.calibrator.method == "temperature"
    assert made.account["num_questions"] == made.account["num_to_choose_by"] == 300


@pytest.mark.parametrize("choose", [None, questions(1, n=49, bias=4.0), questions(1, sizes=(5, 5), bias=4.0)])
def test_temperature_is_kept_where_there_is_nothing_to_choose_by(choose):
    made = fit_calibration(questions(0, n=400, bias=4.0), choose)
    assert made.calibrator.method == "temperature"
    assert made.account["candidates"] == {}


def test_isotonic_is_chosen_where_the_curve_is_no_temperature_s():
    # Half the questions are sure and always right, half as sure as can be told apart and mere luck.
    def odd(seed):
        rng = np.random.default_rng(seed)
        answers = rng.integers(0, 4, 600)
        knows = rng.random(600) < 0.5
        shown = np.where(knows, answers, rng.integers(0, 4, 600))
        return LogLikelihoods(np.eye(4)[shown] * np.where(knows, 3.2, 3.0)[:, None], answers, (None,) * 600)

    assert fit_calibration(odd(0), odd(1)).calibrator.method == "isotonic"


NUM_DRAWS, NUM_FITTED, NUM_NEW = 80, 149, 100


def test_coverage_of_the_whole_holds_within_its_beta_binomial_band():
    # Fewer draws than for the quantile alone: each of them fits eleven temperatures. All of it is used twice
    # over, for two set methods and three alphas.
    covered = {(method, alpha): [] for method in ("lac", "aps") for alpha in ALPHAS}
    for draw in range(NUM_DRAWS):
        found = questions(draw, n=NUM_FITTED + NUM_NEW)
        made = fit_calibration(
            LogLikelihoods(found.values[:NUM_FITTED], found.answers[:NUM_FITTED], (None,) * NUM_FITTED)
        )
        p, answers = made.probabilities(found.values[NUM_FITTED:]), found.answers[NUM_FITTED:]
        for method, alpha in covered:
            sets = made.sets(p, alpha, method)
            covered[method, alpha].append(sets[np.arange(NUM_NEW), answers].sum())
    for (_, alpha), counts in covered.items():
        rank = math.ceil(round((NUM_FITTED + 1) * (1 - alpha), 9))
        law = scipy.stats.betabinom(NUM_NEW, rank, NUM_FITTED + 1 - rank)
        spread = 4 * law.std() / math.sqrt(NUM_DRAWS)
        assert np.mean(counts) == pytest.approx(law.mean(), abs=spread)
