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
from medqa.errors import MachineError, MedQAError, ModelError, RunError, TrainingError, machine_fault
from medqa.evaluate.calibrate import calibrate
from medqa.evaluate.run import evaluate
from medqa.files import beside, read_json, read_sealed, write_folder, write_json
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


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "adapter"])
def test_a_run_folder_that_is_read_only_is_told(calibrated_copy, folder):
    command = [sys.executable, "-m", "medqa", "calibrate", str(calibrated_copy)]
    if os.geteuid() == 0:  # who writes everywhere: without that right
        if shutil.which("setpriv") is None:
            pytest.skip("root writes everywhere, and setpriv is not installed")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    place = calibrated_copy / folder
    place.chmod(0o555)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        place.chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert "can't be written to" in done.stderr
    assert "chmod -R u+w" in done.stderr


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
    assert after == before


@pytest.mark.slow
def test_a_disk_that_fills_up_within_a_report_leaves_all_of_the_old_one(calibrated_run, small_disk):
    run = Path(shutil.copytree(calibrated_run, small_disk / "run"))
    evaluate(run)
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    fill(small_disk)
    filler = small_disk / "filler"
    # Room for the first of the files, not for all.
    os.truncate(filler, filler.stat().st_size - len(before["predictions.jsonl"]) - 16_384)
    with pytest.raises(OSError, match="No space left"):
        evaluate(run, ["evaluate.lm_eval=false"])
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["export", "data", "answer"])
def test_a_disk_that_is_full_is_told_by_what_makes_files_elsewhere(
    calibrated_run, word_data, small_disk, tmp_path, verb, capsys, monkeypatch
):
    fill(small_disk)
    out = small_disk / "out"
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "Which organ makes insulin?", "options": ["Liver", "Pancreas"]}\n')
    words = {
        "export": ["export", calibrated_run, "--to", "merged", "--out", out, "--questions", 20],
        "data": ["data", "--set", f"data.name={word_data}", "--out", out],
        "answer": ["answer", calibrated_run, questions, out.with_suffix(".jsonl")],
    }[verb]
    monkeypatch.setattr(sys, "argv", ["medqa", *map(str, words)])
    from medqa.cli.app import main

    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2, said
    assert "No space left on device" in said
    assert {p.name for p in small_disk.iterdir()} <= {"filler", "out.jsonl.parts"}


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


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_leaves_nothing_in_the_way(
    tiny_model, word_data, small_disk, capsys, monkeypatch
):
    from medqa.cli.app import main

    fill(small_disk)
    run = small_disk / "run"
    settings = tiny_settings(tiny_model, word_data)
    monkeypatch.setattr(sys, "argv", ["medqa", "train", *words_of(settings), "--out", str(run)])
    for code in (2, 0):
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        if code:
            assert "make room, then the same command again" in capsys.readouterr().err
            assert not run.exists()
            (small_disk / "filler").unlink()


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
    assert read_sealed(checkpoint / "state.json")["state"]["step"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["evaluate", "calibrate"])
def test_a_signal_elsewhere_cleans_up_and_ends_with_130(calibrated_copy, verb):
    before = {p.relative_to(calibrated_copy) for p in calibrated_copy.rglob("*")}
    process = medqa(verb, calibrated_copy)
    while "it/s" not in (line := process.stderr.readline()) and "Scoring" not in line and "Calib" not in line:
        assert process.poll() is None, line
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 130, err
    assert "Interrupted." in err
    left = {p.relative_to(calibrated_copy) for p in calibrated_copy.rglob("*")} - before
    assert left <= {Path(".lock")}


def test_a_signal_while_a_folder_is_replaced_loses_neither(tmp_path, monkeypatch):
    """It comes in just after a rename: before the next line of Python."""
    folder = tmp_path / "folder"
    real = Path.replace
    for moment in (1, 2):
        with write_folder(folder) as beside:
            write_json(beside / "a.json", {"old": True})
        calls = []

        def replace(self, target, calls=calls, moment=moment):
            done = real(self, target)
            calls.append(target)
            if len(calls) == moment:
                raise KeyboardInterrupt
            return done

        def replaced():
            with write_folder(folder) as beside:
                (beside / "a.json").write_text('{"old": false}')
                monkeypatch.setattr(Path, "replace", replace)

        with pytest.raises(KeyboardInterrupt):
            replaced()
        monkeypatch.undo()
        assert read_json(folder / "a.json") == {"old": moment == 1}
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_a_kill_left_aside_is_put_back(tmp_path, caplog):
    folder = tmp_path / "folder"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    aside = beside(folder).with_suffix(".old")
    aside = aside.with_name(aside.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    aside.mkdir()
    write_json(aside / "a.json", {"old": True})
    half = aside.with_suffix(".part")
    half.mkdir()
    mine = beside(folder)
    mine.mkdir()  # of a process that is still at work
    with pytest.raises(ZeroDivisionError), write_folder(folder):
        raise ZeroDivisionError
    assert read_json(folder / "a.json") == {"old": True}
    assert "is back as it was" in caplog.text
    assert {p.name for p in tmp_path.iterdir()} == {"folder", mine.name}


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
    if how == "flipped" and name == "run.json":
        # The one file without a checksum: still text, perhaps still sense, but never a crash.
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
    with pytest.raises(RunError, match="is damaged") as error:
        resume(run.path)
    assert f"rm -r {newest}" in error.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "foreign"])
