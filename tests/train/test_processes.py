"""Several processes that train together do what one does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import tiny_settings
from medqa.evaluate.run import evaluate
from medqa.files import read_json
from medqa.recipe import load_recipe
from medqa.train.run import train

pytestmark = pytest.mark.slow


def launch(*words, num=2, options=(), **environment):
    """Start `medqa` as torchrun does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}"]
    return subprocess.Popen(
        [*command, *options, "-m", "medqa", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def words_of(settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def settings(tiny_model, word_data):
    return [
        *tiny_settings(tiny_model, word_data),
        "data.calibration_share=0.4",
        "data.selection_share=0.1",
        "evaluate.orders=4",
        "train.epochs=2",
    ]


@pytest.mark.parametrize("path", ["fast", "plain", "sharded"])
def test_two_processes_train_calibrate_and_measure_as_one(settings, tmp_path, path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, f"train.fast_path={str(path == 'fast').lower()}"]
    alone = train(load_recipe("medmcqa", chosen), tmp_path / "one", "medmcqa").path
    shard = f"model.shard={str(path == 'sharded').lower()}"
    code, out, err = finish(launch("train", *words_of([*chosen, shard]), "--out", tmp_path / "two"))
    assert code == 0, err[-3000:]
    assert out.count("Adapter ") == 1  # one of them speaks
    two = tmp_path / "two"
    assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
    records = [read_json(run / "run.json") for run in (alone, two)]
    assert [one["training"]["num_processes"] for one in records] == [1, 2]
    assert records[0]["training"]["num_tokens"] == records[1]["training"]["num_tokens"]
    found = [read_json(run / "adapter" / "calibration.json") for run in (alone, two)]
    assert found[0]["data"] == found[1]["data"]
    code, _, err = finish(launch("evaluate", two))
    assert code == 0, err[-3000:]
    evaluate(alone)
    rows = [
        [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        for run in (alone, two)
    ]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert other.pop("log_likelihoods") == pytest.approx(one.pop("log_likelihoods"), abs=2e-3)
        assert other == one
    explained = [(run / "explanations.jsonl").read_text().count("\n") for run in (alone, two)]
    assert explained[0] == explained[1] > 0


def test_a_lost_process_ends_the_run_with_a_message_and_it_can_be_resumed(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, "train.epochs=200", "train.checkpoint_minutes=0.01"]
    process = launch("train", *words_of(chosen), "--out", tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    end = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < end:
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, _, err = finish(process)
    assert code != 0
    assert "another of the 2 processes is lost" in err or "Stopping after this step" in err, err[-3000:]
    assert read_json(tmp_path / "run" / "run.json")["status"] == "running"
    assert list(checkpoints.glob("step-*"))


def test_torchrun_starts_a_run_anew_and_it_goes_on(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, "train.epochs=40", "train.checkpoint_minutes=0.01"]
    process = launch("train", *words_of(chosen), "--out", tmp_path / "run", options=("--max-restarts=1",))
    checkpoints, end = tmp_path / "run" / "checkpoints", time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < end:
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 0, err[-3000:]
    assert "Going on after step" in err
    assert read_json(tmp_path / "run" / "run.json")["status"] == "complete"


def test_verbs_for_one_process_say_so(tmp_path):
    code, _, err = finish(launch("doctor"))
    assert code != 0
    assert "without torchrun" in err
