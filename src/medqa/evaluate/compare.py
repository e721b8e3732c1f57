"""Two runs on the same questions, paired: which is right more often, and whose confidence is truer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medqa.errors import RunError
from medqa.evaluate.report import REPORT_VERSION, Scored, compare
from medqa.files import file_sha256, read_sealed
from medqa.records import Prediction
from medqa.runs import RunFolder
from medqa.trust.calibrators import CALIBRATORS, row_losses, softmax_rows
from medqa.trust.metrics import bootstrap_interval, expected_calibration_error

__all__ = ["compare_runs"]

FloatArray = np.typing.NDArray[np.float64]

MIN_SUBJECT_ROWS = 10


def compare_runs(path_a: Path, path_b: Path) -> dict[str, Any]:
    """Compare the tuned models of two runs by what `medqa evaluate` wrote of them.

    Args:
        path_a: Run folder of the one.
        path_b: Run folder of the other; gains are its gains.

    Raises:
        RunError: If one was not evaluated on all its questions, or they were evaluated on different ones.
    """
    reports = [_report(path) for path in (path_a, path_b)]
    first, second = (report["data"] for report in reports)
    if first["sha256"] != second["sha256"]:
        raise RunError(
            f"{path_a} was measured on {first['name']} {first['split']}, {path_b} on {second['name']} "
            f"{second['split']}: not the same questions",
            "measure both on the same: `medqa evaluate RUN --set data.name=...`, or train with the same data",
        )
    predictions = [_predictions(path) for path in (path_a, path_b)]
    prompts = [prompt for prompt in predictions[0] if prompt in predictions[1]]
    for prompt in prompts:
        ids = [[prediction.id for prediction in one[prompt]] for one in predictions]
        if ids[0] != ids[1]:
            raise RunError(
                "predictions.jsonl of the two runs hold different questions", "`medqa evaluate` both again"
            )
    if "medqa" not in prompts:
        raise RunError("predictions.jsonl of one run holds no predictions", "`medqa evaluate` both again")
    flagged = {id for r in reports for ids in r["leaks"].get("flagged", {}).values() for id in ids}
    found: dict[str, Any] = {}
    for prompt in prompts:
        pair = list(zip(predictions[0][prompt], predictions[1][prompt], strict=True))
        kept = [(a, b) for a, b in pair if a.id not in flagged]
        found[prompt] = {
            **_paired(pair),
            "accuracy": [_accuracy([pair_[side] for pair_ in pair]) for side in (0, 1)],
            "without_flagged": _paired(kept) if flagged and kept else None,
            "subjects": _by_subject(pair),
        }
    own = list(zip(predictions[0]["medqa"], predictions[1]["medqa"], strict=True))
    return {
        "runs": [str(path_a), str(path_b)],
        "base_models": [report["base_model"] for report in reports],
        "data": first,
        "prompts": found,
        "confidence": _confidence(own, reports),
    }


def _report(path: Path) -> dict[str, Any]:
    run = RunFolder.open(path)
    if run.hub is not None:
        raise RunError(
            f"{path} is published without its single predictions, which this goes by",
            "give two runs that were evaluated here",
        )
    if not (path / "report.json").is_file():
        raise RunError(f"{path} was not evaluated on all its questions", f"`medqa evaluate {path}`")
    report = read_sealed(path / "report.json")
    if (
        report.get("version") != REPORT_VERSION
        or report.get("adapter_sha256") != run.record["adapter_sha256"]
    ):
        raise RunError(
            f"{path}/report.json was not measured with this adapter and this program",
            f"`medqa evaluate {path}`",
        )
    predictions = path / "predictions.jsonl"
    if predictions.is_file() and report.get("predictions_sha256") not in (None, file_sha256(predictions)):
        raise RunError(f"{predictions} is not what report.json was made of", f"`medqa evaluate {path}`")
    return report


def _predictions(path: Path) -> dict[str, list[Prediction]]:
    """Read what the tuned model made of each question in the order given, by prompt."""
    found: dict[str, list[Prediction]] = {}
    try:
        with (path / "predictions.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row.pop("model") != "tuned" or "num_orders" in row:
                    continue
                prompt = row.pop("prompt")
                row["log_likelihoods"] = tuple(row["log_likelihoods"])
                found.setdefault(prompt, []).append(Prediction(**row))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        text = f"{path}/predictions.jsonl can't be read: {exc!r}"
        raise RunError(text, f"`medqa evaluate {path}`") from exc
    return found


def _paired(pairs: list[tuple[Prediction, Prediction]]) -> dict[str, Any]:
    return compare([a for a, _ in pairs], [b for _, b in pairs])


def _accuracy(predictions: list[Prediction]) -> float:
    scored = Scored.of(predictions)
    return float(np.mean([p.choice == p.answer for p in scored.predictions]))


def _by_subject(pairs: list[tuple[Prediction, Prediction]]) -> dict[str, Any]:
    """Compare within each subject that has rows enough."""
    groups: dict[str, list[tuple[Prediction, Prediction]]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].subject or "(none)", []).append(pair)
    return {
        name: {**_paired(rows), "accuracy": [_accuracy([r[side] for r in rows]) for side in (0, 1)]}
        for name, rows in sorted(groups.items())
        if sum(a.status == b.status == "scored" for a, b in rows) >= MIN_SUBJECT_ROWS
    }


def _confidence(pairs: list[tuple[Prediction, Prediction]], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare confidence, each run's after its own calibration where it has one."""
    both = [(a, b) for a, b in pairs if a.status == b.status == "scored"]
    sides = [Scored.of([pair[side] for pair in both]) for side in (0, 1)]
    found = [_probabilities(scored, report) for scored, report in zip(sides, reports, strict=True)]
    answers = sides[0].answers
    losses = [row_losses(p, answers) for p in found]
    briers = [((p - np.eye(p.shape[1])[answers]) ** 2).sum(axis=1) for p in found]
    sure = [p.max(axis=1) for p in found]
    right = [(p.argmax(axis=1) == answers).astype(float) for p in found]

    def mean_gain(before: FloatArray, after: FloatArray) -> float:
        return float(after.mean() - before.mean())

    def error_gain(*columns: FloatArray) -> float:
        one, other = (expected_calibration_error(c, r.astype(bool)) for c, r in (columns[:2], columns[2:]))
        return other - one

    return {
        "calibrated": [bool(report["calibration"]["calibrated"]) for report in reports],
        "nll": _change(mean_gain, losses[0], losses[1], each=[float(v.mean()) for v in losses]),
        "brier": _change(mean_gain, briers[0], briers[1], each=[float(v.mean()) for v in briers]),
        "ece": _change(
            error_gain,
            *(sure[0], right[0], sure[1], right[1]),
            each=[expected_calibration_error(c, r.astype(bool)) for c, r in zip(sure, right, strict=True)],
        ),
    }


def _probabilities(scored: Scored, report: dict[str, Any]) -> FloatArray:
    kept = report["calibration"]
    if not kept["calibrated"]:
        return softmax_rows(scored.log_likelihoods)
    return CALIBRATORS[kept["method"]].from_json(kept["parameters"]).probabilities(scored.log_likelihoods)


def _change(gain: Callable[..., float], *columns: FloatArray, each: list[float]) -> dict[str, Any]:
    return {
        "each": each,
        "change": gain(*columns),
        "change_interval": list(bootstrap_interval(gain, *columns, num_draws=500)),
    }
