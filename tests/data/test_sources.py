import dataclasses
import json

import pytest

from medqa.config import DataConfig
from medqa.data.sources import STARTER, read_split
from medqa.errors import DataError, HubError
from medqa.testing import make_examples, write_medmcqa

ROW = {"question": "q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 1, "exp": "why"}


def read(path, split="train", **fields):
    return read_split(DataConfig(name=str(path), **fields), split)


def write_jsonl(file, rows):
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return file


def test_jsonl_csv_and_parquet_give_the_same_questions(tmp_path):
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    jsonl = write_medmcqa(tmp_path / "a.jsonl", make_examples(12))
    table = pyarrow.json.read_json(jsonl)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    examples = [
        [dataclasses.replace(e, source="") for e in read(tmp_path / f"a.{kind}").examples]
        for kind in ("jsonl", "csv", "parquet")
    ]
    assert examples[0] == examples[1] == examples[2]
    assert [e.answer for e in examples[0]] == [e.answer for e in make_examples(12)]
    assert {e.licence for e in examples[0]} == {"apache-2.0"}


def test_splits_are_told_apart_by_a_word_of_the_path(tmp_path):
    for name in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/dev"):
        write_medmcqa(tmp_path / f"{name}.jsonl", make_examples(2))
    assert len(read(tmp_path).examples) == 4
    assert len(read(tmp_path, "validation").examples) == 2
    with pytest.raises(DataError, match="split 'test'") as caught:
        read(tmp_path, "test")
    assert "dev.jsonl" in caught.value.hint


def test_medqa_four_and_five_options(tmp_path):
    rows = [
        {"question": "q", "options": dict(zip("ABCDE", "vwxyz", strict=True)), "answer_idx": "E"},
        {
            "question": "q",
            "options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}],
            "answer_idx": "B",
        },
        {"question": "q", "options": dict(zip("ABCDE", [*"vwxy", None], strict=True)), "answer_idx": "A"},
    ]
    examples = read(write_jsonl(tmp_path / "f.jsonl", rows)).examples
    assert [(e.options, e.answer) for e in examples] == [
        (("v", "w", "x", "y", "z"), 4),
        (("x", "y"), 1),
        (("v", "w", "x", "y"), 0),
    ]


def test_medqa_keys_go_by_the_options_own_letters(tmp_path):
    skipped = {"A": "a", "B": None, "C": "right", "D": "wrong"}
    swapped = [{"key": "B", "value": "right"}, {"key": "A", "value": "wrong"}]
    rows = [
        {"question": "q", "options": skipped, "answer_idx": "C"},
        {"question": "q", "options": swapped, "answer_idx": "B"},
        {"question": "q", "options": skipped, "answer_idx": ""},
    ]
    examples = read(write_jsonl(tmp_path / "f.jsonl", rows)).examples
    assert [e.answer is not None and e.options[e.answer] for e in examples] == ["right", "right", False]
    for key in ("AB", "CD", "Z"):
        with pytest.raises(DataError, match=f"answer_idx '{key}'"):
            read(write_jsonl(tmp_path / "g.jsonl", [{**rows[0], "answer_idx": key}]))


def test_subsets_are_chosen_not_mixed(tmp_path):
    for name in ("all/validation", "all/dev", "anatomy/validation", "clinical_knowledge/validation"):
        write_medmcqa(tmp_path / f"{name}-00000.jsonl", make_examples(3))
    assert len(read(tmp_path, "validation").examples) == 9  # "dev" is a split of its own here
    assert len(read(tmp_path, "validation", subset="anatomy").examples) == 3
    assert len(read(tmp_path, "validation", subset="clinical_knowledge").examples) == 3
    with pytest.raises(DataError, match="split 'validation'"):
        read(tmp_path, "validation", subset="none")


def test_text_that_is_no_text_is_named_by_row(tmp_path):
    rows = [{**ROW, "id": str(i)} for i in range(200)] + [{**ROW, "question": "\ud800"}]
    split = read(write_jsonl(tmp_path / "f.jsonl", rows))
    assert split.broken == ["f.jsonl:201: question holds half a character (a lone surrogate)"]


def test_mmlu_and_pubmedqa(tmp_path):
    mmlu = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": "anatomy"}
    [example] = read(write_jsonl(tmp_path / "m.jsonl", [mmlu])).examples
    assert (example.answer, example.subject) == (3, "anatomy")
    pubmed = {
        "pubid": 7,
        "question": "Does it?",
        "context": {"contexts": ["One.", "Two."]},
        "final_decision": "maybe",
        "long_answer": "Unclear.",
    }
    [example] = read(write_jsonl(tmp_path / "p.jsonl", [pubmed])).examples
    assert example.options == ("yes", "no", "maybe")
    assert (example.answer, example.context, example.id) == (2, "One. Two.", "7")


def test_two_to_ten_options_and_missing_keys(tmp_path):
    rows = [
        {"question": "q", "opa": "a", "opb": "b", "cop": 0},
        {"question": "q", **{f"op{c}": c for c in "abcdefghij"}, "cop": 9},
        {"question": "q", "opa": "a", "opb": "b", "opc": None, "opd": None, "cop": -1},
    ]
    examples = read(write_jsonl(tmp_path / "f.jsonl", rows)).examples
    assert [(len(e.options), e.answer) for e in examples] == [(2, 0), (10, 9), (2, None)]


def test_few_broken_rows_are_named_by_file_and_line(tmp_path, caplog):
    good = [{**ROW, "id": str(i)} for i in range(300)]
    rows = [*good[:7], "{not json", *good[7:], {**ROW, "cop": 4}, {**ROW, "opb": "a"}]
    split = read(write_jsonl(tmp_path / "f.jsonl", rows))
    assert len(split.examples) == 300
    assert [text.split(": ")[0] for text in split.broken] == ["f.jsonl:8", "f.jsonl:302", "f.jsonl:303"]
    assert "key 4 is outside the 4 options" in split.broken[1]
    assert "3 of 303 rows are broken" in caplog.text


def test_more_than_one_percent_broken_stops_with_the_first_five(tmp_path):
    rows = [ROW] * 50 + [{**ROW, "cop": 9}] * 7
    with pytest.raises(DataError, match="7 of 57 rows are broken") as caught:
        read(write_jsonl(tmp_path / "f.jsonl", rows))
    assert caught.value.message.count("f.jsonl:") == 6  # the file, and five rows
    assert "count from 0" in caught.value.hint


def test_evaluation_keeps_repeated_options(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [{**ROW, "opb": "a"}])
    assert (
        len(read_split(DataConfig(name=str(file)), "validation", allow_repeated_options=True).examples) == 1
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"question,answer\nx,y\n", "fit no known layout"),
        ("a.jsonl", b'{"question": "x"}\n', "fit no known layout"),
        ("a.jsonl", b'{"question": "\xff"}\n', "not UTF-8"),
        ("a.parquet", b"PAR1 nonsense", "not a readable parquet"),
        ("a.csv", b'question,opa,opb,cop\n"x"y,a,b,1\n', "a.csv:2"),
        ("a.txt", b"x", "'.txt' files are not read"),
        ("a.jsonl", b"[1]\n", "1 of 1 rows are broken"),
    ],
)
def test_files_that_hold_no_questions(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name)
    assert caught.value.hint


