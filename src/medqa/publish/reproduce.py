"""Do a run once more from its own record, and say what came out the same."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from medqa.config import RunConfig
from medqa.data.build import evaluation_set
from medqa.data.prepared import corpus_of
from medqa.errors import ConfigError, ModelError, RunError
from medqa.evaluate.compare import compare_runs
from medqa.evaluate.report import REPORT_VERSION
from medqa.evaluate.run import evaluate
from medqa.files import read_sealed, write_json
from medqa.hardware.device import choose_device
from medqa.model.load import find_base
from medqa.provenance import provenance
from medqa.recipe import changed_config, with_whole_paths
from medqa.runs import RunFolder
from medqa.train.run import train

__all__ = ["PLACES", "reproduce"]

log = logging.getLogger(__name__)

Record = dict[str, Any]

PLACES = ("data.name", "data.revision", "model.name", "model.revision", "model.device")
"""Settings that may be changed: they say where things are, not what is done with them."""

# Numbers of a report that are compared, with where they stand in it.
_FIGURES = {
    "accuracy": ("scores", "medqa", "tuned", "accuracy"),
    "accuracy of the base model": ("scores", "medqa", "base", "accuracy"),
    "accuracy by lm-eval's prompt": ("scores", "lm_eval", "tuned", "accuracy"),
    "ECE, uncorrected": ("scores", "medqa", "tuned", "ece"),
    "ECE, corrected": ("calibration", "score", "ece"),
    "same answer in all orders": ("orders", "share_always_same"),
}


def reproduce(
    path: Path,
    out: Path,
    settings: Sequence[str] = (),
    environment: Record | None = None,
    trust_remote_code: str | None = None,
) -> Record:
    """Train and measure a run once more, with its own settings, and compare.

    A run that was given a time is repeated step by step as it went, not minute by minute.

    Args:
        path: Run folder, or a published one.
        out: Run folder to make; the comparison is written there as reproduction.json.
        settings: `a.b=v` changes, of `PLACES` only: a published run doesn't know where things are here.
        environment: What `prepare_environment` found and set, for the record.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        ConfigError: If another setting is to be changed.
        ModelError: If the base model is another one than the run's.
        MedQAError: Of the kind that says what else is wrong.
    """
    run = RunFolder.open(path)
    config = _config(run, settings, trust_remote_code)
    _refuse_other_base(run, config)
    report = _report(run)
    hashes = _data_hashes(run, config, report)
    for name, (before, now) in {**hashes, **_surroundings(run, config)}.items():
        if before != now:
            log.warning("Differs already: %s was %s, is %s", name, before, now)
    again = train(config, out, run.record["recipe"], environment, plan=run.record.get("plan"))
    found = {
        "of": run.name,
        "run": str(out),
        "agreement": [
            {"what": what, "before": before, "now": now, "same": before == now}
            for what, (before, now) in {**hashes, **_hashes(run, again), **_surroundings(run, config)}.items()
        ],
        "adapter_difference": _adapter_difference(run, again),
        "loss": _losses(run, again),
        "figures": [],
        "paired": None,
    }
    write_json(out / "reproduction.json", found)  # measuring takes a while, and may fail
    if report is not None:
        found |= _measure(run, again, report, trust_remote_code)
        write_json(out / "reproduction.json", found)
    return found


def _report(run: RunFolder) -> Record | None:
    """Read how the run was measured, if it was; what can't be compared with is refused before training."""
    file = run.path / "report.json"
    if not file.is_file():
        log.warning("%s was not measured: only the training is compared", run.name)
        return None
    report = read_sealed(file)
    fitting = report.get("version") == REPORT_VERSION
    if not fitting or report.get("adapter_sha256") != run.record["adapter_sha256"]:
        raise RunError(
            f"{file} was not measured with this adapter and this program",
            "take it away to compare the training alone, or `medqa evaluate` the run again",
        )
    if _get(report, ("scores", "medqa", "tuned", "accuracy")) is None or not _get(report, ("data", "sha256")):
        raise RunError(f"{file} is damaged", "take it away to compare the training alone")
    return report


def _config(run: RunFolder, settings: Sequence[str], trust_remote_code: str | None) -> RunConfig:
    for setting in settings:
        if setting.partition("=")[0].strip() not in PLACES:
            raise ConfigError(
                f"--set {setting!r} would make another run of it",
                f"what may be said is where things are: {', '.join(PLACES)}",
            )
    config = with_whole_paths(changed_config(run.config, settings, ("data", "model")))
    model = config.model.model_copy(update={"trust_remote_code": trust_remote_code})
    return config.model_copy(update={"model": model})


def _refuse_other_base(run: RunFolder, config: RunConfig) -> None:
    base = find_base(config.model)
    if base.fingerprint != run.record["base_model"]["fingerprint"]:
        raise ModelError(
            f"{base.path} is not the base model that {run.name} began with: its weights differ",
            "give that one: --set model.name=...",
        )


