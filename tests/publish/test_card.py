"""The model card: what it says comes from the run, and the Hub can read it."""

import contextlib
import copy
import io
import math
import re
import shutil
import warnings

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from packaging.version import Version

from hub_stand_in import HubStandIn
from medqa.data.build import evaluation_set
from medqa.errors import PublishError
from medqa.files import read_json, read_sealed, seal, write_json
from medqa.publish.card import write_card
from medqa.publish.card_words import is_hub_dataset
from medqa.publish.licences import judge
from medqa.publish.scrub import scrub_text
from medqa.records import NOTICE, Example
from medqa.runs import RunFolder
from medqa.serve.answerer import Answerer

REPO, BASE = "some-org/tiny-medqa", "another-org/Tiny-1B"
OPEN = judge("apache-2.0", ["apache-2.0"])

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def run(measured_run, tmp_path):
    return RunFolder.open(shutil.copytree(measured_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def text(measured_run):
    return card(RunFolder.open(measured_run))


def card(run, verdict=OPEN, repo=REPO):
    return write_card(run, repo, BASE, verdict)


def change(run, **fields):
    write_json(run.path / "report.json", seal({**read_sealed(run.path / "report.json"), **fields}))


def section(text, name):
    return re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def test_the_head_is_what_the_hub_reads(text, measured_run):
    data = ModelCard(text).data
    report = read_json(measured_run / "report.json")
    assert (data.base_model, data.base_model_relation) == (BASE, "adapter")
    assert (data.license, data.library_name, data.language) == ("apache-2.0", "peft", "en")
    assert "medical" in data.tags
    assert data.datasets is None  # it was a folder
    found = {one.metric_name: one.metric_value for one in data.eval_results}
    assert found["Accuracy"] == round(report["scores"]["medqa"]["tuned"]["accuracy"], 4)
    assert found["ECE after calibration"] == round(report["calibration"]["score"]["ece"], 4)
    name, again = model_index_to_eval_results(data.to_dict()["model-index"])
    assert (name, again) == ("tiny-medqa", data.eval_results)


def test_the_hub_takes_it(text, monkeypatch, tmp_path):
    if Version(huggingface_hub.__version__) < Version("2"):
        pytest.skip(
            "before 2.0 a card is sent to the Hub itself to be looked at, wherever HF_ENDPOINT points"
        )
    with HubStandIn().running() as hub:
        hub.patch(monkeypatch, tmp_path)
        ModelCard(text).validate()
        assert hub.asked("validate-yaml")


def spellings(value, found):
    """Gather all ways a number in plain values may be written on the card."""
    if isinstance(value, dict):
        for key, one in value.items():
            spellings(key, found)
            spellings(one, found)
    elif isinstance(value, list):
        for one in value:
            spellings(one, found)
    elif isinstance(value, str):
        found |= set(re.findall(r"\d[\d,.]*\d|\d", value))
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        number = abs(value)
        found |= {f"{number:,}", f"{number:.4g}", f"{number:.3f}", f"{number:.2f}", f"{number:.1f}"}
        found |= {f"{100 * number:.0f}", f"{100 * number:.1f}", f"{number:,.0f}"}


def test_every_number_in_its_tables_is_in_the_runs_files(text, measured_run):
    known = {"0.001", "95"}  # the p-value below which none is told, and the intervals' level
    for name in ("report.json", "run.json", "data.json", "adapter/calibration.json"):
        spellings(read_json(measured_run / name), known)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith("| Time ")]  # a date, written out
    assert len(rows) > 40
    numbers = [number for line in rows for number in re.findall(r"\d[\d,.]*\d|\d", line)]
    assert len(numbers) > 150
    assert not {number for number in numbers if number not in known}


def test_another_report_gives_other_numbers(run):
    scores = copy.deepcopy(read_json(run.path / "report.json")["scores"])
    scores["medqa"]["tuned"].update(accuracy=0.98765, accuracy_interval=[0.91234, 0.99876])
    change(run, scores=scores)
    assert "**98.8\u00a0%** right (95 % interval 91.2 to 99.9\u00a0%)" in card(run)


def test_what_a_reader_looks_for_is_there(text):
    assert text.count(NOTICE) == 2
    for part in ("How right it is", "Explanations", "Traps", "Training data", "Intended use and limits"):
        assert len(section(text, part)) > 80
    assert f"medqa ask hub:{REPO}" in text
    assert f"medqa serve hub:{REPO}" in text
    assert "lm-eval's prompt" in text
    assert not re.search(r"\bNone\b|\bnan\b|Undefined|\{\{|\{%", text.split("```")[2])


def test_nothing_of_this_machine_is_on_it(text, measured_run):
    assert str(measured_run.parent) not in text
    for line in text.splitlines():
        plain = re.sub(r"https://\S+", "", line)
        assert scrub_text(plain) == plain


def test_tables_are_whole(text):
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = table.splitlines()
        assert len({line.count("|") for line in lines}) == 1, table
        assert re.fullmatch(r"\|(-+:?\|)+", lines[1])


def test_the_lines_for_transformers_give_medqas_own_probabilities(text, run, tiny_model):
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert "revision" not in code
    code = code.replace(REPO, str(run.adapter)).replace(BASE, str(tiny_model))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        exec(code, names := {})
    question, *options = names["question"].splitlines()
    example = Example(question, tuple(option[3:] for option in options))
    answer = Answerer.load(run.path).answer(example, explain=False)
    method = read_json(run.adapter / "calibration.json")["orders"]["1"]["method"]
    assert ("(scores / " in code) == (method == "temperature")
    if method == "temperature":
        assert names["probabilities"] == pytest.approx([*answer.probabilities.values()], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapter_sha256": "0" * 64}, "another adapter"),
        ({"whole_split": False}, "part of the questions"),
        ({"version": 1}, "version 1"),
        ({"scores": {}}, "can't be read"),
        ({"traps": [{}]}, "can't be read"),
    ],
)
def test_a_report_that_is_not_this_runs_is_refused(run, fields, words):
    change(run, **fields)
    with pytest.raises(PublishError, match=words) as error:
        card(run)
    assert f"medqa evaluate {run.path}" in error.value.hint


