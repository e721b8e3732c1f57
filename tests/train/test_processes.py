"""Several processes that train together do what one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import tiny_settings
from medqa.evaluate.run import evaluate
from medqa.files import read_json, read_sealed
from medqa.recipe import load_recipe
from medqa.train.run import resume, train
from medqa.trust.store import read_values

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
    return steps(run, "loss")


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


WAYS = {
    # Three processes: the last batch has fewer rows. Questions are drawn, some of them to be read back.
    "fast": (3, ["train.fast_path=true", "data.max_train_rows=80", "train.read_back_share=0.2"]),
    "plain": (2, ["train.fast_path=false"]),
    "sharded": (2, ["train.fast_path=false", "evaluate.explanations=2"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_several_processes_train_calibrate_and_measure_as_one(settings, tmp_path, way, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    num, more = WAYS[way]
    chosen, two = [*settings, *more], tmp_path / "two"
    alone = train(load_recipe("medmcqa", chosen), tmp_path / "one", "medmcqa").path
    shard = f"model.shard={str(way == 'sharded').lower()}"
    code, out, err = finish(launch("train", *words_of([*chosen, shard]), "--out", two, num=num))
    assert code == 0, err[-3000:]
    assert out.count("Adapter ") == 1  # one of them speaks
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens", "num_rows"):
        assert steps(two, name) == pytest.approx(
            steps(alone, name), rel=1e-4 if name == "grad_norm" else 1e-5
        )
    records = [read_json(run / "run.json") for run in (alone, two)]
    assert [one["training"]["num_processes"] for one in records] == [1, num]
    for path in (alone, two):
        for name, tensor in load_file(path / "adapter" / "adapter_model.safetensors").items():
            torch.testing.assert_close(
                tensor, load_file(alone / "adapter" / "adapter_model.safetensors")[name]
            )
    for verb in ("calibrate", "evaluate"):
        code, _, err = finish(launch(verb, two, num=num))
        assert code == 0, err[-3000:]
    evaluate(alone)
    same_calibration(*(read_values(run / "adapter") for run in (alone, two)))
    rows = [
        [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        for run in (alone, two)
    ]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert other.pop("log_likelihoods") == pytest.approx(one.pop("log_likelihoods"), abs=2e-3)
        assert other == one
    texts = [(run / "explanations.jsonl").read_text().splitlines() for run in (alone, two)]
    assert len(texts[0]) == len(texts[1]) > 0
    assert [json.loads(line)["id"] for line in texts[0]] == [json.loads(line)["id"] for line in texts[1]]
    reports = [read_sealed(run / "report.json") for run in (alone, two)]
    for one in ("data", "leaks"):
        assert reports[0][one] == reports[1][one]
    for prompt, scores in reports[0]["scores"].items():
        assert reports[1]["scores"][prompt]["tuned"]["num_correct"] == scores["tuned"]["num_correct"]


def steps(run, name):
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_calibration(one, other):
    assert one["data"] == other["data"]
    assert set(one["orders"]) == set(other["orders"])
    for number, found in one["orders"].items():
        assert other["orders"][number]["method"] == found["method"]
        for name, value in found["parameters"].items():
            assert other["orders"][number]["parameters"][name] == pytest.approx(value, rel=0.02)


def wait_for_checkpoint(run, process, timeout=120):
    end = time.monotonic() + timeout
    while not list((run / "checkpoints").glob("step-*")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)


def kill_one(process, which=-1):
    """Kill one of the processes that torchrun started."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[which]), signal.SIGKILL)


@pytest.mark.parametrize("again", [2, 1])
def test_a_lost_process_ends_the_run_with_a_message_and_it_can_be_resumed(
    settings, tmp_path, monkeypatch, again
):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, "train.epochs=12", "train.checkpoint_minutes=0.001"]
    run = tmp_path / "run"
    process = launch("train", *words_of(chosen), "--out", run)
    wait_for_checkpoint(run, process)
    kill_one(process, which=-1 if again == 2 else 0)
    code, _, err = finish(process)
    assert code != 0
    assert "another of the 2 processes is lost" in err, err[-3000:]
    assert "medqa train --resume RUN" in err
    assert read_json(run / "run.json")["status"] == "running"
    if again == 2:
        code, _, err = finish(launch("train", "--resume", run))
        assert code == 0, err[-3000:]
    else:
        resume(run)
    alone = train(load_recipe("medmcqa", chosen), tmp_path / "one", "medmcqa").path
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert read_json(run / "run.json")["status"] == "complete"


def test_torchrun_starts_a_run_anew_and_it_goes_on(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, "train.epochs=12", "train.checkpoint_minutes=0.001"]
    run = tmp_path / "run"
    process = launch("train", *words_of(chosen), "--out", run, options=("--max-restarts=1",))
    wait_for_checkpoint(run, process)
    kill_one(process)
    code, _, err = finish(process)
    assert code == 0, err[-3000:]
    assert "Going on after step" in err
    assert read_json(run / "run.json")["status"] == "complete"
    before = (run / "run.json").read_bytes()
    # Another launch does not take it up, restarts or not.
    code, _, err = finish(launch("train", *words_of(chosen), "--out", run, options=("--max-restarts=1",)))
    assert code != 0
    assert "is there already" in err
    assert (run / "run.json").read_bytes() == before


