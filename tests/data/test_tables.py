import contextlib
import csv
import datetime
import io
import json
import logging
import re
import sys
import tempfile
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.config import SourceConfig
from medqa.data.excel import BadCell, sheet_name
from medqa.data.sources import read_split
from medqa.data.tables import read_rows
from medqa.errors import DataError, DependencyError

HEADER = ["question", "option_a", "option_b", "answer"]
ROW = ["Which organ makes insulin?", "Pancreas", "Spleen", "A"]


def rows_of(file, content=None):
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(file))


def write_sheet(file, rows, title="Sheet"):
    book = openpyxl.Workbook()
    book.active.title = title
    for row in rows:
        book.active.append(row)
    book.save(file)
    return file


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_separators_are_found_in_the_header(tmp_path, separator, bom):
    lines = [separator.join(cells) for cells in (HEADER, ROW)]
    [(where, row, reason)] = rows_of(tmp_path / "f.csv", bom + "\r\n".join(lines) + "\r\n")
    assert (where, row, reason) == ("f.csv:2", dict(zip(HEADER, ROW, strict=True)), "")


def test_a_separator_inside_quotes_does_not_count(tmp_path):
    [(_, row, _)] = rows_of(tmp_path / "f.tsv", '"a,b,c"\td\n1\t2\n')
    assert row == {"a,b,c": "1", "d": "2"}
    with pytest.raises(DataError, match="as many") as caught:
        rows_of(tmp_path / "f.csv", "a,b;c\n1,2\n")
    assert "quotes" in caught.value.hint


def test_rows_of_another_width_are_broken_and_named_by_their_first_line(tmp_path):
    content = 'a,b,c\n1,2\n\n"x\ny",2,3\n1,2,3,4\n,,,\n1,2,3\n'
    assert rows_of(tmp_path / "f.csv", content) == [
        ("f.csv:2", None, "has 2 cells, the header has 3"),
        ("f.csv:4", {"a": "x\ny", "b": "2", "c": "3"}, ""),
        ("f.csv:6", None, "has 4 cells, the header has 3"),
        ("f.csv:8", {"a": "1", "b": "2", "c": "3"}, ""),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n1,2\n"x"y,2\n', r"f.csv:3: the row can't be told into cells"),
        (b'a,b\n1,2\n1,"open\n1,2\n1,2\n', r"f.csv:3: a quote that opens in this row is never closed"),
        (b'a,b\n1,"open\n1,"2"\n', r"f.csv:2: .*goes on to line 3"),
        (b"a,b\n1,2\n1,caf\xe9\n", r"f.csv:3: not UTF-8; it looks like Windows-1252"),
        (b"a,b\n1,\x81\xff\n", r"f.csv:2: not UTF-8$"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-le"), "f.csv:1: zero bytes"),
        (b"a,,b,\n1,2,3,4\n", "no name in the header for column 2, 4"),
        (b"a,b,a\n1,2,3\n", "names 'a' more than once"),
    ],
)
def test_files_that_are_refused_as_a_whole(tmp_path, content, message):
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path / "f.csv", content)
    assert re.search(message, caught.value.message)
    assert caught.value.hint
    if "UTF" in message:
        assert "save as UTF-8" in caught.value.hint


def test_jsonl_names_each_unreadable_line(tmp_path):
    deep = "[" * 100_000
    content = f'{{"a": 1}}\n\n{{"a": \n{{"a": 1, "a": 2}}\n[1]\n{deep}\n'
    assert rows_of(tmp_path / "f.jsonl", content) == [
        ("f.jsonl:1", {"a": 1}, ""),
        ("f.jsonl:3", None, "not JSON at column 6"),
        ("f.jsonl:4", None, "names a field twice"),
        ("f.jsonl:5", None, "holds a list, expected an object"),
        ("f.jsonl:6", None, "nested too deeply"),
    ]


