"""Accuracy with its interval, likelihood and calibration measures, and the paired test.

NumPy in, plain floats out. Rates are in [0, 1], never percentages.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.stats

__all__ = [
    "brier_score",
    "expected_calibration_error",
    "mcnemar_p",
    "negative_log_likelihood",
    "wilson_interval",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def wilson_interval(num_correct: int, num_total: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for a share, by Wilson's score method.

    Args:
        num_correct: Successes.
        num_total: Trials, at least 1.
        level: Confidence level, in (0, 1).

    Source:
        Wilson 1927, without continuity correction.
    """
    z = float(scipy.stats.norm.ppf(0.5 + level / 2))
    share = num_correct / num_total
    centre = share + z * z / (2 * num_total)
    spread = z * math.sqrt(share * (1 - share) / num_total + z * z / (4 * num_total**2))
    scale = 1 + z * z / num_total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mcnemar_p(correct_a: BoolArray, correct_b: BoolArray) -> float:
    """Two-sided exact p-value that two models, on the same questions, are equally often right.

    Shapes:
        correct_a, correct_b: (N,) one entry per question, in the same order.

    Source:
        McNemar 1947, in the exact binomial form; 1.0 where the models never differ.
    """
    only_a = int(np.sum(correct_a & ~correct_b))
    only_b = int(np.sum(correct_b & ~correct_a))
    if only_a + only_b == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def negative_log_likelihood(probabilities: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """Mean negative natural logarithm of the probability given to the right option.

    Questions may differ in their number of options. Probabilities below 1e-12 count as 1e-12.
    """
    return float(np.mean([-math.log(max(p[a], 1e-12)) for p, a in zip(probabilities, answers, strict=True)]))


def brier_score(probabilities: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """Mean squared distance of the probabilities from the truth, summed over options: 0 to 2.

    Source:
        Brier 1950, the original form for several classes (twice the common two-class form).
    """
    return float(
        np.mean(
            [
                math.fsum((p - (option == a)) ** 2 for option, p in enumerate(row))
                for row, a in zip(probabilities, answers, strict=True)
            ]
        )
    )


def expected_calibration_error(confidence: FloatArray, correct: BoolArray, num_bins: int = 10) -> float:
    """Mean gap between stated confidence and accuracy, weighted by bin size.

    Args:
        confidence: Probability given to the chosen option, in [0, 1].
        correct: Whether that option was the right one.
        num_bins: Number of equal-width bins over [0, 1].

    Shapes:
        confidence, correct: (N,) one entry per question.

    Source:
        Guo et al. 2017, eq. 3. Bins are open on the left; empty bins are skipped, as there.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = [
        np.sum(inside) * abs(np.mean(confidence[inside]) - np.mean(correct[inside]))
        for inside in (bins == b for b in range(num_bins))
        if np.any(inside)
    ]
    return float(np.sum(gaps) / len(confidence))
