"""Which of the questions to be scored a run may know from training."""

import logging
from typing import Any

from medqa.data.build import QuestionSet, audit_training
from medqa.errors import DataError, HubError
from medqa.files import read_json
from medqa.runs import RunFolder

__all__ = ["find_leaks"]

log = logging.getLogger(__name__)


def find_leaks(run: RunFolder, questions: QuestionSet) -> dict[str, Any]:
    """Flag questions: as the run's own audit did, or else by reading its training rows again.

    Flagged are also questions whose training rows were left out for it: a score without them owes nothing
    to a judgement of what still counts as the same.

    Returns:
        `looked_for`, and if so the ids of flagged questions by kind, with counts; else the reason.
    """
    ids = {example.id for example in questions.examples}
    known = _audited_in_training(run, questions)
    if known is None:
        log.info("Reading the training questions again, to look for leaks into these ones")
        try:
            audit = audit_training(run.config.data, questions.examples)
        except (DataError, HubError) as exc:
            log.warning("Leaks are not looked for: %s", exc.message)
            return {"looked_for": False, "reason": exc.message}
        known = audit.flagged
    flagged = {kind: [id for id in found if id in ids] for kind, found in known.items()}
    counts = {kind: len(found) for kind, found in flagged.items()}
    return {"looked_for": True, "counts": counts, "num_flagged": sum(counts.values()), "flagged": flagged}


def _audited_in_training(run: RunFolder, questions: QuestionSet) -> dict[str, list[str]] | None:
    """Return what the run's own audit flagged, if it was of the same questions."""
    file = run.path / "data.json"
    if not file.is_file():  # a run of an earlier version
        return None
    leaks = read_json(file).get("leaks", {})
    if leaks.get("sha256") != questions.record["sha256_split"]:
        return None
    flagged: dict[str, list[str]] = leaks["flagged"]
    return flagged
