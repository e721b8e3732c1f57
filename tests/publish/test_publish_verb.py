"""`medqa publish`: what it writes, says and sends."""

import json
import shlex
import sys
import types
from pathlib import Path

import pytest

from hub_stand_in import TOKEN, HubStandIn, Repo, files_of
from medqa.cli.app import main
from medqa.runs import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# What a folder of a base model is called on the Hub.
BASE = ("--base", "ORG/base")


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_model):
    with HubStandIn().running() as hub:
        hub.repos["models", "ORG/base"] = Repo()
        hub.repo("ORG/base").put(files_of(tiny_model))
        hub.patch(monkeypatch, tmp_path / "home")
        yield hub


@pytest.fixture
def medqa(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["medqa", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        return types.SimpleNamespace(code=caught.value.code, out=out, err=err)

    return run


def test_a_dry_run_writes_the_folder_and_sends_nothing(hub, medqa, measured_run):
    done = medqa("publish", measured_run, "--to", "ORG/tuned", *BASE)
    assert done.code == 0, done.err
    assert RunFolder.open(Path("published/ORG--tuned")).record["status"] == "complete"
    for name in files_of(Path("published/ORG--tuned")):
        assert name in done.out
    assert "--public opens it" in done.out
    assert "Nothing was sent" in done.out
    assert not hub.requests


def test_the_command_that_it_names_sends_what_it_showed(hub, medqa, measured_run):
    shown = medqa("publish", measured_run, "--to", "ORG/tuned", *BASE)
    before = files_of(Path("published/ORG--tuned"))
    command = shlex.split(shown.out.splitlines()[-1])
    done = medqa(*command[1:])
    assert done.code == 0, done.err
    assert f"Pushed {hub.url}/ORG/tuned, commit " in done.out
    repo = hub.repo("ORG/tuned")
    assert {k: v for k, v in repo.files.items() if k != ".gitattributes"} == before
    assert repo.private
    assert len(repo.commits) == 2


def test_what_was_published_can_be_asked(hub, medqa, measured_run):
    assert medqa("publish", measured_run, "--to", "ORG/asked", "--push", "--public", *BASE).code == 0
    assert not hub.repo("ORG/asked").private
    words = ("-q", "Which?", "-o", "one", "-o", "two", "--json", "--no-explain")
    theirs, ours = (medqa("ask", run, *words) for run in ("hub:ORG/asked", measured_run))
    assert theirs.code == 0, theirs.err
    answers = [json.loads(one.out) for one in (theirs, ours)]
    assert answers[0]["model"].endswith("+ ORG/asked")
    for answer in answers:
        del answer["model"]
    assert answers[0] == answers[1]


def test_a_space_beside_the_model(hub, medqa, measured_run, tmp_path):
    out = tmp_path / "both"
    words = ("--to", "ORG/tuned", "--space", "ORG/demo", "--out", out, "--push", "--json", *BASE)
    done = medqa("publish", measured_run, *words)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert [one["repo"] for one in record["folders"]] == ["ORG/tuned", "ORG/demo"]
    assert [one["url"] for one in record["pushed"]] == [f"{hub.url}/ORG/tuned", f"{hub.url}/spaces/ORG/demo"]
    assert record["visibility"] == "private"
    space = Path(record["folders"][1]["path"])
    assert files_of(space).items() <= hub.repo("ORG/demo", "spaces").files.items()
    sizes = {one["name"]: one["bytes"] for one in record["folders"][1]["files"]}
    assert sizes == {name: len(data) for name, data in files_of(space).items()}


def test_nothing_is_sent_if_the_space_can_t_be(hub, medqa, measured_run):
    hub.repos["spaces", "ORG/demo"] = Repo(private=True)
    hub.repo("ORG/demo", "spaces").put({"mine.py": b"print()"})
    done = medqa("publish", measured_run, "--to", "ORG/tuned", "--space", "ORG/demo", "--push", *BASE)
    assert done.code == 2
    assert "ORG/demo holds something else" in done.err
    assert ("models", "ORG/tuned") not in hub.repos


def test_a_second_push_that_fails_tells_of_the_first(hub, medqa, measured_run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail(100, 500, "POST /api/spaces/")
    words = ("--to", "ORG/tuned", "--space", "ORG/demo", "--push", "--json", *BASE)
    done = medqa("publish", measured_run, *words)
    assert done.code == 2
    assert [one["url"] for one in json.loads(done.out)["pushed"]] == [f"{hub.url}/ORG/tuned"]


def test_a_public_space_of_a_private_model_is_told(hub, medqa, measured_run):
    assert medqa("publish", measured_run, "--to", "ORG/tuned", "--push", *BASE).code == 0
    words = ("--to", "ORG/tuned", "--space", "ORG/demo", "--push", "--public", *BASE)
    done = medqa("publish", measured_run, *words)
    assert done.code == 0, done.err
    assert "The Space is public, the model it shows is private" in " ".join(done.err.split())


def test_the_base_model_s_licence_and_notice_go_along(hub, medqa, measured_run, tiny_model):
    for name, text in (("LICENSE", "Apache License, Version 2.0"), ("NOTICE.txt", "Made by others.")):
        (tiny_model / name).write_text(text)
    try:
        done = medqa("publish", measured_run, "--to", "ORG/tuned", *BASE)
    finally:
        for name in ("LICENSE", "NOTICE.txt"):
            (tiny_model / name).unlink()
    assert done.code == 0, done.err
    made = Path("published/ORG--tuned")
    assert (made / "LICENSE-base-model").read_text() == "Apache License, Version 2.0"
    assert "Made by others." in (made / "NOTICE").read_text()


def test_a_push_that_breaks_off_names_the_command_that_goes_on(hub, medqa, measured_run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail(100, 500, "PUT /lfs/")
    done = medqa("publish", measured_run, "--to", "ORG/tuned", "--push", *BASE)
    assert done.code == 2
    assert done.err.count("trying again in") == 2
    hint = next(line for line in done.err.splitlines() if "Go on with: " in line)
    hub.faults.clear()
    again = medqa(*shlex.split(hint.partition("Go on with: medqa ")[2]))
    assert again.code == 0, again.err
    assert len(hub.repo("ORG/tuned").commits) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "tuned"), "no name of a repository"),
        (("--to", "ORG/tuned", "--space", "demo"), "no name of a repository"),
        (("--to", "ORG/tuned", "--out", "mine"), "no published run"),
        (("--to", "ORG/tuned", "--out", "file"), "is a file"),
    ],
)
def test_what_is_refused(medqa, measured_run, words, message):
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("...")
    Path("file").write_text("")
    done = medqa("publish", measured_run, *words, *BASE)
    assert done.code == 2
    assert message in done.err
    assert "Hint: " in done.err
    assert Path("mine/thesis.tex").read_text() == "..."