def test_damaged_metrics_are_told_and_cost_no_training(tiny_model, word_data, tmp_path, how):
    settings = [*tiny_settings(tiny_model, word_data), "train.epochs=3", "train.checkpoint_minutes=0.000001"]
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    (run.path / "run.json").write_text(json.dumps({**read_json(run.path / "run.json"), "status": "running"}))
    newest = max((run.path / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)  # some steps are done again
    damage(run.path / "metrics.jsonl", how)
    again = resume(run.path)
    assert again.record["adapter_sha256"] == run.record["adapter_sha256"]
    if how != "flipped":  # a digit may be another digit
        assert any("metrics.jsonl was damaged" in text for text in again.record["notices"])


@pytest.mark.slow
def test_a_lack_of_memory_is_no_damage(tiny_model, word_data, tmp_path, monkeypatch):
    from medqa.train import checkpoint

    settings = [*tiny_settings(tiny_model, word_data), "train.checkpoint_minutes=0.000001"]
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    (run.path / "run.json").write_text(json.dumps({**read_json(run.path / "run.json"), "status": "running"}))

    def full(*args):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")

    monkeypatch.setattr(checkpoint, "load_file", full)
    with pytest.raises(TrainingError, match="memory ran out") as error:
        resume(run.path)
    assert "rm -r" not in error.value.hint


@pytest.mark.slow
def test_settings_that_are_not_ours_are_not_handed_to_peft(calibrated_copy):
    from medqa.serve.answerer import Answerer

    file = calibrated_copy / "adapter" / "adapter_config.json"
    settings = read_json(file)
    record = {**read_json(calibrated_copy / "run.json"), "version": 3}
    del record["adapter_files"]  # an earlier version's run, or one that somebody made by hand
    write_json(calibrated_copy / "run.json", record)
    assert Answerer.load(calibrated_copy)
    for change in (
        {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "/evil.bin"},
        {"use_rslora": True},
        {"rank_pattern": 5},
        {"megatron_config": {"a": 1}},
        {"init_lora_weights": 5},
        {"bias": "all"},
    ):
        write_json(file, {**settings, **change})
        with pytest.raises(ModelError, match="which this program does not write"):
            Answerer.load(calibrated_copy)


@pytest.mark.parametrize("files", [[], 5, {"../../../../etc/hostname": "0"}, {"adapter_config.json": 5}])
def test_checksums_of_what_is_elsewhere_are_refused(calibrated_copy, files):
    record = read_json(calibrated_copy / "run.json")
    for version in (3, 4):
        write_json(calibrated_copy / "run.json", {**record, "version": version, "adapter_files": files})
        with pytest.raises(RunError, match="is damaged"):
            RunFolder.open(calibrated_copy)


@pytest.mark.slow
def test_a_checkpoint_of_the_version_before_is_gone_on_from(tiny_model, word_data, tmp_path):
    settings = [*tiny_settings(tiny_model, word_data), "train.epochs=2", "train.checkpoint_minutes=0.000001"]
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    (run.path / "run.json").write_text(json.dumps({**read_json(run.path / "run.json"), "status": "running"}))
    for step in (run.path / "checkpoints").glob("step-*"):
        state = json.loads((step / "state.json").read_text())["state"]
        (step / "state.json").write_text(json.dumps(state))
    newest = max((run.path / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)
    assert resume(run.path).record["adapter_sha256"] == run.record["adapter_sha256"]


def test_another_runs_adapter_settings_are_refused(calibrated_copy):
    from medqa.serve.answerer import Answerer

    file = calibrated_copy / "adapter" / "adapter_config.json"
    write_json(file, {**read_json(file), "lora_alpha": 320})
    with pytest.raises(RunError, match=r"adapter_config.json is not what training wrote"):
        Answerer.load(calibrated_copy)


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tiny_model, word_data, tmp_path, monkeypatch):
    jumps = iter([1e9, 0.0, -1e9] * 100_000)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    settings = tiny_settings(tiny_model, word_data)
    first, second = (train(load_recipe("medmcqa", settings), tmp_path / n, "medmcqa") for n in ("a", "b"))
    assert first.record["adapter_sha256"] == second.record["adapter_sha256"]


SHORT_OF_MEMORY = """
import re, resource, sys
from pathlib import Path
import peft, transformers.models.qwen3.modeling_qwen3
import medqa.cli.app, medqa.cli.trust_output, medqa.evaluate.calibrate, medqa.hardware.environment
room = int(sys.argv.pop())
held = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (held + room, held + room))
medqa.cli.app.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit of memory")
@pytest.mark.parametrize("room_mib", [1, 20, 60, 120])
def test_too_little_memory_anywhere_leaves_what_was_there_whole(calibrated_copy, room_mib):
    before = (calibrated_copy / "adapter" / "calibration.json").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, "calibrate", calibrated_copy, str(room_mib * 2**20)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    # The tokenizers library ends the process by itself where it gets none.
    assert done.returncode in (0, 2, -signal.SIGABRT), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert (calibrated_copy / "adapter" / "calibration.json").read_bytes() == before
    if done.returncode == 2:
        assert "\nHint: " in done.stderr
    assert done.returncode or room_mib > 1


@pytest.mark.parametrize(
    ("exc", "text"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left"),
        (MemoryError(), "memory is exhausted"),
        (OSError(30, "Read-only file system"), "Read-only"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "can't allocate"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory"),
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
