"""Whatever is in a file, it is read, or refused with a way out: no other exception, ever.

    MEDQA_FUZZ=5000 pytest -m slow tests/reliability/test_fuzz_parsers.py

tries as many examples of each; a few without it. What failed once stands as an example.
"""

import contextlib
import copy
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medqa.config import SourceConfig
from medqa.data.check import check_file
from medqa.data.exam import split_exam
from medqa.data.sources import read_split
from medqa.errors import MedQAError
from medqa.recipe import load_recipe
from medqa.runs import RunFolder
from medqa.trust.store import CalibrationFile, Identity

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


def refuses(work):
    """Do it; an error that is not the user's to mend fails."""
    with contextlib.suppress(MedQAError):
        return work()
    return None


def read_all(folder, file):
    config = SourceConfig(name=str(folder))
    refuses(lambda: read_split(config, "train"))
    refuses(lambda: check_file(config, file))


@given(rows=st.lists(ROW, max_size=4), as_list=st.booleans())
@example(rows=[{"question": "x", "options": {"A": "a", "B": "b"}, "answer": 10**30}], as_list=False)
@some
def test_rows_of_json(rows, as_list, tmp_path):
    file = tmp_path / ("train.json" if as_list else "train.jsonl")
    for old in tmp_path.glob("train.*"):
        old.unlink()
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    read_all(tmp_path, file)


@given(
    data=st.one_of(st.binary(max_size=400), TEXT.map(str.encode)),
    suffix=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet", "xlsx"]),
)
@example(data=b"\xff\xfeq\x00", suffix="csv")
@some
def test_files_of_anything(data, suffix, tmp_path):
    for old in tmp_path.glob("train.*"):
        old.unlink()
    file = tmp_path / f"train.{suffix}"
    file.write_bytes(data)
    read_all(tmp_path, file)


@given(
    header=st.lists(FIELD | TEXT, min_size=1, max_size=8),
    rows=st.lists(st.lists(TEXT, max_size=9), max_size=5),
    separator=st.sampled_from([",", ";", "\t", "|"]),
)
@some
def test_tables_of_text(header, rows, separator, tmp_path):
    file = tmp_path / "train.csv"
    lines = [separator.join(row) for row in (header, *rows)]
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    read_all(tmp_path, file)


@given(text=st.one_of(st.text(max_size=200), VALUE.map(lambda value: json.dumps(value))))
@example(text="train: {epochs: 1e400}")
@example(text="data: {map: {question: [1]}}")
@example(text="&a [*a]")
@some
def test_recipes(text, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    refuses(lambda: load_recipe(str(file), []))


@given(
    setting=st.one_of(
        TEXT,
        st.tuples(st.sampled_from(["train.epochs", "data.map", "model.name", "a.b"]), TEXT).map("=".join),
    )
)
@some
def test_settings(setting):
    refuses(lambda: load_recipe("quickstart", [setting]))


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
def test_pasted_exams(text):
    refuses(lambda: split_exam(text))


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


@given(path=st.lists(st.integers(0, 30), min_size=1, max_size=6), value=VALUE)
@some
def test_calibrations(calibrated_run, tmp_path, path, value):
    record = json.loads((calibrated_run / "adapter" / "calibration.json").read_text())
    (tmp_path / "calibration.json").write_text(json.dumps(mutated(record, path, value)))
    identity = Identity(**record["identity"])
    found = refuses(lambda: CalibrationFile.read(tmp_path, identity))
    if found is not None:
        refuses(lambda: found.for_orders(1).probabilities(np.array([[-1.0, -2.0, -3.0, -4.0]])))


@given(path=st.lists(st.integers(0, 30), min_size=1, max_size=6), value=VALUE)
@some
def test_records_of_runs(calibrated_run, tmp_path, path, value):
    record = json.loads((calibrated_run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(mutated(record, path, value)))
    run = refuses(lambda: RunFolder.open(tmp_path))
    if run is not None:
        assert run.config
