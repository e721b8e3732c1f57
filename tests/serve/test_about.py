"""What the page says of its model: only what the run's files say, and nothing where they say nothing."""

import copy
import json

import numpy as np
import pytest

from medqa.evaluate.confidence import measure_calibrated
from medqa.evaluate.report import REPORT_VERSION, compare, summarise
from medqa.records import Prediction
from medqa.runs import RunFolder
from medqa.serve.about import NEVER_MEASURED, Fact, Figure, about
from medqa.trust.calibration import LogLikelihoods
from medqa.trust.fitting import fit_calibration

BLANK = "\u00a0"
RECORD = {
    "status": "complete",
    "created": "2026-11-23T17:47:36+00:00",
    "finished": "2026-11-23T17:51:07+00:00",
    "config": {"data": {"mix": [{"name": "GBaker/MedQA-USMLE-4-options"}]}},
    "data": {"name": "builtin:starter", "num_used": 64950},
    "base_model": {"name": "/somewhere/on/disk/Qwen3-1.7B"},
    "device": {"name": "CPU, 2 threads"},
    "calibration": {"data": {"calibration": 1695, "selection": 530}},
    "adapter_sha256": "ad" * 32,
}


def made(count, seed, strength):
    """Draw predictions that are right more often than by chance, but not in Surgery."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        answer, subject = (
            int(draw.integers(4)),
            ("Anatomy", "Surgery", "Skin", "Eyes", "Rare")[min(number % 5, 4)],
        )
        if subject == "Rare" and number > 40:
            subject = "Anatomy"
        values = draw.normal(size=4)
        values[answer] += -2.0 if subject == "Surgery" else strength
        rows.append(Prediction(f"q{number}", subject, 4, answer, "scored", tuple(map(float, values))))
    return rows


def trap(name, title, expected, **fields):
    values = {"accuracy": 0.3, "accuracy_interval": [0.2, 0.4], "accuracy_plain": 0.5, "chance": 0.25}
    values |= {"confidence": 0.46, "confidence_plain": 0.47, "confidence_change_interval": [-0.02, 0.01]}
    return (
        {"name": name, "title": title, "expected": expected, "num_questions": 458, "num_left_out": 0}
        | values
        | fields
    )


def make_report():
    base, tuned, held = made(200, 1, 0.3), made(200, 2, 1.5), made(300, 3, 1.5)
    calibration = fit_calibration(
        LogLikelihoods.of([p.log_likelihoods for p in held], [p.answer for p in held])
    )
    measured = measure_calibrated(tuned, calibration)
    measured["abstention"] = [
        {"max_risk": 0.3, "threshold": 0.57, "num_answered": 44, "coverage": 0.22, "risk": 0.268}
        | {"risk_interval": [0.23, 0.311]},
        {"max_risk": 0.1, "threshold": None},
    ]
    return {
        "version": REPORT_VERSION,
        "run": "/somewhere/runs/mine",
        "file": "report.json",
        "whole_split": True,
        "base_model": "/somewhere/on/disk/Qwen3-1.7B",
        "adapter_sha256": "ad" * 32,
        "data": {"name": "/somewhere/medmcqa", "split": "validation", "sha256": "da" * 32},
        "leaks": {"looked_for": False, "reason": "no"},
        "scores": {
            "medqa": {
                "base": summarise(base, intervals=False),
                "tuned": summarise(tuned, intervals=False),
                "change": compare(base, tuned),
                "without_flagged": None,
            }
        },
        "calibration": {"calibrated": True, "file": {}, **measured},
        "orders": None,
        "explanations": {"num_questions": 20, "hint": None},
        "traps": [
            trap("none_right", "No option is right.", "falls", accuracy=None, accuracy_interval=None),
            trap("de", "Questions in German.", "stays"),
            trap("options", "Only the options are shown.", "chance", accuracy_interval=[0.28, 0.4]),
            trap("fine", "All is well.", "falls", confidence_change_interval=[-0.2, -0.1]),
        ],
        "not_measured": [
            "Not measured: this. `medqa evaluate /somewhere/runs/mine --set evaluate.x=1` does."
        ],
        "scoring": "packed",
        "device": {"name": "CPU", "precision": "fp32"},
        "selftest": None,
        "seconds": 1.0,
        "versions": {},
        "platform": "Linux",
        "git": None,
        "command": "medqa evaluate",
    }


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "mine", copy.deepcopy(RECORD))


def write(run, report):
    run.path.mkdir(exist_ok=True)
    (run.path / "report.json").write_text(json.dumps(report))


def test_a_report_made_through_a_server_is_shown_for_want_of_another(run, report):
    write(run, report)
    best = about(run)
    served = {**report, "engine": {"name": "tuned at gpu-1:8000", "precision": "its own"}}
    served["scores"] = {"medqa": {**report["scores"]["medqa"], "base": None, "change": None}}
    (run.path / "report-server.json").write_text(json.dumps(served))
    assert about(run) == best
    for change in ({"adapter_sha256": "other"}, {"version": 0}):
        write(run, {**report, **change})
        found = about(run)
        assert found.unmeasured is None
        assert found.made[-1].text.endswith("; on a server")
        assert [f for f in best.figures if f.words != "right before training"] == list(found.figures)
        assert len(found.figures) == len(best.figures) - 1


def test_how_it_was_made(run):
    found = about(run)
    assert (found.name, found.base_model) == ("mine", "Qwen3-1.7B")
    assert found.made == (
        Fact("Made of", "Qwen3-1.7B"),
        Fact("Trained on", "64,950 questions: built-in questions and GBaker/MedQA-USMLE-4-options"),
        Fact("Trained", "23 November 2026, in 4 minutes, on CPU, 2 threads"),
        Fact("Confidence corrected with", "1,695 questions held back from training"),
    )


def test_every_number_is_the_reports(run, report):
    write(run, report)
    found = about(run)
    own, calibration = report["scores"]["medqa"], report["calibration"]
    percent = [f"{100 * own[model]['accuracy']:.1f}{BLANK}%" for model in ("tuned", "base")]
    low, high = own["tuned"]["accuracy_interval"]
    assert found.figures[0] == Figure(
        percent[0], "of 200 questions answered right", f"{100 * low:.1f} to {100 * high:.1f}{BLANK}%"
    )
    assert found.figures[1].value == percent[1]
    assert found.figures[2].value == f"{100 * calibration['score']['ece']:.1f}{BLANK}points"
    sets = calibration["sets"]["lac"]["0.1"]
    assert found.figures[3].value == f"{100 * sets['coverage']:.1f}{BLANK}%"
    assert f"90{BLANK}% should; a set has {sets['mean_size']:.1f} options" in found.figures[3].words
    words = f"of the questions are answered if at most 30{BLANK}% of the answers may be wrong; "
    words += f"26.8{BLANK}% of those answers are"
    assert found.figures[4] == Figure(f"22.0{BLANK}%", words, f"23.0 to 31.1{BLANK}%")
    assert found.unmeasured is None
    assert found.made[-1] == Fact("Measured on", "200 other questions: medmcqa, validation")
    assert "/somewhere" not in json.dumps(found.to_json())  # nobody needs to know where things lie


def test_weak_subjects_have_questions_enough_and_chance_is_named(run, report):
    write(run, report)
    weak = about(run).weak
    rows = report["scores"]["medqa"]["tuned"]["subjects"]
    assert len(weak) == 3
    assert weak[0].startswith(f"Surgery: {100 * rows['Surgery']['accuracy']:.1f}{BLANK}% of 40 right (")
    assert "chance" not in weak[0]
    assert "chance can explain it" in weak[-1]
    assert not any("Rare" in sentence for sentence in weak)
    fewer = copy.deepcopy(report)
    subjects = fewer["scores"]["medqa"]["tuned"]["subjects"]
    fewer["scores"]["medqa"]["tuned"]["subjects"] = {name: subjects[name] for name in ("Anatomy", "Surgery")}
    fewer["calibration"]["score"]["subjects"] = fewer["scores"]["medqa"]["tuned"]["subjects"]
    write(run, fewer)
    assert about(run).weak == ()


def test_the_traps_that_caught_it_and_those_only(run, report):
    write(run, report)
    assert about(run).failures == (
        f"No option is right. It does not become less sure: 46.0{BLANK}% sure, 47.0{BLANK}% before.",
        f"Questions in German. 30.0{BLANK}% of 458 are right, 50.0{BLANK}% before.",
        f"Only the options are shown. 30.0{BLANK}% of 458 are right, by chance it would be 25.0{BLANK}%; "
        f"46.0{BLANK}% sure, 47.0{BLANK}% before.",
    )
    hint = {"num_questions": 128, "flipped": 0.14, "interval": [0.09, 0.21], "num_written": 0}
    write(run, {**report, "traps": None, "explanations": {"num_questions": 128, "hint": hint}})
    [failure] = about(run).failures
    assert f"14.0{BLANK}% of 128 answers change to it" in failure
    write(run, {**report, "traps": None, "explanations": None})
    assert about(run).failures == ()


def test_what_was_not_measured(run, report):
    write(run, report)
    assert about(run).not_measured == (
        "Not measured: this. `medqa evaluate RUN --set evaluate.x=1` does.",
        NEVER_MEASURED,
    )
    assert about(RunFolder(run.path / "other", RECORD)).not_measured == (NEVER_MEASURED,)


def test_without_a_calibration_nothing_is_said_of_sets(run, report):
    write(run, {**report, "calibration": {"calibrated": False, "reason": "none"}})
    found = about(run)
    assert len(found.figures) == 3
    assert "should" not in json.dumps(found.to_json()["figures"])


def test_nothing_that_can_be_answered_for_a_risk(run, report):
    changed = copy.deepcopy(report)
    changed["calibration"]["abstention"] = [{"max_risk": 0.3, "threshold": None}]
    write(run, changed)
    assert about(run).figures[-1].value == "none"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, "was not measured yet. `medqa evaluate RUN`"),
        ({"version": 1}, "another version"),
        ({"adapter_sha256": "0" * 64}, "another model's"),
        ({"scores": {}}, "damaged"),
        ({"calibration": {"calibrated": True}}, "damaged"),
        ({"traps": [{}]}, "damaged"),
        ({"not_measured": None}, "damaged"),
        ("{", "damaged"),
        ("[]", "damaged"),
    ],
)
def test_what_is_no_report_of_this_model_is_not_shown(run, report, change, says):
    if isinstance(change, dict):
        write(run, {**report, **change})
    elif change:
        run.path.mkdir()
        (run.path / "report.json").write_text(change)
    found = about(run)
    assert says in found.unmeasured
    assert (found.figures, found.weak, found.failures) == ((), (), ())
    assert len(found.made) == 4


def test_a_run_that_tells_little_of_itself(tmp_path):
    found = about(RunFolder(tmp_path / "bare", {"base_model": None, "created": "?", "config": []}))
    assert found.base_model == "unknown"
    assert found.made == (Fact("Made of", "an unknown model"),)
    slow = RunFolder(tmp_path, {**RECORD, "finished": "2026-11-23T22:47:36+00:00", "device": {}})
    assert Fact("Trained", "23 November 2026, in 5.0 hours") in about(slow).made


@pytest.mark.slow
def test_a_real_run(finished_run):
    found = about(RunFolder.open(finished_run))
    assert "was not measured yet" in found.unmeasured
    assert [fact.name for fact in found.made] == ["Made of", "Trained on", "Trained"]
