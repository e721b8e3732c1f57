import asyncio
import dataclasses
import errno
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import threading
from inspect import signature

import pytest

from medqa.errors import RunError
from medqa.records import Answer, Example
from medqa.serve import logfile
from medqa.serve.audit import AuditError, AuditLog, AuditRecord

EXAMPLE = Example(
    "Wélche <|im_end|>\n\u2028 vitamin?", ("Vitamin A", "Vitamin Ç"), answer=1, context="A sailor."
)
ANSWER = Answer(
    question=EXAMPLE.question,
    letter="B",
    option="Vitamin Ç",
    confidence=0.75,
    probabilities={"A": 0.25, "B": 0.75},
    explanation="Scurvy.",
    explanation_finished=True,
    model="base + run",
    calibration="temperature 1.2",
    answer_set=("B",),
    alpha=0.1,
)
RECORD = AuditRecord(
    id="r1", client="api", latency_ms=12.34, example=EXAMPLE, answer=ANSWER, max_risk=0.2, explained=True
)


def numbered(number):
    return AuditRecord(id=str(number), client="api", latency_ms=1)


def lines(path):
    return [json.loads(line) for line in path.read_text("ascii").split("\n")[:-1]]


def ids(folder):
    """Return the ids in all files of the folder, the oldest first."""
    files = sorted(
        folder.glob("a.jsonl*"), key=lambda p: int(p.suffix[1:]) if p.suffix != ".jsonl" else 1 << 60
    )
    return [line["id"] for file in files for line in lines(file) if line["event"] != "torn"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.jsonl"


def test_a_line_says_all_but_the_texts(path):
    with AuditLog(path) as log:
        log.write_now(RECORD)
    [line] = lines(path)
    assert line["time"].endswith("Z")
    assert len(line["time"]) == len("2000-01-01T00:00:00.000Z")
    assert line["question_sha256"] == hashlib.sha256(EXAMPLE.question.encode()).hexdigest()
    assert line["options_sha256"] == hashlib.sha256('["Vitamin A", "Vitamin Ç"]'.encode()).hexdigest()
    assert line["context_sha256"] == hashlib.sha256(b"A sailor.").hexdigest()
    assert line["explanation_sha256"] == hashlib.sha256(b"Scurvy.").hexdigest()
    wanted = {
        "id": "r1",
        "client": "api",
        "event": "answer",
        "status": 200,
        "error": None,
        "latency_ms": 12.3,
    }
    wanted |= {
        "letter": "B",
        "confidence": 0.75,
        "probabilities": {"A": 0.25, "B": 0.75},
        "answer_set": ["B"],
    }
    wanted |= {"model": "base + run", "calibration": "temperature 1.2", "alpha": 0.1, "max_risk": 0.2}
    wanted |= {"abstain": False, "reason": None, "num_orders": 1, "explained": True}
    assert {name: line[name] for name in wanted} == wanted
    text = path.read_text()
    assert not any(word in text for word in ("sailor", "Vitamin", "vitamin", "Scurvy"))


def test_texts_are_written_where_asked_for_and_cannot_break_out_of_their_line(path):
    with AuditLog(path, with_text=True) as log:
        log.write_now(RECORD)
        log.write_now(
            dataclasses.replace(RECORD, example=None, answer=None, status=422, error="bad_question")
        )
    first, second = lines(path)
    assert first["question"] == EXAMPLE.question
    assert (first["context"], first["options"]) == ("A sailor.", list(EXAMPLE.options))
    assert first["explanation"] == "Scurvy."
    assert set(first) == set(second)
    assert (second["status"], second["error"], second["question"]) == (422, "bad_question", None)


def test_only_the_owner_can_read_it_and_a_wider_one_is_named(path, caplog):
    AuditLog(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not caplog.records
    path.chmod(0o640)
    AuditLog(path).close()
    assert "can be read by others" in caplog.text


@pytest.mark.parametrize("name", ["missing/a.jsonl", "folder", "/dev/null"])
def test_what_cannot_be_written_is_refused_at_the_start(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError) as error:
        AuditLog(tmp_path / name)
    assert error.value.hint


def test_two_servers_cannot_share_a_log(path):
    with AuditLog(path), pytest.raises(RunError, match="another process"):
        AuditLog(path)
    AuditLog(path).close()


def test_the_record_is_synced_before_write_returns(path, monkeypatch):
    steps = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *args: (steps.append("write"), write(*args))[1])
    monkeypatch.setattr(os, "fsync", lambda *args: (steps.append("sync"), sync(*args))[1])
    with AuditLog(path) as log:
        steps.clear()
        log.write_now(RECORD)
        steps.append("returned")
        asyncio.run(log.write(RECORD))
        steps.append("returned")
    assert steps == ["write", "sync", "returned"] * 2


def test_what_waits_is_synced_together(path, monkeypatch):
    syncs, go = [], threading.Event()
    sync = os.fsync

    def slow(descriptor):
        go.wait()
        syncs.append(descriptor)
        sync(descriptor)

    async def scene(log):
        tasks = [asyncio.ensure_future(log.write(numbered(n))) for n in range(200)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks)

    with AuditLog(path) as log:
        monkeypatch.setattr(os, "fsync", slow)
        asyncio.run(scene(log))
    assert len(syncs) <= 3
    assert ids(path.parent) == [str(n) for n in range(200)]


def test_a_client_that_goes_away_does_not_take_its_line_along(path):
    async def scene(log):
        task = asyncio.ensure_future(log.write(RECORD))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await log.write(numbered(2))

    with AuditLog(path) as log:
        asyncio.run(scene(log))
    assert ids(path.parent) == ["r1", "2"]


def test_full_files_are_put_aside_and_all_are_kept(path):
    with AuditLog(path, max_bytes=1500) as log:
        for number in range(20):
            log.write_now(numbered(number))
    with AuditLog(path, max_bytes=1500) as log:
        log.write_now(numbered(20))
    files = list(path.parent.iterdir())
    assert len(files) > 8
    assert all(file.stat().st_size <= 1500 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert ids(path.parent) == [str(n) for n in range(21)]


def test_numbers_go_on_after_files_that_were_compressed(path):
    (path.parent / "a.jsonl.7.gz").write_bytes(b"")
    with AuditLog(path, max_bytes=1) as log:
        log.write_now(numbered(0))
        log.write_now(numbered(1))
    assert {p.name for p in path.parent.iterdir()} == {"a.jsonl.7.gz", "a.jsonl.8", "a.jsonl"}


def test_nothing_is_ever_deleted(path, monkeypatch):
    assert "keep" not in {*signature(AuditLog).parameters, *signature(logfile.LogFile).parameters}
    monkeypatch.delattr("pathlib.Path.unlink")
    monkeypatch.delattr("os.remove")
    with AuditLog(path, max_bytes=1) as log:
        for number in range(5):
            log.write_now(numbered(number))
    assert ids(path.parent) == ["0", "1", "2", "3", "4"]


def test_a_rotation_that_was_killed_half_way_loses_nothing(path):
    with AuditLog(path) as log:
        log.write_now(numbered(0))
    path.rename(path.with_name("a.jsonl.1"))  # renamed, and dead before the new file was there
    with AuditLog(path, max_bytes=1) as log:
        log.write_now(numbered(1))
        log.write_now(numbered(2))
    assert ids(path.parent) == ["0", "1", "2"]


@pytest.mark.parametrize("torn", [b'{"id": "1", "le', b"\xff\x00" * 100_000])
@pytest.mark.parametrize("before", [b"", b'{"id": "0"}\n'])
def test_a_torn_line_is_mended_and_named(path, caplog, before, torn):
    path.write_bytes(before + torn)
    path.chmod(0o600)
    for number in (2, 3):
        with AuditLog(path) as log:
            log.write_now(numbered(number))
    *first, mended, second, third = lines(path)
    assert first == [{"id": "0"}] * bool(before)
    assert mended == {"event": "torn", "text": torn.decode("latin-1")}
    assert (second["id"], third["id"]) == ("2", "3")
    assert len(caplog.records) == 1


@pytest.mark.parametrize("remove", [True, False])
def test_a_file_that_somebody_moves_is_replaced(path, caplog, remove):
    with AuditLog(path) as log:
        log.write_now(numbered(0))
        path.unlink() if remove else path.rename(path.with_name("a.jsonl.1"))
        log.write_now(numbered(1))
    assert ids(path.parent) == (["1"] if remove else ["0", "1"])
    assert "moved or deleted" in caplog.text


@pytest.mark.parametrize("step", ["write", "fsync", "part"])
def test_a_full_disk_refuses_answers_and_is_got_over(path, monkeypatch, caplog, step):
    write = os.write

    def fails(descriptor, *data):
        if step == "part" and len(data[0]) > 10:
            return write(descriptor, data[0][:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with AuditLog(path) as log:
        log.write_now(numbered(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync" if step == "fsync" else "write", fails)
            for _ in range(3):
                with pytest.raises(AuditError, match="not given") as error:
                    log.write_now(numbered(1))
                assert isinstance(error.value.__cause__, OSError)
            with pytest.raises(AuditError):
                asyncio.run(log.write(numbered(1)))
        log.write_now(numbered(2))
    assert ids(path.parent) == ["0", "2"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "4 answer(s)" in caplog.text


def test_a_real_limit_refuses_answers_and_is_got_over(path):
    code = """
import resource, sys
from pathlib import Path
from medqa.serve.audit import AuditError, AuditLog, AuditRecord
log, refused = AuditLog(Path(sys.argv[1])), 0
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for number in range(12):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if number < 8 else hard, hard))
    try:
        log.write_now(AuditRecord(id=str(number), client="api", latency_ms=1))
        print(number)
    except AuditError:
        refused += 1
assert refused
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert ids(path.parent) == done.stdout.split()
    assert done.stdout.split()[-4:] == ["8", "9", "10", "11"]


def test_closing_writes_what_waits_and_then_refuses(path):
    log = AuditLog(path)
    waiting = [log._submit(numbered(n)) for n in range(50)]
    log.close()
    log.close()
    assert all(done.result() is None for done in waiting)
    with pytest.raises(AuditError, match="closed"):
        log.write_now(RECORD)
    assert len(ids(path.parent)) == 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_writer_leaves_nobody_waiting(path, monkeypatch):
    def bug(self, data):
        raise ZeroDivisionError

    log = AuditLog(path)
    monkeypatch.setattr(logfile.LogFile, "append", bug)
    with pytest.raises(AuditError, match="stopped"):
        log.write_now(RECORD)
    with pytest.raises(AuditError, match="closed"):
        log.write_now(RECORD)
    log.close()


# Says an id only once its record is written, from many threads at once; never ends by itself.
WRITER = """
import os, sys, threading
from pathlib import Path
from medqa.serve.audit import AuditLog, AuditRecord
log = AuditLog(Path(sys.argv[1]), max_bytes=int(sys.argv[2]))
def write(name):
    number = 0
    while True:
        log.write_now(AuditRecord(id=f"{name}-{number}", client="api", latency_ms=1))
        os.write(1, f"{name}-{number}\\n".encode())
        number += 1
for thread in range(6):
    threading.Thread(target=write, args=(f"{sys.argv[3]}-{thread}",)).start()
"""


def kill_often(path, times, seed):
    draw, told = random.Random(seed), []
    for life in range(times):
        max_bytes = draw.choice((1, 2000, 20_000))
        command = [sys.executable, "-c", WRITER, str(path), str(max_bytes), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            told += [process.stdout.readline() for _ in range(draw.randrange(1, 60))]
            process.kill()
            told += process.stdout.readlines()
    told = [line.strip() for line in told if line.endswith("\n")]
    AuditLog(path).close()
    written = ids(path.parent)
    assert len(set(written)) == len(written)
    assert set(told) <= set(written)
    # The last record of each thread may have been on the disk and not yet told.
    assert len(written) - len(told) <= 6 * times
    assert len(told) >= times


def test_no_record_that_was_told_is_lost_by_kill_9(path):
    kill_often(path, 3, seed=0)


@pytest.mark.slow
def test_no_record_that_was_told_is_lost_by_any_of_many_kills(path):
    kill_often(path, 120, seed=1)
