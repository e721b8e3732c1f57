"""Answer sets that hold the right option in a stated share of cases: split conformal prediction.

Everything takes the probabilities of N questions as an (N, L) array; a question with fewer options has zeros
in the places that it lacks, and those are never in a set.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "MIN_GROUP_ROWS",
    "SetMethod",
    "conformal_quantile",
    "conformity_scores",
    "coverage_of_sets",
    "group_quantiles",
    "prediction_sets",
]

SetMethod = Literal["lac", "aps"]

MIN_GROUP_ROWS = 100
"""A group gets a quantile of its own from so many questions on: with fewer it would be mostly noise."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def conformity_scores(probabilities: FloatArray, method: SetMethod, own_share: float = 0.5) -> FloatArray:
    """Say how badly each option fits: the higher, the later it enters a set.

    Args:
        probabilities: Of each option.
        method: "lac" is one minus the option's probability, which gives the smallest sets on average. "aps"
            is
            the probability of all likelier options and a share of its own, which gives larger sets where a
            question is hard.
        own_share: That share, in [0, 1]. With 1, the least likely option always scores 1, and sets of 95 % of
            four options are often all four.

    Shapes:
        probabilities, returns: (N, L).

    Source:
        LAC: Sadinle, Lei and Wasserman 2019. APS: Romano, Sesia and Candes 2020, with the mean of the random
        share that they draw, so that sets are the same on every call.
    """
    if method == "lac":
        return np.asarray(1 - probabilities)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    own = np.take_along_axis(probabilities, order, axis=1)
    scores = np.empty_like(own)
    np.put_along_axis(scores, order, np.cumsum(own, axis=1) - (1 - own_share) * own, axis=1)
    return scores


def conformal_quantile(scores: Sequence[float] | FloatArray, alpha: float) -> float:
    """Find the score up to which options belong to a set.

    Args:
        scores: Of the right options of questions that the model never saw.
        alpha: Share of the sets that may miss the right option, in (0, 1).

    Returns:
        The ceil((n + 1)(1 - alpha))-th smallest score; infinity where there are too few for such a share, so
        that every option is in the set.

    Source:
        Vovk, Gammerman and Shafer 2005; the finite-sample correction as in Angelopoulos and Bates 2023, eq.
        1.
    """
    rank = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))
    if rank > len(scores):
        return math.inf
    return float(np.partition(np.asarray(scores, dtype=float), rank - 1)[rank - 1])


def group_quantiles(
    scores: FloatArray, groups: Sequence[str | None], alpha: float, min_rows: int = MIN_GROUP_ROWS
) -> dict[str, float]:
    """Find the quantile of every group that has rows enough, for sets that hold within the group.

    Args:
        scores: Of the right options.
        groups: Of each question, its subject for one; None belongs to no group.
        alpha: Share of the sets that may miss the right option, in (0, 1).
        min_rows: Rows that a group needs.

    Shapes:
        scores: (N,).

    Source:
        Mondrian conformal prediction, Vovk et al. 2005, section 4.5.
    """
    names = np.array([group or "" for group in groups])
    return {
        str(name): conformal_quantile(scores[names == name], alpha)
        for name, count in zip(*np.unique(names, return_counts=True), strict=True)
        if name and count >= min_rows
    }


def prediction_sets(
    probabilities: FloatArray,
    quantile: float | FloatArray,
    method: SetMethod,
) -> BoolArray:
    """Say which options belong to each question's set.

    The likeliest option always does: an empty set would say less than the answer itself.

    Args:
        probabilities: Of each option.
        quantile: From `conformal_quantile`; one for all, or one a question.
        method: As the quantile was found with.

    Shapes:
        probabilities, returns: (N, L). quantile: () or (N,).
    """
    limit = np.broadcast_to(np.asarray(quantile, dtype=float), (len(probabilities),))
    # Scores are sums of rounded numbers: the option that the quantile came from must not fall out by 1e-16.
    sets = conformity_scores(probabilities, method) <= limit[:, None] + 1e-12
    sets[np.arange(len(probabilities)), probabilities.argmax(axis=1)] = True
    return np.asarray(sets & (probabilities > 0))


def coverage_of_sets(sets: BoolArray, answers: Sequence[int] | npt.NDArray[np.int64]) -> Mapping[str, Any]:
    """Measure sets: how many hold the right option, and how large they are.

    Shapes:
        sets: (N, L). answers: (N,).

    Returns:
        num_questions, num_covered, coverage, mean_size, and sizes: how many sets are of each size.
    """
    rows = np.arange(len(sets))
    covered = sets[rows, np.asarray(answers)]
    sizes = sets.sum(axis=1)
    counts = np.bincount(sizes, minlength=sets.shape[1] + 1)
    return {
        "num_questions": len(sets),
        "num_covered": int(covered.sum()),
        "coverage": float(covered.mean()),
        "mean_size": float(sizes.mean()),
        "sizes": {str(size): int(count) for size, count in enumerate(counts) if size},
    }
