"""Leaks in the report: flagged by the run's own audit, or by reading its training rows again."""

import json

import pytest

from medqa.errors import ConfigError, DataError
from medqa.evaluate.report import without_flagged
from medqa.evaluate.run import evaluate
from medqa.files import read_sealed
from medqa.recipe import load_recipe
from medqa.records import Prediction
from medqa.testing import make_examples, write_medmcqa
from medqa.train.run import train


@pytest.fixture(scope="module")
def leaky_run(tmp_path_factory, tiny_model):
    """Train a run whose evaluation questions are partly in its training rows, and stay there."""
    from conftest import tiny_settings

    folder = tmp_path_factory.mktemp("leaky")
    data = folder / "data"
    rows = make_examples(46)
    write_medmcqa(data / "train.jsonl", rows[:40])
    write_medmcqa(data / "validation.jsonl", rows[36:])
    write_medmcqa(data / "other.jsonl", make_examples(60)[38:])
    settings = [*tiny_settings(tiny_model, data), "data.drop_leaks=false"]
    return train(load_recipe("medmcqa", settings), folder / "run", "medmcqa").path


def test_flagged_questions_are_counted_and_scores_given_without_them(leaky_run):
    report = evaluate(leaky_run)
    assert report["leaks"]["counts"]["exact"] == 4
    assert report["leaks"]["flagged"]["exact"] == ["q36", "q37", "q38", "q39"]
    without = report["scores"]["medqa"]["without_flagged"]
    assert without["base"]["num_questions"] == 6
    assert report["scores"]["medqa"]["base"]["num_questions"] == 10
    assert "question" not in json.dumps(json.loads((leaky_run / "data.json").read_text())["leaks"]["flagged"])


def test_other_questions_are_audited_when_they_are_scored(leaky_run):
    report = evaluate(leaky_run, ["data.eval_split=other"])
    assert report["leaks"]["flagged"]["exact"] == ["q38", "q39"]
    assert report["data"]["split"] == "other"
    assert read_sealed(leaky_run / report["file"]) == report
    assert json.loads((leaky_run / "report.json").read_text())["data"]["split"] == "validation"
    alone = leaky_run.parent / "elsewhere.jsonl"
    write_medmcqa(alone, make_examples(44)[41:])
    settings = [f"data.name={alone}", "data.keys=0-based"]
    assert evaluate(leaky_run, settings)["leaks"]["num_flagged"] == 0


def test_the_training_file_is_refused_by_whatever_path(leaky_run, monkeypatch):
    monkeypatch.chdir(leaky_run.parent / "data")
    with pytest.raises(DataError, match="was trained on"):
        evaluate(leaky_run, ["data.name=train.jsonl"])


def test_a_part_of_the_questions_uses_the_same_audit(leaky_run):
    report = evaluate(leaky_run, max_rows=5)
    kept = {json.loads(line)["id"] for line in (leaky_run / "predictions-5.jsonl").read_text().splitlines()}
    assert set(report["leaks"]["flagged"]["exact"]) == {"q36", "q37", "q38", "q39"} & kept


def test_training_rows_that_are_gone_are_told(leaky_run, caplog):
    train_file = leaky_run.parent / "data/train.jsonl"
    text = train_file.read_text()
    train_file.unlink()
    try:
        report = evaluate(leaky_run, ["data.eval_split=other"])
    finally:
        train_file.write_text(text)
    assert report["leaks"]["looked_for"] is False
    assert "Leaks are not looked for" in caplog.text


def test_what_a_run_was_trained_with_cannot_be_changed(leaky_run):
    with pytest.raises(ConfigError, match="has no effect here"):
        evaluate(leaky_run, ["train.epochs=2"])


def test_without_flagged_by_hand():
    def row(id, choice):
        values = [0.0] * 4
        values[choice] = 1.0
        return Prediction(id, None, 4, 0, "scored", tuple(values))

    base = [row("a", 0), row("b", 1), row("c", 1)]
    tuned = [row("a", 0), row("b", 0), row("c", 1)]
    result = without_flagged(base, tuned, {"a"})
    assert result["base"]["accuracy"] == 0.0
    assert result["tuned"]["accuracy"] == 0.5
    assert result["change"]["num_fixed"] == 1
    assert without_flagged(base, tuned, set()) is None
    assert without_flagged(base, tuned, {"a", "b", "c"}) is None
