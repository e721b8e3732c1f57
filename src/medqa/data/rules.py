"""Named rules that turn a published question into one fit to train on, and what each of them did.

A rule is a pure function, Example -> Example or Drop. It never changes which option is the key, never
empties a question or an option, and applied twice does what it does once.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

from medqa.errors import ConfigError
from medqa.records import Example

__all__ = ["NUM_SAMPLES", "Drop", "Outcome", "Rule", "RuleResult", "apply_rules", "chosen_rules", "collect"]

NUM_SAMPLES = 10
_MAX_PASSES = 4


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
        num_dropped: Rows that it left out.
        changed: Some of the changes: row, field, text before, text after.
        dropped: Some of the rows left out, with the reason.
    """

    num_changed: int = 0
    num_dropped: int = 0
    changed: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    dropped: list[tuple[Example, Drop]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Outcome:
    """What became of one row.

    Attributes:
        example: The row as far as the rules went.
        changes: Name of each rule that changed it, with the row before and after.
        drop: The rule that left it out and its reason, or None.
    """

    example: Example
    changes: list[tuple[str, Example, Example]]
    drop: tuple[str, Drop] | None = None


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


def apply_rules(rules: Sequence[Rule], example: Example) -> Outcome:
    """Apply rules in their order, again until nothing changes.

    One rule's cut may lay bare what an earlier one looks for: a marker behind a citation.
    """
    outcome = Outcome(example, [])
    for _ in range(_MAX_PASSES):
        before = outcome.example
        for rule in rules:
            result = rule.apply(outcome.example)
            if isinstance(result, Drop):
                outcome.drop = (rule.name, result)
                return outcome
            if result is not outcome.example and result != outcome.example:
                outcome.changes.append((rule.name, outcome.example, result))
                outcome.example = result
        if outcome.example is before:
            break
    published = (example.question, *example.options)
    if published != (outcome.example.question, *outcome.example.options) and example.original is None:
        outcome.example = dataclasses.replace(outcome.example, original=published)
    return outcome


def collect(rules: Sequence[Rule], outcomes: Iterable[Outcome]) -> dict[str, RuleResult]:
    """Count what the rules did, with samples."""
    results = collections.OrderedDict((rule.name, RuleResult()) for rule in rules)
    for outcome in outcomes:
        seen = set()
        for name, before, after in outcome.changes:
            result = results[name]
            if name not in seen:
                result.num_changed += 1
                seen.add(name)
            if len(result.changed) < NUM_SAMPLES:
                result.changed.append((outcome.example.id, *_difference(before, after)))
        if outcome.drop is not None:
            name, drop = outcome.drop
            results[name].num_dropped += 1
            results[name].dropped.append((outcome.example, drop))
    return results


def _difference(before: Example, after: Example) -> tuple[str, str, str]:
    for letter, (old, new) in zip(
        "ABCDEFGHIJ", zip(before.options, after.options, strict=True), strict=False
    ):
        if old != new:
            return f"option {letter}", old, new
    if before.question != after.question:
        return "question", before.question, after.question
    return "explanation", before.explanation or "", after.explanation or ""
