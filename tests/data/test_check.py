import json

import openpyxl
import pytest

from medqa.config import SourceConfig
from medqa.data.check import check_file
from medqa.errors import DataError

QUESTIONS = [
    (
        "Which vitamin is lacking in scurvy?",
        "Vitamin A",
        "Vitamin C",
        "Vitamin D",
        "B",
        "Vitamin C is lacking.",
    ),
    ("Which vitamin is lacking in rickets?", "Vitamin A", "Vitamin C", "Vitamin D", "C", ""),
    ("Which organ makes insulin?", "Pancreas", "Spleen", "", "A", "Its islets do."),
    ("Which organ makes bile?", "Liver", "Spleen", "", "", ""),
]
HEADER = ["question", "option_a", "option_b", "option_c", "answer", "explanation"]


def write(file, rows, header=HEADER):
    file.write_text("".join(";".join(cells) + "\n" for cells in [header, *rows]))
    return file


def check(file, **fields):
    return check_file(SourceConfig(name=str(file), **fields))


def test_a_good_file_is_described(tmp_path):
    result = check(write(tmp_path / "f.csv", QUESTIONS), licence="internal")
    assert (result.num_rows, result.num_usable, result.num_with_explanation) == (4, 4, 2)
    assert (result.layout, result.licence, result.key_style) == ("table", "internal", "letter")
    assert "every key is a letter" in result.key_evidence
    assert result.keys == {"A": 1, "B": 1, "C": 1}
    assert result.num_options == {2: 2, 3: 2}
    assert result.no_key == ("f.csv:5",)
    assert result.broken == result.duplicates == ()
    assert result.trainable
    assert [text[:20] for text in result.advice] == ["fill in the missing "]
    assert json.loads(json.dumps(result.to_json()))["trainable"] is True


def test_every_broken_row_is_named_and_counted(tmp_path):
    broken = [
        ("", "Pancreas", "Spleen", "", "A", ""),
        ("Which organ?", "Pancreas", "Spleen"),
        ("Which organ?", "Pancreas", "", "Spleen", "A", ""),
        ("Which organ?", "Pancreas", "Spleen", "Pancreas", "A", ""),
        ("Which organ?", "Pancreas", "Spleen", "", "Liver", ""),
        ("", "Pancreas", "Spleen", "", "A", ""),
    ]
    result = check(write(tmp_path / "f.csv", [*QUESTIONS, *broken]))
    assert result.broken == (
        "f.csv:6: the question is empty",
        "f.csv:7: has 3 cells, the header has 6",
        "f.csv:8: option B is empty",
        "f.csv:9: option C repeats option A",
        "f.csv:10: answer is no letter of the 2 options",
        "f.csv:11: the question is empty",
    )
    assert next(iter(result.reasons.items())) == ("the question is empty", 2)
    assert not result.trainable
    assert any("mend the broken rows: they are 60.0%" in text for text in result.advice)
    text = "\n".join(result.lines())
    assert all(place in text for place in result.broken)
    assert "2 x the question is empty" in text
    short = "\n".join(result.lines(max_places=2))
    assert "... and 4 more" in short
    assert "f.csv:10" not in short
    allowed = check_file(SourceConfig(name=str(tmp_path / "f.csv")), allow_repeated_options=True)
    assert len(allowed.broken) == 5


def test_duplicates_and_contradicting_keys_are_named(tmp_path):
    again = ("which  organ makes INSULIN?", "Spleen", "Pancreas", "", "B", "")
    against = ("Which organ makes insulin?", "Pancreas", "Spleen", "", "B", "")
    other = ("Which organ makes insulin?", "Pancreas", "Liver", "", "A", "")
    file = tmp_path / "f.csv"
    result = check(write(file, [*QUESTIONS, again, other]))
    assert result.duplicates == (("f.csv:4", "f.csv:6"),)
    assert result.contradictions == ()
    result = check(write(file, [*QUESTIONS, again, other, against]))
    assert result.duplicates == result.contradictions == (("f.csv:4", "f.csv:6", "f.csv:8"),)
    assert any("f.csv:4, f.csv:6, f.csv:8" in text for text in result.advice)
    assert "with different keys (1)" in "\n".join(result.lines())


def test_keys_that_are_unclear_do_not_stop_the_check(tmp_path):
    rows = [(*q[:4], key, "") for q, key in zip(QUESTIONS, "1112", strict=True)]
    broken = ("", "Pancreas", "Spleen", "", "1", "")
    result = check(write(tmp_path / "f.csv", [*rows[:3], broken]))
    assert "fit both counting from 0 and from 1" in result.key_error
    assert result.broken == ("f.csv:5: the question is empty",)
    assert result.num_usable == 3
    assert result.no_key == ()
    assert not result.trainable
    assert "--set data.keys=0-based" in result.advice[0]
    assert "fit both" in "\n".join(result.lines())
    result = check(tmp_path / "f.csv", keys="1-based")
    assert (result.key_error, result.keys) == ("", {"A": 3})


def test_maps_sheets_and_missing_keys_are_shown(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "Exam"
    for row in (["stem", "x", "y"], ["Which organ makes insulin?", "Pancreas", "Spleen"]):
        book.active.append(row)
    book.save(tmp_path / "f.xlsx")
    result = check(tmp_path / "f.xlsx", map={"question": "stem", "option_a": "x", "option_b": "y"})
    assert result.files == (f"{tmp_path / 'f.xlsx'}, sheet 'Exam'",)
    assert (result.key_style, result.no_key) == ("none", ("f.xlsx:2",))
    assert not result.trainable
    text = "\n".join(result.lines())
    assert "table with question=stem, option_a=x, option_b=y" in text
    assert "not trained on" in text


def test_a_file_without_one_good_row_is_still_explained(tmp_path):
    (tmp_path / "f.jsonl").write_text("[1]\n{}\n")
    result = check(tmp_path / "f.jsonl")
    assert (result.layout, result.num_rows, result.num_usable) == (None, 2, 0)
    assert result.broken == ("f.jsonl:1: holds a list, expected an object", "f.jsonl:2: has no columns")
    assert result.lines()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"a,b\n1,caf\xe9\n", "f.csv:2: not UTF-8"),
        (b'a,b\n"x"y,2\n', "f.csv:2"),
        (b"a,b\n1,2\n", "fit no known layout"),
    ],
)
def test_what_is_wrong_with_the_whole_file_is_one_error(tmp_path, content, message):
    (tmp_path / "f.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        check(tmp_path / "f.csv")


def test_nothing_of_the_rows_is_shown(tmp_path):
    rows = [("Jane Doe?", "Jane", "Doe", "", "Jane Roe", "Jane"), ("Jane Doe?", "Jane", "Jane", "", "A", "")]
    result = check(write(tmp_path / "f.csv", [*QUESTIONS, *rows]))
    assert len(result.broken) == 2
    assert "Jane" not in json.dumps(result.to_json()) + "\n".join(result.lines())
