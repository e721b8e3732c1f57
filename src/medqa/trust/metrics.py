"""Accuracy with its interval, likelihood and calibration measures, and the paired test.

NumPy in, plain floats out. Rates are in [0, 1], never percentages.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

__all__ = [
    "Bin",
    "Binning",
    "auroc",
    "bootstrap_interval",
    "brier_score",
    "calibration_error_by_chance",
    "expected_calibration_error",
    "mcnemar_p",
    "negative_log_likelihood",
    "reliability_bins",
    "wilson_interval",
]

Binning = Literal["equal-width", "equal-mass"]

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


class Bin(NamedTuple):
    """Questions of like confidence, one point of a reliability diagram.

    Attributes:
        low: Where the bin begins.
        high: Where it ends.
        num_questions: Questions in it.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
    """

    low: float
    high: float
    num_questions: int
    confidence: float
    accuracy: float


def reliability_bins(
    confidence: FloatArray, correct: BoolArray, num_bins: int = 10, binning: Binning = "equal-width"
) -> list[Bin]:
    """Sort questions into bins by confidence; empty bins are left out.

    Args:
        confidence: Probability given to the chosen option, in [0, 1].
        correct: Whether that option was the right one.
        num_bins: Number of bins.
        binning: "equal-width" cuts [0, 1] into bins that are open on the left. "equal-mass" cuts the
            questions,
            sorted by confidence, into bins of as many each, as `numpy.array_split` does.

    Shapes:
        confidence, correct: (N,) one entry per question.

    Source:
        Guo et al. 2017, section 2; equal mass: Nixon et al. 2019.
    """
    if binning == "equal-width":
        places = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
        found = [(b / num_bins, (b + 1) / num_bins, np.flatnonzero(places == b)) for b in range(num_bins)]
    else:
        parts = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
        found = [(confidence[p[0]], confidence[p[-1]], p) for p in parts if len(p)]
    return [
        Bin(float(low), float(high), len(rows), float(confidence[rows].mean()), float(correct[rows].mean()))
        for low, high, rows in found
        if len(rows)
    ]


def expected_calibration_error(
    confidence: FloatArray, correct: BoolArray, num_bins: int = 10, binning: Binning = "equal-width"
) -> float:
    """Mean gap between stated confidence and accuracy, weighted by bin size.

    Args:
        confidence: Probability given to the chosen option, in [0, 1].
        correct: Whether that option was the right one.
        num_bins: Number of bins.
        binning: As `reliability_bins` takes it.

    Shapes:
        confidence, correct: (N,) one entry per question.

    Source:
        Guo et al. 2017, eq. 3.
    """
    bins = reliability_bins(confidence, correct, num_bins, binning)
    gaps = math.fsum(b.num_questions * abs(b.confidence - b.accuracy) for b in bins)
    return gaps / len(confidence)


def calibration_error_by_chance(
    confidence: FloatArray,
    num_bins: int = 10,
    binning: Binning = "equal-width",
    num_draws: int = 200,
    seed: int = 0,
) -> float:
    """Say what calibration error a model without any would show on so many questions.

    The error is a mean of absolute values: chance alone makes it positive, the more so the fewer questions.

    Args:
        confidence: Probability given to the chosen option, taken as true.
        num_bins: Number of bins.
        binning: As `reliability_bins` takes it.
        num_draws: Draws of right and wrong answers.
        seed: Of the draws.

    Shapes:
        confidence: (N,).
    """
    draw = np.random.default_rng(seed)
    errors = [
        expected_calibration_error(confidence, draw.random(len(confidence)) < confidence, num_bins, binning)
        for _ in range(num_draws)
    ]
    return float(np.mean(errors))


def auroc(confidence: FloatArray, correct: BoolArray) -> float | None:
    """Probability that a right answer is surer than a wrong one, equals counted half.

    Returns:
        None where all answers are right, or all are wrong.

    Shapes:
        confidence, correct: (N,).

    Source:
        Hanley and McNeil 1982, by ranks (Mann and Whitney).
    """
    num_right = int(correct.sum())
    num_wrong = len(correct) - num_right
    if not num_right or not num_wrong:
        return None
    ranks = scipy.stats.rankdata(confidence)
    return float((ranks[correct].sum() - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def bootstrap_interval(
    statistic: Callable[..., float],
    *columns: npt.NDArray[Any],
    level: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
    reflected: bool = False,
) -> tuple[float, float]:
    """Interval for any measure, by drawing the questions anew with replacement.

    Args:
        statistic: Takes the columns, returns the measure.
        columns: One entry per question; all are drawn together, so that pairs stay pairs.
        level: Confidence level, in (0, 1).
        num_draws: Draws.
        seed: Of the draws.
        reflected: Reflect the interval in the measure itself and cut it at 0. For measures such as
            calibration error that noise alone makes larger: the draws are noisier than the questions, and
            would give an interval that lies too high.

    Shapes:
        columns: (N, ...) each.

    Source:
        Efron 1979, percentiles; reflected: the basic interval of Davison and Hinkley 1997, section 5.2.
    """
    draw = np.random.default_rng(seed)
    size = len(columns[0])
    values = []
    for _ in range(num_draws):
        rows = draw.integers(0, size, size)
        values.append(statistic(*(column[rows] for column in columns)))
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    if reflected:
        centre = statistic(*columns)
        low, high = max(0.0, 2 * centre - high), max(0.0, 2 * centre - low)
    return float(low), float(high)
