"""Measure a run: base and tuned model, our prompt and lm-eval's, on the whole evaluation split."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medqa.config import EvaluateConfig, RunConfig, SourceConfig
from medqa.data.build import QuestionSet, evaluation_set
from medqa.errors import DataError
from medqa.evaluate.leaks import find_leaks
from medqa.evaluate.report import compare, summarise, without_flagged
from medqa.evaluate.score import (
    PromptKind,
    choose_decoder,
    default_batch_tokens,
    make_items,
    score_items,
)
from medqa.files import write_json, write_jsonl
from medqa.hardware.selftest_record import last_selftest
from medqa.model.tuned import TunedModel, load_tuned
from medqa.progress import track
from medqa.recipe import changed_config
from medqa.records import Prediction
from medqa.runs import RunFolder, provenance

__all__ = ["evaluate", "evaluate_tuned", "refuse_trained_on"]

REPORT_VERSION = 1


def evaluate(
    path: Path,
    settings: Sequence[str] = (),
    *,
    max_rows: int | None = None,
    trust_remote_code: str | None = None,
) -> dict[str, Any]:
    """Score base and tuned model of a run; see `evaluate_tuned`.

    Args:
        path: Run folder.
        settings: `a.b=v` settings of data and evaluate to change, to measure on other questions, for one.
        max_rows: Measure on at most this many questions; all if not given.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        MedQAError: Of the kind that says what is wrong.
    """
    run = RunFolder.open(path)
    config = _config(run.config, settings)
    data = config.data.model_copy(update={"max_eval_rows": max_rows}) if max_rows else config.data
    questions = evaluation_set(data, config.train.seed)
    refuse_trained_on(questions, run.record["data"]["files"])
    return evaluate_tuned(load_tuned(path, trust_remote_code), questions, config.evaluate)


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


def _label(run: RunFolder, questions: QuestionSet) -> str:
    """Name the files of a report: plain for the run's own questions, all of them; else told apart."""
    own, record = run.config.data, questions.record
    label = ""
    if _whole([record["name"]]) != _whole([own.name]) or record["split"] != own.eval_split:
        label = "-" + re.sub(r"[^A-Za-z0-9]+", "-", f"{Path(record['name']).stem}-{record['split']}").strip(
            "-"
        )
    return label if questions.whole else f"{label}-{len(questions.examples)}"


def evaluate_tuned(
    tuned: TunedModel, questions: QuestionSet, config: EvaluateConfig | None = None
) -> dict[str, Any]:
    """Score base and tuned model, and write report.json and predictions.jsonl into the run.

    On a part of the questions, or other ones than the run's own, the files are named for it, report-N.json or
    report-NAME-SPLIT.json, and leave the whole report as it is.

    Returns:
        The content of report.json.
    """
    path, start, label = tuned.run.path, time.monotonic(), _label(tuned.run, questions)
    leaks = find_leaks(tuned.run, questions)
    flagged = {id for ids in leaks["flagged"].values() for id in ids} if leaks["looked_for"] else set()
    predictions, way = _predict(tuned, questions, config or tuned.run.config.evaluate)
    seconds = time.monotonic() - start
    scores = {
        prompt: {
            "base": summarise(predictions[prompt, "base"]),
            "tuned": summarise(predictions[prompt, "tuned"]),
            "change": compare(predictions[prompt, "base"], predictions[prompt, "tuned"]),
            "without_flagged": without_flagged(
                predictions[prompt, "base"], predictions[prompt, "tuned"], flagged
            ),
        }
        for prompt in dict.fromkeys(prompt for prompt, _ in predictions)
    }
    report = {
        "version": REPORT_VERSION,
        "run": str(path),
        "file": f"report{label}.json",
        "whole_split": questions.whole,
        "base_model": tuned.run.record["base_model"]["name"],
        "data": questions.record,
        "leaks": leaks,
        "scores": scores,
        "scoring": way,
        "device": tuned.device.record(),
        "selftest": last_selftest(tuned.device),
        "seconds": round(seconds, 1),
        **provenance(),
    }
    write_jsonl(
        path / f"predictions{label}.jsonl",
        (
            {"prompt": prompt, "model": model, **prediction.to_json()}
            for (prompt, model), rows in predictions.items()
            for prediction in rows
        ),
    )
    write_json(path / report["file"], report)
    return report


def _predict(
    tuned: TunedModel, questions: QuestionSet, config: EvaluateConfig
) -> tuple[dict[tuple[str, str], list[Prediction]], str]:
    """Score every question; say too which way through the model was taken."""
    batch_tokens = config.batch_tokens
    if batch_tokens == "auto":
        batch_tokens = default_batch_tokens(tuned.device)
    prompts: tuple[PromptKind, ...] = ("medqa", "lm_eval") if config.lm_eval else ("medqa",)
    predictions: dict[tuple[str, str], list[Prediction]] = {}
    decoder = tuned.decoder
    with track("Scoring", 2 * len(prompts) * len(questions.examples)) as task:
        for prompt in prompts:
            items = make_items(tuned.renderer, questions.examples, prompt)
            if decoder is None and prompt == "medqa" and tuned.run.config.train.fast_path:
                decoder = choose_decoder(
                    tuned.model, items, tuned.device, max_length_tokens=tuned.base.max_length_tokens
                )
            for name in ("base", "tuned"):
                predictions[prompt, name] = score_items(
                    tuned.model,
                    items,
                    tuned.device,
                    max_length_tokens=tuned.base.max_length_tokens,
                    batch_tokens=batch_tokens,
                    adapted=name == "tuned",
                    decoder=decoder,
                    task=task,
                )
    return predictions, "packed" if decoder is not None else "plain"