def _data_hashes(run: RunFolder, config: RunConfig, report: Record | None) -> dict[str, tuple[Any, Any]]:
    """Hash what is trained on, calibrated on, chosen by and measured on, as it was and as it is."""
    data = corpus_of(config.data, config.train.seed)
    before, now = run.record["data"].get("splits"), data.record["splits"]
    if not isinstance(before, dict):
        raise RunError(f"{run.path}/run.json does not say what was trained on", "train again")
    hashes = {
        f"{name} questions": (one["sha256"], now.get(name, {}).get("sha256")) for name, one in before.items()
    }
    if report is not None:
        whole = config.data.model_copy(update={"max_eval_rows": None})  # as report.json is
        questions = evaluation_set(whole, config.train.seed)
        hashes["evaluation questions"] = (report["data"]["sha256"], questions.record["sha256"])
    return hashes


def _surroundings(run: RunFolder, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Lay out program, packages and device, as they were and as they are."""
    here, device = provenance(), choose_device(config.model)
    was, git = run.record["device"], (run.record.get("git") or {}, here["git"] or {})
    versions: Record = run.record["versions"]
    return {
        **{name: (version, here["versions"].get(name)) for name, version in versions.items()},
        "source commit": (_source(git[0]), _source(git[1])),
        "device": (was["name"], device.name),
        "precision": (was["precision"], device.precision),
    }


def _source(git: Record) -> str | None:
    """Name the state of the sources: changes that no commit holds make it another one."""
    commit = git.get("commit")
    return f"{commit[:9]} + changes" if commit and git.get("changed") else commit


def _hashes(run: RunFolder, again: RunFolder) -> dict[str, tuple[Any, Any]]:
    records = run.record, again.record
    return {
        "base model": tuple(one["base_model"]["fingerprint"] for one in records),
        "prompt": tuple(json.dumps(one["prompt"], sort_keys=True) for one in records),
        "adapter": tuple(one["adapter_sha256"] for one in records),
    }


def _adapter_difference(run: RunFolder, again: RunFolder) -> Record | None:
    """Measure how far the adapters' weights lie apart; None if they are the same to the bit."""
    if run.record["adapter_sha256"] == again.record["adapter_sha256"]:
        return None
    before, now = (load_file(one.adapter / "adapter_model.safetensors") for one in (run, again))
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in now.items()}:
        return {"greatest": None, "mean": None, "mean_weight": None}
    differences = [np.abs(before[name].astype(np.float64) - now[name]) for name in before]
    count = sum(one.size for one in differences)
    return {
        "greatest": max(float(one.max()) for one in differences),
        "mean": sum(float(one.sum()) for one in differences) / count,
        "mean_weight": sum(float(np.abs(one).sum()) for one in before.values()) / count,
    }


def _losses(run: RunFolder, again: RunFolder) -> Record | None:
    """Compare the loss of the first and of the last step; a published run doesn't hold them."""
    rows = [
        [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        for file in (run.path / "metrics.jsonl", again.path / "metrics.jsonl")
    ]
    if not all(rows):
        return None
    return {
        place: [one[number]["loss"] for one in rows] for place, number in (("first", 0), ("last", -1))
    } | {"num_steps": [len(one) for one in rows]}


def _measure(run: RunFolder, again: RunFolder, before: Record, trust_remote_code: str | None) -> Record:
    """Measure as the report was made, whatever the settings say, and compare the numbers."""
    traps = before.get("traps") or []
    num = {
        "orders": _get(before, ("orders", "num_orders")) or 1,
        "explanations": _get(before, ("explanations", "num_questions")) or 0,
        "traps": max((one["num_questions"] + one["num_left_out"] for one in traps), default=0),
        "lm_eval": str("lm_eval" in before["scores"]).lower(),
    }
    now = evaluate(
        again.path,
        ["data.max_eval_rows=null", *(f"evaluate.{name}={value}" for name, value in num.items())],
        trust_remote_code=trust_remote_code,
    )
    same = before["data"]["sha256"] == now["data"]["sha256"]
    figures = []
    for what, keys in _FIGURES.items():
        a, b = _get(before, keys), _get(now, keys)
        if a is not None and b is not None:
            places = (*keys[:-1], f"{keys[-1]}_interval")
            intervals = [_get(before, places), _get(now, places)]
            figures.append({"what": what, "before": a, "now": b, "intervals": intervals})
    if not same:
        log.warning("The evaluation questions are not the same: numbers are of other questions, not paired")
    paired = None
    if same and (run.path / "predictions.jsonl").is_file():
        paired = compare_runs(run.path, again.path)["prompts"]["medqa"]
    return {"figures": figures, "paired": paired, "same_questions": same}


def _get(record: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record
