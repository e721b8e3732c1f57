"""Files of questions: every row once, in its place, whatever comes in between."""

import contextlib
import csv
import datetime
import decimal
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import traceback
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from medqa.data.tables import read_rows
from medqa.errors import DataError, DeviceError, RunError
from medqa.records import LETTERS, NOTICE, Answer
from medqa.serve import bulk, bulk_parts
from medqa.serve.bulk import answer_file

SETTINGS = {"adapter": "abc", "serve": {"orders": 1}}


def fake(examples):
    """Answer by a hash; a question that says so is too long."""
    return [_fake(example) for example in examples]


def _fake(example):
    if "too long" in example.question:
        return DataError(
            f"the question takes {len(example.question)} tokens, the model takes at most 8", "cut"
        )
    count = len(example.options)
    choice = hashlib.sha256(example.question.encode()).digest()[0] % count
    chances = {LETTERS[n]: 0.5 if n == choice else 0.5 / (count - 1) for n in range(count)}
    unsure = example.question.endswith("1")
    return Answer(
        question=example.question,
        letter=LETTERS[choice],
        option=example.options[choice],
        confidence=0.5,
        probabilities=chances,
        explanation="Since\nit is.",
        explanation_finished=True,
        model="tiny + run",
        calibration="temperature",
        answer_set=(LETTERS[choice], LETTERS[choice - 1]),
        alpha=0.1,
        abstain=unsure,
        reason="not sure" if unsure else None,
        explanation_check={"agrees": True, "warning": None},
    )


def run(source, target, answer=fake, chunk_rows=3, **more):
    return answer_file(
        source, target, lambda: answer, **{"chunk_rows": chunk_rows, "settings": SETTINGS, **more}
    )


def refuse_to_load():
    pytest.fail("loaded without need")


def questions(count):
    return [
        {
            "id": f"q{n}",
            "question": f"Which, in «{n}»?\n{n}",
            "options": [f"a{n}", f'b, "{n}"', "ç"][: 2 + n % 2],
        }
        for n in range(count)
    ]


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
                for row in rows
            )
    return path


def read(path, *, options_too=True):
    """Read with nothing of ours, and make of CSV's texts what they were."""
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
        for row in rows:
            if row["probabilities"]:
                row["probabilities"] = {k: v for k, v in row["probabilities"].items() if v is not None}
            row["explanation_check"] = row["explanation_check"] and json.loads(row["explanation_check"])
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = {
        "" if options_too else "options",
        "id",
        "question",
        "letter",
        "option",
        "explanation",
        "model",
        "calibration",
        "reason",
        "notice",
    }
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {k: v or None if k in {*texts, "error"} else json.loads(v) if v else None for k, v in row.items()}
            for row in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        ]


ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")


@pytest.mark.parametrize("into", ENDINGS)
@pytest.mark.parametrize("out_of", ENDINGS)
def test_every_format_in_and_out(tmp_path, out_of, into):
    rows = questions(8)
    source, target = write(tmp_path / f"in{out_of}", rows), tmp_path / f"out{into}"
    summary = run(source, target)
    found = read(target)
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [row["row"] for row in found] == list(range(1, 9))
    for row, own in zip(found, rows, strict=True):
        expected = _fake(bulk.Example(own["question"], tuple(own["options"])))
        assert row["question"] == own["question"]
        own_options = row["options"]
        assert (json.loads(own_options) if isinstance(own_options, str) else own_options) == own["options"]
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in expected.to_json().items()}
        assert {name: row[name] for name in values} == values
        assert row["notice"] == NOTICE
        assert row["error"] is None
    assert list(found[0])[:3] == ["id", "question", "options"]
    assert (summary["rows"], summary["answered"], summary["abstained"]) == (8, 8, 1)
    assert summary["errors"] == []
    assert {path.name for path in tmp_path.iterdir()} == {f"in{out_of}", f"out{into}"}


