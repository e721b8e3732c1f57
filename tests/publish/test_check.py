"""Nothing leaves the machine that must stay: secrets, places, code, questions trained on."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from medqa.errors import PublishError
from medqa.publish.check import check_folder, check_secrets
from medqa.publish.scrub import scrub, scrub_command, scrub_text

QUESTION = "Which of these vitamins is lacking in scurvy, with its bleeding gums?"


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
    (made / "README.md").write_text("# A model\n\nSee https://example.org/a/b and 10 mg/kg/day or and/or.\n")
    (made / "run.json").write_text(json.dumps({"config": {"data": {"name": "data"}}, "rate": "5 tokens/s"}))
    save_file({"a": np.zeros(3)}, made / "adapter_model.safetensors")
    return made


def refused(folder, match, **options):
    with pytest.raises(PublishError, match=match) as error:
        check_folder(folder, **options)
    return error.value


def test_a_clean_folder_passes(folder):
    check_folder(folder, questions=[QUESTION])


SECRETS = [
    "hf_" + "aB3" * 12,
    "sk-proj-" + "x1" * 15,
    "AKIA" + "ABCDEFGH12345678",
    "ghp_" + "a1B2" * 9,
    "-----BEGIN RSA PRIVATE KEY-----",
    "https://me:pass1234@example.org/x",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("file", ["README.md", "run.json", "adapter_model.safetensors"])
def test_secrets_are_found_and_never_shown(folder, secret, file):
    if file == "run.json":
        (folder / file).write_text(json.dumps({"deep": [{secret: 1}]}))
    elif file == "README.md":
        (folder / file).write_text(f"Token: {secret}\n")
    else:
        save_file({"a": np.zeros(3)}, folder / file, metadata={"note": secret})
    error = refused(folder, rf"{file} holds a")
    assert secret not in str(error)


def test_values_of_the_environment_s_secrets_are_found_anywhere(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-of-any-known-form")
    (folder / "tokenizer.json").write_text(json.dumps({"model": "x not-of-any-known-form"}))
    error = refused(folder, "tokenizer.json holds the value of HF_TOKEN")
    assert "not-of-any" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "/root",
        "/tmp/work/model",
        "/home/someone/My Data/questions.csv",
        "~/models/base",
        "C:\\Users\\someone\\model",
        "file:///srv/data",
        "medqa train --set data.name=/srv/data/med --out runs/x",
        "read from /mnt/a/b, then stopped",
    ],
)
def test_places_of_this_machine_are_found_and_cut(folder, text):
    (folder / "run.json").write_text(json.dumps({"command": text}))
    refused(folder, "run.json names a place on this machine")
    (folder / "run.json").write_text(json.dumps(scrub({"command": text, text: [text]})))
    check_folder(folder)


def test_the_name_of_this_machine_is_found_however_it_stands(folder, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "ward7-node3")
    (folder / "run.json").write_text('{"command": "medqa train --note=ward7-node3,gpu"}')
    refused(folder, "names a place on this machine")


def test_a_space_is_looked_through_for_secrets(tmp_path, monkeypatch):
    (tmp_path / "medqa").mkdir()
    (tmp_path / "medqa" / "a.py").write_text("# /home/docs is a path in a comment\n")
    check_secrets(tmp_path)
    monkeypatch.setenv("MY_API_KEY", "abcdefghij")
    (tmp_path / "medqa" / "a.py").write_text("key = 'abcdefghij'\n")
    with pytest.raises(PublishError, match=r"medqa/a\.py holds the value of MY_API_KEY") as error:
        check_secrets(tmp_path)
    assert "abcdefghij" not in str(error.value)


def test_paths_keep_their_last_part():
    assert scrub_text("/home/someone/My Data/questions.csv") == "questions.csv"
    assert scrub_text("C:\\Users\\someone\\model") == "model"
    assert (
        scrub_text("medqa train --set model.name=/srv/a/b --minutes 5")
        == "medqa train --set model.name=b --minutes 5"
    )
    assert scrub({"/a/b/c": ["/d/e/", 3, None, True]}) == {"c": ["e", 3, None, True]}


@pytest.mark.parametrize(
    "text",
    [
        "Qwen/Qwen3-1.7B",
        "https://example.org/a/b?c=d",
        "10 mg/kg/day",
        "and/or",
        "5 /mm3 of 10 /HPF",
        "s/p appendectomy w/o fever",
        "hub:ORG/NAME",
        "A/B/C",
        "/",
        "1/2",
    ],
)
def test_what_is_no_path_stays(text):
    assert scrub_text(text) == text


@given(st.text(alphabet="ab/\\~:. =\n", max_size=40))
def test_what_was_cut_is_not_cut_again(text):
    once = scrub_text(text)
    assert scrub_text(scrub_text(once)) == scrub_text(once)


@pytest.mark.parametrize("name", ["model.bin", "app.py", "checkpoint/x.json", ".env", "predictions.jsonl"])
def test_what_is_no_part_of_it_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({"a": 1}))
    refused(folder, "is not part of a published run")


def test_links_are_refused(folder, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    (folder / "report.json").symlink_to(tmp_path / "report.json")
    refused(folder, "report.json is not part")


def test_weights_that_are_none_are_refused(folder):
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    refused(folder, "is no safetensors file")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", f"- **Question:** x\n> {QUESTION}\n"),
        ("report.json", json.dumps({"worst": [{"question": f" {QUESTION.upper()} "}]})),
    ],
)
def test_questions_trained_on_are_found(folder, file, text):
    (folder / file).write_text(text)
    check_folder(folder)
    refused(folder, rf"{file} holds 1 of the questions trained on", questions=[QUESTION, "Which?"])


def test_many_findings_are_counted(folder):
    for number in range(12):
        (folder / f"x{number}.py").write_text("")
    refused(folder, "and 4 more")


@pytest.mark.parametrize("line", ["1. {}", "- {}", "Question: {}"])
def test_a_question_is_found_behind_what_stands_before_it(folder, line):
    question = "Which vitamin is lacking in scurvy, and why is that?"
    with (folder / "README.md").open("a") as file:
        file.write("\n" + line.format(question) + "\n")
    refused(folder, "holds 1 of the questions", questions=[question])


def test_scrubbing_keeps_doses_and_no_names_of_users():
    for text in ("5 mg /kg/day", "Vitamin C:_____ is lacking", "10 /mm3", "Vitamin A:/B:/C:", "and/or/maybe"):
        assert scrub_text(text) == text
    for text in (
        "/home/alice",
        "~alice/x",
        "C:\\Users\\alice\\x",
        "\\\\server\\alice\\x",
        "/projects/alice/x",
    ):
        assert "alice" not in scrub_text(text)
    command = "/usr/bin/medqa train --set data.name=../../alice/data --out ~alice/x --set model.name=Q/Q-1.7B"
    assert scrub_command(command) == "medqa train --set data.name=data --out x --set model.name=Q/Q-1.7B"
