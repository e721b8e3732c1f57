import dataclasses
import json

import pytest

from medqa.config import DataConfig, MixConfig, SourceConfig
from medqa.data.sources import STARTER, read_split
from medqa.errors import DataError, HubError
from medqa.testing import make_examples, write_medmcqa

SCURVY = {
    "stem": "Which vitamin is lacking in scurvy?",
    "c1": "Vitamin A",
    "c2": "Vitamin C",
    "c3": "Vitamin D",
    "solution": "B",
    "why": "Ascorbic acid is needed to hydroxylate collagen.",
}
SCURVY_MAP = {
    "question": "stem",
    "option_a": "c1",
    "option_b": "c2",
    "option_c": "c3",
    "answer": "solution",
    "explanation": "why",
}
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
    assert {e.licence for e in examples[0]} == {"unknown"}  # the layout is not the origin


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
        with pytest.raises(DataError, match="answer_idx is none of the options' letters"):
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
    split = read(write_jsonl(tmp_path / "f.jsonl", rows), keys="0-based")
    assert split.broken == ["f.jsonl:201: question holds half a character (a lone surrogate)"]


def test_mmlu_and_pubmedqa(tmp_path):
    mmlu = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": "anatomy"}
    [example] = read(write_jsonl(tmp_path / "m.jsonl", [mmlu]), keys="0-based").examples
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
    split = read(write_jsonl(tmp_path / "f.jsonl", rows), keys="0-based")
    assert len(split.examples) == 300
    assert [text.split(": ")[0] for text in split.broken] == ["f.jsonl:8", "f.jsonl:302", "f.jsonl:303"]
    assert split.broken[1:] == [
        "f.jsonl:302: cop 4 is outside the 4 options, counted from 0",
        "f.jsonl:303: option B repeats option A",
    ]
    assert "3 of 303 rows are broken" in caplog.text


def test_more_than_one_percent_broken_stops_with_the_first_five(tmp_path):
    rows = [ROW] * 50 + [{**ROW, "cop": 9}] * 7
    with pytest.raises(DataError, match="7 of 57 rows are broken; up to 1 %") as caught:
        read(write_jsonl(tmp_path / "f.jsonl", rows), keys="0-based")
    assert caught.value.message.count("f.jsonl:") == 6  # the file, and five rows
    assert "--check" in caught.value.hint


def test_below_a_hundred_rows_none_may_be_broken(tmp_path):
    rows = [{**ROW, "id": str(i)} for i in range(99)]
    broken = {**ROW, "question": " "}
    with pytest.raises(DataError, match="1 of 20 rows is broken; up to 1 % would be left out"):
        read(write_jsonl(tmp_path / "f.jsonl", [*rows[:19], broken]), keys="0-based")
    split = read(write_jsonl(tmp_path / "f.jsonl", [*rows, broken]), keys="0-based")
    assert split.broken == ["f.jsonl:100: the question is empty"]


def test_evaluation_keeps_repeated_options(tmp_path):
    file = write_jsonl(tmp_path / "f.jsonl", [{**ROW, "opb": "a"}])
    config = DataConfig(name=str(file), keys="0-based")
    assert len(read_split(config, "validation", allow_repeated_options=True).examples) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"query,answer\nx,y\n", "fit no known layout"),
        ("a.jsonl", b'{"question": "x"}\n', "fit no known layout"),
        ("a.jsonl", b'{"question": "\xff"}\n', "not UTF-8"),
        ("a.parquet", b"PAR1 nonsense", "not a readable parquet"),
        ("a.csv", b'question,opa,opb,cop\n"x"y,a,b,1\n', "a.csv:2"),
        ("a.txt", b"x", "'.txt' files are not read"),
        ("a.jsonl", b"[1]\n", "1 of 1 row is broken"),
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
    assert "mmlu: answer, choices, question; and if there: subject" in caught.value.hint


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


@pytest.mark.parametrize("kind", [SourceConfig, MixConfig, DataConfig])
def test_own_columns_are_read_through_a_map(tmp_path, kind):
    file = write_jsonl(tmp_path / "f.jsonl", [SCURVY, {**SCURVY, "solution": None}])
    split = read_split(kind(name=str(file), map=SCURVY_MAP), "train")
    first, second = split.examples
    assert first.question == SCURVY["stem"]
    assert first.options == ("Vitamin A", "Vitamin C", "Vitamin D")
    assert (first.answer, first.explanation, first.licence) == (1, SCURVY["why"], "unknown")
    assert second.answer is None
    assert split.no_key == ["f.jsonl:2"]
    assert split.keys.style == "letter"


