"""A run that is given a time plans, trains, is measured, and leaves an ordinary run behind."""

import json
import time

import pytest

from medqa.errors import ConfigError, DataError
from medqa.evaluate.run import evaluate
from medqa.recipe import load_recipe, refuse_planned
from medqa.train.run import resume, train
from medqa.train.timed import TimedRun


@pytest.mark.slow
def test_a_timed_run_is_planned_trained_and_measured(settings, tmp_path):
    config = load_recipe("medmcqa", settings)
    run = train(config, tmp_path / "run", "medmcqa", end=time.monotonic() + 60)
    plan, training = run.record["plan"], run.record["training"]
    assert run.record["status"] == "complete"
    assert run.config.train.epochs == plan["epochs"] == 2  # few rows: as often as sense allows
    assert run.config.train.explanation_share == plan["explanation_share"] == 1
    assert training["num_rows"] == plan["num_rows"]
    assert any("tokens/s measured here" in reason for reason in plan["reasons"])
    report = json.loads((run.path / run.record["report"]).read_text())
    assert report["scores"].keys() == {"medqa", "lm_eval"}
    again = evaluate(run.path)
    assert report["scoring"] == again["scoring"] == "packed"
    assert again["scores"]["medqa"]["tuned"]["accuracy"] == report["scores"]["medqa"]["tuned"]["accuracy"]
    assert again["scores"]["medqa"]["tuned"]["nll"] == pytest.approx(
        report["scores"]["medqa"]["tuned"]["nll"], rel=1e-5
    )


@pytest.mark.slow
def test_a_time_in_fp16_is_kept_too(settings, tmp_path):
    """Measuring takes gradients that no optimizer step follows, which a loss scaler has to forgive."""
    config = load_recipe("medmcqa", [*settings, "model.dtype=fp16"])
    run = train(config, tmp_path / "run", "medmcqa", end=time.monotonic() + 60)
    assert run.record["status"] == "complete"
    assert run.record["device"]["precision"] == "fp16"


def test_too_short_a_time_makes_no_run(settings, tmp_path):
    config = load_recipe("medmcqa", settings)
    with pytest.raises(ConfigError, match="don't fit into"):
        train(config, tmp_path / "run", "medmcqa", end=time.monotonic())
    assert not (tmp_path / "run").exists()


def test_a_time_needs_questions_to_be_measured_on(settings, tmp_path):
    config = load_recipe("medmcqa", [*settings, "data.eval_split=train"])
    with pytest.raises(DataError, match="was trained on"):
        train(config, tmp_path / "run", "medmcqa", end=time.monotonic() + 60)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["train.epochs=2", "train.explanation_share=0.5"])
def test_what_the_time_decides_cannot_be_set(setting):
    refuse_planned(["train.seed=1", "data.max_train_rows=5"])
    with pytest.raises(ConfigError, match="--minutes both say how much"):
        refuse_planned([setting])


def part_planned(monkeypatch, num_rows, share, num_steps=None):
    """Plan as if not all rows, or steps, did fit."""
    original = TimedRun.plan

    def plan(self, *args):
        made, pace = original(self, *args)
        changes = {"num_rows": num_rows, "explanation_share": share, "epochs": 1}
        if num_steps:
            monkeypatch.setattr(pace, "_fitting", lambda step, rate: num_steps)
        return type(made)(**{**made.record(), **changes, "reasons": made.reasons}), pace

    monkeypatch.setattr(TimedRun, "plan", plan)


def test_a_part_of_the_rows_holds_every_subject_and_its_share_of_explanations(
    settings, tmp_path, monkeypatch, caplog
):
    part_planned(monkeypatch, 20, 0.5)
    end = time.monotonic() + 60
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa", end=end)
    assert run.record["training"]["num_rows"] == 20
    full = train(load_recipe("medmcqa", [*settings, "data.max_train_rows=20"]), tmp_path / "full", "medmcqa")
    num_tokens = [r.record["data"]["num_tokens"] for r in (run, full)]
    assert 0.6 < num_tokens[0] / num_tokens[1] < 0.95  # half of the explanations are gone


@pytest.mark.parametrize(
    "saved",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["with a checkpoint", "killed before one"],
)
def test_an_interrupted_timed_run_goes_on_with_its_plan(settings, tmp_path, monkeypatch, saved):
    from medqa.train import loop

    part_planned(monkeypatch, 24, 0.5, num_steps=2)  # three would do all rows
    monkeypatch.setattr("medqa.train.prepare.CPU_OPERATIONS_PER_S", 1e3)  # no reason to refuse what was begun
    whole = train(load_recipe("medmcqa", settings), tmp_path / "whole", "x", end=time.monotonic() + 60)
    original = loop._Loop._gradients

    def interrupted(self, *rows):
        if not saved:
            raise KeyboardInterrupt
        self.stop.asked = True
        return original(self, *rows)

    config = load_recipe("medmcqa", settings)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", "medmcqa", end=time.monotonic() + 60)
    run = resume(tmp_path / "run")
    assert run.record["training"]["num_rows"] == 24
    assert run.record["training"]["num_steps"] == whole.record["training"]["num_steps"] == 2
    losses = [
        [json.loads(line)["loss"] for line in (r.path / "metrics.jsonl").read_text().splitlines()]
        for r in (run, whole)
    ]
    assert losses[0] == losses[1]


def test_a_time_that_is_over_before_the_first_step_still_gives_a_run(settings, tmp_path, monkeypatch):
    part_planned(monkeypatch, 24, 1.0)
    monkeypatch.setattr("medqa.train.pace.Pace._fitting", lambda self, step, rate: step)
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "x", end=time.monotonic() + 60)
    assert run.record["training"]["num_steps"] == 1


def test_what_a_recipe_says_and_the_time_overrides_is_told(settings, tmp_path):
    config = load_recipe("medmcqa", [*settings, "train.epochs=7"])
    run = train(config, tmp_path / "run", "x", end=time.monotonic() + 60)
    assert any("The time decides train.epochs" in text for text in run.record["notices"])
