"""What the corpus's account found, shortened for the page: duplicates, doubtful keys, leaks."""

import collections
from collections.abc import Sequence
from typing import Any

from medqa.config import DataConfig
from medqa.data.account import WRONG_KEY_RULE, Account
from medqa.data.diff import clip
from medqa.data.distributions import bars
from medqa.data.fingerprints import normalise
from medqa.data.leaks import DROPPED, KINDS, LeakAudit
from medqa.records import LETTERS, Example

__all__ = ["card", "doubtful_keys", "leaks", "same_questions"]

NUM_CONFLICTS, NUM_DUPLICATES, NUM_DOUBTFUL, NUM_PAIRS = 10, 5, 10, 5
_MAX_ROWS_OF_GROUP = 4
_CERTAINTY = {
    0.95: "very likely: what follows the letter are the other option's words",
    0.75: "likely: what follows is closer to the other option than to the key",
    0.6: "possible: what follows fits neither option better",
}


def card(example: Example, size: int = 400) -> dict[str, Any]:
    """Shorten a question for showing.

    Args:
        example: The question.
        size: Characters of the question and of the explanation that are shown, about.
    """
    return {
        "id": example.id,
        "subject": example.subject,
        "context": clip(example.context, size),
        "question": clip(example.question, size),
        "options": [
            {"letter": letter, "text": clip(text, size // 2), "right": place == example.answer}
            for place, (letter, text) in enumerate(zip(LETTERS, example.options, strict=False))
        ],
        "explanation": clip(example.explanation, size),
    }


def same_questions(account: Account) -> dict[str, Any]:
    """Show groups of rows that say the same, with one key and with several."""
    groups, kept = account.groups, account.kept

    def show(rows: Sequence[int]) -> dict[str, Any]:
        shown = [card(kept[row], 300) for row in rows[:_MAX_ROWS_OF_GROUP]]
        return {"cards": shown, "num_more": len(rows) - len(shown)}

    # Copies to the letter teach the reader nothing about what counts as the same.
    telling = [rows for rows in groups.duplicates if len({normalise(kept[row].question) for row in rows}) > 1]
    return {
        "num_groups": len(groups.duplicates),
        "num_left_out": len(groups.copies),
        "num_conflicts": len(groups.conflicts),
        "num_conflict_rows": len(groups.conflicting),
        "duplicates": [show(rows) for rows in telling[:NUM_DUPLICATES]],
        "conflicts": [show(rows) for rows in groups.conflicts[:NUM_CONFLICTS]],
    }


def doubtful_keys(account: Account) -> dict[str, Any] | None:
    """Show questions whose explanation contradicts their key; None if they weren't looked for."""
    if WRONG_KEY_RULE not in account.results:
        return None
    found = sorted(account.results[WRONG_KEY_RULE].dropped, key=lambda pair: -pair[1].score)
    scores = collections.Counter(drop.score for _, drop in found)
    return {
        "num": len(found),
        "scores": bars(
            (f"{score:.2f} {_CERTAINTY.get(score, '')}".rstrip(), scores[score])
            for score in sorted(scores, reverse=True)
        ),
        "shown": [
            {"card": card(example, 300), "reason": f"{drop.reason} (score {drop.score:.2f})"}
            for example, drop in found[:NUM_DOUBTFUL]
        ],
    }


def leaks(account: Account, config: DataConfig) -> dict[str, Any] | None:
    """Show what the model may know of the evaluation questions; None if that wasn't looked for."""
    audit = account.audit
    if audit is None:
        return None
    rows = collections.Counter(audit.train_rows.values())
    by_id = {example.id: example for example in account.evaluation}
    elsewhere = account.groups.copies | account.groups.conflicting
    kinds = []
    for kind, meaning in KINDS.items():
        flagged = audit.flagged.get(kind, [])
        alone = [card(by_id[id], 300) for id in flagged[:NUM_PAIRS] if id in by_id]
        pairs = _pairs(account, audit, kind)
        kinds.append(
            {
                "name": kind,
                "meaning": meaning,
                "num_questions": len(flagged),
                "num_rows": rows[kind],
                "dropped": config.drop_leaks and kind in DROPPED,
                "pairs": pairs,
                "alone": [] if pairs else alone,
            }
        )
    return {
        "num_questions": audit.num_evaluation,
        "num_flagged": len(audit.ids),
        "share": 100 * len(audit.ids) / (audit.num_evaluation or 1),
        "num_rows": len(audit.train_rows),
        "num_elsewhere": len(audit.train_rows.keys() & elsewhere),
        "dropped": config.drop_leaks,
        "kinds": kinds,
    }


def _pairs(account: Account, audit: LeakAudit, kind: str) -> list[dict[str, Any]]:
    """Put training rows beside evaluation questions, each of which is shown once."""
    flagged = set(audit.flagged.get(kind, []))
    pairs: dict[int, int] = {}
    for row, number in audit.pairs.get(kind, []):
        if account.evaluation[number].id in flagged:
            pairs.setdefault(number, row)
    return [
        {"train": card(account.kept[row], 300), "evaluation": card(account.evaluation[number], 300)}
        for number, row in list(pairs.items())[:NUM_PAIRS]
    ]
