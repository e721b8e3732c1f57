"""The real 135M model, end to end: minutes, so only in `make test-all`."""

import json

import pytest

from medqa.data.build import evaluation_set
from medqa.evaluate.run import evaluate
from medqa.model import embedded
from medqa.model.embedded import embedded_model_path
from medqa.recipe import load_recipe
from medqa.serve.answerer import Answerer

pytestmark = pytest.mark.slow


def test_it_is_converted_once_and_checked(built_in_home, monkeypatch):
    folder = embedded_model_path()
    monkeypatch.setattr(embedded, "_convert", lambda *args: pytest.fail("converted twice"))
    assert embedded_model_path() == folder
    assert json.loads((folder / "manifest.json").read_text())["licence"] == "apache-2.0"


def test_a_damaged_copy_is_named(built_in_home, tmp_path, monkeypatch):
    import shutil

    from medqa.errors import ModelError

    source = embedded_model_path()
    monkeypatch.setenv("MEDQA_HOME", str(tmp_path))
    copy = shutil.copytree(source, tmp_path / source.name)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="is damaged"):
        embedded_model_path()


def test_it_learns_the_format_and_answers_the_same_each_time(built_in_run):
    lines = [json.loads(line) for line in (built_in_run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    report = evaluate(built_in_run, max_rows=12)
    assert report["scores"]["medqa"]["tuned"]["nll"] < report["scores"]["medqa"]["base"]["nll"]
    answerer = Answerer.load(built_in_run)
    [example] = evaluation_set(load_recipe("quickstart").data, 0).examples[:1]
    answer = answerer.answer(example)
    assert answer.explanation
    assert answerer.answer(example) == answer