def test_rows_that_cannot_be_answered_keep_their_place(tmp_path):
    lines = [
        json.dumps(questions(1)[0]),
        '{"question": "cut off',
        "",
        json.dumps({"id": 7, "question": "One?", "options": ["a"]}),
        json.dumps({"question": "Two?", "options": ["John's", "John's"]}),
        json.dumps({"question": "too long", "options": ["a", "b"]}),
        json.dumps({"question": "too long, too", "options": ["a", "b"]}),
        "[1]",
        json.dumps({"question": "Text?", "options": "a or b"}),
        json.dumps({"question": None, "options": ["a", "b"]}),
        json.dumps({"question": "half \ud800", "options": ["a", "b"]}),
        json.dumps({"question": "Fine?", "options": ["a", "b"], "weight": float("nan")}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    summary = run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", chunk_rows=2)
    found = read(tmp_path / "out.jsonl")
    assert [row["line"] for row in found] == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [row["row"] for row in found] == list(range(1, 12))
    assert [row["error"] for row in found] == [
        None,
        "not JSON at column 14",
        "1 option(s), expected 2 to 10",
        'option "John\'s" is given more than once',
        "the question takes 8 tokens, the model takes at most 8",
        "the question takes 13 tokens, the model takes at most 8",
        "holds a list, expected an object",
        'options is no JSON list, such as ["...", "..."]',
        "the question is empty",
        "question holds half a character (a lone surrogate)",
        None,
    ]
    assert found[2]["id"] == 7
    assert found[9]["question"] == "half \ud800"
    assert found[10]["weight"] is None
    assert all((row["letter"] is None) == (row["error"] is not None) for row in found)
    assert (summary["rows"], summary["answered"]) == (11, 2)
    reasons = {error["reason"]: (error["count"], error["lines"]) for error in summary["errors"]}
    assert reasons["the question takes 8 tokens, the model takes at most 8"] == (2, [6, 7])
    assert reasons["option '...' is given more than once"] == (1, [5])  # no words of the file on a terminal
    for ending in (".csv", ".parquet"):  # which have no way to write half a character
        run(tmp_path / "in.jsonl", tmp_path / f"out{ending}")
        rows = read(tmp_path / f"out{ending}", options_too=False)
        assert rows[9]["question"] == "half \\ud800"
        assert [row["error"] for row in rows] == [row["error"] for row in found]


def test_cells_with_quotes_lines_and_a_wrong_number(tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(
        "id;question;option_a;option_b;option_c;note\r\n"
        '1;"Two\nlines; ""quoted""?";a;b;;"x\ry"\r\n'
        "2;too;few\r\n"
        "\r\n"
        "3;Drei — ß?;a;b;c;=1+1\r\n".encode()
    )
    run(source, target)
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["line"] for row in rows] == ["2", "4", "6"]
    assert rows[0]["question"] == 'Two\nlines; "quoted"?'
    assert rows[0]["note"] == "x\ry"
    assert set(json.loads(rows[0]["probabilities"])) == {"A", "B"}
    assert rows[1]["error"] == "has 3 cells, the header has 6"
    assert rows[1]["id"] == rows[1]["letter"] == ""
    assert (rows[2]["abstain"], rows[2]["question"]) == ("false", "Drei — ß?")
    assert b"\r\n" not in target.read_bytes()
    # What was written can be read, and answered, again: the columns of the first answer are told apart.
    summary = run(target, tmp_path / "again.csv")
    assert summary["renamed_columns"]["letter"] == "input_letter"
    again = [cells for _, cells, _ in read_rows(tmp_path / "again.csv")]
    assert [cells["input_letter"] for cells in again] == [row["letter"] for row in rows]


LAYOUTS = {
    "medmcqa": {"id": "m", "question": "Q?", "opa": "a", "opb": "b", "opc": "", "opd": "", "exp": {"no": 1}},
    "medqa": {"question": "Q?", "options": {"A": "a", "B": "b", "C": None}, "answer_idx": "Z"},
    "medqa without a key": {
        "question": "Q?",
        "options": [{"key": "A", "value": "a"}, {"key": "B", "value": "b"}],
    },
    "mmlu": {"question": "Q?", "choices": ["a", "b"], "answer": 9},
    "mmlu without a key": {"question": "Q?", "choices": ["a", "b"], "subject": "anatomy"},
    "pubmedqa": {"pubid": 5, "question": "Q?", "context": {"contexts": ["x", "y"]}, "final_decision": "?"},
    "pubmedqa without a key": {"pubid": 5, "question": "Q?", "context": {"contexts": ["x"]}},
    "table": {"question": "Q?", "option_a": "a", "option_b": "b", "answer": "neither", "context": "x"},
    "options": {"question": "Q?", "options": ["a", "b"], "context": "x", "explanation": "theirs"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_with_and_without_its_key(tmp_path, name):
    asked = []

    def spy(examples):
        asked.extend(examples)
        return fake(examples)

    row = LAYOUTS[name]
    run(write(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl", spy)
    [found] = read(tmp_path / "out.jsonl")
    assert found["error"] is None
    [example] = asked
    options = ("yes", "no", "maybe") if name.startswith("pubmedqa") else ("a", "b")
    assert (example.question, example.options, example.answer) == ("Q?", options, None)
    assert example.context == {"pubmedqa": "x y", "medmcqa": None}.get(
        name, "x" if "context" in row else None
    )
    assert found["id"] == (row.get("id") or ("5" if "pubid" in row else None))
    carried = {f"input_{k}" if k == "explanation" else k: v for k, v in row.items()}
    assert {k: found[k] for k in carried} == carried


def test_own_columns_by_a_map(tmp_path):
    rows = [{"stem": "Q?", "first": "a", "second": "b", "key": "?", "question": "other", "number": 3}]
    mapping = {"question": "stem", "option_a": "first", "option_b": "second", "id": "number"}
    run(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", mapping=mapping)
    [found] = read(tmp_path / "out.jsonl")
    assert {k: found[k] for k in rows[0]} == rows[0]
    assert (found["id"], found["option"] in ("a", "b")) == ("3", True)
    with pytest.raises(DataError, match="no column 'steam'"):
        run(tmp_path / "in.jsonl", tmp_path / "x.jsonl", mapping={"question": "steam"})
    with pytest.raises(DataError, match="fit no known layout") as error:
        run(tmp_path / "in.jsonl", tmp_path / "x.jsonl")
    assert "--map" in error.value.hint
    two = write(tmp_path / "two.jsonl", [{"question": "Q?", "context": "x", "first": "a"}])
    with pytest.raises(DataError, match="fit no known layout"):  # and isn't taken for PubMedQA
        run(two, tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl.parts").exists()


def test_types_of_a_parquet_file_stay(tmp_path):
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = pyarrow.table(
        {
            "question": ["Q?", "R?"],
            "options": [["a", "b"], ["c", "d"]],
            "number": pyarrow.array([1, None], pyarrow.int16()),
            "when": pyarrow.array([when, None], pyarrow.timestamp("ms")),
            "price": pyarrow.array([decimal.Decimal("1.50"), None], pyarrow.decimal128(5, 2)),
            "blob": pyarrow.array([b"\xff", None], pyarrow.binary()),
            "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
            "nested": [{"a": [1]}, {"a": None}],
            "reason": ["theirs", "too"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    summary = run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert summary["renamed_columns"] == {"reason": "input_reason"}
    for name in table.column_names:
        new = summary["renamed_columns"].get(name, name)
        assert found[new].type == table[name].type
        assert found[new].to_pylist() == table[name].to_pylist()
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    first = read(tmp_path / "out.jsonl")[0]
    expected = (when.isoformat(), "1.50", "/w==", {"a": [1]})
    assert (first["when"], first["price"], first["blob"], first["nested"]) == expected


def test_types_of_json_are_found_over_all_rows(tmp_path):
    rows = [
        {"n": 1, "x": 1, "b": True, "t": "a", "m": 1, "l": ["a"], "big": 1 << 70},
        {"n": None, "x": 0.5, "b": None, "t": None, "m": "one", "l": [], "big": 1},
    ]
    rows = [{"question": "Q?", "options": ["a", "b"], **row} for row in rows]
    run(write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet", chunk_rows=1)
    found = read(tmp_path / "out.parquet")
    values = [tuple(row[name] for name in ("n", "x", "b", "t", "m", "l", "big")) for row in found]
    assert values[0] == (1, 1.0, True, "a", "1", ["a"], str(1 << 70))
    assert values[1] == (None, 0.5, None, None, "one", [], "1")


def test_what_is_refused_before_anything_is_made(tmp_path):
    good = write(tmp_path / "in.jsonl", questions(2))
    empty, broken, other = tmp_path / "empty.csv", tmp_path / "broken.jsonl", tmp_path / "in.docx"
    empty.write_text("")
    broken.write_text("{\n[\n")
    other.write_text("x")
    for source, target, words in (
        (tmp_path / "none.csv", "x.csv", "no file"),
        (empty, "x.csv", "no rows"),
        (broken, "x.csv", "none of 2 rows can be read: broken.jsonl:1: not JSON"),
        (other, "x.csv", "'.docx' are not read"),
        (good, "x.xlsx", "'.xlsx' are not written"),
    ):
        with pytest.raises(DataError, match=words):
            answer_file(source, tmp_path / target, refuse_to_load, chunk_rows=1, settings={})
    with pytest.raises(RunError, match="can't be made"):
        run(good, tmp_path / "none" / "out.csv")
    before = good.read_bytes()
    with pytest.raises(RunError, match="is there already, and is never overwritten"):
        run(good, good)
    assert good.read_bytes() == before
    assert not list(tmp_path.glob("*.parts"))


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
                answer_file(source, target, refuse_to_load, **{"chunk_rows": 3, "settings": SETTINGS, **more})
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
    with pytest.raises(ValueError, match="shorter"):  # nor are too few answers
        run(source, tmp_path / "out.jsonl", lambda examples: fake(examples)[1:])
    assert run(source, tmp_path / "out.jsonl")["rows"] == 10


def test_two_at_once_on_the_same_target(tmp_path):
    source, target = write(tmp_path / "in.jsonl", questions(5)), tmp_path / "out.jsonl"

    def meanwhile(examples):
        with pytest.raises(RunError, match=r"being made already, by process \d+"):
            run(source, target, launch="another")
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
    assert answer_file(source, target, refuse_to_load, chunk_rows=3, settings=SETTINGS)["rows"] == 5


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
    code = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_bulk; "
    code += "test_bulk.kill_everywhere(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder), ending, str(num_kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_killed_anywhere_no_row_is_lost_or_doubled(tmp_path):
    _kill_in_a_process_of_its_own(tmp_path, ".csv", 6)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_killed_everywhere_no_row_is_lost_or_doubled(tmp_path, ending):
    _kill_in_a_process_of_its_own(tmp_path, ending, 250)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    peaks = []
    for count in (20_000, 200_000):
        source = tmp_path / f"in{count}.jsonl"
        with source.open("w") as file:
            file.writelines(
                json.dumps({"id": n, "question": f"Which of {n}?", "options": ["a", "b"]}) + "\n"
                for n in range(count)
            )
        tracemalloc.start()
        run(source, tmp_path / f"out{count}{ending}", chunk_rows=1000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2 + 1e6
