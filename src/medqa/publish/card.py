"""The model card: README.md of a published run.

Every number on it comes from the run's own files: report.json, run.json, data.json and calibration.json.
What is missing there is called not measured.
"""

import functools
import importlib.resources
import logging
import re
from typing import Any

import jinja2

from medqa.data.build import evaluation_set
from medqa.errors import MedQAError, PublishError
from medqa.evaluate.page import report_view
from medqa.evaluate.report import REPORT_VERSION
from medqa.files import read_json, read_sealed
from medqa.model.embedded import SMOLLM2
from medqa.publish.card_metadata import card_metadata
from medqa.publish.card_words import (
    CARD_FILTERS,
    auroc,
    ece,
    git_state,
    licensed,
    recipe_rows,
    snippet,
    source_name,
    version_list,
)
from medqa.publish.licences import Verdict, may_quote
from medqa.publish.scrub import scrub_text
from medqa.records import LETTERS, NOTICE
from medqa.runs import RunFolder
from medqa.serve.about import MIN_SUBJECT_ROWS, NEVER_MEASURED, about
from medqa.trust.store import FILE_NAME

__all__ = ["write_card"]

NUM_WEAK, NUM_WORST = 8, 5

_LEAK_WORDS = {
    "exact": "the same question was in the training data",
    "near": "nearly the same question was",
    "stem": "the same question with other options was",
    "options": "the same options with the same answer were, under another question",
    "answer in stem": "the question's own text holds the answer",
}
_CONSISTENCY = {
    "always": "always the same",
    "mostly": "the same in most of them",
    "seldom": "the same in few of them",
}
_HELD = {"calibration": "calibration", "selection": "the choice of the calibration's method"}

log = logging.getLogger(__name__)

Record = dict[str, Any]


def write_card(run: RunFolder, repo: str, base: str, verdict: Verdict) -> str:
    """Write the card of a measured run.

    Args:
        run: The run, as training left it.
        repo: Where on the Hub it is to be, ORG/NAME.
        base: The base model's id there.
        verdict: Under what it may be passed on.

    Returns:
        The text of README.md.

    Raises:
        PublishError: If there is no whole report of this adapter, or the licence wants another name.
    """
    _check_name(repo, verdict)
    report = _read_report(run)
    try:
        view = report_view(report, ())
        data = read_json(run.path / "data.json")
        text = _template().render(_values(run, report, view, data, repo, base, verdict))
        head = card_metadata(report, view, data["sources"], repo, base, verdict)
    except (KeyError, TypeError, ValueError, AttributeError, LookupError, jinja2.TemplateError) as exc:
        raise PublishError(
            f"the report of {run.path} can't be read: {exc!r}",
            f"`medqa evaluate {run.path}` makes a new one",
        ) from exc
    return f"---\n{head.to_yaml()}\n---\n\n{_tidy(text)}\n"


def _check_name(repo: str, verdict: Verdict) -> None:
    """Refuse a name that the base model's licence does not allow."""
    wanted, name = verdict.prefix.replace(" ", "-"), repo.partition("/")[2]
    if not name.lower().replace("_", "-").startswith(wanted.lower()):
        raise PublishError(
            f"{verdict.base.title}: the name of a model made of it must begin with {verdict.prefix!r}, and "
            f"{name!r} does not",
            f"--to {repo.partition('/')[0]}/{wanted}-{name}",
        )


def _read_report(run: RunFolder) -> Record:
    """Read the report of this very adapter, on all questions of its own split."""
    # A run of few questions goes on measuring on few.
    whole = " --set data.max_eval_rows=null" if run.config.data.max_eval_rows else ""
    file, again = run.path / "report.json", f"`medqa evaluate {run.path}{whole}` makes one"
    if not file.is_file():
        raise PublishError(f"{run.path} was not measured: it has no report.json", again)
    report = read_sealed(file)
    if report.get("version") != REPORT_VERSION:
        raise PublishError(
            f"{file} has version {report.get('version')!r}, this program reads {REPORT_VERSION}", again
        )
    if report.get("adapter_sha256") != run.record["adapter_sha256"]:
        raise PublishError(f"{file} is of another adapter than the one in this run", again)
    if report.get("whole_split") is not True:
        raise PublishError(f"{file} is of a part of the questions only", again)
    return report


