"""Jobs that are killed, gone on with, shared or asked for twice: no row is lost or doubled."""

import contextlib
import os
import random
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from medqa.cli.bulk import _mapping, _print_summary, _processes
from medqa.errors import ConfigError, DataError, DeviceError, RunError
from medqa.serve import bulk, bulk_parts
from medqa.serve.bulk import answer_file
from serve.bulk_files import SETTINGS, fake, questions, read, refuse_to_load, run, write


class Stopped(BaseException):
    pass


def stops_after(count):
    """Answer so many chunks, then be interrupted."""
    left = iter([fake] * count)

    def answer(examples):
        try:
            return next(left)(examples)
        except StopIteration:
            raise Stopped from None

    return answer


@contextlib.contextmanager
def begun(source, target, chunks=1, **more):
    with pytest.raises(Stopped):
        run(source, target, stops_after(chunks), **more)
    assert not target.exists()
    yield Path(f"{target}.parts")


def test_it_goes_on_where_it_was_and_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "medqa")
    source = write(tmp_path / "in.jsonl", questions(10))
    run(source, tmp_path / "whole.jsonl")
    with begun(source, tmp_path / "out.jsonl", 2):
        assert "6 of 10 rows are kept in" in caplog.text
    asked = []
    summary = run(source, tmp_path / "out.jsonl", lambda e: asked.extend(e) or fake(e), chunk_rows=7)
    assert "Going on: 6 of 10 rows are done" in caplog.text
    assert len(asked) == 4  # in chunks of three, as it was begun
    assert (summary["rows"], summary["answered_now"], summary["abstained"]) == (10, 4, 1)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_job_is_refused(tmp_path):
    source, target = write(tmp_path / "in.jsonl", questions(10)), tmp_path / "out.jsonl"
    with begun(source, target) as parts:
        for more, words in (
            ({"settings": {**SETTINGS, "serve": {"orders": 4}}}, "settings.serve.orders: 1, now 4"),
            ({"settings": {"adapter": "abc"}}, "settings.serve.orders: 1, now null"),
            ({"mapping": {"question": "id"}}, "map.question: null, now"),
        ):
            with pytest.raises(RunError, match=words) as error:
                answer_file(
                    source, target, refuse_to_load, **{"chunk_rows": lambda: 3, "settings": SETTINGS, **more}
                )
            assert f"rm -r {parts}" in error.value.hint
        write(source, questions(11))
        with pytest.raises(RunError, match=r"input\.bytes"):
            run(source, target)
        write(source, questions(10))
        moved = source.rename(tmp_path / "moved.jsonl")
        assert run(moved, target)["finished"]  # the same content under another name is the same job


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    source = write(tmp_path / "in.jsonl", questions(10))

    def meddle(examples):
        with source.open("a") as file:
            file.write("\n")
        return fake(examples)

    with pytest.raises(DataError, match="was changed while it was read"):
        run(source, tmp_path / "out.jsonl", meddle)


def test_an_error_of_all_is_no_answer_of_a_row(tmp_path):
    def fail(examples):
        raise DeviceError("out of memory", "smaller batches")

    source = write(tmp_path / "in.jsonl", questions(10))
    with pytest.raises(DeviceError, match="out of memory"):
        run(source, tmp_path / "out.jsonl", fail)
    assert not (tmp_path / "out.jsonl.parts").exists()  # nothing was done, so nothing is left
    with pytest.raises(DeviceError, match="out of memory"):
        run(source, tmp_path / "out.jsonl", fail, rank=0, world_size=2)
    # What came of that is no hindrance to asking for something else.
    assert run(source, tmp_path / "out.jsonl", settings={"adapter": "b"})["finished"]
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(ValueError, match="shorter"):  # nor are too few answers
        run(source, tmp_path / "out.jsonl", lambda examples: fake(examples)[1:])
    assert run(source, tmp_path / "out.jsonl")["rows"] == 10


