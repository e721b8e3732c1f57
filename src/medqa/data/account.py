"""The account of a corpus: what was done to its rows, in numbers for data.json, with texts for the page."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from medqa.data.duplicates import Groups
from medqa.data.leaks import KINDS, LeakAudit
from medqa.data.repair import Lexicon
from medqa.data.rules import Results, Rule
from medqa.records import LETTERS, Example

__all__ = ["ACCOUNT_VERSION", "Account", "describe"]

ACCOUNT_VERSION = 1
WRONG_KEY_RULE = "contradicted key"


@dataclasses.dataclass(frozen=True)
class Account:
    """What was done to the rows, with their texts.

    Attributes:
        rules: The rules that were applied, in their order.
        results: What each of them did.
        lexicon: The words that were repaired; None if nothing was cleaned.
        num_rows: Rows with a key that there were.
        kept: The rows that the rules left.
        groups: Duplicates and conflicts among them.
        audit: Leaks; None if they could not be looked for.
        evaluation: The evaluation questions that were audited.
    """

    rules: Sequence[Rule]
    results: Results
    lexicon: Lexicon | None
    num_rows: int
    kept: list[Example]
    groups: Groups
    audit: LeakAudit | None
    evaluation: Sequence[Example]


def _leaks(audit: LeakAudit | None, evaluation: dict[str, Any]) -> dict[str, Any]:
    if audit is None:
        return {"looked_for": False, "reason": evaluation["reason"]}
    return {
        "looked_for": True,
        "name": evaluation["name"],
        "split": evaluation["split"],
        "sha256": evaluation["sha256_split"],
        "kinds": KINDS,
        **audit.record(),
    }


def describe(account: Account, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Put an account into numbers and ids: no question's text."""
    kept, groups = account.kept, account.groups
    repairs = account.lexicon.repairs.values() if account.lexicon else ()
    wrong = account.results[WRONG_KEY_RULE].dropped if WRONG_KEY_RULE in account.results else []
    return {
        "version": ACCOUNT_VERSION,
        "num_with_key": account.num_rows,
        "rules": {
            rule.name: {
                "meaning": rule.meaning,
                "num_changed": account.results[rule.name].num_changed,
                "num_dropped": len(account.results[rule.name].dropped),
            }
            for rule in account.rules
        },
        "repaired_words": len(repairs),
        "duplicates": {
            "num_groups": len(groups.duplicates),
            "num_left_out": len(groups.copies),
        },
        "conflicts": {
            "num_groups": len(groups.conflicts),
            "num_rows": len(groups.conflicting),
            "groups": [[kept[row].id for row in rows] for rows in groups.conflicts],
        },
        "suspected_wrong_keys": [
            {"id": example.id, "score": drop.score, "reason": drop.reason}
            for example, drop in sorted(wrong, key=lambda pair: -pair[1].score)
        ],
        "leaks": _leaks(account.audit, evaluation),
        "keys": _shares(LETTERS[example.answer] for example in kept if example.answer is not None),
        "subjects": _shares(example.subject or "(unknown)" for example in kept),
    }


def _shares(values: Any) -> dict[str, int]:
    return dict(sorted(collections.Counter(values).items(), key=lambda item: (-item[1], item[0])))