def test_a_run_without_report_is_refused(run):
    (run.path / "report.json").unlink()
    with pytest.raises(PublishError, match="not measured") as error:
        card(run)
    assert f"medqa evaluate {run.path}" in error.value.hint


def test_what_was_not_measured_is_said_to_be(run):
    report = read_json(run.path / "report.json")
    own = {**report["scores"]["medqa"], "base": None, "change": None, "without_flagged": None}
    change(
        run,
        scores={"medqa": own},
        calibration={"calibrated": False, "reason": f"no calibration: `medqa calibrate {run.path}`"},
        **{"orders": None, "explanations": None, "traps": None},
        leaks={"looked_for": False},
        not_measured=[
            f"Not measured: traps. `medqa evaluate {report['run']} --set evaluate.traps=500` does."
        ],
    )
    text = card(run)
    for part in ("Does it keep its answer?", "Explanations", "Traps"):
        assert section(text, part).strip() == "Not measured."
    assert "not calibrated" in section(text, "How far its confidence can be trusted")
    assert "`medqa evaluate RUN --set evaluate.traps=500`" in text
    assert "| not measured | not measured |" in section(text, "How right it is")
    assert "Leaks.** Not measured" in text
    assert str(run.path) not in text
    names = [one.metric_name for one in ModelCard(text).data.eval_results]
    assert names == ["Accuracy", "ECE, not calibrated"]