def test_a_mapped_column_takes_the_place_of_one_of_that_name(tmp_path):
    rows = [{**SCURVY, "question": "number 7"}, {**SCURVY, "question": "number 8"}]
    examples = read(write_jsonl(tmp_path / "f.jsonl", rows), map=SCURVY_MAP).examples
    assert {e.question for e in examples} == {SCURVY["stem"]}
    swapped = {"question": "q?", "opa": "left", "opb": "right", "cop": 0}
    [example] = read(write_jsonl(tmp_path / "g.jsonl", [swapped]), map={"opa": "opb", "opb": "opa"}).examples
    assert example.options == ("right", "left")


@pytest.mark.parametrize(
    ("mapping", "message", "hint"),
    [
        ({"stem": "question"}, "unknown field 'stem' in stem=question", "answer_idx, "),
        ({"question": "stemm"}, "no column 'stemm', wanted for question; it has c1, c2", "mean 'stem'"),
        ({"question": "stem", "context": "stem"}, "two fields take the same column", "own"),
    ],
)
def test_maps_that_do_not_fit_are_refused(tmp_path, mapping, message, hint):
    with pytest.raises(DataError, match=message) as caught:
        read(write_jsonl(tmp_path / "f.jsonl", [SCURVY]), map=mapping)
    assert hint in caught.value.hint


