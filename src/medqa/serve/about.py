"""What a served model is and how it was measured, in words for those who ask it.

Every number comes from the run's own files: run.json, and report.json, or else report-server.json, if it was
made of this very adapter.
Whatever is missing there is missing here, and never made up.
"""

import dataclasses
import datetime
import logging
from pathlib import Path
from typing import Any

from medqa.errors import MedQAError
from medqa.evaluate.charts import interval, percent, points
from medqa.evaluate.page import SHOWN_ALPHA, report_view
from medqa.evaluate.report import REPORT_VERSION
from medqa.files import read_sealed
from medqa.runs import RunFolder

__all__ = ["NEVER_MEASURED", "About", "Fact", "Figure", "about"]

MIN_SUBJECT_ROWS = 30
"""Questions of a subject below which its share of right answers says little."""
NUM_WEAK = 3
SHOWN_RISK = 0.3

_REPORTS = ("report.json", "report-server.json")
"""The one made on this machine says more: it has the base model too."""

NEVER_MEASURED = (
    "Never measured: real cases and patients, other exams than the one named below, what a wrong answer does "
    "to anyone, and whether some groups of patients fare worse."
)

_log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """One line on how the model was made."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One measured number: as text, what it is, and its 95 % interval or what else to hold against it."""

    value: str
    words: str
    interval: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class About:
    """What a model is and how it was measured.

    Attributes:
        name: Name of the run.
        base_model: Name of the model it was made of.
        made: How it was made.
        figures: What was measured; nothing if `unmeasured` says why.
        weak: Subjects that it is least often right in, in sentences.
        failures: Traps that it falls for, in sentences.
        not_measured: What nobody looked at, in sentences; commands stand between backticks.
        unmeasured: Why there are no figures; None if there are.
    """

    name: str
    base_model: str
    made: tuple[Fact, ...]
    figures: tuple[Figure, ...] = ()
    weak: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = (NEVER_MEASURED,)
    unmeasured: str | None = None

    def to_json(self) -> Record:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


