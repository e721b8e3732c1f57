"""The house rules that a machine can check."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import medqa

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "src").rglob("*.py"))
MODULES = [m.name for m in pkgutil.walk_packages(medqa.__path__, "medqa.") if "__main__" not in m.name]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT / "src")))
def test_files_stay_short_and_are_named_for_what_they_do(file):
    assert len(file.read_text().splitlines()) <= 300
    assert file.stem not in ("utils", "common", "helpers")


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_declared_and_there(name):
    module = importlib.import_module(name)
    assert module.__doc__
    tree = ast.parse(Path(module.__file__).read_text())
    public = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    declared = getattr(module, "__all__", None)
    if declared is None:
        assert not public, f"{name} has no __all__"
        return
    assert list(declared) == sorted(declared, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    for item in declared:
        assert hasattr(module, item)


def test_levels_0_and_1_import_without_torch():
    import subprocess
    import sys

    light = [
        m for m in MODULES if m.split(".")[1] in ("records", "recipe", "prompts", "runs", "data", "trust")
    ]
    code = f"import sys; import {', '.join(light)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_devices_are_asked_about_in_one_place():
    allowed = ROOT / "src/medqa/hardware"
    for file in FILES:
        if allowed not in file.parents:
            text = file.read_text()
            for word in ("torch.cuda", '"cuda"', "'cuda'", "bfloat16)", "torch.backends"):
                if word == "bfloat16)" and file.name == "embedded.py":
                    continue  # the type of a file on disk, not of arithmetic
                assert word not in text, f"{file}: {word}"


def test_no_pickle_is_ever_loaded():
    for file in FILES:
        text = file.read_text()
        for word in (
            r"torch\.load\(",
            "import pickle",
            r"pickle\.load",
            r"yaml\.load\(",
            r"(?<![\w.])(eval|exec)\(",
        ):
            assert not re.search(word, text), f"{file}: {word}"


def test_docs_match_the_program():
    import importlib.metadata
    import subprocess
    import sys

    typer = f"typer=={importlib.metadata.version('typer')}"
    if typer not in (ROOT / "constraints.txt").read_text():
        pytest.skip(f"docs/cli.md is written by the typer of constraints.txt, and here is {typer}")
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