def test_json_is_a_list_or_lines_under_another_name(tmp_path):
    file = tmp_path / "f.json"
    rows = [{"a": 1}, {"a": 2}]
    for content in (json.dumps(rows), json.dumps(rows, indent=1)):
        assert [(w, r) for w, r, _ in rows_of(file, content)] == [
            ("f.json:row 1", {"a": 1}),
            ("f.json:row 2", {"a": 2}),
        ]
    assert [w for w, _, _ in rows_of(file, '{"a": 1}\n{"a": 2}\n')] == ["f.json:1", "f.json:2"]
    assert rows_of(file, "") == []
    assert rows_of(file, "[1]") == [("f.json:row 1", None, "holds a int, expected an object")]
    for content, message in [
        (json.dumps({"data": rows}, indent=1), "holds a dict, expected a list"),
        ('[{"a": 1},\n oops]', "f.json:2: not JSON at column 2"),
        ('[{"a": 1, "a": 2}]', "an object names a field twice"),
        ("[" * 100_000, "nested too deeply"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            rows_of(file, content)
        assert caught.value.hint


def test_parquet_with_two_columns_of_one_name_or_damaged_text(tmp_path):
    file = tmp_path / "f.parquet"
    column = pyarrow.array(["x"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column, column], names=["a", "a"]), file)
    with pytest.raises(DataError, match="names 'a' more than once"):
        rows_of(file)
    damaged = pyarrow.array([b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([damaged], names=["a"]), file)
    with pytest.raises(DataError, match="not UTF-8"):
        rows_of(file)


def test_excel_reads_the_first_sheet_that_has_rows_and_says_which(tmp_path, caplog):
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    for title in ("Questions", "Old"):
        sheet = book.create_sheet(title)
        sheet.append([])
        sheet.append(HEADER)
        sheet.append(ROW)
        sheet.append([None] * 4)
        sheet.append([*ROW[:2], None, 2])
        sheet.append([*ROW, "beyond"])
    book.save(tmp_path / "f.xlsx")
    with caplog.at_level(logging.INFO):
        rows = rows_of(tmp_path / "f.xlsx")
    assert rows == [
        ("f.xlsx:3", dict(zip(HEADER, ROW, strict=True)), ""),
        ("f.xlsx:5", dict(zip(HEADER, [*ROW[:2], None, 2], strict=True)), ""),
        ("f.xlsx:6", None, "has 5 cells, the header has 4"),
    ]
    assert "sheet 'Questions' is read" in caplog.text
    assert "not ['Old']" in caplog.text
    assert sheet_name(tmp_path / "f.xlsx") == "Questions"
    assert rows_of(write_sheet(tmp_path / "g.xlsx", [])) == []
    assert sheet_name(tmp_path / "g.xlsx") == ""


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("#REF!", "option_a holds an Excel error"),
        ("#N/A", "option_a holds an Excel error"),
        ('="Pan"&"creas"', "option_a is a formula without a stored value"),
        (datetime.date(2024, 2, 1), "option_a is a date or time, as Excel makes of 1-2"),
        (datetime.time(1, 2), "option_a is a date or time"),
    ],
)
def test_excel_cells_that_hold_no_value_break_their_row(tmp_path, cell, reason):
    file = write_sheet(tmp_path / "f.xlsx", [HEADER, *[ROW] * 120, [ROW[0], cell, *ROW[2:]]])
    split = read_split(SourceConfig(name=str(file)), "train")
    assert len(split.examples) == 120
    assert split.broken[0].startswith(f"f.xlsx:122: {reason}")
    unused = write_sheet(tmp_path / "g.xlsx", [[*HEADER, "notes"], [*ROW, cell]])
    assert len(read_split(SourceConfig(name=str(unused)), "train").examples) == 1


def test_excel_percentages_are_not_read_as_other_numbers(tmp_path):
    book = openpyxl.Workbook()
    for row in (HEADER, [*ROW[:1], 0.05, 0.5, "A"]):
        book.active.append(row)
    book.active["B2"].number_format = "0%"
    book.save(tmp_path / "f.xlsx")
    [(_, row, _)] = rows_of(tmp_path / "f.xlsx")
    assert isinstance(row["option_a"], BadCell)
    assert row["option_b"] == 0.5


def test_excel_headers_and_files_that_are_refused(tmp_path):
    for header, message in [(["a", None, "b"], "for column 2"), (["a", "a"], "more than once")]:
        with pytest.raises(DataError, match=message):
            rows_of(write_sheet(tmp_path / "f.xlsx", [header, [1, 2, 3]]))
    whole = (tmp_path / "f.xlsx").read_bytes()
    for content in (b"", b"no zip", whole[: len(whole) // 2], b"PK\x05\x06" + bytes(18)):
        with pytest.raises(DataError, match="not a readable Excel file") as caught:
            rows_of(tmp_path / "f.xlsx", content)
        assert "password" in caught.value.hint


def test_excel_without_openpyxl_says_what_to_install(tmp_path, monkeypatch):
    file = write_sheet(tmp_path / "f.xlsx", [HEADER, ROW])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DependencyError) as caught:
        rows_of(file)
    assert "pip install openpyxl" in caught.value.hint


def test_every_kind_gives_the_same_question(tmp_path):
    row = dict(zip(HEADER, ROW, strict=True))
    (tmp_path / "f.json").write_text(json.dumps([row]))
    (tmp_path / "f.jsonl").write_text(json.dumps(row))
    (tmp_path / "f.csv").write_text("\n".join(",".join(cells) for cells in (HEADER, ROW)))
    (tmp_path / "f.TSV").write_text("\n".join("\t".join(cells) for cells in (HEADER, ROW)))
    write_sheet(tmp_path / "f.xlsx", [HEADER, ROW])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "f.parquet")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    splits = [read_split(SourceConfig(name=str(file)), "train") for file in files]
    assert {(e.question, e.options, e.answer) for s in splits for e in s.examples} == {
        (ROW[0], ("Pancreas", "Spleen"), 0)
    }


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4), st.sampled_from(",;\t"))
def test_whatever_a_csv_writer_writes_is_read_back(rows, separator):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerows([("one", "two", "three"), *rows])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f.csv"
        file.write_bytes(text.getvalue().encode())
        assert [tuple(row.values()) for _, row, _ in read_rows(file)] == rows


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([".csv", ".jsonl", ".json", ".xlsx", ".parquet"]))
def test_any_bytes_give_rows_or_a_data_error(content, suffix):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"f{suffix}"
        file.write_bytes(content)
        with contextlib.suppress(DataError):
            for where, row, reason in read_rows(file):
                assert where.startswith("f.")
                assert (row is None) == bool(reason)