def test_several_hosts_start_anew_when_one_loses_a_process(settings, tmp_path, monkeypatch):
    """Two launchers on this machine: after a loss each counts its restarts by itself."""
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, "train.epochs=40", "train.checkpoint_minutes=0.001"]
    run, port = tmp_path / "run", free_port()
    options = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d"]
    options += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=hosts"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "medqa", "train"]
    hosts = []
    for number in range(2):
        with (tmp_path / f"host-{number}").open("w") as told:
            hosts.append(
                subprocess.Popen(
                    [*command, *words_of(chosen), "--out", str(run)],
                    stdout=subprocess.DEVNULL,
                    stderr=told,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
    try:
        end = time.monotonic() + 120
        while not list((run / "checkpoints").glob("step-*")) and time.monotonic() < end:
            time.sleep(0.05)
        kill_one(hosts[1])
        codes = [host.wait(240) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    told = [(tmp_path / f"host-{number}").read_text() for number in range(2)]
    assert codes == [0, 0], told
    assert "Going on after step" in told[0] + told[1]
    assert read_json(run / "run.json")["status"] == "complete"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def by_hand(*words_of_each, places=None, code="from medqa.cli.app import main; main()"):
    """Start processes that find each other without a launcher's help, each with words of its own."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=places[rank] if places else None,
            env={
                **{**os.environ, **shared},
                **{"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(words_of_each))},
            },
        )
        for rank, words in enumerate(words_of_each)
    ]
    return [finish(process, 120) for process in processes]


def test_a_process_with_other_data_is_refused(settings, tiny_model, word_data, tmp_path, monkeypatch):
    """Rows are dealt by number: the losses would be wrong, and nothing else would show it."""
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    other = Path(shutil.copytree(word_data, tmp_path / "other"))
    lines = (other / "train.jsonl").read_text().splitlines()
    (other / "train.jsonl").write_text("\n".join([*lines[:-1], lines[-1].replace("a", "o")]) + "\n")
    words = ("train", *words_of(settings), "--out", tmp_path / "run")
    found = by_hand(words, (*words, "--set", f"data.name={other}"))
    for code, _, err in found:
        assert code == 2, err
        assert "process 1 has another data than process 0" in err
    assert not (tmp_path / "run").exists()


def test_hosts_that_do_not_share_the_run_folder_are_refused_before_they_train(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    words = ("train", *words_of(settings), "--out", "run")
    for code, _, err in by_hand(words, words, places=places):
        assert code == 2, err
        assert "process 1 does not see" in err
        assert "all hosts must share the run folder" in err
    assert not (places[0] / "run" / "metrics.jsonl").exists()


SHORT_OF_MEMORY = """
import os
from medqa.cli.app import main
from medqa.train import fast

real, calls = fast.PackedEngine._add, []

def add(self, batch):
    calls.append(batch)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        raise RuntimeError("out of memory")
    real(self, batch)

fast.PackedEngine._add = add
main()
"""


def test_a_lack_of_memory_in_one_process_halves_the_passes_of_all(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [*settings, "data.calibration_share=0"]
    words = ("train", *words_of(chosen), "--out", tmp_path / "run")
    found = by_hand(words, words, code=SHORT_OF_MEMORY)
    assert [code for code, _, _ in found] == [0, 0], found
    assert "Memory ran out with 8 rows a pass" in found[0][2]  # the first speaks for all
    alone = train(load_recipe("medmcqa", chosen), tmp_path / "one", "medmcqa").path
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-5)
    assert read_json(tmp_path / "run" / "run.json")["training"]["micro_batch_size"] == 4


def test_a_time_is_kept_together(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    chosen = [one for one in settings if not one.startswith("train.epochs")]
    words = ("train", *words_of(chosen), "--minutes", "0.7", "--out", tmp_path / "run")
    code, out, err = finish(launch(*words))
    assert code == 0, err[-3000:]
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "complete"
    assert record["training"]["num_processes"] == 2
    assert (tmp_path / "run" / record["report"]).is_file()
    assert out.count("Adapter ") == 1


def test_accelerate_launches_it_as_torchrun_does(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path / "home"))
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    command = [Path(sys.executable).with_name("accelerate"), "launch", *options, "--dynamo_backend=no"]
    done = subprocess.run(
        [*command, "-m", "medqa", "train", *words_of(settings), "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_json(tmp_path / "run" / "run.json")["training"]["num_processes"] == 2
    assert done.stdout.count("Adapter ") == 1


def test_verbs_for_one_process_say_so(tmp_path):
    code, _, err = finish(launch("doctor"))
    assert code != 0
    assert "without torchrun" in err
