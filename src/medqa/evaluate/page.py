"""The page that tells how right a tuned model is and how far to trust it: report.html.

One file that loads nothing from anywhere. Its numbers are those of report.json; what is on it is put together
here, `charts` draws, and `report.html.j2` lays it out.
"""

import datetime
import functools
import importlib.resources
import itertools
from collections.abc import Sequence
from typing import Any

import jinja2

from medqa.evaluate import charts
from medqa.evaluate.origin import origin_rows, short_name
from medqa.evaluate.report import COVERAGES
from medqa.records import LETTERS, NOTICE
from medqa.trust.conformal import MIN_GROUP_ROWS

__all__ = ["report_page", "report_view"]

MIN_SUBJECT_ROWS, MIN_BIN_ROWS = 10, 20
"""Fewer questions than these say nothing of a subject, or of a degree of confidence."""
SHOWN_ALPHA = "0.1"
"""Whose answer sets are shown by subject: those that answers come with."""

_SECTIONS = {name: f"evaluate.{name}=" for name in ("lm_eval", "orders", "explanations", "traps")}
_PROMPTS = {"medqa": "Own prompt", "lm_eval": "lm-eval's prompt"}

Record = dict[str, Any]


def report_page(report: Record, worst: Sequence[Record]) -> str:
    """Return the page as HTML.

    Args:
        report: The content of report.json.
        worst: Wrong answers of highest confidence, with the texts of their questions.
    """
    return _template().render(report_view(report, worst))


