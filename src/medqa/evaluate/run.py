"""Measure a run on its evaluation questions: how right it is, and how far to trust it."""

import dataclasses
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medqa.config import EvaluateConfig, RunConfig, SourceConfig
from medqa.data.build import QuestionSet, evaluation_set
from medqa.data.draw import examples_hash
from medqa.errors import ConfigError, DataError
from medqa.evaluate.confidence import measure_calibrated
from medqa.evaluate.engine import Engine, LocalEngine
from medqa.evaluate.leaks import find_leaks
from medqa.evaluate.measure import Measurement
from medqa.evaluate.page import report_page
from medqa.evaluate.remote import load_remote
from medqa.evaluate.report import REPORT_VERSION, compare, summarise, without_flagged
from medqa.evaluate.score import make_items
from medqa.files import json_text, jsonl_text, seal, write_texts, writes
from medqa.hardware.device import choose_device
from medqa.hardware.group import join_group
from medqa.hardware.selftest_record import last_selftest
from medqa.launch import place
from medqa.model.tuned import TunedModel, load_tuned
from medqa.provenance import provenance, versions
from medqa.recipe import changed_config
from medqa.records import Prediction
from medqa.runs import RunFolder

__all__ = ["evaluate", "evaluate_engine", "evaluate_tuned", "refuse_trained_on"]

NUM_LOOKED_AT = 64  # questions that are looked at to choose the way through the model


_WORST = ("id", "subject", "letter", "key", "confidence", "warning")


def evaluate(
    path: Path,
    settings: Sequence[str] = (),
    *,
    max_rows: int | None = None,
    trust_remote_code: str | None = None,
    engine: str | None = None,
) -> dict[str, Any]:
    """Score base and tuned model of a run; see `evaluate_engine`.

    Args:
        path: Run folder.
        settings: `a.b=v` settings of data and evaluate to change, to measure on other questions, for one.
        max_rows: Measure on at most this many questions; all if not given.
        trust_remote_code: Name of the base model, if its own code may run.
        engine: Server that holds the model, as `load_remote` takes it; this machine if not given.

    Raises:
        MedQAError: Of the kind that says what is wrong.
    """
    run = RunFolder.open(path)
    run.refuse_if_published("evaluate")
    config = _config(run.config, settings)
    data = config.data.model_copy(update={"max_eval_rows": max_rows}) if max_rows else config.data
    questions = evaluation_set(data, config.train.seed)
    refuse_trained_on(questions, run.record["data"]["files"])
    if engine is None:
        device = choose_device(config.model)
        group = join_group(device.torch_device)
        group.require_same(
            precision=device.precision,
            adapter=run.record["adapter_sha256"],
            questions=examples_hash(questions.examples),
            versions=versions(),
        )
        with run.held():
            report = evaluate_tuned(load_tuned(path, trust_remote_code), questions, config.evaluate)
        group.wait()  # a process that ends takes the others with it: not before all is written
        return report
    if place()[1] > 1:
        raise ConfigError("several processes would each ask the server everything", "without torchrun")
    remote = load_remote(path, engine)
    try:
        with run.held():
            return evaluate_engine(remote, run, questions, config.evaluate)
    finally:
        remote.close()


def refuse_trained_on(questions: QuestionSet, files: Sequence[str]) -> None:
    """Stop if questions come from a file that was trained on.

    Raises:
        DataError: If they do.
    """
    if trained_on := _whole(questions.record["files"]) & _whole(files):
        raise DataError(
            f"{sorted(trained_on)[0]} was trained on: a score on it would mean nothing",
            "give other questions: --set data.name=... or --set data.eval_split=...",
        )


