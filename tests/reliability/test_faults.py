"""What the machine does to a program: each row of docs/reliability.md."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import tiny_settings
from medqa.errors import MachineError, MedQAError, RunError, machine_fault
from medqa.evaluate.calibrate import calibrate
from medqa.evaluate.run import evaluate
from medqa.files import read_json, write_folder, write_json
from medqa.recipe import load_recipe
from medqa.runs import RunFolder
from medqa.train.run import resume, train


def medqa(*words, **environment):
    """Start the program."""
    return subprocess.Popen(
        [sys.executable, "-m", "medqa", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def ended(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def words_of(settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place):
    """Leave no room on a disk."""
    with (place / "filler").open("wb", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(b"0" * 4096):
            pass


def test_two_processes_do_not_write_into_one_run(calibrated_copy):
    run = RunFolder.open(calibrated_copy)
    other = RunFolder.open(calibrated_copy)
    with run.held():
        with pytest.raises(RunError, match="another process writes into") as error, other.held():
            pass
        for verb in (calibrate, evaluate):
            with pytest.raises(RunError, match="another process writes into"):
                verb(calibrated_copy)
    assert "wait" in error.value.hint
    with other.held():
        pass


@pytest.mark.slow
def test_a_lock_of_a_process_that_was_killed_holds_nothing(calibrated_copy):
    holder = (
        "import sys, time; from pathlib import Path; from medqa.runs import RunFolder\n"
        "with RunFolder.open(Path(sys.argv[1])).held(): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(calibrated_copy)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="another process"), RunFolder.open(calibrated_copy).held():
        pass
    process.kill()
    process.communicate()
    with RunFolder.open(calibrated_copy).held():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_run_folder_that_is_read_only_is_told(calibrated_copy):
    calibrated_copy.chmod(0o555)
    try:
        with pytest.raises(RunError, match="can't be written to"):
            calibrate(calibrated_copy)
    finally:
        calibrated_copy.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["calibrate", "evaluate"])
def test_a_full_disk_leaves_what_was_there_whole(calibrated_run, small_disk, verb, capsys, monkeypatch):
    run = Path(shutil.copytree(calibrated_run, small_disk / "run"))
    (run / ".lock").unlink(missing_ok=True)
    before = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    fill(small_disk)
    monkeypatch.setattr(sys, "argv", ["medqa", verb, str(run)])
    from medqa.cli.app import main

    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "No space left on device" in said
    assert "Hint: make room, then the same command again" in said
    after = {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    after.pop(Path(".lock"), None)
    half = [name for name in after if name not in before]
    assert all(name.name.endswith(".part") for name in half) or not half
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_training_on_a_full_disk_says_so_and_goes_on_later(
    tiny_model, word_data, small_disk, capsys, monkeypatch
):
    settings = [*tiny_settings(tiny_model, word_data), "train.epochs=4", "train.checkpoint_minutes=0.0001"]
    fill(small_disk)
    filler = small_disk / "filler"
    os.truncate(filler, filler.stat().st_size - 150_000)  # room for the first files, not for a checkpoint
    run = small_disk / "run"
    monkeypatch.setattr(sys, "argv", ["medqa", "train", *words_of(settings), "--out", str(run)])
    from medqa.cli.app import main

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert read_json(run / "run.json")["status"] == "running"
    filler.unlink()
    assert resume(run).record["status"] == "complete"


def test_a_full_disk_loses_no_folder_that_is_replaced(small_disk):
    folder = small_disk / "folder"
    with write_folder(folder) as beside:
        write_json(beside / "a.json", {"old": True})
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"), write_folder(folder) as beside:
        (beside / "b").write_bytes(b"0" * 100_000)
    assert read_json(folder / "a.json") == {"old": True}
    assert not list(small_disk.glob(".folder*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_130(tiny_model, word_data, tmp_path, number):
    settings = [*tiny_settings(tiny_model, word_data), "train.epochs=2000"]
    process = medqa("train", *words_of(settings), "--out", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 130, err
    assert "Stopped and saved; go on with: medqa train --resume" in err
    [checkpoint] = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert read_json(checkpoint / "state.json")["step"] >= 1


def damage(file, how):
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "flipped":
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :])
    else:
        file.write_bytes(b"\x80\x04K\x2a." * 100)  # a pickle, of nothing that is expected


FILES = [
    "run.json",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "adapter/tokenizer.json",
]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "foreign"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_run_is_refused_and_left(calibrated_copy, name, how):
    from medqa.serve.answerer import Answerer

    file = calibrated_copy / name
    damage(file, how)
    damaged = file.read_bytes()
    if how == "flipped" and name.endswith("json"):
        # Still text, perhaps still sense: what it says may be another, but never a crash.
        with contextlib.suppress(MedQAError):
            Answerer.load(calibrated_copy)
    else:
        with pytest.raises(MedQAError) as error:
            Answerer.load(calibrated_copy)
        assert error.value.hint
    assert file.read_bytes() == damaged


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "foreign"])
@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(tiny_model, word_data, tmp_path, name, how, monkeypatch):
    settings = [*tiny_settings(tiny_model, word_data), "train.epochs=3", "train.checkpoint_minutes=0.000001"]
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    record = {**read_json(run.path / "run.json"), "status": "running"}
    (run.path / "run.json").write_text(json.dumps(record))
    newest = max((run.path / "checkpoints").glob("step-*"))
    damage(newest / name, how)
    try:
        resume(run.path)
    except MedQAError as exc:
        assert str(newest) in str(exc)  # noqa: PT017 - or it goes on, where a flipped bit is a number still
    else:
        assert how == "flipped"


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tiny_model, word_data, tmp_path, monkeypatch):
    jumps = iter([1e9, 0.0, -1e9] * 100_000)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    settings = tiny_settings(tiny_model, word_data)
    first, second = (train(load_recipe("medmcqa", settings), tmp_path / n, "medmcqa") for n in ("a", "b"))
    assert first.record["adapter_sha256"] == second.record["adapter_sha256"]


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (MemoryError(), "memory is exhausted"),
        (OSError(30, "Read-only file system"), "Read-only"),
    ],
)
def test_what_the_machine_does_is_told_as_such(exc, text):
    fault = machine_fault(exc)
    assert isinstance(fault, MachineError)
    assert text in fault.message
    assert fault.hint
    assert machine_fault(ValueError("x")) is None


@pytest.mark.parametrize("hidden", [False, True])
def test_a_fault_in_handling_an_error_stays_a_bug(hidden):
    def handle():
        try:
            raise PermissionError(errno.EACCES, "not yours")
        except OSError:
            if hidden:
                raise OSError("a bug") from None
            return {}["missing"]

    with pytest.raises((KeyError, OSError)) as caught:
        handle()
    assert machine_fault(caught.value) is None
