"""Whatever is in a file, it is read, or refused with a way out: no other exception, ever.

    MEDQA_FUZZ=5000 pytest -m slow tests/reliability/test_fuzz_parsers.py

tries as many examples of each; a few without it. What failed once stands as an example.
"""

import copy
import json
import os

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .parsers import PARSERS

NUM_EXAMPLES = int(os.environ.get("MEDQA_FUZZ", "60"))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
some = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXT = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["A", "b", "0", "4", "1,3", "NaN", "1e999", "\ufeff", "\u2028", "None", "[", "{", '"', "\x00"]
    ),
)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXT)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
FIELD = st.sampled_from(
    ["question", "opa", "opb", "opc", "opd", "cop", "exp", "options", "answer", "answer_idx", "choices", "id"]
)
ROW = st.one_of(st.dictionaries(FIELD, VALUE, max_size=8), VALUE)


@given(rows=st.lists(ROW, max_size=4), as_list=st.booleans())
@example(rows=[{"question": "x", "options": {"A": "a", "B": "b"}, "answer": 10**30}], as_list=False)
@some
def test_rows_of_json(rows, as_list, tmp_path):
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    PARSERS["json" if as_list else "jsonl"](encoded(text), tmp_path)


@given(row=ROW)
@some
def test_questions(row, tmp_path):
    PARSERS["question"](encoded(json.dumps(row)), tmp_path)


@given(
    data=st.one_of(st.binary(max_size=400), TEXT.map(str.encode)),
    suffix=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "xlsx"]),
)
@example(data=b"\xff\xfeq\x00", suffix="csv")
@some
def test_files_of_anything(data, suffix, tmp_path):
    PARSERS[suffix](data, tmp_path)


@given(
    header=st.lists(FIELD | TEXT, min_size=1, max_size=8),
    rows=st.lists(st.lists(TEXT, max_size=9), max_size=5),
    separator=st.sampled_from([",", ";", "\t", "|"]),
)
@some
def test_tables_of_text(header, rows, separator, tmp_path):
    lines = [separator.join(row) for row in (header, *rows)]
    PARSERS["csv"](encoded("\n".join(lines)), tmp_path)


@given(text=st.one_of(st.text(max_size=200), VALUE.map(lambda value: json.dumps(value))))
@example(text="train: {epochs: 1e400}")
@example(text="data: {map: {question: [1]}}")
@example(text="&a [*a]")
@some
def test_recipes(text, tmp_path):
    PARSERS["recipe"](encoded(text), tmp_path)


@given(
    setting=st.one_of(
        TEXT,
        st.tuples(st.sampled_from(["train.epochs", "data.map", "model.name", "a.b"]), TEXT).map("=".join),
    )
)
@some
def test_settings(setting, tmp_path):
    PARSERS["settings"](encoded(setting), tmp_path)


@given(
    text=st.one_of(
        st.text(max_size=300),
        st.lists(
            TEXT | st.sampled_from(["1.", "(A)", "B)", "Ans: C", "Q2.", "\n", "a.", "i)", "Answer"]),
            max_size=20,
        ).map("\n".join),
    )
)
@some
def test_pasted_exams(text, tmp_path):
    PARSERS["exam"](encoded(text), tmp_path)


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


def mutated(tree, path, value):
    """Replace what stands at a path; numbers choose among what there is."""
    tree = copy.deepcopy(tree)
    place = tree
    for step in path[:-1]:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return tree
        inner = place[keys[step % len(keys)]]
        if not isinstance(inner, (dict, list)):
            break
        place = inner
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        place[keys[path[-1] % len(keys)]] = value
    return tree


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("calibration", "adapter/calibration.json"),
        ("run", "run.json"),
        ("tokenizer", "adapter/tokenizer.json"),
        ("tokenizer_config", "adapter/tokenizer_config.json"),
    ],
)
@given(path=st.lists(st.integers(0, 30), min_size=1, max_size=6), value=VALUE)
@some
def test_files_of_runs(calibrated_run, tmp_path, name, file, path, value):
    record = json.loads((calibrated_run / file).read_text())
    PARSERS[name](encoded(json.dumps(mutated(record, path, value))), tmp_path)
