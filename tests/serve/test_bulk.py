"""Rows of every format and layout: each in its place, whatever is wrong with it."""

import csv
import datetime
import decimal
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from medqa.data.tables import read_rows
from medqa.errors import DataError, RunError
from medqa.records import NOTICE, Example
from medqa.serve.bulk import answer_file
from serve.bulk_files import answer_one, fake, questions, read, refuse_to_load, run, write

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
        expected = answer_one(Example(own["question"], tuple(own["options"])))
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
            answer_file(source, tmp_path / target, refuse_to_load, chunk_rows=lambda: 3, settings={})
    with pytest.raises(RunError, match="can't be made"):
        run(good, tmp_path / "none" / "out.csv")
    before = good.read_bytes()
    with pytest.raises(RunError, match="is there already, and is never overwritten"):
        run(good, good)
    assert good.read_bytes() == before
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, ending):
    """A hundred chunks take as much as a few: two blocks of 4 MiB to hash the file, and two chunks."""
    run(write(tmp_path / "few.jsonl", questions(8)), tmp_path / f"few{ending}")  # imports are not counted
    source = tmp_path / "in.jsonl"
    with source.open("w") as file:
        for n in range(100_000):
            row = {"id": n, "question": f"Which of {n}?", "options": ["a", "b"], "note": "n" * 200}
            file.write(json.dumps(row) + "\n")
    tracemalloc.start()
    run(source, tmp_path / f"out{ending}", chunk_rows=1000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 16e6 < source.stat().st_size * 0.6
