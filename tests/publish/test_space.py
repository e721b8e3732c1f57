"""The folder of a Space; and, slowly, that it runs as it is: installed apart, asked in a real browser."""

import ast
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import medqa
from hub_stand_in import files_of
from medqa.errors import DependencyError, HubError, RunError
from medqa.publish import space as space_module
from medqa.publish.space import write_space


@pytest.fixture
def made(flat_run, tmp_path):
    return write_space("ORG/tuned", "ORG/demo", tmp_path / "space", run=flat_run)


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_what_is_in_the_folder(made):
    assert made.repo == "ORG/demo"
    assert {name: size for name, size, _ in made.files} == {
        name: len(data) for name, data in files_of(made.path).items()
    }
    front = front_matter(made.path)
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == __import__("gradio").__version__
    assert front["app_file"] == "app.py"
    assert front["models"] == ["ORG/tuned"]  # the base model of this run is a folder, no id
    assert front["python_version"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert len(front["short_description"]) <= 60  # the Hub's limit
    assert 'main("hub:ORG/tuned")' in (made.path / "app.py").read_text()
    ast.parse((made.path / "app.py").read_text())


def test_no_pin_clashes_with_what_the_hub_installs_beside(made):
    pins = dict(line.split("==") for line in (made.path / "requirements.txt").read_text().splitlines())
    for line in importlib.metadata.requires("gradio"):
        one = Requirement(line)
        if one.name in pins and (one.marker is None or one.marker.evaluate({"extra": "mcp"})):
            assert one.specifier.contains(pins[one.name]), line


def test_what_somebody_put_into_the_package_stays_here(tmp_path, monkeypatch):
    package = shutil.copytree(Path(medqa.__file__).parent, tmp_path / "medqa")
    (package / "notes.txt").write_text("mine")
    (package / "data" / "train.csv").write_text("mine")
    monkeypatch.setattr(medqa, "__file__", str(package / "__init__.py"))
    made = write_space("ORG/tuned", "ORG/demo", tmp_path / "space")
    names = {name for name, _, _ in made.files}
    assert "medqa/__init__.py" in names
    assert not {"medqa/notes.txt", "medqa/data/train.csv"} & names


def test_the_whole_package_and_nothing_else_lies_beside(made):
    copied, package = set(files_of(made.path / "medqa")), Path(medqa.__file__).parent
    assert {str(file.relative_to(package)) for file in package.rglob("*.py")} <= copied
    assert {"py.typed", "recipes/medmcqa.yaml", "serve/page.css", "data/page.html.j2"} <= copied
    assert {Path(name).suffix for name in copied} <= {
        ".py",
        ".typed",
        ".yaml",
        ".jsonl",
        ".j2",
        ".css",
        ".js",
    }
    assert not [name for name in copied if "__pycache__" in name or "/." in f"/{name}"]


def test_what_is_needed_is_pinned_and_of_no_platform(made):
    lines = (made.path / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in lines)
    names = {line.partition("==")[0] for line in lines}
    assert {"torch", "transformers", "peft", "gradio", "uvicorn", "numpy", "tokenizers", "starlette"} <= names
    assert not {n for n in names if n.startswith(("nvidia", "cuda", "triton", "medqa"))}
    assert not names & {"pytest", "ruff", "mypy", "playwright"}


def test_a_hub_base_model_is_named(made, flat_run, tmp_path):
    from medqa.files import read_json, write_json

    record = read_json(flat_run / "run.json")
    record["base_model"]["name"] = "Qwen/Qwen3-1.7B"
    write_json(flat_run / "run.json", record)
    again = write_space("ORG/tuned", "ORG/demo", made.path, run=flat_run)  # over the earlier one
    assert front_matter(again.path)["models"] == ["ORG/tuned", "Qwen/Qwen3-1.7B"]


def test_what_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="no Space of medqa"):
        write_space("ORG/tuned", "ORG/demo", tmp_path / "mine")
    for names in (("tuned", "ORG/demo"), ("ORG/tuned", "demo"), ('ORG/x"); evil("', "ORG/demo")):
        with pytest.raises(HubError, match="no name of a repository"):
            write_space(*names, tmp_path / "space")
    monkeypatch.setattr(space_module, "_needs", lambda package, extras: [("not-there", frozenset())])
    with pytest.raises(DependencyError, match="not-there"):
        write_space("ORG/tuned", "ORG/demo", tmp_path / "space")
    assert not (tmp_path / "space").exists()


def answers(url, process):
    for _ in range(600):
        assert process.poll() is None, "the Space ended"
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5) as reply:
                return reply.status == 200
        except OSError:
            time.sleep(0.5)
    return False


def install(folder, venv):
    """Install what a Space asks for into an environment of its own."""
    python = venv / "bin" / "python"
    wanted = ["-q", "-r", str(folder / "requirements.txt")]
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(venv)], check=True)
        subprocess.run([uv, "pip", "install", "--python", str(python), *wanted], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", *wanted], check=True)
    return python


def ask(browser, url):
    """Ask as a visitor does; gives what the page says then."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(url)
    page.get_by_label("Question", exact=True).fill("Which vitamin prevents scurvy?")
    page.get_by_label("A", exact=True).fill("Vitamin A")
    page.get_by_label("B", exact=True).fill("Vitamin C")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#ask[disabled]").wait_for()
    page.locator("#ask:not([disabled])").wait_for(timeout=120_000)
    if picture := os.environ.get("MEDQA_SPACE_PICTURE"):
        page.screenshot(path=picture, full_page=True)
    return page.inner_text("#answer")


@pytest.mark.slow
@pytest.mark.usefixtures("built_in_home")
def test_it_runs_as_it_is(built_in_run, make_flat, tmp_path):
    """Installs what it asks for into an empty environment: some minutes, and gigabytes."""
    api = pytest.importorskip("playwright.sync_api")
    from serve.test_browser import CHROMIUM, FLAGS

    if CHROMIUM is None:
        pytest.skip("needs Chromium: chromium, chromium-browser or google-chrome on the PATH")
    run = make_flat(built_in_run, tmp_path / "published")
    folder = write_space("ORG/tuned", "ORG/demo", tmp_path / "space", run=run).path
    python = install(folder, tmp_path / "venv")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PORT")}
    env |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "MEDQA_RUN": str(run)}
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([str(python), "app.py"], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        assert answers(url, process), (tmp_path / "log").read_text()
        with api.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            text = ask(browser, url)
            browser.close()
        assert re.search(r"\d\s%", text)
        assert "Vitamin C" in text
        # It was the package beside app.py that ran: none is installed there.
        assert (
            subprocess.run([str(python), "-c", "import medqa"], cwd=tmp_path, env=env, check=False).returncode
            == 1
        )
    finally:
        process.terminate()
        process.wait(60)
