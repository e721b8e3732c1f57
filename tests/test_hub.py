"""huggingface_hub itself, unmodified, against a small local server that speaks its calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub_stand_in import HubStandIn, Repo
from medqa.config import ServeConfig
from medqa.errors import HubError, RunError
from medqa.hub import fetch_run
from medqa.runs import RunFolder
from medqa.testing import make_examples, write_medmcqa


@pytest.fixture
def hub():
    with HubStandIn().running() as hub:
        yield hub


@pytest.fixture
def endpoint(hub, tmp_path):
    file = write_medmcqa(tmp_path / "train.jsonl", make_examples(8))
    repo = hub.repos["datasets", "ORG/set"] = Repo()
    repo.put({"data/train-00000-of-00001.jsonl": file.read_bytes(), "notes.txt": b"not downloaded"})
    hub.gated.add("ORG/gated")
    return hub.url


def fetch(endpoint, name, home):
    code = (
        "from medqa.config import DataConfig; from medqa.data.sources import read_split\n"
        "from medqa.errors import HubError\n"
        f"try: print(len(read_split(DataConfig(name={name!r}), 'train').examples))\n"
        "except HubError as exc: print(exc.message, '|', exc.hint)"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_data_set_is_downloaded_once_and_read(endpoint, tmp_path):
    assert fetch(endpoint, "ORG/set", tmp_path / "home") == "8"
    # The copy serves when the Hub is gone.
    assert fetch("http://127.0.0.1:9", "ORG/set", tmp_path / "home") == "8"
    assert not list((tmp_path / "home").rglob("notes.txt"))


@pytest.mark.parametrize(
    ("name", "message"), [("ORG/none", "the Hub has no dataset 'ORG/none'"), ("ORG/gated", "is gated")]
)
def test_what_the_hub_refuses(endpoint, tmp_path, name, message):
    assert message in fetch(endpoint, name, tmp_path / "home")


def test_an_unreachable_hub_is_one_line_with_the_way_out(tmp_path):
    text = fetch("http://127.0.0.1:9", "ORG/set", tmp_path / "home")
    assert text.startswith("the Hub can't be reached for dataset 'ORG/set'")
    assert "data.name=FOLDER" in text


@pytest.fixture
def published(hub, calibrated_run, tmp_path, monkeypatch):
    """A repository that holds a run as it is published, and things that nobody should load."""
    fetch_run.cache_clear()
    files = {p.name: p.read_bytes() for p in (calibrated_run / "adapter").iterdir() if p.is_file()}
    files |= {p.name: p.read_bytes() for p in calibrated_run.iterdir() if p.suffix in (".json", ".yaml")}
    repo = hub.repos["models", "ORG/tuned"] = Repo(private=True)
    repo.put({**files, "run.py": b"evil", "adapter_model.bin": b"evil", "x/run.json": b"{}"})
    hub.patch(monkeypatch, tmp_path / "home")
    return repo


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_published_run_opens(published, hub, calibrated_run, tmp_path, revision):
    run = RunFolder.open(Path(f"hub:ORG/tuned{revision}"))
    assert run.hub == run.name == f"ORG/tuned{revision}"
    assert run.record == RunFolder.open(calibrated_run).record
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == published.files[
        "adapter_model.safetensors"
    ]
    names = {path.name for path in run.path.rglob("*")}
    assert not names & {"run.py", "adapter_model.bin", "x"}
    asked = len(hub.requests)
    RunFolder.open(Path(f"hub:ORG/tuned{revision}"))
    assert len(hub.requests) == asked  # the same files, though the repository may have changed


def test_a_published_run_answers_as_its_own_folder_does(published, calibrated_run, tmp_path):
    from medqa.serve.about import about
    from medqa.serve.answerer import Answerer

    question = make_examples(1)[0]
    there = Answerer.load(Path("hub:ORG/tuned"))
    here = Answerer.load(calibrated_run)
    settings = ServeConfig(max_explanation_tokens=4)
    answers = [one.answer(question, explain=False, settings=settings) for one in (there, here)]
    assert answers[0].probabilities == answers[1].probabilities
    assert answers[0].calibration == answers[1].calibration is not None
    assert answers[0].model.endswith("+ ORG/tuned")
    assert about(there.run).name == "ORG/tuned"


def test_a_published_run_is_not_written_to(published, tmp_path):
    from medqa.evaluate.calibrate import calibrate
    from medqa.evaluate.run import evaluate

    path = Path("hub:ORG/tuned@main")
    before = RunFolder.open(path)
    for write in (lambda: evaluate(path), lambda: calibrate(path), lambda: before.note("x")):
        with pytest.raises(RunError) as caught:
            write()
        assert "hf download ORG/tuned --revision main --local-dir tuned" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ORG/none", "the Hub has no run 'ORG/none'"),
        ("ORG/tuned@v9", "has no revision 'v9'"),
        ("ORG/gated", "is gated"),
        ("a/b/c", "neither a folder nor a Hub id"),
        ("ORG/empty", "is no published run"),
    ],
)
def test_what_is_no_published_run(published, hub, tmp_path, name, message):
    hub.gated.add("ORG/gated")
    hub.repos["models", "ORG/empty"] = Repo()
    hub.repo("ORG/empty").put({"README.md": b"nothing yet"})
    with pytest.raises((HubError, RunError)) as caught:
        RunFolder.open(Path(f"hub:{name}"))
    assert message in caught.value.message
    assert caught.value.hint


def test_published_runs_have_nothing_to_compare_by(published):
    from medqa.evaluate.compare import compare_runs

    with pytest.raises(RunError, match="without its single predictions"):
        compare_runs(Path("hub:ORG/tuned"), Path("hub:ORG/tuned"))
