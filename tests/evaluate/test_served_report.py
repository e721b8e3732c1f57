"""A run measured through a server that has no base model: the whole of it, in files of their own."""

import json
import re

import pytest

from medqa.cli.trust import evaluate as evaluate_command
from medqa.evaluate import run as run_module
from medqa.evaluate.engine import LocalEngine
from medqa.model.tuned import load_tuned
from medqa.runs import RunFolder
from medqa.serve.about import about

VERIFIED = {"num_questions": 16, "max_difference": 0.0123, "mean_difference": 0.004}
VERIFIED |= {"mean_difference_to_base": 0.3, "num_other_letters": 1}
SETTINGS = ["evaluate.orders=4", "evaluate.explanations=2", "evaluate.traps=4"]


class Served:
    """The model of this machine, but as a server has it: without the base model."""

    has_base, way = False, "server"

    def __init__(self, path):
        self._local = LocalEngine(load_tuned(path))
        self.renderer, self.max_length_tokens = self._local.renderer, self._local.max_length_tokens
        self.write, self.closed = self._local.write, False

    def score(self, items, *, adapted=True, task=None):
        assert adapted
        return self._local.score(items, task=task)

    def device_record(self):
        return {
            "device": "server",
            "name": "tuned at http://gpu-1:8000/v1",
            "reason": "--engine",
            "precision": "the server's own",
            "base_model": None,
            "verified": VERIFIED,
            "num_retries": 3,
        }

    def close(self):
        self.closed = True


@pytest.fixture
def served(calibrated_copy, monkeypatch):
    """A run, and its model as a server has it."""
    engine = Served(calibrated_copy)
    monkeypatch.setattr(run_module, "load_remote", lambda path, address: engine)
    return calibrated_copy, engine


def text_of(page):
    """What a reader sees, with plain blanks."""
    text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("&nbsp;", " ").replace("&#39;", "'"))


def test_all_but_the_base_model_is_measured_and_told(served, capsys):
    path, engine = served
    (path / "report.json").write_text("the whole one")
    evaluate_command(path, SETTINGS, engine="openai:http://gpu-1:8000/v1")
    assert engine.closed
    assert (path / "report.json").read_text() == "the whole one"
    report = json.loads((path / "report-server.json").read_text())
    for scores in report["scores"].values():
        assert scores["base"] is scores["change"] is None
        assert scores["tuned"]["num_questions"] == 24
    assert report["calibration"]["calibrated"]
    assert report["orders"]["num_questions"] == 24
    assert report["explanations"]["num_questions"] == 2
    assert len(report["traps"]) > 3
    assert report["engine"]["verified"] == VERIFIED
    assert (report["file"], report["selftest"]) == ("report-server.json", None)
    for name in ("predictions", "explanations"):
        assert (path / f"{name}-server.jsonl").stat().st_size > 0
    predictions = (path / "predictions-server.jsonl").read_text().splitlines()
    assert {json.loads(line)["model"] for line in predictions} == {"tuned"}

    page = text_of((path / "report-server.html").read_text())
    assert not re.search(r"\bNone\b(?! of|: no| is shown)|\bnan\b|right before|thin mark", page)
    right = report["scores"]["medqa"]["tuned"]["num_correct"]
    assert re.search(rf"Of 24 questions, {right} right after tuning (?!,)", page)
    assert "The base model was not measured" in page
    assert "tuned at http://gpu-1:8000/v1" in page
    assert "verified on 16 known questions: probabilities differ by up to 0.012 (mean 0.004), 1 with" in page
    assert "Requests sent again 3" in page

    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "Not measured: the base model, which was not served" in told
    assert "Measured through a server: tuned at" in told
    assert told.replace(" ", "").endswith("report-server.htmlandreport-server.json")
    assert not re.search(r"\bNone\b(?! of)|\bnan\b|Change, ", told)

    found = about(RunFolder.open(path))  # for want of a sound report.json
    assert found.unmeasured is None
    assert not any("before training" in figure.words for figure in found.figures)
    assert any(fact.text.endswith("; on a server") for fact in found.made)
    assert any("base model" in text for text in found.not_measured)


def test_a_part_of_it_and_what_was_left_out(served, capsys):
    path, _ = served
    left_out = ["evaluate.orders=1", "evaluate.explanations=0", "evaluate.traps=0", "evaluate.lm_eval=false"]
    evaluate_command(path, left_out, limit=12, engine="openai:http://gpu-1:8000/v1", as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == "report-12-server.json"
    commands = [text for text in report["not_measured"] if "--set" in text]
    assert len(commands) == 4
    assert all(f"`medqa evaluate {path} --engine openai:URL --set evaluate." in text for text in commands)
    assert about(RunFolder.open(path)).unmeasured  # a part tells too little