@functools.cache
def _template() -> jinja2.Template:
    files = {"report.html.j2": "medqa.evaluate", "report.css": "medqa.evaluate", "page.css": "medqa.data"}
    texts = {
        name: (importlib.resources.files(package) / name).read_text(encoding="utf-8")
        for name, package in files.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,  # the questions are other people's text, and may hold markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= charts.FILTERS
    return environment.get_template("report.html.j2")


def report_view(report: Record, worst: Sequence[Record]) -> Record:
    """Put together everything that the page shows.

    Args:
        report: The content of report.json.
        worst: As `report_page` takes them.
    """
    own = report["scores"]["medqa"]
    calibration = report["calibration"] or {"calibrated": False, "reason": "the model was not calibrated"}
    score = calibration["score"] if calibration["calibrated"] else own["tuned"]
    before = own["tuned"]["reliability"] if calibration["calibrated"] else ()
    return {
        **{name: report[name] for name in ("whole_split", "data", "leaks", "traps")},
        **{name: report[name] for name in ("orders", "not_measured", "file")},
        "explanations": _explanations(report["explanations"]),
        "notice": NOTICE,
        "name": short_name(report["run"]),
        "base_model": short_name(report["base_model"]),
        "questions": short_name(report["data"]["name"]),
        "base": own["base"],
        "tuned": own["tuned"],
        "change": own["change"],
        "score": score,
        "calibration": {**calibration, "reason": calibration.get("reason", "").rstrip(".")},
        "missing": {name: _missing(report["not_measured"], mark) for name, mark in _SECTIONS.items()},
        "comparisons": _comparisons(report["scores"]),
        "measures": _measures(own, calibration),
        "surest": _surest(score["reliability"]),
        "reliability": charts.reliability_chart(score["reliability"], before),
        "risk": charts.risk_chart(score, own["base"], COVERAGES),
        "coverages": [str(coverage) for coverage in COVERAGES],
        "sets": _sets(calibration),
        "set_subjects": _set_subjects(calibration),
        "letters": _letters(own["tuned"]["letters"], report["orders"]),
        "kept": charts.kept_chart((report["explanations"] or {}).get("truncation") or ()),
        "trap_rows": [_trap(trap) for trap in report["traps"] or ()],
        "subjects": _subjects(own, score),
        "min_subject_rows": MIN_SUBJECT_ROWS,
        "min_group_rows": MIN_GROUP_ROWS,
        "worst": [_card(row) for row in worst],
        "provenance": origin_rows(report, calibration),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
    }


def _surest(bins: Sequence[Record]) -> Record | None:
    """Find the bin of highest confidence that has questions enough to say something."""
    return next((b for b in reversed(bins) if b["num_questions"] >= MIN_BIN_ROWS), None)


def _missing(sentences: Sequence[str], mark: str) -> str:
    """Find the sentence that says how to get what was left out."""
    return next((sentence for sentence in sentences if mark in sentence), "Not measured this time.")


def _comparisons(scores: Record) -> list[Record]:
    rows = []
    for prompt in (name for name in _PROMPTS if name in scores):
        found = scores[prompt]
        rows.append({"name": _PROMPTS[prompt], "flagged": False, **found})
        if found["without_flagged"]:
            rows.append({"name": _PROMPTS[prompt], "flagged": True, **found["without_flagged"]})
    return rows


def _measures(own: Record, calibration: Record) -> Record:
    """Lay measures of confidence side by side: base if measured, tuned, and tuned after calibration."""
    columns = {"Base": own["base"]} if own["base"] else {}
    columns["Tuned"] = own["tuned"]
    if calibration["calibrated"]:
        columns["Tuned, calibrated"] = calibration["score"]
    scores = list(columns.values())

    def row(name: str, why: str, key: str, write: Any, between: Any) -> Record:
        cells = [(write(score.get(key)), between(score.get(f"{key}_interval"))) for score in scores]
        return {"name": name, "why": why, "cells": cells}

    share, gap = (charts.percent, charts.interval), (charts.points, charts.point_interval)
    other = (charts.decimals, charts.decimal_interval)
    over = [(charts.signed_points(s["mean_confidence"] - s["accuracy"]), "") for s in scores]
    return {
        "columns": list(columns),
        "rows": [
            row("Right", "share of right answers", "accuracy", *share),
            row("Mean confidence", "should equal the share of right answers", "mean_confidence", *share),
            {"name": "Confidence less right", "why": "above 0: too sure", "cells": over},
            row("ECE, bins of equal width", "mean gap of confidence and truth; 0 is best", "ece", *gap),
            row("The same by chance alone", "if every confidence were true", "ece_by_chance", *gap),
            row("ECE, bins of equal size", "0 is best", "ece_equal_mass", *gap),
            row("AUROC", "tells right from wrong: 0.5 not at all, 1 always", "auroc", *other),
            row("AURC", "mean share of wrong answers, the surest first; 0 is best", "aurc", *other),
            row("NLL", "surprise at the truth, in nats; 0 is best", "nll", *other),
            row("Brier score", "squared distance from the truth, 0 to 2; 0 is best", "brier", *other),
        ],
    }


def _against(ends: Sequence[float], target: float) -> str:
    """Say whether a share is off its target by more than chance."""
    return "below" if ends[1] < target else "above" if ends[0] > target else ""


def _sets(calibration: Record) -> list[Record]:
    rows = []
    for method, by_alpha in calibration.get("sets", {}).items():
        for found in by_alpha.values():
            total = found["num_questions"]
            sizes = [
                {"size": int(size), "count": count, "share": 100 * count / total}
                for size, count in found["sizes"].items()
            ]
            off = _against(found["coverage_interval"], found["target"])
            rows.append({**found, "method": method.upper(), "sizes": sizes, "off": off})
    return rows


def _set_subjects(calibration: Record) -> list[Record]:
    """Tell coverage by subject, of the sets that answers come with."""
    found = calibration.get("sets", {}).get("lac", {}).get(SHOWN_ALPHA)
    if found is None:
        return []
    own = found.get("within_subjects", {})

    def judged(row: Record) -> Record:
        few = row["num_questions"] < MIN_SUBJECT_ROWS
        off = "" if few else _against(row["coverage_interval"], found["target"])
        return {**row, "target": found["target"], "few": few, "off": off}

    return [
        {**judged(row), "name": name, "within": judged(own[name]) if name in own else None}
        for name, row in found["subjects"].items()
    ]


def _letters(letters: Record, orders: Record | None) -> list[Record]:
    over = orders["letters"] if orders else {}
    longest = max(max(row["chosen"], row["key"]) for row in letters.values())
    return [
        {
            "letter": letter,
            **row,
            "over_orders": over.get(letter),
            "lengths": [round(100 * row[name] / longest, 1) for name in ("key", "chosen")],
        }
        for letter, row in letters.items()
    ]


def _explanations(found: Record | None) -> Record | None:
    if found is None:
        return None
    shares = ("names_choice", "names_other_only", "finished", "loops")
    return {
        **dict.fromkeys((*shares, "num_too_long", "num_empty", "agreement", "truncation", "hint")),
        **found,
    }


def _trap(trap: Record) -> Record:
    """Judge a trap: does confidence do what it should, and is the model right as often as it should be."""
    change = trap.get("confidence_change_interval")
    right = trap.get("accuracy_interval", trap.get("interval"))
    plain, chance = trap.get("accuracy_plain"), trap.get("chance")
    marks = []
    if trap["expected"] == "stays":
        if right and plain is not None and right[1] < plain:
            marks.append(f"right less often than the {charts.percent(plain)} without it")
    elif change and change[1] >= 0:
        marks.append("confidence does not fall")
    if trap["expected"] == "chance" and right and chance is not None and right[0] > chance:
        marks.append("right more often than by chance")
    optional = ("accuracy_plain", "chose_none", "chose_none_interval", "num_too_long")
    return {
        **dict.fromkeys(optional),
        **trap,
        "right_interval": right,
        "change_interval": change,
        "marks": marks,
    }


def _subjects(own: Record, score: Record) -> list[Record]:
    base = own["base"]["subjects"] if own["base"] else {}
    return [
        {
            **row,
            "name": name,
            "base": base.get(name, {}).get("accuracy"),
            "mean_confidence": score["subjects"][name]["mean_confidence"],
            "few": row["num_questions"] < MIN_SUBJECT_ROWS,
        }
        for name, row in own["tuned"]["subjects"].items()
    ]


def _card(row: Record) -> Record:
    """Lay out a question with what the model made of each option."""
    options = itertools.zip_longest(row["options"], row["probabilities"])
    return {
        **row,
        "options": [
            {"letter": a, "text": text, "share": share, "chosen": a == row["letter"], "key": a == row["key"]}
            for a, (text, share) in zip(LETTERS, options, strict=False)
        ],
    }
