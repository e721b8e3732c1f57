"""A published run, as small as it gets."""

import dataclasses
import importlib.util
import shutil
import sys
import types
from pathlib import Path

import pytest

from medqa.files import file_sha256


def flatten(run, folder):
    """Make a flat run folder, as a published one is."""
    shutil.copytree(run / "adapter", folder, dirs_exist_ok=True)
    for file in (run / "run.json", run / "recipe.yaml", run / "report.json"):
        if file.is_file():
            shutil.copy(file, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="session")
def measured_run(calibrated_run, tiny_model, tmp_path_factory):
    """A run with a report, which a card is made of, that may be passed on. Not to be changed."""
    from medqa.evaluate.run import evaluate

    (tiny_model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    run = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(calibrated_run, run)
    evaluate(run)
    return run


@pytest.fixture
def make_flat():
    return flatten


@pytest.fixture
def flat_run(calibrated_run, tmp_path):
    return flatten(calibrated_run, tmp_path / "flat")


if importlib.util.find_spec("medqa.publish.card") is None:

    @dataclasses.dataclass(frozen=True)
    class Published:
        path: Path
        repo: str
        files: tuple

    def write_published(run_path, repo, out, *, base=None):
        flatten(run_path, out)
        files = tuple((p.name, p.stat().st_size, file_sha256(p)) for p in sorted(out.iterdir()))
        return Published(out, repo, files)

    stand_in = types.ModuleType("medqa.publish.folder")
    stand_in.Published, stand_in.write_published = Published, write_published
    sys.modules["medqa.publish.folder"] = stand_in
