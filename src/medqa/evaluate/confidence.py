"""What calibration gives on questions it never saw: true confidences, answer sets, abstention, steadiness."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medqa.evaluate.orders import OrderedPrediction
from medqa.evaluate.report import Scored, accuracy_of, summarise
from medqa.records import LETTERS, Prediction
from medqa.trust.calibration import ALPHAS, Calibration
from medqa.trust.conformal import SetMethod, coverage_of_sets
from medqa.trust.fitting import MAX_RISKS
from medqa.trust.metrics import wilson_interval
from medqa.trust.permutation import letter_shares

__all__ = ["measure_calibrated", "measure_orders"]

_METHODS: tuple[SetMethod, ...] = ("lac", "aps")


def measure_calibrated(predictions: Sequence[Prediction], calibration: Calibration) -> dict[str, Any]:
    """Measure a model's calibrated answers, their sets and the risk of answering.

    Args:
        predictions: The tuned model's, under our own prompt.
        calibration: Fitted on other questions.
    """
    scored = Scored.of(predictions)
    probabilities = calibration.probabilities(scored.log_likelihoods)
    return {
        "method": calibration.calibrator.method,
        "parameters": calibration.calibrator.to_json(),
        "account": calibration.account,
        "score": summarise(predictions, probabilities),
        "sets": {
            method: {str(alpha): _sets(calibration, probabilities, scored, alpha, method) for alpha in ALPHAS}
            for method in _METHODS
        },
        "abstention": _abstention(calibration, probabilities, scored),
    }


def _sets(
    calibration: Calibration, probabilities: Any, scored: Scored, alpha: float, method: SetMethod
) -> dict[str, Any]:
    names, subjects = np.array(scored.subjects), [p.subject for p in scored.predictions]
    sets = calibration.sets(probabilities, alpha, method)

    def measure(rows: Any, found: Any) -> dict[str, Any]:
        record = dict(coverage_of_sets(found[rows], scored.answers[rows]))
        interval = wilson_interval(record["num_covered"], record["num_questions"])
        return {**record, "coverage_interval": list(interval)}

    record = {
        "target": round(1 - alpha, 6),
        **measure(slice(None), sets),
        "subjects": {str(name): measure(names == name, sets) for name in np.unique(names)},
    }
    if own := sorted(set(calibration.subject_quantiles) & {*names}):
        within = calibration.sets(probabilities, alpha, method, subjects)
        record["within_subjects"] = {name: measure(names == name, within) for name in own}
    return record


def _abstention(calibration: Calibration, probabilities: Any, scored: Scored) -> list[dict[str, Any]]:
    """Say what comes of promising at most so many wrong answers."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == scored.answers
    rows = []
    for max_risk in MAX_RISKS:
        threshold = calibration.threshold(max_risk)
        row: dict[str, Any] = {"max_risk": max_risk, "threshold": threshold}
        if threshold is not None:
            answered = confidence >= threshold
            num, wrong = int(answered.sum()), int((answered & ~correct).sum())
            row |= {"num_answered": num, "coverage": num / len(correct)}
            if num:
                row |= {"risk": wrong / num, "risk_interval": list(wilson_interval(wrong, num))}
        rows.append(row)
    return rows


def measure_orders(
    ordered: Sequence[OrderedPrediction], num_orders: int, calibration: Calibration | None
) -> dict[str, Any]:
    """Measure answers over several option orders: how right, how steady, how fond of letters.

    Args:
        ordered: The tuned model's, under our own prompt.
        num_orders: Orders that were asked for.
        calibration: Fitted for that number of orders, if there is one.
    """
    whole = [one for one in ordered if one.prediction.status == "scored"]
    moved = [one for one in whole if one.num_orders > 1]
    steady = [Steady.of(one, calibration) for one in moved]
    predictions = [one.prediction for one in ordered]
    most = max((one.prediction.num_options for one in whole), default=0)
    score = measure_calibrated(predictions, calibration) if calibration else None
    return {
        "num_orders": num_orders,
        "num_questions": len(whole),
        "num_fixed": len(whole) - len(moved),
        "consistency": _mean([one.consistency for one in steady]),
        "share_always_same": _mean([one.consistency == 1 for one in steady]),
        "consistency_when_right": _mean([one.consistency for one in steady if one.right]),
        "consistency_when_wrong": _mean([one.consistency for one in steady if not one.right]),
        "raw": summarise(predictions, intervals=False),
        "calibrated": score,
        "letters": _letters(moved, most),
        "accuracy_by_consistency": _accuracy_by_consistency(steady),
    }


class Steady(NamedTuple):
    """How steady an answer is over the orders, and whether it is right."""

    consistency: float
    right: bool

    @classmethod
    def of(cls, one: OrderedPrediction, calibration: Calibration | None) -> "Steady":
        """Take the answer as it is given: after calibration, which may change it."""
        choice = one.prediction.choice
        if calibration is not None:
            choice = int(calibration.probabilities(np.array([one.prediction.log_likelihoods]))[0].argmax())
        return cls(one.consistency(choice), choice == one.prediction.answer)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _letters(moved: Sequence[OrderedPrediction], num_letters: int) -> dict[str, float]:
    """Share of all askings in which each letter was chosen; without bias, all alike."""
    shares = letter_shares([place for one in moved for place in one.placed], num_letters)
    return {LETTERS[place]: float(share) for place, share in enumerate(shares)}


def _accuracy_by_consistency(steady: Sequence[Steady]) -> dict[str, Any]:
    """Say how right answers are that are always, mostly or seldom the same."""
    bands = {"always": (1.0, 2.0), "mostly": (0.5, 1.0), "seldom": (0.0, 0.5)}
    found = {}
    for name, (low, high) in bands.items():
        if right := [one.right for one in steady if low <= one.consistency < high]:
            found[name] = accuracy_of(np.array(right))
    return found