def test_two_at_once_on_the_same_target(tmp_path):
    source, target = write(tmp_path / "in.jsonl", questions(5)), tmp_path / "out.jsonl"

    def meanwhile(examples):
        with pytest.raises(RunError, match=r"being made already, by process \d+"):
            run(source, target, launch="another")
        with pytest.raises(RunError, match="being made already"):  # though it has the same number
            run(source, target)
        return fake(examples)

    assert run(source, target, meanwhile)["finished"]


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path):
    source, target = write(tmp_path / "in.jsonl", questions(5)), tmp_path / "out.jsonl"

    def meddle(examples):
        target.write_text("mine")
        return fake(examples)

    with pytest.raises(RunError, match="never overwritten") as error:
        run(source, target, meddle)
    assert "what was done is kept" in error.value.hint
    assert target.read_text() == "mine"
    target.unlink()
    assert answer_file(source, target, refuse_to_load, chunk_rows=lambda: 3, settings=SETTINGS)["rows"] == 5


def test_without_hard_links(tmp_path, monkeypatch):
    def no_links(*args):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(bulk_parts.os, "link", no_links)
    source = write(tmp_path / "in.jsonl", questions(5))
    assert run(source, tmp_path / "out.jsonl")["finished"]
    assert len(read(tmp_path / "out.jsonl")) == 5
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_a_part_that_was_damaged_is_made_again(tmp_path):
    source, target = write(tmp_path / "in.jsonl", questions(10)), tmp_path / "out.jsonl"
    run(source, tmp_path / "whole.jsonl")
    with begun(source, target, 3) as parts:
        (parts / "00000001.jsonl").write_text("cut")
        (parts / "00000002.jsonl").unlink()
        run(source, target)
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_several_processes_make_the_same_file(tmp_path, ending):
    source = write(tmp_path / f"in{ending}", questions(22))
    whole, target = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    run(source, whole)
    first = run(source, target, rank=1, world_size=2, launch="both")
    assert first["finished"] is False
    assert not target.exists()
    last = run(source, target, rank=0, world_size=2, launch="both")
    assert (last["finished"], last["rows"]) == (True, 22)
    assert target.read_bytes() == whole.read_bytes()
    # One more that comes too late has nothing to do; another launch finds the file there.
    assert run(source, target, rank=1, world_size=2, launch="both")["finished"] is False
    with pytest.raises(RunError, match="never overwritten"):
        run(source, target, rank=0, world_size=2, launch="other")


def test_several_processes_at_the_same_time(tmp_path):
    source = write(tmp_path / "in.csv", questions(60))
    run(source, tmp_path / "whole.csv")
    for count in (2, 5):
        target, found = tmp_path / f"out{count}.csv", []

        def work(rank, count=count, target=target, found=found):
            found.append(run(source, target, rank=rank, world_size=count, launch="all"))

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(summary["finished"] for summary in found) == 1
        assert len(found) == count
        assert target.read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert not Path(f"{target}.parts").exists()


def test_going_on_with_another_number_of_processes(tmp_path):
    source, target = write(tmp_path / "in.jsonl", questions(30)), tmp_path / "out.jsonl"
    run(source, tmp_path / "whole.jsonl")
    with begun(source, target, 2, rank=1, world_size=3, launch="three"):
        assert not run(source, target, rank=0, world_size=2, launch="two")["finished"]
        assert run(source, target, rank=1, world_size=2, launch="two")["finished"]
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


KILLED = 9
WATCHED = {Path(bulk.__file__).with_name(f"{name}.py") for name in ("bulk", "bulk_parts", "bulk_write")} | {
    Path(bulk.__file__).parents[1] / "files.py"
}


