"""How much of a question is found again in the training question that is most like it.

A model is surer, and more often right, where it has seen something alike. Questions that tell how far to
trust it must therefore be as new to it as those that it will be asked: copies apart is not enough.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medqa.data.fingerprints import Fingerprint

__all__ = ["resemblance"]

# Words that are in more of the questions than this tell nothing, and cost most of the time.
MAX_SHARE = 0.01
_ROWS_AT_ONCE = 256


def resemblance(held: Sequence[Fingerprint], others: Sequence[Fingerprint]) -> npt.NDArray[np.float64]:
    """Say how much of each question is found in the one of the others that holds the most of it.

    Compared are words and pairs of neighbouring words of question and options, each weighed by how rare it
    is among the others (inverse document frequency, squared, as in a cosine): 0 is nothing in common, 1 everything.

    Args:
        held: Questions that are held back.
        others: Questions that are trained on.

    Shapes:
        Returns (len(held),).
    """
    from scipy.sparse import csr_array  # loads slowly: only where questions are compared

    if not held or not others:
        return np.zeros(len(held))
    numbers: dict[str, int] = {}
    held_terms = [[numbers.setdefault(term, len(numbers)) for term in _terms(p)] for p in held]
    known = numbers.keys()
    found = [[numbers[term] for term in known & _terms(p)] for p in others]
    counts = np.bincount([n for row in found for n in row], minlength=len(numbers))
    weights = np.log((1 + len(others)) / (1 + counts)) ** 2
    weights[counts > MAX_SHARE * len(others) + 1] = 0

    def matrix(rows: Sequence[Sequence[int]]) -> csr_array:
        columns = np.fromiter((n for row in rows for n in row), np.int32)
        kept = weights[columns] > 0
        starts = np.concatenate([[0], np.cumsum(kept)])[np.cumsum([0, *map(len, rows)])]
        return csr_array((np.ones(kept.sum()), columns[kept], starts), shape=(len(rows), len(numbers)))

    whole = matrix(held_terms) * weights
    other = matrix(found).T.tocsr()
    most = [
        np.maximum.reduceat(np.append(product.data, 0.0), product.indptr[:-1]) * (np.diff(product.indptr) > 0)
        for start in range(0, len(held), _ROWS_AT_ONCE)
        for product in [whole[start : start + _ROWS_AT_ONCE] @ other]
    ]
    everything = whole.sum(axis=1)
    return np.concatenate(most) / np.where(everything > 0, everything, 1.0)


def _terms(fingerprint: Fingerprint) -> set[str]:
    terms: set[str] = set()
    for text in (fingerprint.context, fingerprint.question, *fingerprint.options):
        words = text.split()
        terms.update(words)
        terms.update(map(" ".join, itertools.pairwise(words)))
    return terms