def test_columns_of_no_layout_get_a_map_to_copy(tmp_path):
    (tmp_path / "f.csv").write_text("Stem,Choice A,Choice B,Correct Answer,Rationale\nq,a,b,A,r\n")
    with pytest.raises(DataError, match="columns Choice A, Choice B, Correct Answer, Rationale, Stem fit"):
        read(tmp_path / "f.csv")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "f.csv")
    line = (
        "--map question=Stem --map 'option_a=Choice A' --map 'option_b=Choice B' "
        "--map 'answer=Correct Answer' --map explanation=Rationale"
    )
    assert line in caught.value.hint
    for part in ("medmcqa: opa, opb, question", "opj, cop, exp", "table: option_a, option_b, question"):
        assert part in caught.value.hint
    (tmp_path / "g.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError) as caught:
        read(tmp_path / "g.csv")
    assert "--map question=COLUMN --map option_a=COLUMN --map option_b=COLUMN" in caught.value.hint


def test_table_takes_lists_of_options_and_everything_optional(tmp_path):
    row = {
        "id": "h1",
        "question": "Which gland makes cortisol?",
        "options": ["Adrenal gland", "Thyroid gland"],
        "answer": "adrenal gland ",
        "explanation": "It comes from the adrenal cortex.",
        "subject": "Physiology",
        "topic": "Hormones",
        "context": "A question about hormones.",
    }
    [example] = read(write_jsonl(tmp_path / "f.jsonl", [row])).examples
    assert example == dataclasses.replace(
        example,
        id="h1",
        options=("Adrenal gland", "Thyroid gland"),
        answer=0,
        explanation="It comes from the adrenal cortex.",
        subject="Physiology",
        topic="Hormones",
        context="A question about hormones.",
    )
    for options in ("Adrenal gland; Thyroid gland", {"A": "Adrenal gland"}, None):
        with pytest.raises(DataError, match="expected a list"):
            read(write_jsonl(tmp_path / "g.jsonl", [{**row, "options": options}]))


def test_keys_are_decided_over_all_files_of_a_split(tmp_path):
    for part, keys in enumerate([(1, 2), (3, 4)]):
        write_jsonl(tmp_path / f"train-{part}.jsonl", [{**ROW, "cop": key, "exp": None} for key in keys])
    split = read(tmp_path)
    assert split.keys.style == "1-based"
    assert [e.answer for e in split.examples] == [0, 1, 2, 3]
    write_jsonl(tmp_path / "train-1.jsonl", [{**ROW, "cop": 3}])
    with pytest.raises(DataError, match="keys 1, 2, 3 fit both counting from 0 and from 1") as caught:
        read(tmp_path)
    assert "--set data.keys=0-based or --set data.keys=1-based" in caught.value.hint


def test_files_without_a_key_column_and_layouts_with_their_own_keys(tmp_path):
    row = {k: v for k, v in ROW.items() if k != "cop"}
    split = read(write_jsonl(tmp_path / "f.jsonl", [row, row]))
    assert (split.no_key, split.keys.style) == (["f.jsonl:1", "f.jsonl:2"], "none")
    own = {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
    file = write_jsonl(tmp_path / "g.jsonl", [own])
    assert read(file).keys.style == read(file, keys="letter").keys.style == "letter"
    with pytest.raises(DataError, match=r"data.keys=1-based does not go with medqa"):
        read(file, keys="1-based")


def test_no_message_repeats_what_a_cell_holds(tmp_path, caplog):
    secret = "Jane Doe born 1950"
    mcq = {**ROW, "cop": 0}
    rows = [
        {**mcq, "cop": secret},
        {**mcq, "opb": secret, "opc": secret},
        {**mcq, "question": [secret]},
        {**mcq, "exp": {"text": secret}},
        '{"question": "' + secret,
        '{"question": "' + secret + '", "question": "q"}',
        json.dumps([secret]),
        json.dumps(secret),
    ]
    for row in rows:
        file = write_jsonl(tmp_path / "f.jsonl", [*[mcq] * 150, row])
        split = read(file)
        assert len(split.broken) == 1
        assert secret not in split.broken[0] + caplog.text
        with pytest.raises(DataError) as caught:
            read(write_jsonl(tmp_path / "f.jsonl", [mcq, row]))
        assert secret not in str(caught.value)
    others = [
        {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": secret},
        {"question": "q", "options": [{"key": secret}], "answer_idx": "A"},
        {"question": "q", "options": secret, "answer_idx": "A"},
        {"question": "q", "choices": [secret, {"text": secret}], "answer": 0},
        {"question": "q", "context": secret, "final_decision": secret},
        {"question": "q", "options": [secret, secret], "answer": secret},
    ]
    for row in others:
        with pytest.raises(DataError) as caught:
            read(write_jsonl(tmp_path / "g.jsonl", [row]))
        assert secret not in str(caught.value)


def test_licences_come_from_the_setting_the_origin_or_not_at_all(tmp_path, monkeypatch):
    file = write_medmcqa(tmp_path / "train.jsonl", make_examples(4))

    def licence(source, **fields):
        return read(source, **fields).examples[0].licence

    assert licence(file) == licence(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Ours\n")
    assert licence(tmp_path) == "cc-by-4.0"
    assert licence(file) == "unknown"
    assert licence(tmp_path, licence="internal") == licence(file, licence="internal") == "internal"
    for text in ("---\nlicense: [a\n---\n", "---\nlicense: 5\n---\n", "---\n", "", "license: mit\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert licence(tmp_path) == "unknown"
    assert read_split(DataConfig(name=STARTER), "validation").examples[0].licence == "apache-2.0"
    monkeypatch.setattr("medqa.data.places.locate", lambda *args, **kwargs: tmp_path)
    assert licence("some/dataset") == "apache-2.0"


def test_the_same_questions_in_two_kinds_of_file_are_not_read_twice(tmp_path):
    write_medmcqa(tmp_path / "train.jsonl", make_examples(4))
    (tmp_path / "train.csv").write_text("question,opa,opb,cop\nq,a,b,0\n")
    (tmp_path / "~$train.csv").write_text("a lock")
    with pytest.raises(DataError, match="look like the same questions twice") as caught:
        read(tmp_path)
    assert "data.subset=jsonl" in caught.value.hint
    assert len(read(tmp_path, subset="jsonl").examples) == 4


def test_files_of_two_layouts_are_not_mixed(tmp_path):
    write_medmcqa(tmp_path / "train-0.jsonl", make_examples(4))
    write_jsonl(tmp_path / "train-1.jsonl", [{"question": "q", "choices": ["a", "b"], "answer": 0}])
    with pytest.raises(DataError, match=r"layout mmlu, but train-0.jsonl has medmcqa"):
        read(tmp_path)
