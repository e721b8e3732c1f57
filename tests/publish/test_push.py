"""The unmodified huggingface_hub against the stand-in: what arrives, what it costs, and what is refused."""

import hashlib
import logging
import os
import subprocess
import sys
import time

import pytest

from hub_stand_in import TOKEN, HubStandIn, Repo, files_of
from medqa.errors import HubError
from medqa.publish.push import push

# The library's own, of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = bytes(range(256)) * 800
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def folder(tmp_path):
    """What a published run consists of, for the Hub's purposes."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name, data in {
        "README.md": CARD,
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": WEIGHTS,
        "tokenizer.json": b"\0" + WEIGHTS[::-1],  # large ones go through LFS, too
        "calibration.json": b'{"temperature": 1.5}',
        "run.json": b'{"version": 3, "adapter_sha256": "a", "versions": {"medqa": "0"}}',
        "report.json": '{"name": "\u00e9"}\n'.encode(),
    }.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubStandIn().running() as hub:
        hub.patch(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library waits between attempts, too
        yield hub


@pytest.fixture(autouse=True)
def nothing_tells_the_token(tmp_path, capfd, caplog):
    """After every test: the token is in no output, log or file."""
    caplog.set_level(logging.DEBUG)
    yield
    out = "".join(capfd.readouterr()) + caplog.text
    assert TOKEN not in out
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


def send(folder, repo="ORG/model", kind="model", public=False):
    return push(folder, repo, kind=kind, public=public, message="A model", again="medqa publish ...")


def refused(*args, **kwargs):
    with pytest.raises(HubError) as caught:
        send(*args, **kwargs)
    assert TOKEN not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.hint
    return str(caught.value)


def test_what_arrives_is_what_was_meant_in_one_commit(hub, folder):
    pushed = send(folder)
    repo = hub.repo("ORG/model")
    assert {k: v for k, v in repo.files.items() if k != ".gitattributes"} == files_of(folder)
    assert [commit["title"] for commit in repo.commits] == ["initial commit", "A model"]
    assert repo.lfs == {"adapter_model.safetensors", "tokenizer.json"}
    assert pushed.url == f"{hub.url}/ORG/model"
    assert pushed.commit == repo.sha
    assert (pushed.num_files, pushed.num_bytes) == (7, sum(map(len, files_of(folder).values())))


def test_a_repository_is_private_unless_told(hub, folder):
    send(folder)
    assert hub.repo("ORG/model").private
    send(folder, "ORG/open", public=True)
    assert not hub.repo("ORG/open").private


def test_what_is_public_is_not_written_to_when_private_was_meant(hub, folder):
    send(folder, public=True)
    before = len(hub.requests)
    assert "--public" in refused(folder)
    assert not [one for one in hub.requests[before:] if one.startswith(("POST", "PUT"))]


def test_what_is_private_stays_so_and_it_is_said(hub, folder, caplog):
    send(folder)
    (folder / "README.md").write_bytes(CARD + b"more")
    send(folder, public=True)
    assert hub.repo("ORG/model").private
    assert "stays private" in caplog.text


def test_large_files_in_many_parts(hub, folder):
    hub.part_bytes = 100_000
    send(folder)
    assert hub.repo("ORG/model").files["adapter_model.safetensors"] == WEIGHTS
    assert len(hub.asked("PUT /lfs/part/")) == 6


def test_an_upload_that_was_cut_goes_on_where_it_was(hub, folder):
    broken = hashlib.sha256(WEIGHTS).hexdigest()
    whole = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    hub.cuts[broken] = 1000
    text = refused(folder)
    assert "Go on with: medqa publish ..." in text
    assert len(hub.asked(f"PUT /lfs/whole/{whole}")) == 1  # three attempts, and it was sent once
    assert len(hub.repo("ORG/model").commits) == 1  # nothing half done to be seen
    hub.cuts[broken], before = 0, len(hub.requests)
    send(folder)
    assert hub.repo("ORG/model").files["adapter_model.safetensors"] == WEIGHTS
    assert [r for r in hub.requests[before:] if r.startswith("PUT")] == [f"PUT /lfs/whole/{broken}"]


def test_what_is_there_already_is_not_committed_again(hub, folder):
    first, before = send(folder), len(hub.requests)
    assert send(folder).commit == first.commit
    assert not [r for r in hub.requests[before:] if r.startswith("PUT") or "/commit/" in r]


def test_a_hub_that_is_down_for_a_while_is_asked_again_and_it_is_said(hub, folder, caplog):
    hub.fail(2, 503, "POST .*/commit/")
    send(folder)
    assert caplog.text.count("The Hub breaks off (it answers 503); trying again") == 2
    assert len(hub.repo("ORG/model").commits) == 2


def test_asking_again_has_an_end(hub, folder):
    hub.fail(1000, 502, "whoami")
    assert "502" in refused(folder)
    assert len(hub.requests) == 3


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, folder, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    transport = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    real, lost = HfApi.create_commit, [True]

    def commit(self, *args, **kwargs):
        done = real(self, *args, **kwargs)
        if lost.pop() if lost else False:
            raise transport("gone")
        return done

    monkeypatch.setattr(HfApi, "create_commit", commit)
    assert send(folder).commit == hub.repo("ORG/model").sha
    assert len(hub.repo("ORG/model").commits) == 2


def test_old_files_of_a_publication_go_and_those_of_others_stay(hub, folder, caplog):
    (folder / "NOTICE").write_text("{}")
    send(folder)
    hub.repo("ORG/model").put({"logo.png": b"\0", "notes/own.md": b"mine", "LICENSE": b"theirs"}, "by hand")
    (folder / "NOTICE").unlink()
    send(folder)
    repo = hub.repo("ORG/model")
    assert set(repo.files) - {".gitattributes"} == {*files_of(folder), "logo.png", "notes/own.md", "LICENSE"}
    assert [one for one in repo.commits[-1]["operations"] if one[0] == "deletedFile"] == [
        ("deletedFile", "NOTICE")
    ]
    assert "taken away: NOTICE" in caplog.text


def test_a_repository_that_only_has_a_file_of_that_name_is_left_alone(hub, folder):
    send(folder)
    hub.repo("ORG/model").put({"run.json": b'{"wandb": 1}'}, "somebody else's")
    with pytest.raises(HubError, match="something else than a model of medqa"):
        send(folder)


def test_another_model_that_is_replaced_is_named(hub, folder, caplog):
    send(folder)
    text = (folder / "run.json").read_text()
    (folder / "run.json").write_text(text.replace('"a"', '"b"'))
    send(folder)
    assert "held another model of medqa 0" in caplog.text


def test_another_s_repository_is_left_alone(hub, folder):
    hub.repos["models", "ORG/thesis"] = Repo(private=True)
    hub.repo("ORG/thesis").put({"README.md": b"my thesis", "thesis.tex": b"..."})
    text = refused(folder, "ORG/thesis")
    assert "holds something else" in text
    assert "choose another name" in text
    assert len(hub.repo("ORG/thesis").commits) == 1


def test_a_space_is_a_repository_of_its_own_kind(hub, tmp_path):
    folder = tmp_path / "space"
    (folder / "medqa").mkdir(parents=True)
    (folder / "medqa" / "__init__.py").write_text("")
    (folder / "medqa" / "old.py").write_text("")
    (folder / "app.py").write_text("print()")
    (folder / "README.md").write_bytes(CARD)
    assert send(folder, "ORG/demo", "space").url == f"{hub.url}/spaces/ORG/demo"
    repo = hub.repo("ORG/demo", "spaces")
    assert repo.private
    assert repo.asked_for["sdk"] == "gradio"
    (folder / "medqa" / "old.py").unlink()
    send(folder, "ORG/demo", "space")
    assert set(repo.files) == {".gitattributes", "README.md", "app.py", "medqa/__init__.py"}
    assert repo.files["README.md"] == CARD


def test_a_space_that_was_made_but_never_filled_is_gone_on_with(hub, folder):
    (folder / "medqa").mkdir()
    (folder / "medqa" / "__init__.py").write_text("")
    hub.fail(1, 400, "/preupload/")
    refused(folder, "ORG/demo", "space")
    send(folder, "ORG/demo", "space")
    assert hub.repo("ORG/demo", "spaces").files["README.md"] == CARD


def test_no_token(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(folder)
    assert not hub.requests


def test_a_wrong_token(hub, folder):
    hub.token = "hf_another"
    text = refused(folder)
    assert "the Hub doesn't know the token" in text
    assert hub.requests == ["GET /api/whoami-v2"]


def test_no_right_to_write(hub, folder):
    assert "tester may not write to STRANGERS/model" in refused(folder, "STRANGERS/model")
    send(folder)
    hub.read_only.add("ORG")
    (folder / "README.md").write_bytes(CARD + b"more")
    assert "tester may not write to ORG/model" in refused(folder)


def test_a_name_that_is_taken(hub, folder):
    hub.taken.add("ORG/model")
    assert "the name ORG/model is taken" in refused(folder)


@pytest.mark.parametrize(
    ("status", "pattern", "message"),
    [
        (413, "PUT /lfs/", "has no room"),
        (402, "objects/batch", "has no room"),
        (412, "/commit/", "changed by somebody else"),
        (422, "/preupload/", "told to answer 422"),
    ],
)
def test_what_the_hub_refuses(hub, folder, status, pattern, message):
    hub.fail(1, status, pattern)
    assert message in refused(folder)


def test_a_card_that_the_hub_refuses(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert "metadata is no YAML" in refused(folder)


def test_a_token_in_what_others_say_is_masked(hub, folder, monkeypatch):
    from huggingface_hub import HfApi

    def commit(self, *args, **kwargs):
        raise ValueError(f"bad header: Bearer {TOKEN}")

    monkeypatch.setattr(HfApi, "create_commit", commit)
    assert "Bearer hf_..." in refused(folder)


def test_stopping_it_names_the_command_that_goes_on(hub, folder, monkeypatch, caplog):
    from huggingface_hub import HfApi

    def commit(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", commit)
    with pytest.raises(KeyboardInterrupt):
        send(folder)
    assert "go on with: medqa publish ..." in caplog.text


@pytest.mark.parametrize("name", ["model", "ORG/a/b", "ORG/-x", "ORG/b c", "", "../x"])
def test_names_that_are_none(hub, folder, name):
    assert "is no name of a repository" in refused(folder, name)
    assert not hub.requests


def test_offline_and_unreachable(hub, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in refused(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=0 medqa publish ..." in refused(folder)


def test_by_the_environment_alone(tmp_path, folder):
    """As it is used: a process of its own, with nothing changed in the library."""
    code = (
        "import sys; from pathlib import Path; from medqa.publish.push import push\n"
        f"print(push(Path({str(folder)!r}), 'ORG/model', kind='model', public=False, message='A model'))"
    )
    with HubStandIn().running() as hub:
        env = {**os.environ, **hub.environment(tmp_path / "home")}
        result = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    assert files_of(folder).items() <= hub.repo("ORG/model").files.items()
    assert TOKEN not in result.stdout + result.stderr
