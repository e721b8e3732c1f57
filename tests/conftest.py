"""Fixtures: an isolated home, no network, a tiny model and small data."""

import itertools
import os
import random
import shutil
import socket
import sys
from pathlib import Path

import pytest

# The tensors are tiny, and tests run side by side.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from medqa.records import Example
from medqa.testing import make_examples, make_tiny_model, make_tokenizer, write_medmcqa

_NUMBERS = itertools.count()
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch, request):
    """Each test has its own home, and no way out to a network."""
    # Names of their own: pytest looks at all folders so far to number another.
    number = next(_NUMBERS)
    if "slow" not in request.keywords:
        monkeypatch.setenv("MEDQA_HOME", str(tmp_path_factory.mktemp(f"home-{number}", numbered=False)))
    monkeypatch.chdir(tmp_path_factory.mktemp(f"cwd-{number}", numbered=False))
    connect = socket.socket.connect

    def local_only(self, address, *args):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"tests may not reach {address!r}")
        return connect(self, address, *args)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session", autouse=True)
def few_draws():
    """Draw less for the intervals of reports: their widths are tested where they are computed."""
    if report := sys.modules.get("medqa.evaluate.report"):
        report.NUM_DRAWS = 40


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
        "evaluate.orders=1",
        "evaluate.explanations=2",
        "evaluate.traps=4",
    ]


def word_questions(count, seed=0):
    """Make questions of random words, none of which is like another; the explanation names the key."""
    draw = random.Random(seed)

    def words(num):
        return " ".join("".join(draw.choices("bcdfglmnprstaeiou", k=7)) for _ in range(num))

    made = []
    for number in range(count):
        options, key = tuple(words(1) for _ in range(4)), draw.randrange(4)
        text = f"This is {options[key]}, after {words(2)}."
        subject = ("Anatomy", "Surgery")[number % 2]
        made.append(Example(words(5) + "?", options, key, f"w{seed}-{number}", subject, explanation=text))
    return made


@pytest.fixture(scope="session")
def word_data(tmp_path_factory):
    """Questions enough that some can be held back."""
    folder = tmp_path_factory.mktemp("words")
    write_medmcqa(folder / "train.jsonl", word_questions(160))
    write_medmcqa(folder / "validation.jsonl", word_questions(24, seed=1))
    return folder


@pytest.fixture(scope="session")
def calibrated_settings(tiny_model, word_data):
    return [
        *tiny_settings(tiny_model, word_data),
        "data.calibration_share=0.4",
        "data.selection_share=0.1",
        "evaluate.orders=4",
        "train.batch_size=16",
    ]


@pytest.fixture(scope="session")
def calibrated_run(tmp_path_factory, calibrated_settings):
    """A run of the tiny model that was calibrated on what was held back. Not to be changed: copy it."""
    from medqa.recipe import load_recipe
    from medqa.train.run import train

    return train(
        load_recipe("medmcqa", calibrated_settings), tmp_path_factory.mktemp("runs") / "run", "medmcqa"
    ).path


@pytest.fixture
def calibrated_copy(calibrated_run, tmp_path):
    return Path(shutil.copytree(calibrated_run, tmp_path / "copy"))


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
