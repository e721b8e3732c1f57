"""How often each key, subject and length occurs, as bars for the page."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from medqa.data.account import Account
from medqa.records import LETTERS, Example

__all__ = ["Bar", "bars", "distributions"]

NUM_SUBJECTS = 25
_NUM_BINS = 12
_WIDTHS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000)


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: What is counted.
        count: How often it occurs.
        share: Its share of all, in percent.
        length: Its length, in percent of the longest.
    """

    label: str
    count: int
    share: float
    length: float


def bars(counts: Iterable[tuple[str, int]]) -> list[Bar]:
    """Make bars of labelled counts, in their order."""
    pairs = list(counts)
    total = sum(count for _, count in pairs) or 1
    longest = max((count for _, count in pairs), default=0) or 1
    return [Bar(label, count, 100 * count / total, round(100 * count / longest, 2)) for label, count in pairs]


def distributions(account: Account, train: Sequence[Example]) -> dict[str, list[Bar]]:
    """Count keys, subjects, lengths and options of the questions to train on; keys also of those read."""
    explained = [len(example.explanation.split()) for example in train if example.explanation]
    return {
        "keys_before": bars(_keys(_rows_with_key(account))),
        "keys_after": bars(_keys(train)),
        "subjects": bars(_subjects(train)),
        "question_words": bars(_histogram([len(example.question.split()) for example in train])),
        "explanation_words": bars([("none", len(train) - len(explained)), *_histogram(explained)]),
        "num_options": bars(
            (f"{number} options", count)
            for number, count in sorted(collections.Counter(len(e.options) for e in train).items())
        ),
    }


def _rows_with_key(account: Account) -> Iterator[Example]:
    """List the rows that came to the rules: those that are kept, and those left out."""
    yield from account.kept
    for result in account.results.values():
        yield from (example for example, _ in result.dropped)


def _keys(examples: Iterable[Example]) -> list[tuple[str, int]]:
    counts = collections.Counter(e.answer for e in examples if e.answer is not None)
    return [(LETTERS[answer], counts[answer]) for answer in range(max(counts, default=-1) + 1)]


def _subjects(examples: Iterable[Example]) -> list[tuple[str, int]]:
    counts = collections.Counter(example.subject or "(not given)" for example in examples)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[NUM_SUBJECTS:]
    if not rest:
        return ordered
    return [*ordered[:NUM_SUBJECTS], (f"{len(rest)} further subjects", sum(count for _, count in rest))]


def _histogram(values: Sequence[int]) -> list[tuple[str, int]]:
    """Count values in bins of one width; the last is open, so that few long texts don't flatten the rest."""
    if not values:
        return []
    common = sorted(values)[math.ceil(0.97 * len(values)) - 1]
    width = next((width for width in _WIDTHS if common <= width * _NUM_BINS), _WIDTHS[-1])
    last = max(1, math.ceil(common / width))
    # Bins end at whole multiples: 1 to 5, 6 to 10, ...
    counts = collections.Counter(min(last, max(0, value - 1) // width) for value in values)
    labels = [
        str(low + 1) if width == 1 else f"{low + 1} to {low + width}" for low in range(0, last * width, width)
    ]
    if counts[last]:
        labels.append(f"over {last * width}")
    return [(label, counts[number]) for number, label in enumerate(labels)]