def test_questions_are_quoted_only_where_their_licence_lets_them_be(run):
    worst = read_json(run.path / "report.json")["worst"]
    assert worst, "the tiny model errs"
    id = worst[0]["id"]
    shown = section(card(run), "Known failures")
    assert f"`{id}`" in shown
    assert "Only their ids are shown" in shown
    run.record["data"]["licences"] = ["cc0-1.0"]
    run.record["config"]["data"]["licence"] = "cc0-1.0"
    data = read_json(run.path / "report.json")["data"]
    change(run, data={**data, "sha256": evaluation_set(run.config.data, 0).record["sha256"]})
    shown = section(card(run), "Known failures")
    assert "Only their ids" not in shown
    assert "- A. " in shown
    run.record["config"]["data"]["name"] = "/no/such/folder"
    assert "not at hand" in section(card(run), "Known failures")
    change(run, worst=[])
    assert "No answer" in section(card(run), "Known failures")


def test_markup_in_a_question_stays_text(run, monkeypatch):
    evil = Example("<b>x</b> | `y` [z](http://w) *k* &lt; /home/somebody/file", ("a|b", "# c"), 0, "q")
    run.record["data"]["licences"] = ["mit"]
    monkeypatch.setattr("medqa.publish.card._questions", lambda *_: ({"q": evil}, ""))
    change(run, worst=[{"id": "q", "subject": None, "letter": "B", "key": "A", "confidence": 0.5}])
    shown = section(card(run), "Known failures")
    assert r"\<b\>x\</b\> \| \`y\` \[z\](http://w) \*k\* &amp;lt; /home/somebody/file" in shown
    assert r"B. \# c" in shown


def test_a_dose_in_a_question_is_not_changed(run, monkeypatch):
    dose = Example("Give 5 mg /kg/day of what?", ("this", "that"), 0, "q")
    run.record["data"]["licences"] = ["mit"]
    monkeypatch.setattr("medqa.publish.card._questions", lambda *_: ({"q": dose}, ""))
    change(run, worst=[{"id": "q", "subject": None, "letter": "B", "key": "A", "confidence": 0.5}])
    assert "Give 5 mg /kg/day of what?" in card(run)


def test_that_it_was_not_trained_on_them_is_said_only_where_it_is_known(run, text):
    assert "that it was not trained on" in text
    assert "was used to train, to calibrate" in text
    change(run, leaks={**read_json(run.path / "report.json")["leaks"], "looked_for": False})
    assert "that it was not trained on" not in (unknown := card(run))
    assert "was used to calibrate" in unknown


def test_the_built_in_model_was_measured_on_a_copy(run, text):
    assert "4-bit" not in text
    run.record["base_model"]["name"] = "builtin:smollm2-135m"
    assert "trained and measured on the 4-bit copy" in card(run)


def test_what_a_base_models_licence_wants_is_kept(run):
    verdict = judge("llama3.2", ["cc-by-nc-4.0"])
    with pytest.raises(PublishError, match="must begin with 'Llama'") as error:
        card(run, verdict)
    assert error.value.hint == "--to some-org/Llama-tiny-medqa"
    text = card(run, verdict, "some-org/llama-3.2-medqa")
    assert "**Built with Llama.**" in text
    assert "not for commercial use" in text
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta" in text
    data = ModelCard(text).data
    assert (data.license, data.license_name) == ("other", "llama3.2-and-cc-by-nc-4.0")
    assert data.license_link.startswith("https://")


def test_only_data_sets_of_the_hub_are_named_as_such(run):
    file = "/x/hub/datasets--org--questions/snapshots/1/train.parquet"
    assert is_hub_dataset("org/questions", [file])
    for name, files in (
        ("org/questions", ["org/questions/train.parquet"]),
        ("/x/y", [file]),
        ("org/q", [file]),
    ):
        assert not is_hub_dataset(name, files)
    data = read_json(run.path / "data.json")
    data["sources"][0].update(name="org/questions", files=[file])
    write_json(run.path / "data.json", data)
    assert ModelCard(card(run)).data.datasets == ["org/questions"]