@functools.cache
def _template() -> jinja2.Template:
    text = (importlib.resources.files("medqa.publish") / "card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(  # Markdown: `text` escapes, HTML's own escapes would be shown
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= CARD_FILTERS
    return environment.from_string(text)


def _values(
    run: RunFolder, report: Record, view: Record, data: Record, repo: str, base: str, verdict: Verdict
) -> Record:
    """Put together everything that the template shows."""
    record, calibration, explanations = run.record, view["calibration"], view["explanations"]
    temperature, worst = _temperature(run, calibration), report.get("worst")
    questions, why_unquoted = _questions(run, report) if worst else ({}, "")
    shown = None if worst is None else _shown(worst, questions)
    report = {"engine": None, **report, "not_measured": _without_place(report["not_measured"], report["run"])}
    sources = [{**one, "name": source_name(one["name"], one["files"])} for one in data["sources"]]
    weak, few = _subjects(view["tuned"])
    return {
        **{"run": record, "report": report, "view": view, "data": data, "verdict": verdict, "base": base},
        **{"repo": repo, "title": repo.partition("/")[2], "notice": NOTICE, "letters": LETTERS},
        **{"tuned": view["tuned"], "change": view["change"], "score": view["score"]},
        "calibration": {**calibration, "reason": _short_reason(calibration["reason"], run)},
        "unseen": report["leaks"]["looked_for"] and run.config.data.drop_leaks,
        "orders": report["orders"],
        "explanations": explanations,
        "hint": (explanations or {}).get("hint"),
        "flagged": any(one["flagged"] for one in view["comparisons"]),
        "chance": next((one["chance"] for one in report["traps"] or () if one.get("chance")), None),
        "absent": _absent(report, view),
        "builtin": record["base_model"]["name"] == SMOLLM2,
        "revision": run.config.model.revision,
        "snippet": snippet(run, repo, base, temperature),
        "snippet_calibrated": temperature is not None,
        "data_name": source_name(report["data"]["name"], report["data"]["files"]),
        "sources": sources,
        "rules": [one for one in data["rules"].values() if one["num_changed"] or one["num_dropped"]],
        "leak_words": _LEAK_WORDS,
        "consistency_words": _CONSISTENCY,
        "held_words": _HELD,
        "subjects": weak,
        "few_subjects": few,
        "min_rows": MIN_SUBJECT_ROWS,
        "worst": shown,
        "quoted": any("question" in one for one in shown or ()),
        "why_unquoted": why_unquoted,
        "recipe": recipe_rows(record),
        "notices": record["notices"],
        "minutes": next((one.text for one in about(run).made if one.name == "Trained"), "not recorded"),
        "never_measured": NEVER_MEASURED.replace("named below", "named above"),
        **{"ece": ece, "auroc": auroc, "licensed": licensed, "versions": version_list, "git": git_state},
    }


def _temperature(run: RunFolder, calibration: Record) -> float | None:
    """Read the temperature by which plain transformers gives the same confidence, if that is all there is."""
    if not calibration["calibrated"] or calibration["method"] != "temperature":
        return None
    file = run.adapter / FILE_NAME
    found: float = read_json(file)["orders"]["1"]["parameters"]["temperature"]
    return found


def _short_reason(reason: str, run: RunFolder) -> str:
    return scrub_text(reason.replace(str(run.path), "RUN"))


def _without_place(sentences: list[str], place: str) -> list[str]:
    alone = re.compile(rf"(?<![^\s`]){re.escape(place)}(?![^\s`])")
    return [alone.sub("RUN", sentence) for sentence in sentences]


def _absent(report: Record, view: Record) -> Record:
    """Say of each part that is not there that it was not measured; nothing of the others."""
    there = {
        "lm_eval": "lm_eval" in report["scores"],
        **{name: bool(report[name]) for name in ("orders", "explanations", "traps")},
    }
    return {name: "" if there[name] else "Not measured." for name in view["missing"]}


def _subjects(tuned: Record) -> tuple[list[Record], list[str]]:
    """Find the subjects it is worst at, of those with questions enough; and name those with too few."""
    rows = [{"name": name, **row} for name, row in tuned["subjects"].items() if name != "(none)"]
    enough = [row for row in rows if row["num_questions"] >= MIN_SUBJECT_ROWS]
    weak = [row for row in enough if row["accuracy"] < tuned["accuracy"]]
    few = [row["name"] for row in rows if row["num_questions"] < MIN_SUBJECT_ROWS]
    return sorted(weak, key=lambda row: row["accuracy"])[:NUM_WEAK], few


def _questions(run: RunFolder, report: Record) -> tuple[dict[str, Any], str]:
    """Read the questions that were measured on, by id, if they may be shown; else say why not."""
    licences = run.record["data"]["licences"]
    if not may_quote(licences):
        return {}, f"the questions' licence ({', '.join(licences)}) does not clearly let their text be shown"
    try:
        questions = evaluation_set(run.config.data, run.config.train.seed)
    except (MedQAError, OSError) as exc:
        log.warning("The card shows ids for questions, since those are not at hand: %s", exc)
        return {}, "the questions were not at hand when this card was written"
    if questions.record["sha256"] != report["data"]["sha256"]:
        return {}, "the questions were not at hand as they were measured on"
    if not may_quote(sorted({example.licence for example in questions.examples})):
        return {}, "their licence does not clearly let their text be shown"
    found: dict[str, Any] = {}
    for example in questions.examples:
        found[example.id] = None if example.id in found else example
    return {id: example for id, example in found.items() if example is not None}, ""


def _shown(worst: list[Record], questions: dict[str, Any]) -> list[Record]:
    """Take a few errors, with their texts where those may be shown."""
    rows = []
    for one in worst[:NUM_WORST]:
        example = questions.get(one["id"])
        text = {"question": example.question, "options": example.options} if example else {}
        rows.append({**{key: one[key] for key in ("id", "subject", "letter", "key", "confidence")}, **text})
    return rows


def _tidy(text: str) -> str:
    """Leave one empty line where the template left several, but for code."""
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", part)) for part in parts[::2]]
    return "".join(parts).strip()