def test_missing_sources(tmp_path):
    with pytest.raises(HubError, match="no file or folder"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match="builtin:other"):
        read_split(DataConfig(name="builtin:other"), "train")
    with pytest.raises(HubError, match="can't be reached") as caught:
        read("openlifescienceai/medmcqa")
    assert "data.name=FOLDER" in caught.value.hint


def test_a_wanted_format_must_fit(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [ROW])
    with pytest.raises(DataError, match="fit no known layout") as caught:
        read(file, format="mmlu")
    assert caught.value.hint.startswith("expected mmlu: answer, choices, question")


def test_starter_questions_keep_their_promises():
    splits = [read_split(DataConfig(name=STARTER), s).examples for s in ("train", "validation")]
    train, held_out = splits
    assert (len(train), len(held_out)) == (240, 60)
    assert {e.topic for e in train}.isdisjoint({e.topic for e in held_out})
    assert len({e.subject for e in train}) == 20
    for examples in splits:
        shares = [sum(e.answer == key for e in examples) / len(examples) for key in range(4)]
        assert max(shares) - min(shares) < 0.06
        assert all(len(e.options) == 4 and e.explanation for e in examples)
    everything = train + held_out
    assert len({e.content_hash() for e in everything}) == len({e.id for e in everything}) == 300
