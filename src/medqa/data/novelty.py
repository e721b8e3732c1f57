"""How much of a question is found again in another question, the one that is most like it.

A model is surer, and more often right, where it has seen something alike. Questions that tell how far to
trust it must therefore be as new to it as those that it will be asked: that no copy is trained on is not
enough.
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


def resemblance(
    rows: Sequence[int], prints: Sequence[Fingerprint], groups: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Say how much of each question is found in the one, outside its group, that holds the most of it.

    Compared are words and pairs of neighbouring words of question and options, each weighed by how rare it is
    (inverse document frequency, squared, as in a cosine): 0 is nothing in common, 1 everything.

    Args:
        rows: Numbers of the questions to look for.
        prints: All questions.
        groups: Number of each question's group of copies.

    Shapes:
        Returns (len(rows),).
    """
    from scipy.sparse import csr_array  # loads slowly: only where questions are compared

    numbers: dict[str, int] = {}
    for row in rows:
        for term in _terms(prints[row]):
            numbers.setdefault(term, len(numbers))
    known = numbers.keys()
    found = [[numbers[term] for term in known & _terms(p)] for p in prints]
    columns = np.fromiter(itertools.chain.from_iterable(found), np.int64)
    counts = np.bincount(columns, minlength=len(numbers))
    weights = np.log((1 + len(prints)) / counts) ** 2
    weights[counts > MAX_SHARE * len(prints) + 2] = 0
    telling = weights[columns] > 0
    starts = np.concatenate([[0], np.cumsum(telling)])[np.cumsum([0, *map(len, found)])]
    terms = csr_array((np.ones(telling.sum()), columns[telling], starts), shape=(len(prints), len(numbers)))
    searched, transposed = (terms[list(rows)] * weights).tocsr(), terms.T.tocsr()
    everything = searched.sum(axis=1)
    group_of = np.asarray(groups)
    most = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        common = searched[start : start + _ROWS_AT_ONCE] @ transposed
        own = np.repeat(np.arange(common.shape[0]), np.diff(common.indptr))
        elsewhere = group_of[common.indices] != group_of[np.asarray(rows)[start + own]]
        np.maximum.at(most, start + own[elsewhere], common.data[elsewhere])
    return most / np.where(everything > 0, everything, 1.0)


def _terms(fingerprint: Fingerprint) -> set[str]:
    terms: set[str] = set()
    for text in (fingerprint.context, fingerprint.question, *fingerprint.options):
        words = text.split()
        terms.update(words)
        terms.update(map(" ".join, itertools.pairwise(words)))
    return terms
