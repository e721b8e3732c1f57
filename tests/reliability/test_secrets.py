"""No token in anything that is kept or shown, no pickle loaded, no code run by a recipe."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from conftest import tiny_settings
from medqa.cli.app import main
from medqa.errors import MedQAError
from medqa.evaluate.run import evaluate
from medqa.files import read_json
from medqa.recipe import load_recipe
from medqa.secrets import mask_secrets
from medqa.serve.access import read_key
from medqa.serve.answerer import Answerer
from medqa.train.run import resume, train

TOKEN = "hf_" + "PlantedPlantedPlantedPlantedXY"


@pytest.fixture
def said(monkeypatch, capfd):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["medqa", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return caught.value.code, out + err

    return run


def test_a_token_in_an_address_is_masked_in_errors(said, monkeypatch):
    code, text = said("train", "--set", f"data.name=https://me:{TOKEN}@example.org/data")
    assert code == 2
    assert TOKEN not in text
    monkeypatch.setenv("MY_API_KEY", "a-secret-of-mine")
    code, text = said("ask", "no-such-run-a-secret-of-mine", "-q", "?", "-o", "a", "-o", "b")
    assert code == 2
    assert "a-secret-of-mine" not in text
    assert "***" in text


def test_a_token_in_a_bugs_traceback_is_masked(said, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError(f"at {TOKEN}")

    monkeypatch.setattr("medqa.cli.doctor.show_doctor", broken)
    code, text = said("doctor")
    assert code == 1
    assert "ZeroDivisionError: at ***" in text
    assert TOKEN not in text


def test_a_token_of_the_command_line_is_not_in_the_record(tiny_model, small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    monkeypatch.setattr(sys, "argv", ["medqa", "train", f"--x={TOKEN}", "--y=a-token-of-no-known-form"])
    run = train(load_recipe("medmcqa", tiny_settings(tiny_model, small_data)), tmp_path / "run", "medmcqa")
    for file in run.path.rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes()
            assert b"a-token-of-no-known-form" not in file.read_bytes()
    assert read_json(run.path / "run.json")["command"].count("***") == 2


@pytest.mark.parametrize(
    "text", ["https://example.org/a:b", "the token is 12", "5 mg at 8:00@night", "sk-short"]
)
def test_what_is_no_secret_stays(text):
    assert mask_secrets(text) == text


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.slow
def test_no_pickle_is_ever_loaded(calibrated_copy, tiny_model, word_data, tmp_path, monkeypatch):
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()  # it would be seen
    mark.unlink()
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(tiny_model, model)
    shutil.copytree(word_data, data)
    names = [
        "pytorch_model.bin",
        "model.pt",
        "training_args.bin",
        "optimizer.pt",
        "tokenizer.pkl",
        "rng_state.pth",
    ]
    for folder in (calibrated_copy, calibrated_copy / "adapter", model, data):
        for name in (*names, "adapter_model.bin"):
            (folder / name).write_bytes(bomb)
    settings = [*tiny_settings(model, data), "train.epochs=3", "train.checkpoint_minutes=1e-9"]
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    for name in names:
        for step in (run.path / "checkpoints").iterdir():
            (step / name).write_bytes(bomb)
    (run.path / "run.json").write_text(json.dumps({**run.record, "status": "running"}))
    resume(run.path)
    evaluate(calibrated_copy)
    Answerer.load(calibrated_copy)

    def refused(action):
        with pytest.raises(MedQAError):
            action()

    # In place of what is expected.
    newest = max((run.path / "checkpoints").iterdir())
    (run.path / "run.json").write_text(json.dumps({**run.record, "status": "running"}))
    for name in ("adapter.safetensors", "optimizer.safetensors", "state.json"):
        (newest / name).write_bytes(bomb)
        refused(lambda: resume(run.path))
    for name in ("calibration.json", "tokenizer.json", "adapter_config.json", "adapter_model.safetensors"):
        broken = Path(shutil.copytree(calibrated_copy, tmp_path / f"broken-{name}"))
        (broken / "adapter" / name).write_bytes(bomb)
        refused(lambda broken=broken: Answerer.load(broken))
    for file in model.glob("*.safetensors"):
        file.unlink()
    refused(lambda: train(load_recipe("medmcqa", settings), tmp_path / "other", "medmcqa"))
    (data / "train.jsonl").write_bytes(bomb)
    refused(lambda: train(load_recipe("medmcqa", tiny_settings(tiny_model, data)), tmp_path / "p", "medmcqa"))
    assert not mark.exists()


def test_a_recipe_cannot_run_code(tmp_path):
    mark = tmp_path / "mark"
    recipe = tmp_path / "own.yaml"
    for text in (
        f"data: !!python/object/apply:os.system ['touch {mark}']",
        f"data:\n  name: !!python/object/new:os.system ['touch {mark}']",
    ):
        recipe.write_text(text)
        with pytest.raises(MedQAError) as error:
            load_recipe(str(recipe), [])
        assert error.value.hint
    assert not mark.exists()


def test_secrets_of_every_shape_are_masked(monkeypatch):
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEsecret\nline2\n-----END RSA PRIVATE KEY-----"
    monkeypatch.setenv("SHORT_TOKEN", "12345678")
    monkeypatch.setenv("LONG_TOKEN", "12345678-and-more")
    monkeypatch.setenv("DEPLOY_SECRET", "first line\nsecond line\n")
    text = f"{key} 12345678-and-more 12345678 {os.environ['DEPLOY_SECRET']!r} redis://:pw@host"
    text += " https://abcdefghijklmnopqrst@host/x"
    masked = mask_secrets(text)
    for secret in ("MIIE", "and-more", "12345678", "second line", ":pw@", "abcdefghij"):
        assert secret not in masked
    assert masked.count("***") == 6


def test_addresses_with_secrets_of_any_kind_are_masked():
    for text, left in {
        "https://me:pa/ss@host/x": "https://***@host/x",
        "https://me:pa@ss@host": "https://***@host",
        "http://TOKENTOKENTOKENTOKEN@host": "http://***@host",
        "Authorization: Bearer abc123def456ghi789jkl": "Authorization: Bearer ***",
        "https://h/x?api_key=abcdef&y=1": "https://h/x***&y=1",
    }.items():
        assert mask_secrets(text) == left
    for text in ("http://127.0.0.1:8000/v1#model@x", "http://host:80/a@b", "the bearer of abnormalities"):
        assert mask_secrets(text) == text


def test_a_key_that_was_taken_out_of_the_environment_is_masked_still(monkeypatch):
    monkeypatch.setenv("MEDQA_API_KEY", "a-key-of-no-known-form")
    assert read_key(None) == "a-key-of-no-known-form"
    assert "MEDQA_API_KEY" not in os.environ
    assert mask_secrets("it was a-key-of-no-known-form") == "it was ***"


def test_a_password_in_an_engine_s_address_is_not_written_down(calibrated_run, tmp_path, said):
    source = tmp_path / "questions.jsonl"
    source.write_text('{"question": "Which organ makes insulin?", "options": ["Liver", "Pancreas"]}\n')
    engine = "openai:https://me:a-pass-word@127.0.0.1:9/v1"
    code, text = said("answer", calibrated_run, source, tmp_path / "out.jsonl", "--engine", engine)
    assert code == 2
    assert "a-pass-word" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["questions.jsonl"]


def test_names_of_places_are_not_masked(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENIZER_FOLDER", "/models/qwen3")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/someone/token")
    monkeypatch.setenv("APP_CREDENTIALS", str(tmp_path))
    text = f"/models/qwen3 /home/someone/token {tmp_path}"
    assert mask_secrets(text) == text