def in_a_child(work, kill_at=None):
    """Run in a fork; at the so manyth call that the code under test makes, it is gone.

    Returns the exit status, and how many calls there were if it came to its end.
    """
    end_read, end_write = os.pipe()
    if not (child := os.fork()):
        calls = 0

        def watch(frame, event, _):
            nonlocal calls
            if event in ("c_call", "c_return") and frame.f_code.co_filename in watched:
                calls += 1
                if calls == kill_at:
                    os._exit(KILLED)

        watched = {str(path) for path in WATCHED}
        try:
            sys.setprofile(watch)
            work()
            sys.setprofile(None)
            os.write(end_write, str(calls).encode())
            os._exit(0)
        finally:
            sys.setprofile(None)
            traceback.print_exc()
            os._exit(1)
    os.close(end_write)
    with os.fdopen(end_read) as stream:
        calls = int(stream.read() or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), calls


def kill_everywhere(folder, ending, num_kills):
    """Kill a job at calls drawn by lot, go on with it each time, and compare with one that was not killed."""
    source = write(folder / "in.jsonl", questions(8))
    run(source, folder / f"whole{ending}")
    whole = (folder / f"whole{ending}").read_bytes()
    lot = random.Random(0)
    target = folder / f"out{ending}"

    def go_on():
        if target.exists() and not Path(f"{target}.parts", "joined").exists():  # it was done before the kill
            with pytest.raises(RunError, match="is there already"):
                run(source, target)
        else:
            run(source, target)

    _, num_calls = in_a_child(go_on)
    target.unlink()
    places = lot.sample(range(1, num_calls + 1), min(num_kills, num_calls))
    for place in sorted(places):
        kills = (place, lot.randrange(1, num_calls), None)
        statuses = [in_a_child(go_on, kill_at)[0] for kill_at in kills]
        assert statuses in ([KILLED, KILLED, 0], [KILLED, 0, 0]), f"killed at {kills} of {num_calls}"
        assert target.read_bytes() == whole, f"killed at {kills} of {num_calls}"
        assert {path.name for path in folder.iterdir()} == {"in.jsonl", target.name, f"whole{ending}"}
        target.unlink()


def _kill_in_a_process_of_its_own(folder, ending, num_kills):
    """Fork where no other thread is."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from serve import test_bulk_jobs as jobs; "
    code += "jobs.kill_everywhere(jobs.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, str(tests), str(folder), ending, str(num_kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_killed_anywhere_no_row_is_lost_or_doubled(tmp_path):
    _kill_in_a_process_of_its_own(tmp_path, ".csv", 5)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_killed_everywhere_no_row_is_lost_or_doubled(tmp_path, ending):
    _kill_in_a_process_of_its_own(tmp_path, ending, 250)


def test_which_of_how_many_processes_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert _processes() == (0, 1, "")
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "host",
        "MASTER_PORT": "29500",
    }.items():
        monkeypatch.setenv(name, value)
    rank, world_size, launch = _processes()
    assert (rank, world_size) == (1, 2)
    assert "host 29500" in launch
    for wrong in ("two", "2", "-1"):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(ConfigError, match="RANK"):
            _processes()


def test_a_map_on_the_command_line():
    assert _mapping(["question=stem", "id = a=b"]) == {"question": "stem", "id": " a=b"}
    with pytest.raises(ConfigError, match="FIELD=COLUMN"):
        _mapping(["question"])


def test_what_is_printed(tmp_path, capsys):
    rows = [
        *questions(4),
        {"question": "too long", "options": ["a", "b"]},
        {"question": "Q?", "options": ["a"]},
    ]
    rows[0]["reason"] = "theirs"
    found = run(write(tmp_path / "in.jsonl", rows), tmp_path / "out.csv")
    capsys.readouterr()
    _print_summary(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "Answered  4 of 6 rows, 1 of them not sure enough",
        "Errors    2 rows, kept with the reason in `error`:",
        "          1 x the question takes 8 tokens, the model takes at most 8 (line 5)",
        "          1 x 1 option(s), expected 2 to 10 (line 6)",
    ]
    assert lines[4] == "Column    the file's own 'reason' is called 'input_reason'"
    assert lines[-1] == f"Answers   {tmp_path}/out.csv"
