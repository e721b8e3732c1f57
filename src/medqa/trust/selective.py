"""When to answer and when to say "not sure": risk against coverage, and thresholds with a guarantee."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats

__all__ = [
    "THRESHOLDS",
    "RiskCounts",
    "accuracy_at_coverage",
    "answered_from",
    "aurc",
    "clopper_pearson_upper",
    "count_risk",
    "risk_coverage",
    "threshold_for_risk",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Fixed before any data is seen, which the guarantee needs.
THRESHOLDS: tuple[float, ...] = tuple(round(number / 100, 2) for number in range(101))
# Where the search for a threshold begins; the error that it may make is shared among the starts.
_STARTS = (0.85, 0.7, 0.55, 0.3)


def risk_coverage(confidence: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Trace the share of wrong answers as ever more questions are answered, the surest first.

    Questions of equal confidence are answered together: between them the curve is the mean over their orders.

    Shapes:
        confidence, correct: (N,). Returns coverage and risk, (N,) each.

    Source:
        El-Yaniv and Wiener 2010.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, wrong = confidence[order], 1.0 - correct[order]
    _, groups, counts = np.unique(-sure, return_inverse=True, return_counts=True)
    wrong = (np.bincount(groups, weights=wrong) / counts)[groups]
    number = np.arange(1, len(order) + 1)
    return number / len(order), np.cumsum(wrong) / number


def aurc(confidence: FloatArray, correct: BoolArray) -> float:
    """Area under the risk-coverage curve: mean risk over all coverages; lower is better.

    Shapes:
        confidence, correct: (N,).

    Source:
        Geifman, Uziel and El-Yaniv 2019.
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def accuracy_at_coverage(confidence: FloatArray, correct: BoolArray, coverage: float) -> float:
    """Accuracy among the surest questions.

    Args:
        confidence: Probability of the chosen option.
        correct: Whether it is the right one.
        coverage: Share of the questions that are answered, in (0, 1]; at least one question is.
    """
    num = max(1, int(round(coverage * len(confidence), 9)))
    return float(1 - risk_coverage(confidence, correct)[1][num - 1])


def clopper_pearson_upper(num_wrong: int, num_total: int, delta: float) -> float:
    """Bound the true rate of errors from above, so that it is exceeded with probability `delta` at most.

    Source:
        Clopper and Pearson 1934, one-sided.
    """
    if num_wrong >= num_total:
        return 1.0
    return float(scipy.stats.beta.ppf(1 - delta, num_wrong + 1, num_total - num_wrong))


@dataclasses.dataclass(frozen=True, slots=True)
class RiskCounts:
    """What was answered, and wrongly, at each of `THRESHOLDS`.

    Attributes:
        num_questions: Questions in all.
        num_answered: Of confidence at least the threshold, for each threshold.
        num_wrong: Of these, wrong ones.
    """

    num_questions: int
    num_answered: tuple[int, ...]
    num_wrong: tuple[int, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RiskCounts":
        """Read them back.

        Raises:
            ValueError: If they are no such counts.
        """
        total = int(values["num_questions"])
        answered, wrong = (tuple(map(int, values[name])) for name in ("num_answered", "num_wrong"))
        rows = list(zip(answered, wrong, strict=True))
        if len(rows) != len(THRESHOLDS) or not all(0 <= w <= a <= total for a, w in rows):
            raise ValueError(f"no counts at {len(THRESHOLDS)} thresholds: {answered!r} and {wrong!r}")
        return cls(total, answered, wrong)


def count_risk(confidence: FloatArray, correct: BoolArray) -> RiskCounts:
    """Count answers and errors at each threshold.

    Shapes:
        confidence, correct: (N,), of questions that the model never saw.
    """
    answered = confidence[None, :] >= np.array(THRESHOLDS)[:, None]
    wrong = answered & ~correct[None, :]
    return RiskCounts(
        len(confidence), tuple(map(int, answered.sum(axis=1))), tuple(map(int, wrong.sum(axis=1)))
    )


def threshold_for_risk(counts: RiskCounts, max_risk: float, delta: float = 0.05) -> float | None:
    """Find the lowest confidence from which answers are wrong at most so often.

    Args:
        counts: On questions that the model never saw.
        max_risk: Share of the given answers that may be wrong, in (0, 1).
        delta: Probability with which the promise may be broken, over draws of the questions it was found on.

    Returns:
        The threshold; None if none reaches the risk with that certainty.

    Source:
        Learn then test, Angelopoulos, Bates, Candes, Jordan and Lei 2021: fixed-sequence testing from several
        starts with Bonferroni's correction, each step tested by Clopper-Pearson's bound.
    """
    lowest: float | None = None
    for start in _STARTS:
        for place in range(THRESHOLDS.index(start), -1, -1):
            answered, wrong = counts.num_answered[place], counts.num_wrong[place]
            if not answered or clopper_pearson_upper(wrong, answered, delta / len(_STARTS)) > max_risk:
                break
            lowest = THRESHOLDS[place] if lowest is None else min(lowest, THRESHOLDS[place])
    return lowest


def answered_from(confidence: Sequence[float] | FloatArray, threshold: float | None) -> BoolArray:
    """Say which questions are answered: those of confidence at least the threshold; none without one."""
    values = np.asarray(confidence, dtype=float)
    return values >= threshold if threshold is not None else np.zeros(len(values), dtype=bool)
