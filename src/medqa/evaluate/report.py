"""Numbers from predictions: report.json's content. Torch-free."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medqa.errors import DataError
from medqa.records import Prediction
from medqa.trust.metrics import (
    brier_score,
    expected_calibration_error,
    mcnemar_p,
    negative_log_likelihood,
    wilson_interval,
)

__all__ = ["compare", "summarise", "without_flagged"]

BoolArray = np.typing.NDArray[np.bool_]


def _scored(predictions: Sequence[Prediction]) -> list[tuple[Prediction, int]]:
    return [(p, p.answer) for p in predictions if p.status == "scored" and p.answer is not None]


def _accuracy(correct: BoolArray) -> dict[str, Any]:
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return {
        "num_questions": len(correct),
        "num_correct": int(correct.sum()),
        "accuracy": float(correct.mean()),
        "accuracy_interval": [low, high],
    }


def summarise(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Measure one model under one prompt.

    Raises:
        DataError: If no question could be scored.
    """
    rows = _scored(predictions)
    if not rows:
        raise DataError(
            f"none of {len(predictions)} questions could be scored: all prompts are too long",
            "choose a base model that takes longer inputs",
        )
    answers = [answer for _, answer in rows]
    probabilities = [p.probabilities for p, _ in rows]
    correct = np.array([p.choice == answer for p, answer in rows])
    confidence = np.array([max(row) for row in probabilities])
    subjects = [p.subject or "(none)" for p, _ in rows]
    return {
        **_accuracy(correct),
        "num_too_long": sum(p.status == "too_long" for p in predictions),
        "nll": negative_log_likelihood(probabilities, answers),
        "brier": brier_score(probabilities, answers),
        "ece": expected_calibration_error(confidence, correct),
        "mean_confidence": float(confidence.mean()),
        "subjects": {
            subject: _accuracy(correct[[s == subject for s in subjects]]) for subject in sorted(set(subjects))
        },
    }


def compare(base: Sequence[Prediction], tuned: Sequence[Prediction]) -> dict[str, Any]:
    """Compare two models on the questions that both scored.

    Args:
        base: One model's predictions.
        tuned: The other's, of the same questions in the same order.
    """
    pairs = [
        (a.choice == a.answer, b.choice == b.answer)
        for a, b in zip(base, tuned, strict=True)
        if a.status == b.status == "scored"
    ]
    before, after = np.array(pairs, dtype=bool).reshape(-1, 2).T
    return {
        "num_questions": len(pairs),
        "accuracy_gain": float(after.mean() - before.mean()),
        "num_fixed": int(np.sum(after & ~before)),
        "num_broken": int(np.sum(before & ~after)),
        "mcnemar_p": mcnemar_p(before, after),
    }


def without_flagged(
    base: Sequence[Prediction], tuned: Sequence[Prediction], flagged: set[str]
) -> dict[str, Any] | None:
    """Measure both models on the questions that no leak audit flagged.

    Returns:
        Accuracy of both and their comparison; None if nothing is flagged, or everything.
    """
    kept = [(a, b) for a, b in zip(base, tuned, strict=True) if a.id not in flagged]
    if not flagged or not any(a.status == "scored" and b.status == "scored" for a, b in kept):
        return None
    before, after = [a for a, _ in kept], [b for _, b in kept]

    def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
        return _accuracy(np.array([p.choice == answer for p, answer in _scored(predictions)]))

    return {"base": accuracy(before), "tuned": accuracy(after), "change": compare(before, after)}
