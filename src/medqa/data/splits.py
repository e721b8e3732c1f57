"""Hold questions back from training, for calibration and for knowing when to stop.

Which ones is said by a hash of their content, never by their order or a random state: the same questions are
held back in every run, with whatever seed.
"""

import collections
import hashlib
from collections.abc import Sequence

from medqa.records import Example

__all__ = ["hold_back"]


def hold_back(
    examples: Sequence[Example],
    groups: Sequence[int],
    share: float,
    purpose: str,
    taken: set[int] | None = None,
) -> set[int]:
    """Choose rows to hold back: whole groups of like questions, from every subject its share.

    Args:
        examples: The rows.
        groups: Number of each row's group; a group is never cut.
        share: Share of the rows to hold back, in [0, 1].
        purpose: Part of the hash, so that two purposes get different rows.
        taken: Rows that are held back already.

    Returns:
        Numbers of the rows.
    """
    members: dict[int, list[int]] = collections.defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    strata: dict[str, list[tuple[str, list[int]]]] = collections.defaultdict(list)
    sizes: collections.Counter[str] = collections.Counter()
    for rows in members.values():
        # The least hash stands for the group, so that the order of its rows doesn't matter.
        least, subject = min((_hash(examples[row], purpose), examples[row].subject or "") for row in rows)
        sizes[subject] += len(rows)
        if not taken or taken.isdisjoint(rows):
            strata[subject].append((least, rows))
    chosen: set[int] = set()
    owed = 0.0
    for subject in sorted(sizes):
        owed += share * sizes[subject]
        for _, rows in sorted(strata[subject]):
            if len(rows) <= owed:
                chosen.update(rows)
                owed -= len(rows)
    return chosen


def _hash(example: Example, purpose: str) -> str:
    return hashlib.sha256(f"{purpose}:{example.content_hash()}".encode()).hexdigest()
