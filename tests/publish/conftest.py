"""A published run, as small as it gets."""

import shutil

import pytest

from medqa.files import read_json, write_json


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
    record = read_json(run / "run.json")
    record["data"]["licences"] = ["apache-2.0"]
    write_json(run / "run.json", record)
    evaluate(run)
    return run


@pytest.fixture
def make_flat():
    return flatten


@pytest.fixture
def flat_run(calibrated_run, tmp_path):
    return flatten(calibrated_run, tmp_path / "flat")
