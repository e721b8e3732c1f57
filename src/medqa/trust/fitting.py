"""Fit a calibration to questions that the model never saw."""

import collections
from typing import Any

import numpy as np
import numpy.typing as npt

from medqa.errors import CalibrationError
from medqa.trust.calibration import ALPHAS, MIN_COUNT_ROWS, Calibration, LogLikelihoods
from medqa.trust.calibrators import (
    CALIBRATORS,
    Calibrator,
    Temperature,
    cross_fitted,
    row_losses,
    softmax_rows,
)
from medqa.trust.conformal import SetMethod, conformal_quantile, conformity_scores, group_quantiles
from medqa.trust.metrics import bootstrap_interval, expected_calibration_error
from medqa.trust.selective import count_risk, threshold_for_risk

__all__ = ["MAX_RISKS", "MIN_ROWS", "fit_calibration"]

FloatArray = npt.NDArray[np.float64]

MAX_RISKS = (0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of wrong answers for which thresholds are shown; others are found when they are asked for."""

MIN_ROWS = 50
"""Questions without which nothing can be said."""


def fit_calibration(fit: LogLikelihoods, choose: LogLikelihoods | None = None) -> Calibration:
    """Calibrate on questions that the model never saw.

    Temperature scaling is taken unless vector scaling or isotonic regression does better on the questions to
    choose by, and by more than chance: the 95 % interval of the mean gain, over paired draws, lies above 0.
    Answer sets and thresholds come from cross-fitted probabilities, so that no question is judged by what was
    learnt from itself.

    Args:
        fit: Questions to fit on.
        choose: Others, to choose among the methods by; temperature is taken if there are fewer than
            `MIN_ROWS`.

    Raises:
        CalibrationError: If there are fewer than `MIN_ROWS` questions.
    """
    if len(fit) < MIN_ROWS:
        raise CalibrationError(
            f"{len(fit)} questions to calibrate on, at least {MIN_ROWS} are needed",
            "train on more questions, or hold back more: --set data.calibration_share=0.2",
        )
    kind, candidates = _choose(fit, choose)
    honest = cross_fitted(kind, fit.values, fit.answers)
    rows = np.arange(len(fit))
    quantiles: dict[str, dict[str, float]] = {}
    by_subject: dict[str, dict[str, dict[str, float]]] = {}
    by_count: dict[int, dict[str, dict[str, float]]] = {}
    sizes = [str(size) for size in (~np.isneginf(fit.values)).sum(axis=1)]
    counts = {int(size): num for size, num in collections.Counter(sizes).items()}
    methods: tuple[SetMethod, ...] = ("lac", "aps")
    for method in methods:
        scores = conformity_scores(honest, method)[rows, fit.answers]
        quantiles[method] = {str(alpha): conformal_quantile(scores, alpha) for alpha in ALPHAS}
        for alpha in ALPHAS:
            for subject, value in group_quantiles(scores, fit.subjects, alpha).items():
                by_subject.setdefault(subject, {}).setdefault(method, {})[str(alpha)] = value
            for size, value in group_quantiles(scores, sizes, alpha, MIN_COUNT_ROWS).items():
                by_count.setdefault(int(size), {}).setdefault(method, {})[str(alpha)] = value
    risk = count_risk(honest.max(axis=1), honest.argmax(axis=1) == fit.answers)
    return Calibration(
        kind.fit(fit.values, fit.answers),
        quantiles,
        by_subject,
        risk,
        {
            "num_questions": len(fit),
            "num_to_choose_by": len(choose) if choose else 0,
            "candidates": candidates,
            "thresholds": {str(max_risk): threshold_for_risk(risk, max_risk) for max_risk in MAX_RISKS},
            "before": _measure(softmax_rows(fit.values), fit),
            "after": _measure(honest, fit),
        },
        counts,
        by_count if len(counts) > 1 else {},
    )


def _choose(
    fit: LogLikelihoods, choose: LogLikelihoods | None
) -> tuple[type[Calibrator], dict[str, dict[str, Any]]]:
    """Choose a method on questions that none was fitted on."""
    if choose is None or len(choose) < MIN_ROWS or choose.values.shape[1] > fit.values.shape[1]:
        return Temperature, {}
    losses = {"none": row_losses(softmax_rows(choose.values), choose.answers)}
    for name, kind in CALIBRATORS.items():
        fitted = kind.fit(fit.values, fit.answers)
        losses[name] = row_losses(fitted.probabilities(choose.values), choose.answers)
    record: dict[str, dict[str, Any]] = {
        name: {"nll": float(values.mean())} for name, values in losses.items()
    }
    chosen = Temperature.method
    for name in CALIBRATORS:
        if name == Temperature.method:
            continue
        gain = losses[Temperature.method] - losses[name]
        low, high = bootstrap_interval(lambda values: float(values.mean()), gain)
        record[name]["gain_over_temperature"] = [low, high]
        if low > 0 and losses[name].mean() < losses[chosen].mean():
            chosen = name
    return CALIBRATORS[chosen], record


def _measure(probabilities: FloatArray, questions: LogLikelihoods) -> dict[str, Any]:
    """Measure calibration, over all and in each subject, on questions that none of it was fitted on."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == questions.answers
    losses = row_losses(probabilities, questions.answers)
    subjects = np.array([subject or "(none)" for subject in questions.subjects])

    def part(rows: Any) -> dict[str, Any]:
        return {
            "num_questions": len(losses[rows]),
            "accuracy": float(correct[rows].mean()),
            "mean_confidence": float(confidence[rows].mean()),
            "nll": float(losses[rows].mean()),
        }

    return {
        **part(slice(None)),
        "ece": expected_calibration_error(confidence, correct),
        "subjects": {str(name): part(subjects == name) for name in np.unique(subjects)},
    }
