"""metrics.jsonl: a line for each step, read again where training goes on."""

import json
from pathlib import Path

from medqa.files import write_text

__all__ = ["trim_metrics"]


def trim_metrics(path: Path, num_steps: int) -> int:
    """Drop the lines of steps that were done after the checkpoint and are done again, and what is no line.

    Args:
        path: The file; nothing is done if there is none.
        num_steps: Steps of the checkpoint.

    Returns:
        How many of those steps have no line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found = {step: line for line in lines if (step := _step_of(line)) is not None}
    kept = [line for step, line in sorted(found.items()) if 1 <= step <= num_steps]
    if lines:
        write_text(path, "".join(line + "\n" for line in kept))
    return num_steps - len(kept)


def _step_of(line: str) -> int | None:
    """Return the step that a line is of; None if it is damaged."""
    try:
        values = json.loads(line)
        whole = all(isinstance(values[key], float) for key in ("loss", "answer_nll"))
        return int(values["step"]) if whole else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
