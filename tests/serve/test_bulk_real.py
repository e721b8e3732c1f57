"""`medqa answer` as a user runs it: real processes, really killed."""

import csv
import json
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

from medqa.records import NOTICE
from medqa.serve.answerer import Answerer
from medqa.testing import make_examples

pytestmark = pytest.mark.slow

NUM_ROWS = 700


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of questions, every hundredth of which is none."""
    rows = [{"id": e.id, "question": e.question, "options": list(e.options)} for e in make_examples(NUM_ROWS)]
    for row in rows[50::100]:
        row["options"] = ["same", "same"]
    path = tmp_path_factory.mktemp("bulk") / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def whole(calibrated_run, source):
    """What an undisturbed process makes of it."""
    target = source.with_name("whole.jsonl")
    done = subprocess.run(
        command(calibrated_run, source, target), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["answered"]) == (NUM_ROWS, NUM_ROWS - 7)
    [error] = summary["errors"]
    assert (error["count"], error["lines"]) == (7, [51, 151, 251])
    return target


def command(run, source, target, *more, start=(sys.executable, "-m")):
    return [*start, "medqa", "answer", str(run), str(source), str(target), "--json", *more]


def test_the_rows_are_what_the_answerer_says(calibrated_run, source, whole):
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, NUM_ROWS + 1))
    assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in source.read_text().splitlines()]
    answerer = Answerer.load(calibrated_run)
    for row, example in list(zip(rows, make_examples(NUM_ROWS), strict=True))[::60]:
        answer = answerer.answer(example, explain=False)
        assert (row["letter"], row["option"], row["notice"]) == (answer.letter, answer.option, NOTICE)
        assert row["confidence"] == pytest.approx(answer.confidence, abs=1e-4)
        assert row["answer_set"] == list(answer.answer_set)
    assert rows[50]["error"].endswith("is given more than once")
    assert rows[50]["letter"] is None


def test_kill_9_in_the_middle_and_the_same_command_again(calibrated_run, source, whole):
    target = source.with_name("out.jsonl")
    again = command(calibrated_run, source, target)
    process = subprocess.Popen(again, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    parts = source.with_name("out.jsonl.parts")
    deadline = time.monotonic() + 120
    while len(list(parts.glob("0*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not target.exists()
    other = subprocess.run([*again, "--set", "serve.alpha=0.2"], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "settings.serve.alpha: 0.1, now 0.2" in other.stderr
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"of {NUM_ROWS} rows are done" in done.stderr
    summary = json.loads(done.stdout)
    assert 0 < summary["answered_now"] < summary["rows"] == NUM_ROWS
    assert target.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_two_processes_by_torchrun(calibrated_run, source, whole):
    target = source.with_name("two.jsonl")
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    both = command(calibrated_run, source, target, start=start)
    done = subprocess.run(both, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == NUM_ROWS  # one of the two says what was done
    assert target.read_bytes() == whole.read_bytes()


def test_the_other_formats_hold_the_same(calibrated_run, source, whole):
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    for ending in (".csv", ".parquet"):
        target = source.with_name(f"out{ending}")
        done = subprocess.run(command(calibrated_run, source, target), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    with source.with_name("out.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file, strict=True))
    typed = pyarrow.parquet.read_table(source.with_name("out.parquet")).to_pylist()
    for row, cell, value in zip(rows, cells, typed, strict=True):
        assert (cell["letter"] or None, cell["error"] or None) == (row["letter"], row["error"])
        assert (value["letter"], value["confidence"]) == (row["letter"], row["confidence"])
        assert value["options"] == json.loads(cell["options"]) == row["options"]
        if row["letter"]:
            assert float(cell["confidence"]) == row["confidence"]
            assert json.loads(cell["probabilities"]) == row["probabilities"]
            assert {k: v for k, v in value["probabilities"].items() if v is not None} == row["probabilities"]
