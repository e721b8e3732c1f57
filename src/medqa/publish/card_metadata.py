"""The head of a model card: what the Hub shows and finds it by."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from medqa.evaluate.page import SHOWN_ALPHA
from medqa.publish.card_words import is_hub_dataset, source_name
from medqa.publish.licences import Verdict

__all__ = ["card_metadata"]

Record = dict[str, Any]

_TAGS = ("medical", "multiple-choice", "calibration", "conformal-prediction", "lora", "medqa")
_DIGITS = 4


def card_metadata(
    report: Record, view: Record, sources: list[Record], repo: str, base: str, verdict: Verdict
) -> ModelCardData:
    """Put together what the Hub reads.

    Args:
        report: The content of report.json.
        view: What `report_view` made of it.
        sources: Those of data.json.
        repo: Where on the Hub the model is to be.
        base: The base model there.
        verdict: Under what it may be passed on.
    """
    datasets = sorted({s["name"] for s in sources if is_hub_dataset(s["name"], s["files"])})
    licence: dict[str, str | None] = {"license": verdict.licence}
    if not verdict.listed:  # the Hub wants to be told where an unlisted one is
        licence = {"license": "other", "license_name": verdict.licence, "license_link": verdict.link or None}
    return ModelCardData(
        **licence,
        base_model=base,
        base_model_relation="adapter",
        datasets=datasets or None,
        eval_results=_results(report, view, repo),
        language="en",
        library_name="peft",
        metrics=["accuracy"],
        model_name=repo.partition("/")[2],
        pipeline_tag="text-generation",
        tags=list(_TAGS),
    )


def _results(report: Record, view: Record, repo: str) -> list[EvalResult]:
    data = report["data"]
    name = source_name(data["name"], data["files"])
    on_hub = is_hub_dataset(data["name"], data["files"])
    return [
        EvalResult(
            task_type="multiple-choice",
            task_name="Medical multiple-choice questions",
            dataset_type=data["name"] if on_hub else "local",
            dataset_name=name,
            dataset_split=data["split"],
            metric_type=metric,
            metric_name=words,
            metric_value=round(value, _DIGITS),
            source_name="report.json of the run",
            source_url=f"https://huggingface.co/{repo}/blob/main/report.json",
        )
        for metric, words, value in _metrics(report, view)
    ]


def _metrics(report: Record, view: Record) -> list[tuple[str, str, float]]:
    tuned, calibration, score = view["tuned"], view["calibration"], view["score"]
    found = [("accuracy", "Accuracy", tuned["accuracy"])]
    if "lm_eval" in report["scores"]:
        lm_eval = report["scores"]["lm_eval"]["tuned"]["accuracy"]
        found.append(("accuracy", "Accuracy by lm-eval's prompt", lm_eval))
    if calibration["calibrated"]:
        sets = calibration["sets"]["lac"][SHOWN_ALPHA]
        found.append(("expected_calibration_error", "ECE after calibration", score["ece"]))
        found.append(("brier_score", "Brier score after calibration", score["brier"]))
        covered = f"Coverage of answer sets that promise {sets['target']:.0%}"
        found.append(("coverage", covered, sets["coverage"]))
    else:
        found.append(("expected_calibration_error", "ECE, not calibrated", tuned["ece"]))
    return found