def about(run: RunFolder) -> About:
    """Put together what is known of a run."""
    name, record = run.name, run.record
    base_model = _short(_get(record, "base_model", "name") or "unknown")
    made = _made(record)
    report, unmeasured = _report(run)
    if report is not None:
        try:
            return _measured(About(name, base_model, made), report)
        except (KeyError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as exc:
            _log.warning("The report of %s can't be shown: %r", run.path, exc)
            unmeasured = "The report of this model is damaged. `medqa evaluate RUN` makes a new one."
    return About(name, base_model, made, unmeasured=unmeasured)


def _report(run: RunFolder) -> tuple[Record | None, str]:
    """Read the report of this very model; else say why there is none."""
    found = [_read_report(run, run.path / name) for name in _REPORTS if (run.path / name).is_file()]
    if not found:
        return None, "This model was not measured yet. `medqa evaluate RUN` does."
    return next((one for one in found if one[0] is not None), found[0])


def _read_report(run: RunFolder, file: Path) -> tuple[Record | None, str]:
    try:
        report = read_sealed(file)
    except (MedQAError, OSError) as exc:
        _log.warning("%s can't be read: %s", file, exc)
        return None, "The report of this model is damaged. `medqa evaluate RUN` makes a new one."
    if report.get("version") != REPORT_VERSION:
        return None, "The report was made by another version of MedQA. `medqa evaluate RUN` makes a new one."
    if report.get("adapter_sha256") != run.record.get("adapter_sha256"):
        return (
            None,
            "The report beside this model is another model's. `medqa evaluate RUN` measures this one.",
        )
    return report, ""


def _get(record: Any, *names: str) -> Any:
    """Follow names into a record; None where one is missing."""
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _short(name: str) -> str:
    """Shorten a folder of this machine to its own name; the built-in ones and those of the Hub stay."""
    return Path(name).name if Path(name).is_absolute() else name.removeprefix("builtin:")


def _made(record: Record) -> tuple[Fact, ...]:
    """Say what the model was made of, when, and on what."""
    sources = [
        _get(record, "data", "name"),
        *(_get(s, "name") for s in _get(record, "config", "data", "mix") or ()),
    ]
    names = [_source(name) for name in sources if isinstance(name, str)]
    number = _get(record, "data", "num_used")
    held_back = _get(record, "calibration", "data", "calibration")
    day, minutes = _day(record.get("finished")), _minutes(record)
    device = _get(record, "device", "name")
    facts = {
        "Made of": _short(_get(record, "base_model", "name") or "an unknown model"),
        "Trained on": number and f"{number:,} questions: {' and '.join(names)}",
        "Trained": ", ".join(part for part in (day, minutes, device and f"on {device}") if part),
        "Confidence corrected with": held_back and f"{held_back:,} questions held back from training",
    }
    return tuple(Fact(name, text) for name, text in facts.items() if text)


def _source(name: str) -> str:
    return "built-in questions" if name == "builtin:starter" else _short(name)


def _time(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _day(text: Any) -> str:
    found = _time(text)
    return f"{found.day} {found:%B %Y}" if found else ""


def _minutes(record: Record) -> str:
    """Say how long it took, all in all."""
    start, end = _time(record.get("created")), _time(record.get("finished"))
    if start is None or end is None:
        return ""
    minutes = max(1, round((end - start).total_seconds() / 60))
    return (
        f"in {minutes:,} minute{'s' if minutes > 1 else ''}"
        if minutes < 120
        else f"in {minutes / 60:.1f} hours"
    )


def _measured(known: About, report: Record) -> About:
    """Add what the report found."""
    view = report_view(report, ())
    data, tuned, score = report["data"], view["tuned"], view["score"]
    split = f"{_source(data['name'])}, {data['split']}"
    if report.get("engine"):
        split += "; on a server"
    fact = Fact("Measured on", f"{tuned['num_questions']:,} other questions: {split}")
    missing = (text.replace(report["run"], "RUN") for text in report["not_measured"])
    return dataclasses.replace(
        known,
        made=(*known.made, fact),
        figures=tuple(_figures(view, score)),
        weak=tuple(_weak(tuned)),
        failures=tuple(_failures(view)),
        not_measured=(*missing, NEVER_MEASURED),
    )


def _figures(view: Record, score: Record) -> list[Figure]:
    tuned, base, calibration = view["tuned"], view["base"], view["calibration"]
    found = [
        Figure(
            percent(tuned["accuracy"]),
            f"of {tuned['num_questions']:,} questions answered right",
            interval(tuned["accuracy_interval"]),
        ),
    ]
    if base:
        before = percent(base["accuracy"]), "right before training", interval(base["accuracy_interval"])
        found.append(Figure(*before))
    found.append(
        Figure(
            points(score["ece"]),
            "mean gap between how sure it says it is and how often it is right (ECE)",
            f"chance alone gives {points(score['ece_by_chance'])}",
        )
    )
    if calibration["calibrated"]:
        found.append(_coverage(calibration["sets"]["lac"][SHOWN_ALPHA]))
        found += [_risk(row) for row in calibration["abstention"] if row["max_risk"] == SHOWN_RISK]
    return found


def _coverage(sets: Record) -> Figure:
    words = f"of answer sets hold the right option, where {percent(sets['target'], 0)} should; a set has "
    words += f"{sets['mean_size']:.1f} options on average"
    return Figure(percent(sets["coverage"]), words, interval(sets["coverage_interval"]))


def _risk(row: Record) -> Figure:
    borne = f"if at most {percent(row['max_risk'], 0)} of the answers may be wrong"
    if row["threshold"] is None or not row["num_answered"]:
        return Figure("none", f"of the questions are answered {borne}")
    words = f"of the questions are answered {borne}; {percent(row['risk'])} of those answers are"
    return Figure(percent(row["coverage"]), words, interval(row["risk_interval"]))


def _weak(tuned: Record) -> list[str]:
    """Tell the subjects with the fewest right answers, of those with questions enough."""
    rows = [
        (name, row) for name, row in tuned["subjects"].items() if row["num_questions"] >= MIN_SUBJECT_ROWS
    ]
    if len(rows) <= NUM_WEAK:  # then the lowest would be nearly all there are
        return []
    rows.sort(key=lambda pair: pair[1]["accuracy"])
    found = []
    for name, row in rows[:NUM_WEAK]:
        share, ends = percent(row["accuracy"]), row["accuracy_interval"]
        found.append(f"{name}: {share} of {row['num_questions']:,} right ({interval(ends)})")
        if ends[1] >= tuned["accuracy"]:
            found[-1] += "; chance can explain it"
    return found


def _failures(view: Record) -> list[str]:
    """Tell the traps that caught the model."""
    found = [f"{trap['title']} {_caught(trap)}" for trap in view["trap_rows"] if trap["marks"]]
    hint = (view["explanations"] or {}).get("hint")
    if hint and hint["num_questions"] and hint["interval"][0] > 0:
        found.append(
            "A wrong hint is added to the question, as a colleague's opinion. "
            f"{percent(hint['flipped'])} of {hint['num_questions']:,} answers change to it."
        )
    return found


def _caught(trap: Record) -> str:
    before = f"{percent(trap['confidence'])} sure, {percent(trap['confidence_plain'])} before"
    if trap["expected"] == "falls":
        return f"It does not become less sure: {before}."
    right = f"{percent(trap['accuracy'])} of {trap['num_questions']:,} are right"
    if trap["expected"] == "stays":
        return f"{right}, {percent(trap['accuracy_plain'])} before."
    return f"{right}, by chance it would be {percent(trap['chance'])}; {before}."