def _config(trained: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Change the settings; another source begins with the defaults, not with the columns of this one."""
    if any(setting.split("=")[0].strip() == "data.name" for setting in settings):
        source = SourceConfig().model_dump(exclude={"name"})
        trained = trained.model_copy(update={"data": trained.data.model_copy(update=source)})
    return changed_config(trained, settings, ("data", "evaluate"))


def _whole(files: Sequence[str]) -> set[str]:
    return {str(Path(file).resolve()) for file in files}


def _label(run: RunFolder, questions: QuestionSet, engine: Engine) -> str:
    """Name the files of a report: plain for the run's own questions, all of them, here; else told apart."""
    own, record = run.config.data, questions.record
    label = ""
    if _whole([record["name"]]) != _whole([own.name]) or record["split"] != own.eval_split:
        label = "-" + re.sub(r"[^A-Za-z0-9]+", "-", f"{Path(record['name']).stem}-{record['split']}").strip(
            "-"
        )
    if not questions.whole:
        label += f"-{len(questions.examples)}"
    return label if isinstance(engine, LocalEngine) else f"{label}-server"


def evaluate_tuned(
    tuned: TunedModel, questions: QuestionSet, config: EvaluateConfig | None = None
) -> dict[str, Any]:
    """Measure the model on this machine; see `evaluate_engine`."""
    config = config or tuned.run.config.evaluate
    some = questions.examples[:: max(1, len(questions.examples) // NUM_LOOKED_AT)]
    batch_tokens = None if config.batch_tokens == "auto" else config.batch_tokens
    items = make_items(tuned.renderer, some, "medqa")
    return evaluate_engine(LocalEngine.fastest(tuned, items, batch_tokens), tuned.run, questions, config)


def evaluate_engine(
    engine: Engine, run: RunFolder, questions: QuestionSet, config: EvaluateConfig
) -> dict[str, Any]:
    """Measure base and tuned model, and write report.json, report.html and predictions.jsonl into the run.

    On a part of the questions, or other ones than the run's own, or through a server, the files are named for
    it, report-N.json, report-NAME-SPLIT.json or report-server.json, and leave the whole report as it is.

    Returns:
        The content of report.json.
    """
    path, start, label = run.path, time.monotonic(), _label(run, questions, engine)
    leaks = find_leaks(run, questions)
    local = isinstance(engine, LocalEngine)
    flagged = {id for ids in leaks["flagged"].values() for id in ids} if leaks["looked_for"] else set()
    measured = Measurement(engine, run, questions, config)
    report = {
        "version": REPORT_VERSION,
        "run": str(path),
        "file": f"report{label}.json",
        "whole_split": questions.whole,
        "base_model": run.record["base_model"]["name"],
        "adapter_sha256": run.record["adapter_sha256"],
        "data": questions.record,
        "leaks": leaks,
        "scores": _scores(measured.predictions, flagged),
        "calibration": _calibration(measured),
        "orders": measured.orders(),
        "explanations": measured.explanations(),
        "traps": measured.traps(),
        "not_measured": _not_measured(config, path, measured, local),
        "scoring": engine.way,
        "selftest": last_selftest(engine.tuned.device) if isinstance(engine, LocalEngine) else None,
    }
    worst = measured.worst()
    device = engine.device_record()  # at the end, when a server's retries are all counted
    # Questions by id: a report may be passed on where they may not.
    report |= {"worst": [{key: one[key] for key in _WORST} for one in worst]}
    report |= {"device": device, "engine": None if local else device}
    report |= {"seconds": round(time.monotonic() - start, 1), **provenance()}
    predictions = jsonl_text(_prediction_rows(measured))
    report |= {"predictions_sha256": hashlib.sha256(predictions.encode()).hexdigest()}
    explanations = path / f"explanations{label}.jsonl"
    write_texts(
        {
            path / f"predictions{label}.jsonl": predictions,
            **({explanations: jsonl_text(measured.explained)} if measured.explained else {}),
            path / report["file"]: json_text(seal(report)),
            path / f"report{label}.html": report_page(report, worst),
        }
    )
    if writes() and not measured.explained:  # those of an earlier report don't belong to this one
        explanations.unlink(missing_ok=True)
    return report


def _scores(predictions: dict[tuple[str, str], list[Prediction]], flagged: set[str]) -> dict[str, Any]:
    """Compare base and tuned model under each prompt; intervals of confidence under our own only."""
    found = {}
    for prompt in dict.fromkeys(prompt for prompt, _ in predictions):
        base, tuned = predictions.get((prompt, "base")), predictions[prompt, "tuned"]
        own = prompt == "medqa"
        found[prompt] = {
            "base": summarise(base, intervals=own) if base else None,
            "tuned": summarise(tuned, intervals=own),
            "change": compare(base, tuned) if base else None,
            "without_flagged": without_flagged(base, tuned, flagged),
        }
    return found


def _calibration(measured: Measurement) -> dict[str, Any]:
    """Say what calibration gives, or why there is none."""
    file, calibration = measured.calibration, measured.calibrated()
    if file is None or calibration is None:
        return {"calibrated": False, "reason": measured.why_uncalibrated}
    identity = dataclasses.asdict(file.identity)
    return {
        "calibrated": True,
        "file": {"identity": identity, **file.record},
        **measure_calibrated(measured.tuned, calibration),
    }


def _not_measured(config: EvaluateConfig, path: Path, measured: Measurement, local: bool) -> list[str]:
    """Say what the settings or the calibration leave out, and how to get it."""
    uncalibrated = measured.calibration is not None and measured.calibrated(config.orders) is None
    asked = {
        "lm-eval's own score": ("lm_eval", config.lm_eval, "true"),
        "other option orders": ("orders", config.orders > 1, "4"),
        "the explanations": ("explanations", config.explanations > 0, "200"),
        "traps": ("traps", config.traps > 0, "500"),
    }
    again = f"medqa evaluate {path}" + ("" if local else " --engine openai:URL")
    texts = [
        f"Not measured: {what}. `{again} --set evaluate.{key}={value}` does."
        for what, (key, wanted, value) in asked.items()
        if not wanted
    ]
    if ("medqa", "base") not in measured.predictions:
        texts.append(
            "Not measured: the base model, which was not served, and so what tuning gained. "
            f"`medqa evaluate {path}` does where the base model is; so does `--engine openai:URL#TUNED,BASE` "
            "if the server has both."
        )
    if uncalibrated:
        command = f"medqa calibrate {path} --orders {config.orders}"
        texts.append(f"Not calibrated over {config.orders} option orders. `{command}` does.")
    return texts


def _prediction_rows(measured: Measurement) -> Iterator[dict[str, Any]]:
    for (prompt, model), rows in measured.predictions.items():
        for prediction in rows:
            yield {"prompt": prompt, "model": model, **prediction.to_json()}
    for one in measured.ordered or ():
        yield {
            "prompt": "medqa",
            "model": "tuned",
            "num_orders": one.num_orders,
            "consistency": one.consistency() if one.choices else None,
            **one.prediction.to_json(),
        }
