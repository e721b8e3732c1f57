"""Named rules that turn a published question into one fit to train on, and what each of them did.

A rule is a pure function, Example -> Example or Drop. It never changes which option is the key, never
empties a question or an option, and applied twice does what it does once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from medqa.data.workers import map_in_processes
from medqa.errors import ConfigError
from medqa.records import LETTERS, Example

__all__ = [
    "NUM_SAMPLES",
    "Drop",
    "Results",
    "Rule",
    "RuleResult",
    "apply_rules",
    "chosen_rules",
    "clean_rows",
]

T = TypeVar("T")

NUM_SAMPLES = 10
_MAX_PASSES = 4
_CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Drop:
    """A question is left out.

    Attributes:
        reason: Why, in a few words.
        score: How sure that is, in [0, 1].
    """

    reason: str
    score: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: What `data.skip_rules` and the report call it.
        meaning: What it does, in one sentence.
        apply: The rule.
    """

    name: str
    meaning: str
    apply: Callable[[Example], Example | Drop]


@dataclasses.dataclass
class RuleResult:
    """What one rule did to a corpus.

    Attributes:
        num_changed: Rows that it changed.
        changed: The first of them: id, field, text before, text after.
        dropped: The rows that it left out, with the reason.
    """

    num_changed: int = 0
    changed: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    dropped: list[tuple[Example, Drop]] = dataclasses.field(default_factory=list)


Results = dict[str, RuleResult]


def chosen_rules(rules: Sequence[Rule], skip: Sequence[str]) -> list[Rule]:
    """Leave out the rules that are switched off.

    Raises:
        ConfigError: If there is no rule of that name.
    """
    names = [rule.name for rule in rules]
    for name in skip:
        if name not in names:
            raise ConfigError(f"data.skip_rules: no rule {name!r}", f"the rules are {', '.join(names)}")
    return [rule for rule in rules if rule.name not in skip]


def apply_rules(rules: Sequence[Rule], example: Example, results: Results | None = None) -> Example | Drop:
    """Apply rules in their order, again until nothing changes.

    One rule's cut may lay bare what an earlier one looks for: a marker behind a citation.

    Args:
        rules: The rules.
        example: One row.
        results: Where to count what they do.
    """
    published, changed_by = (example.question, *example.options), set()
    num_same = 0
    for _ in range(_MAX_PASSES):
        for rule in rules:
            # Every rule has seen the row as it is: pure functions would say the same again.
            if num_same == len(rules):
                break
            result = rule.apply(example)
            if isinstance(result, Drop):
                if results is not None:
                    results[rule.name].dropped.append((example, result))
                return result
            num_same += 1
            if result is not example and result != example:
                num_same = 0
                if results is not None:
                    _count(results[rule.name], example, result, first=rule.name not in changed_by)
                changed_by.add(rule.name)
                example = result
    if published != (example.question, *example.options) and example.original is None:
        example = dataclasses.replace(example, original=published)
    return example


def _count(result: RuleResult, before: Example, after: Example, *, first: bool) -> None:
    result.num_changed += first
    if first and len(result.changed) < NUM_SAMPLES:
        result.changed.append((before.id, *_difference(before, after)))


def _difference(before: Example, after: Example) -> tuple[str, str, str]:
    """Name the first field that differs, with both texts."""
    if before.question != after.question:
        return "question", before.question, after.question
    for letter, old, new in zip(LETTERS, before.options, after.options, strict=False):
        if old != new:
            return f"option {letter}", old, new
    return "explanation", before.explanation or "", after.explanation or ""


def clean_rows(
    rules: Sequence[Rule],
    examples: Sequence[Example],
    look: Callable[[Example], T],
    advance: Callable[[int], None] = lambda n: None,
) -> tuple[list[Example], list[T], Results]:
    """Apply rules to every row of a corpus, on all processors where that pays.

    Args:
        rules: The rules.
        examples: The rows.
        look: Called on each row that is left, where it was cleaned.
        advance: Told how many rows are done.

    Returns:
        The rows that are left, what `look` says of each of them, and what each rule did.
    """

    def work(start: int) -> tuple[list[Example], list[T], Results]:
        results = {rule.name: RuleResult() for rule in rules}
        cleaned = (apply_rules(rules, e, results) for e in examples[start : start + _CHUNK])
        kept = [e for e in cleaned if isinstance(e, Example)]
        return kept, list(map(look, kept)), results

    kept: list[Example] = []
    seen: list[T] = []
    total = {rule.name: RuleResult() for rule in rules}
    starts = range(0, len(examples), _CHUNK)
    for start, (rows, looks, results) in zip(starts, map_in_processes(work, starts), strict=True):
        kept += rows
        seen += looks
        for name, result in results.items():
            total[name].num_changed += result.num_changed
            total[name].changed = (total[name].changed + result.changed)[:NUM_SAMPLES]
            total[name].dropped += result.dropped
        advance(min(_CHUNK, len(examples) - start))
    return kept, seen, total
