"""Where every row that was read went, in numbers that add up."""

import dataclasses

from medqa.data.account import WRONG_KEY_RULE
from medqa.data.corpus import Corpus
from medqa.data.distributions import Bar, bars

__all__ = ["Flow", "Loss", "trace"]


@dataclasses.dataclass(frozen=True)
class Loss:
    """Rows that are not trained on, for one reason; each row counts under its first reason only.

    Attributes:
        name: The reason in a few words.
        why: The reason in a sentence.
        section: The part of the page that shows more.
        bar: How many rows, beside the other reasons.
    """

    name: str
    why: str
    section: str
    bar: Bar


@dataclasses.dataclass(frozen=True)
class Flow:
    """The way from what was read to what is used.

    Attributes:
        num_read: Rows in the sources.
        parts: What became of all of them: to train on, held back, left out.
        losses: The reasons of what was left out, in the order in which they are looked for.
        num_left_out: Rows that were left out, for whatever reason.
        num_repeats: Rows that are trained on more than once, through their source's weight.
    """

    num_read: int
    parts: list[Bar]
    losses: list[Loss]
    num_left_out: int
    num_repeats: int


def trace(corpus: Corpus) -> Flow:
    """Follow the rows from their sources to their use.

    Args:
        corpus: What was built.
    """
    record = corpus.record
    num_broken = sum(source["num_broken"] for source in record["sources"])
    num_keyless = sum(source["num_without_key"] for source in record["sources"])
    num_told = num_broken + num_keyless + record["num_with_key"]
    # Further sources may hold more rows than their max_rows takes.
    num_read = max(num_told, sum(source["num_read"] for source in record["sources"]))
    same, conflicting, leaking = _left_out_together(corpus)
    held = len(corpus.calibration) + len(corpus.selection)
    trainable = len(corpus.account.kept) - same - conflicting - leaking - held
    reasons = [
        (
            "broken",
            "The row could not be read: an empty option, a key that is none of the options.",
            "sources",
        ),
        ("no key", "The source does not say which option is right.", "sources"),
        *((name, _plain(rule["meaning"]), _section(name)) for name, rule in record["rules"].items()),
        ("duplicate", "Another row says the same and has the same key; one of them is kept.", "same"),
        ("conflicting keys", "Rows that say the same have different keys; all of them go.", "same"),
        ("leak", "The question is, exactly or nearly, among those to be measured on.", "leaks"),
        ("not drawn", "Fewer rows were asked for (max_train_rows, max_rows, a weight below 1).", "splits"),
    ]
    counts = {name: rule["num_dropped"] for name, rule in record["rules"].items()}
    counts |= {"broken": num_broken, "no key": num_keyless, "duplicate": same, "leak": leaking}
    counts |= {
        "conflicting keys": conflicting,
        "not drawn": num_read - num_told + trainable - record["num_distinct"],
    }
    lost = [(reason, counts[reason[0]]) for reason in reasons if counts[reason[0]]]
    num_left_out = sum(count for _, count in lost)
    parts = [
        ("to train on", record["num_distinct"]),
        ("held back for calibration", len(corpus.calibration)),
        ("held back to choose by", len(corpus.selection)),
        ("left out", num_left_out),
    ]
    return Flow(
        num_read=num_read,
        parts=bars(parts),
        losses=[
            Loss(*reason, bar)
            for (reason, _), bar in zip(lost, bars((reason[0], n) for reason, n in lost), strict=True)
        ],
        num_left_out=num_left_out,
        num_repeats=len(corpus.train) - record["num_distinct"],
    )


def _plain(meaning: str) -> str:
    """Say what a rule looks for, without saying again that rows are left out."""
    text = meaning.removeprefix("Left out: ")
    return text[:1].upper() + text[1:]


def _section(rule: str) -> str:
    return "keys" if rule == WRONG_KEY_RULE else "rules"


def _left_out_together(corpus: Corpus) -> tuple[int, int, int]:
    """Count duplicates, conflicts and leaks so that no row counts twice."""
    groups, audit = corpus.account.groups, corpus.account.audit
    leaking = audit.train_rows.keys() if audit is not None else set()
    same, conflicting = groups.copies, groups.conflicting
    return len(same), len(conflicting), len(leaking - same - conflicting)
