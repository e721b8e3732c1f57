"""kill -9 at random moments: no half-written file passes for a whole one, and nothing done is lost.

The audit log's kills are in
tests/serve/test_audit.py, bulk answering's in tests/serve/test_bulk_real.py.
"""

import functools
import json
import random
import shutil
import sys
import time

import pytest
from safetensors import safe_open

from conftest import tiny_settings
from medqa.config import RunConfig
from medqa.evaluate.calibrate import calibrate
from medqa.evaluate.run import evaluate
from medqa.files import read_json, read_sealed
from medqa.publish.export import export
from medqa.recipe import load_recipe
from medqa.runs import RunFolder
from medqa.train.run import train

from .killed import begin_run, build, evaluate_soon, killed_after, killed_at_write, train_on

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")]


def time_of(work, *arguments, **options):
    """Do it in a process of its own; how long that took."""
    assert killed_after(100, str)  # the first starts what forks
    start = time.monotonic()
    assert killed_after(300, work, *arguments, **options)
    return time.monotonic() - start


def kill_often(times, check, work, *arguments, **options):
    """Kill a piece of work so many times, at moments spread over what it takes; `check` after each."""
    takes = time_of(work, *arguments, **options)
    draw, kills = random.Random(0), 0
    for _ in range(20 * times):
        if kills == times:
            return
        if not killed_after(draw.uniform(0, takes), work, *arguments, **options):
            kills += 1
            check()
    raise AssertionError(f"killed only {kills} times")


def kill_at_every_write(check, work, *arguments, **options):
    """Kill a piece of work at each of its writes in turn; `check` after each. How many there were."""
    for number in range(1_000):
        if killed_at_write(number, work, *arguments, **options):
            return number
        check()
    raise AssertionError("it never ended")


def whole(file):
    """Read a file of ours, as its readers do."""
    if file.suffix == ".json":
        return read_json(file)
    if file.suffix == ".safetensors":
        with safe_open(str(file), "np") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no dict
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return file.read_bytes()


def check_files(folder):
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not hidden and file.name != "metrics.jsonl":
            whole(file)


def losses(run):
    return [line["loss"] for line in whole(run / "metrics.jsonl")]


def test_training_that_is_killed_50_times_ends_as_if_it_never_was(tiny_model, word_data, tmp_path):
    settings = [*tiny_settings(tiny_model, word_data), "train.epochs=3", "train.checkpoint_minutes=1e-9"]
    config = load_recipe("medmcqa", settings)
    expected = train(config, tmp_path / "expected", "medmcqa")
    takes = time_of(train_on, config, tmp_path / "timed")
    draw, kills, runs, where = random.Random(0), 0, 0, {"before": 0, "training": 0}
    while kills < 50:
        path = tmp_path / f"run-{runs}"
        if killed_after(draw.uniform(0, 0.7 * takes), train_on, config, path):
            assert losses(path) == losses(expected.path)
            assert read_json(path / "run.json")["adapter_sha256"] == expected.record["adapter_sha256"]
            runs += 1
            continue
        kills += 1
        if path.exists():
            check_files(path)
        steps = sorted(path.glob("checkpoints/step-*"))
        where["training" if steps else "before"] += 1
        assert all(
            {file.name for file in step.iterdir()}
            == {"adapter.safetensors", "optimizer.safetensors", "state.json"}
            for step in steps
        )
    assert where["training"] >= 10, where
    assert killed_after(120, train_on, config, path)
    assert losses(path) == losses(expected.path)
    assert not list(path.rglob("*.part"))  # what was half written is swept away


def test_evaluation_that_is_killed_20_times_leaves_a_whole_report_or_the_old_one(calibrated_copy):
    def check():
        for name in ("report.json", "predictions.jsonl", "explanations.jsonl"):
            if (calibrated_copy / name).exists():
                whole(calibrated_copy / name)

    evaluate(calibrated_copy)
    before = read_sealed(calibrated_copy / "report.json")["scores"]
    kill_often(20, check, evaluate_soon, calibrated_copy)
    assert kill_at_every_write(check, evaluate_soon, calibrated_copy) >= 8
    assert not list(calibrated_copy.rglob("*.part"))
    assert evaluate(calibrated_copy)["scores"] == before


def test_calibration_that_is_killed_10_times_leaves_a_whole_one(calibrated_copy):
    file = calibrated_copy / "adapter" / "calibration.json"
    before = whole(file)["orders"]
    kill_often(10, lambda: whole(file), calibrate, calibrated_copy)
    assert kill_at_every_write(lambda: whole(file), calibrate, calibrated_copy) >= 2
    calibrate(calibrated_copy)
    assert whole(file)["orders"] == before


def test_an_export_that_is_killed_10_times_leaves_a_whole_one_or_none(calibrated_run, tmp_path):
    out = tmp_path / "merged"

    def check():
        if out.exists():
            assert {"parity.json", "model.safetensors", "config.json"} <= {p.name for p in out.iterdir()}
            check_files(out)

    work = functools.partial(
        export, calibrated_run, "merged", out, precision="fp32", num_questions=20, base="ORG/tiny"
    )
    kill_often(10, check, work)
    assert kill_at_every_write(check, work) >= 10
    check()
    assert RunFolder.open(out / "run").record["status"] == "complete"
    assert not list(tmp_path.glob(".*"))  # what was left half written is swept away


def test_a_data_build_that_is_killed_10_times_leaves_a_whole_folder_or_none(word_data, tmp_path):
    out = tmp_path / "data"
    config = RunConfig().data.model_copy(update={"name": str(word_data)})

    build(config, tmp_path / "new")
    names = {p.name for p in (tmp_path / "new").iterdir()}
    draw, kills = random.Random(1), 0
    while kills < 10:
        shutil.rmtree(out, ignore_errors=True)
        if not killed_after(draw.uniform(0, 0.6), build, config, out):
            kills += 1
            assert not out.exists() or {p.name for p in out.iterdir()} == names
            check_files(out)

    def check():
        assert not out.exists() or {p.name for p in out.iterdir()} == names
        check_files(out)

    assert kill_at_every_write(check, build, config, out) >= 5
    assert not list(tmp_path.glob(".*"))


def test_a_run_is_there_with_its_record_or_not_at_all(tiny_model, word_data, tmp_path):
    """What is killed while it begins leaves nothing in the way of the same command."""
    config = load_recipe("medmcqa", tiny_settings(tiny_model, word_data))
    out = tmp_path / "run"

    def check():
        if out.exists():
            assert RunFolder.open(out, finished=False).record["status"] == "running"
            shutil.rmtree(out)

    assert kill_at_every_write(check, begin_run, out, config) >= 8
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
