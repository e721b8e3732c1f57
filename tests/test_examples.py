"""The examples are short, hold nothing of anybody's machine, and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = json.loads((EXAMPLES / "own_model.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_they_are_short():
    assert len((EXAMPLES / "own_model.py").read_text().splitlines()) < 40
    assert sum(len(code.splitlines()) for code in CODE) < 40


def test_the_notebook_holds_code_that_compiles_and_no_outputs():
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    for code in CODE:
        compile(code, "own_model.ipynb", "exec")


@pytest.mark.slow
def test_the_script_goes_from_data_to_a_published_folder(built_in_home, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(EXAMPLES / "own_model.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "tuned: " in result.stdout
    assert "Not medical advice" in result.stdout
    assert (tmp_path / "published" / "README.md").read_text().startswith("---\n")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the notebook's own libraries
def test_the_notebook_runs(built_in_home, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="comes with make test-all")
    import nbformat

    notebook = nbformat.read(EXAMPLES / "own_model.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = [output["text"] for output in notebook.cells[-1].outputs if output.get("name") == "stdout"]
    assert "# NAME" in "".join(printed)
