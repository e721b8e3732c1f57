"""A run done once more from its own record is the same run, or it is said what differs."""

import json
import shutil
import time

import pytest

from conftest import tiny_settings
from medqa.cli.reproducing import _print
from medqa.errors import ConfigError, HubError, ModelError, RunError
from medqa.files import read_json, read_sealed, seal
from medqa.publish.folder import copy_run
from medqa.publish.reproduce import reproduce
from medqa.recipe import load_recipe
from medqa.runs import RunFolder
from medqa.testing import make_tiny_model
from medqa.train.pace import Pace, Replay
from medqa.train.run import train


def agreement(found):
    return {one["what"]: one["same"] for one in found["agreement"]}


def test_a_run_once_more_is_the_same_to_the_bit(measured_run, tmp_path, capsys):
    found = reproduce(measured_run, tmp_path / "again")
    assert all(agreement(found).values())
    assert {
        "train questions",
        "evaluation questions",
        "base model",
        "prompt",
        "adapter",
        "torch",
        "device",
    } <= agreement(found).keys()
    assert found["adapter_difference"] is None
    assert found["loss"]["first"][0] == found["loss"]["first"][1]
    assert found["loss"]["num_steps"][0] == found["loss"]["num_steps"][1]
    figures = {one["what"]: one for one in found["figures"]}
    assert figures["accuracy"]["before"] == figures["accuracy"]["now"]
    assert {"accuracy", "ECE, corrected", "accuracy by lm-eval's prompt"} <= figures.keys()
    assert found["paired"]["num_fixed"] == found["paired"]["num_broken"] == 0
    assert read_json(tmp_path / "again" / "reproduction.json") == json.loads(json.dumps(found))
    _print(found)
    assert "The adapter is the same to the bit; all numbers are the same." in capsys.readouterr().out


@pytest.mark.slow
def test_a_published_run_needs_to_be_told_where_things_are(
    measured_run, tiny_model, word_data, tmp_path, caplog, monkeypatch
):
    flat = tmp_path / "flat"
    copy_run(RunFolder.open(measured_run), flat, base="ORG/tiny")
    shutil.copy(measured_run / "report.json", flat)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError):
        reproduce(flat, tmp_path / "a")
    places = [f"model.name={tiny_model}", f"data.name={word_data}"]
    found = reproduce(flat, tmp_path / "again", places)
    assert found["adapter_difference"] is None
    assert (found["loss"], found["paired"]) == (None, None)
    assert found["figures"][0]["what"] == "accuracy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "not measured with this adapter and this program"),
        ({"adapter_sha256": "0" * 64}, "not measured with this adapter and this program"),
        ({"scores": {}}, "is damaged"),
        ({"data": {}}, "is damaged"),
    ],
)
def test_a_report_that_nothing_compares_with_is_refused_before_training(
    measured_run, tmp_path, change, message
):
    run = tmp_path / "run"
    shutil.copytree(measured_run, run)
    (run / "report.json").write_text(json.dumps(seal({**read_sealed(run / "report.json"), **change})))
    with pytest.raises(RunError, match=message):
        reproduce(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "setting", ["train.seed=1", "data.clean=false", "train.epochs=2", "model.dtype=bf16"]
)
def test_what_would_make_another_run_is_refused(measured_run, tmp_path, setting):
    with pytest.raises(ConfigError, match="another run") as error:
        reproduce(measured_run, tmp_path / "again", [setting])
    assert "data.name" in error.value.hint
    assert not (tmp_path / "again").exists()


def test_another_base_model_is_refused(measured_run, tmp_path):
    other = make_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="its weights differ"):
        reproduce(measured_run, tmp_path / "again", [f"model.name={other}"])


@pytest.mark.slow
def test_other_questions_are_told_before_training_and_after(
    measured_run, word_data, tmp_path, caplog, capsys
):
    fewer = tmp_path / "data"
    shutil.copytree(word_data, fewer)
    lines = (fewer / "train.jsonl").read_text().splitlines(keepends=True)
    (fewer / "train.jsonl").write_text("".join(lines[:-20]))
    found = reproduce(measured_run, tmp_path / "again", [f"data.name={fewer}"])
    assert "Differs already: train questions" in caplog.text
    assert agreement(found)["train questions"] is False
    assert found["adapter_difference"]["greatest"] > 0
    _print(found)
    said = capsys.readouterr().out
    assert "DIFFERS" in said
    assert "What else differs: train questions" in said


def test_a_pace_is_replayed_step_by_step():
    clock = iter([0.0, 1.0, 2.0, 30.0, 31.0, 32.0, *[33.0] * 20]).__next__
    pace = Pace(60, 100.0, clock=clock)
    tokens = list(range(0, 100 * 40, 100))
    total, seen = pace.begin(0, tokens), []
    for step in range(1, 6):
        total = pace.review(step, total)
        seen.append(total)
    replay = Replay(json.loads(json.dumps(pace.steps)))
    total, again = replay.begin(0, tokens), []
    for step in range(1, 6):
        total = replay.review(step, total)
        again.append(total)
    assert again == seen
    assert len(set(seen)) > 1
    assert Replay(pace.steps).begin(5, tokens) == seen[-1]


@pytest.mark.slow
def test_a_run_that_was_given_a_time_is_repeated_step_by_step(tiny_model, word_data, tmp_path):
    config = load_recipe("medmcqa", [*tiny_settings(tiny_model, word_data), "train.batch_size=4"])
    timed = train(config, tmp_path / "timed", "medmcqa", end=time.monotonic() + 20)
    plan = timed.record["plan"]
    assert plan["steps"][-1][1] == plan["num_steps"] == timed.record["training"]["num_steps"]
    found = reproduce(timed.path, tmp_path / "again")
    assert found["adapter_difference"] is None
    assert read_json(tmp_path / "again" / "run.json")["plan"]["num_rows"] == plan["num_rows"]
