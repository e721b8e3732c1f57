"""Fixtures: an isolated home, no network, a tiny model and small data."""

import os
import socket
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # the tensors are tiny, and tests run side by side
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from medqa.testing import make_examples, make_tiny_model, make_tokenizer, write_medmcqa

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch, request):
    """Each test has its own home, and no way out to a network."""
    if "slow" not in request.keywords:
        monkeypatch.setenv("MEDQA_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    connect = socket.socket.connect

    def local_only(self, address, *args):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"tests may not reach {address!r}")
        return connect(self, address, *args)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_medmcqa(folder / "train.jsonl", make_examples(40))
    write_medmcqa(folder / "validation.jsonl", make_examples(60)[40:])
    return folder


def tiny_settings(model, data):
    """Settings that point a recipe at the tiny model and data."""
    return [
        f"model.name={model}",
        f"data.name={data}",
        "model.device=cpu",
        "train.batch_size=8",
        "train.lora.rank=4",
        "serve.max_explanation_tokens=8",
        # So few questions that nothing is left of them to calibrate on, or of what else is asked of a model.
        "data.calibration_share=0",
        "data.selection_share=0",
        "train.read_back_share=0",
        "evaluate.explanations=2",
        "evaluate.traps=4",
    ]


@pytest.fixture
def settings(tiny_model, small_data):
    return tiny_settings(tiny_model, small_data)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_model, small_data):
    """A run of the tiny model that ended."""
    from medqa.recipe import load_recipe
    from medqa.train.run import train

    config = load_recipe("medmcqa", tiny_settings(tiny_model, small_data))
    return train(config, tmp_path_factory.mktemp("runs") / "run", "medmcqa").path


def shared(path):
    """Return a file of the shared folder, or skip where it is missing."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs {path} beside the checkout, which is not there")
    return SHARED / path


@pytest.fixture
def built_in_home(monkeypatch):
    """Keep the converted built-in model between tests and runs, in the user's own cache."""
    monkeypatch.delenv("MEDQA_HOME", raising=False)


@pytest.fixture(scope="session")
def built_in_run(tmp_path_factory):
    """A short run of the built-in model on the built-in questions."""
    from medqa.recipe import load_recipe
    from medqa.train.run import train

    settings = ["data.max_train_rows=48", "data.max_eval_rows=12", "serve.max_explanation_tokens=40"]
    return train(
        load_recipe("quickstart", settings), tmp_path_factory.mktemp("runs") / "run", "quickstart"
    ).path
