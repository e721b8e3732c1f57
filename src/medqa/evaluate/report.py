"""Numbers from predictions: report.json's content. Torch-free."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from medqa.errors import DataError
from medqa.records import LETTERS, Prediction
from medqa.trust.calibrators import padded, row_losses, softmax_rows
from medqa.trust.metrics import (
    Binning,
    auroc,
    bootstrap_interval,
    brier_score,
    calibration_error_by_chance,
    expected_calibration_error,
    mcnemar_p,
    reliability_bins,
    wilson_interval,
)
from medqa.trust.selective import accuracy_at_coverage, aurc, risk_coverage

__all__ = ["COVERAGES", "REPORT_VERSION", "Scored", "accuracy_of", "compare", "summarise", "without_flagged"]

FloatArray = np.typing.NDArray[np.float64]
IntArray = np.typing.NDArray[np.int64]
BoolArray = np.typing.NDArray[np.bool_]

COVERAGES = (0.1, 0.3, 0.5)
NUM_DRAWS = 500
REPORT_VERSION = 2
_NUM_CURVE_POINTS = 100


@dataclasses.dataclass(frozen=True)
class Scored:
    """The questions that were scored and have a key, as arrays.

    Attributes:
        predictions: What the model made of each.
        log_likelihoods: Of each option, minus infinity where a question has fewer: (N, L).
        answers: Places of the right options: (N,).
        num_too_long: Questions that were not scored, counted apart and never as wrong.
    """

    predictions: list[Prediction]
    log_likelihoods: FloatArray
    answers: np.typing.NDArray[np.int64]
    num_too_long: int

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> "Scored":
        """Take those that were scored.

        Raises:
            DataError: If no question was.
        """
        kept = [p for p in predictions if p.status == "scored" and p.answer is not None]
        if not kept:
            raise DataError(
                f"none of {len(predictions)} questions could be scored: all prompts are too long",
                "choose a base model that takes longer inputs",
            )
        return cls(
            kept,
            padded([p.log_likelihoods for p in kept]),
            np.array([p.answer for p in kept], dtype=np.int64),
            sum(p.status == "too_long" for p in predictions),
        )

    @property
    def subjects(self) -> list[str]:
        """Subject of each question, "(none)" where there is none."""
        return [p.subject or "(none)" for p in self.predictions]


def accuracy_of(correct: BoolArray) -> dict[str, Any]:
    """Give accuracy with counts and its 95 % interval."""
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return {
        "num_questions": len(correct),
        "num_correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
        "accuracy_interval": [low, high],
    }


def summarise(
    predictions: Sequence[Prediction], probabilities: FloatArray | None = None, *, intervals: bool = True
) -> dict[str, Any]:
    """Measure one model under one prompt.

    Args:
        predictions: What it made of the questions.
        probabilities: Of the scored questions' options, after calibration; the model's own if not given.
        intervals: Whether to draw intervals for the measures of confidence too.

    Raises:
        DataError: If no question could be scored.
    """
    scored = Scored.of(predictions)
    found = softmax_rows(scored.log_likelihoods) if probabilities is None else probabilities
    choices = found.argmax(axis=1)
    confidence, correct = found.max(axis=1), choices == scored.answers
    subjects = np.array(scored.subjects)
    names = sorted({*scored.subjects})
    by_subject = {
        name: {
            **accuracy_of(correct[subjects == name]),
            "mean_confidence": float(confidence[subjects == name].mean()),
        }
        for name in names
    }
    return {
        **accuracy_of(correct),
        "num_too_long": scored.num_too_long,
        "nll": float(row_losses(found, scored.answers).mean()),
        "brier": brier_score(found.tolist(), scored.answers.tolist()),
        **_calibration(confidence, correct, intervals),
        "mean_confidence": float(confidence.mean()),
        "aurc": aurc(confidence, correct),
        "accuracy_at_coverage": {str(c): accuracy_at_coverage(confidence, correct, c) for c in COVERAGES},
        "risk_coverage": _curve(confidence, correct),
        "letters": _letters(choices, scored.answers, correct, found.shape[1]),
        "subjects": by_subject,
    }


def _calibration(confidence: FloatArray, correct: BoolArray, intervals: bool) -> dict[str, Any]:
    record: dict[str, Any] = {}
    binnings: tuple[tuple[str, Binning], ...] = (("ece", "equal-width"), ("ece_equal_mass", "equal-mass"))
    for name, binning in binnings:

        def error(stated: FloatArray, right: BoolArray, binning: Binning = binning) -> float:
            return expected_calibration_error(stated, right, binning=binning)

        record[name] = error(confidence, correct)
        if intervals:
            low, high = bootstrap_interval(error, confidence, correct, num_draws=NUM_DRAWS, reflected=True)
            record[f"{name}_interval"] = [low, high]
    record["ece_by_chance"] = calibration_error_by_chance(confidence)
    record["auroc"] = auroc(confidence, correct)
    if intervals and record["auroc"] is not None:
        low, high = bootstrap_interval(
            lambda stated, right: auroc(stated, right) or 0.5, confidence, correct, num_draws=NUM_DRAWS
        )
        record["auroc_interval"] = [low, high]
    bins = reliability_bins(confidence, correct)
    record["reliability"] = [
        {**b._asdict(), "accuracy_interval": list(wilson_interval(round(b.accuracy * b.num_questions), b[2]))}
        for b in bins
    ]
    return record


def _curve(confidence: FloatArray, correct: BoolArray) -> list[list[float]]:
    """Take about a hundred points of the risk-coverage curve."""
    coverage, risk = risk_coverage(confidence, correct)
    step = max(1, len(coverage) // _NUM_CURVE_POINTS)
    places = [*range(step - 1, len(coverage) - 1, step), len(coverage) - 1]
    return [[round(float(coverage[i]), 6), round(float(risk[i]), 6)] for i in places]


def _letters(
    choices: IntArray, answers: IntArray, correct: BoolArray, num_letters: int
) -> dict[str, dict[str, Any]]:
    """Say how often each letter is chosen, how often it is right, and how often it is found where it is."""
    return {
        LETTERS[place]: {
            "chosen": float(np.mean(choices == place)),
            "key": float(np.mean(answers == place)),
            "recall": float(correct[answers == place].mean()) if np.any(answers == place) else None,
        }
        for place in range(num_letters)
    }


def compare(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Any]:
    """Compare two models on the questions that both scored, paired.

    Args:
        before: One model's predictions.
        after: The other's, of the same questions in the same order.
    """
    pairs = [
        (a.choice == a.answer, b.choice == b.answer)
        for a, b in zip(before, after, strict=True)
        if a.status == b.status == "scored"
    ]
    first, second = np.array(pairs, dtype=bool).reshape(-1, 2).T
    gains = second.astype(float) - first
    return {
        "num_questions": len(pairs),
        "accuracy_gain": float(gains.mean()),
        "accuracy_gain_interval": list(bootstrap_interval(lambda gain: float(gain.mean()), gains)),
        "num_fixed": int(np.sum(second & ~first)),
        "num_broken": int(np.sum(first & ~second)),
        "mcnemar_p": mcnemar_p(first, second),
    }


def without_flagged(
    base: Sequence[Prediction] | None, tuned: Sequence[Prediction], flagged: set[str]
) -> dict[str, Any] | None:
    """Measure both models on the questions that no leak audit flagged.

    Returns:
        Accuracy of both and their comparison, or of the tuned one alone; None if nothing is flagged, or
        everything.
    """
    after = [p for p in tuned if p.id not in flagged]
    before = [p for p in base if p.id not in flagged] if base else None
    both = zip(before or after, after, strict=True)
    if not flagged or not any(a.status == "scored" and b.status == "scored" for a, b in both):
        return None

    def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
        scored = Scored.of(predictions)
        return accuracy_of(np.array([p.choice == p.answer for p in scored.predictions]))

    return {
        "base": accuracy(before) if before else None,
        "tuned": accuracy(after),
        "change": compare(before, after) if before else None,
    }
