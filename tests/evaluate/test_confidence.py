"""What is said of calibrated answers and of option orders, on predictions made by hand."""

import dataclasses
import math

import numpy as np
import pytest

from medqa.evaluate.confidence import MAX_RISKS, measure_calibrated, measure_orders
from medqa.evaluate.orders import OrderedPrediction
from medqa.records import Prediction
from medqa.trust.calibration import ALPHAS, LogLikelihoods
from medqa.trust.calibrators import Temperature, VectorScaling
from medqa.trust.fitting import fit_calibration
from medqa.trust.metrics import wilson_interval

NUM = 200


def calibration(calibrator=None, **fields):
    """A calibration with these parts, whatever was fitted."""
    rng = np.random.default_rng(0)
    fitted = fit_calibration(
        LogLikelihoods(rng.normal(size=(NUM, 4)), rng.integers(0, 4, NUM), (None,) * NUM)
    )
    return dataclasses.replace(fitted, calibrator=calibrator or Temperature(1.0), **fields)


def prediction(probabilities, answer, subject="Anatomy", number=0):
    logs = tuple(map(math.log, probabilities))
    return Prediction(f"q{number}", subject, len(logs), answer, "scored", logs)


SURE, HALF, FLAT = (0.85, 0.05, 0.05, 0.05), (0.4, 0.4 - 1e-9, 0.1, 0.1), (0.26, 0.25, 0.25, 0.24)
ROWS = [
    *[prediction(SURE, 0, "Anatomy")] * 8,
    *[prediction(SURE, 1, "Anatomy")] * 2,
    *[prediction(HALF, 1, "Surgery")] * 6,
    *[prediction(FLAT, 3, None)] * 4,
]


def test_sets_by_hand():
    limits = {m: {str(alpha): 0.7 for alpha in ALPHAS} for m in ("lac", "aps")}
    own = {"Surgery": {m: {str(alpha): 0.5 for alpha in ALPHAS} for m in ("lac", "aps")}}
    found = measure_calibrated(ROWS, calibration(quantiles=limits, subject_quantiles=own))
    # By "lac", an option is in the set from a probability of 0.3 on; the likeliest always is.
    lac = found["sets"]["lac"]["0.1"]
    assert lac["target"] == 0.9
    assert (lac["num_questions"], lac["num_covered"], lac["coverage"]) == (20, 14, 0.7)
    assert lac["coverage_interval"] == list(wilson_interval(14, 20))
    assert lac["sizes"] == {"1": 14, "2": 6, "3": 0, "4": 0}
    assert lac["mean_size"] == pytest.approx((14 + 2 * 6) / 20)
    assert {name: part["num_covered"] for name, part in lac["subjects"].items()} == {
        "(none)": 0,
        "Anatomy": 8,
        "Surgery": 6,
    }
    # Within Surgery 0.5 is needed, which neither of its two has.
    assert set(lac["within_subjects"]) == {"Surgery"}
    assert lac["within_subjects"]["Surgery"]["num_covered"] == 0
    assert found["method"] == "temperature"
    assert found["score"]["accuracy"] == 8 / 20


def test_a_number_of_options_that_is_not_known_has_sets_of_everything():
    two = [prediction((0.9, 0.1), 1) for _ in range(4)]
    limits = {m: {str(alpha): 0.5 for alpha in ALPHAS} for m in ("lac", "aps")}
    sets = measure_calibrated([*two, ROWS[0]], calibration(quantiles=limits))["sets"]
    for method in ("lac", "aps"):
        assert {(found["num_covered"], found["mean_size"]) for found in sets[method].values()} == {(5, 1.8)}


def test_abstention_by_hand(monkeypatch):
    thresholds = {0.5: 0.0, 0.4: 0.3, 0.3: 0.5, 0.2: 0.9, 0.1: None}
    monkeypatch.setattr(
        "medqa.trust.calibration.threshold_for_risk", lambda counts, risk, delta: thresholds[risk]
    )
    rows = {row["max_risk"]: row for row in measure_calibrated(ROWS, calibration())["abstention"]}
    assert tuple(rows) == MAX_RISKS
    assert [rows[r].get("num_answered") for r in MAX_RISKS] == [20, 16, 10, 0, None]
    assert [rows[r].get("risk") for r in MAX_RISKS] == pytest.approx([12 / 20, 8 / 16, 0.2, None, None])
    assert rows[0.3]["risk_interval"] == list(wilson_interval(2, 10))
    assert rows[0.3]["coverage"] == 0.5
    assert rows[0.1] == {"max_risk": 0.1, "threshold": None}


def test_what_was_too_long_counts_nowhere():
    lost = Prediction("long", "Anatomy", 4, 0, "too_long")
    found = measure_calibrated([*ROWS, lost], calibration())
    assert found["score"]["num_too_long"] == 1
    assert found["sets"]["lac"]["0.1"]["num_questions"] == 20


def ordered(probabilities, answer, choices, placed, num_orders=4):
    return OrderedPrediction(prediction(probabilities, answer), choices, placed, num_orders)


ORDERED = [
    ordered(SURE, 0, (0, 0, 0, 0), (0, 3, 2, 1)),  # always, right
    ordered(HALF, 1, (0, 0, 1, 0), (0, 0, 0, 1)),  # 3 of 4, wrong
    ordered(FLAT, 0, (0, 1, 2, 3), (0, 0, 0, 0)),  # 1 of 4, right
    ordered(SURE, 0, (0,), (0,), num_orders=1),  # can't be moved: says nothing of steadiness
    OrderedPrediction(Prediction("long", None, 4, 0, "too_long"), (), (), 4),
]


def test_orders_by_hand():
    found = measure_orders(ORDERED, 4, None)
    assert (found["num_orders"], found["num_questions"], found["num_fixed"]) == (4, 4, 1)
    assert found["consistency"] == pytest.approx((1 + 0.75 + 0.25) / 3)
    assert found["share_always_same"] == pytest.approx(1 / 3)
    assert (found["consistency_when_right"], found["consistency_when_wrong"]) == (0.625, 0.75)
    assert found["letters"] == pytest.approx({"A": 8 / 12, "B": 2 / 12, "C": 1 / 12, "D": 1 / 12})
    bands = found["accuracy_by_consistency"]
    assert {name: (b["num_questions"], b["num_correct"]) for name, b in bands.items()} == {
        "always": (1, 1),
        "mostly": (1, 0),
        "seldom": (1, 1),
    }
    assert found["raw"]["num_questions"] == 4
    assert found["calibrated"] is None


def test_steadiness_is_that_of_the_answer_which_calibration_gives():
    # Calibration dislikes A: of the even question B is the answer, right and given in one order of four.
    made = calibration(VectorScaling((1.0,) * 4, (-0.3, 0.1, 0.1, 0.1)))
    found = measure_orders([ORDERED[1]], 4, made)
    assert (found["consistency"], found["consistency_when_right"]) == (0.25, 0.25)
    assert found["consistency_when_wrong"] is None
    assert found["calibrated"]["score"]["accuracy"] == 1
    assert found["raw"]["accuracy"] == 0


def test_where_nothing_can_be_moved_nothing_is_said():
    found = measure_orders([ORDERED[3]], 4, None)
    assert (found["num_questions"], found["num_fixed"], found["consistency"]) == (1, 1, None)
    assert found["accuracy_by_consistency"] == {}
