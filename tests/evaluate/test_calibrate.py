"""A run is calibrated on what was held back from its training, on nothing else, and for itself only."""

import json
import shutil
from pathlib import Path

import pytest

from medqa.data.build import evaluation_set
from medqa.data.draw import examples_hash
from medqa.data.prepared import begin_corpus
from medqa.errors import CalibrationError
from medqa.evaluate import calibrate as calibrate_module
from medqa.evaluate.calibrate import calibrate, load_calibration, usual_orders
from medqa.evaluate.canaries import score_canaries
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.run import evaluate
from medqa.files import file_sha256
from medqa.model.tuned import load_tuned
from medqa.recipe import changed_config, load_recipe
from medqa.runs import RunFolder
from medqa.serve.answerer import Answerer
from medqa.testing import write_medmcqa
from medqa.train.run import train
from medqa.trust.store import read_values, write_values


def kept_calibration(path):
    tuned = load_tuned(path)
    return load_calibration(tuned.run, tuned.renderer)


def held_back(run):
    """The run's corpus, prepared again."""
    config = RunFolder.open(run).config
    return begin_corpus(config.data, config.train.seed).result()


def test_training_calibrates_by_itself_and_the_records_say_so(calibrated_run):
    record = json.loads((calibrated_run / "run.json").read_text())
    values = json.loads((calibrated_run / "adapter/calibration.json").read_text())
    assert set(values["orders"]) == set(record["calibration"]["orders"]) == {"1", "4"}
    assert record["calibration"]["data"] == values["data"]["num_used"]
    splits, used = record["data"]["splits"], values["data"]["num_used"]
    assert used["calibration"] == splits["calibration"]["num_used"] >= 50
    assert used["selection"] == splits["selection"]["num_used"] > 0
    assert values["data"]["calibration"] == splits["calibration"]
    assert values["identity"]["adapter_sha256"] == record["adapter_sha256"]
    assert record["calibration"]["seconds"] >= 0
    for number, one in record["calibration"]["orders"].items():
        assert one["method"] == values["orders"][number]["method"]
        assert one["after"]["nll"] == values["orders"][number]["account"]["after"]["nll"]
        assert values["orders"][number]["option_counts"] == {"4": used["calibration"]}
    assert not any("Not calibrated" in text for text in record["notices"])


def test_questions_of_the_evaluation_and_of_training_are_never_among_those_used(calibrated_run):
    data, config = held_back(calibrated_run), RunFolder.open(calibrated_run).config
    values = json.loads((calibrated_run / "adapter/calibration.json").read_text())
    used = [*data.calibration, *data.selection]
    assert values["data"]["sha256_used"] == examples_hash(used)
    measured = evaluation_set(config.data, config.train.seed).examples
    for others in (measured, data.train, data.selection):
        assert not {e.id for e in data.calibration} & {e.id for e in others}
        assert not {e.content_hash() for e in data.calibration} & {e.content_hash() for e in others}
    asked = []

    def spied(original):
        def score_orders(engine, examples, *args, **kwargs):
            asked.extend(examples)
            return original(engine, examples, *args, **kwargs)

        return score_orders

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate_module, "score_orders", spied(calibrate_module.score_orders))
        patch.setattr(calibrate_module.CalibrationFile, "write", lambda self, folder: None)
        calibrate(calibrated_run, [1])
    assert asked == used


def test_known_questions_are_kept_with_what_the_model_makes_of_them(calibrated_copy):
    canaries = kept_calibration(calibrated_copy).canaries
    assert canaries
    again = score_canaries(LocalEngine(load_tuned(calibrated_copy)))
    assert [c.example.question for c in again] == [c.example.question for c in canaries]
    for before, now in zip(canaries, again, strict=True):
        assert now.log_likelihoods == pytest.approx(before.log_likelihoods, abs=1e-4)
        assert now.base_log_likelihoods == pytest.approx(before.base_log_likelihoods, abs=1e-4)
    assert any(c.log_likelihoods != c.base_log_likelihoods for c in canaries)
    adapter = calibrated_copy / "adapter"
    values = read_values(adapter)
    del values["canaries"]  # as older files are
    write_values(adapter, values)
    assert kept_calibration(calibrated_copy).canaries == ()
    values["canaries"] = [{**canaries[0].to_json(), "log_likelihoods": []}]
    write_values(adapter, values)
    with pytest.raises(CalibrationError, match="damaged"):
        kept_calibration(calibrated_copy)


def test_a_changed_number_in_a_calibration_is_found(calibrated_copy):
    file = calibrated_copy / "adapter/calibration.json"
    values = json.loads(file.read_text())
    values["orders"]["1"]["parameters"] = {"temperature": 1.25}
    file.write_text(json.dumps(values))
    with pytest.raises(CalibrationError, match="the checksum differs") as error:
        Answerer.load(calibrated_copy)
    assert "medqa calibrate" in error.value.hint


def test_a_calibration_of_the_version_before_is_read(calibrated_copy):
    file, before = calibrated_copy / "adapter/calibration.json", kept_calibration(calibrated_copy)
    values = json.loads(file.read_text())
    del values["sha256"]
    file.write_text(json.dumps({**values, "version": 1}))
    assert kept_calibration(calibrated_copy).by_orders == before.by_orders
    file.write_text(json.dumps({**values, "version": 0}))
    with pytest.raises(CalibrationError, match="version 0; 1 and 2 are read") as error:
        kept_calibration(calibrated_copy)
    assert "medqa calibrate" in error.value.hint


def test_too_few_held_back_is_a_notice_and_the_run_is_whole(settings, tmp_path):
    few = [*settings, "data.calibration_share=0.1"]
    run = train(load_recipe("medmcqa", few), tmp_path / "run", "medmcqa")
    assert run.record["status"] == "complete"
    [text] = [t for t in run.record["notices"] if "Not calibrated" in t]
    assert "at least 50 are needed" in text
    assert f"medqa calibrate {run.path}" in text
    assert "calibration" not in run.record
    assert not (run.adapter / "calibration.json").exists()
    assert Answerer.load(run.path)
    with pytest.raises(CalibrationError, match="at least 50 are needed") as error:
        calibrate(run.path)
    assert "data.calibration_share" in error.value.hint


@pytest.mark.slow
def test_other_orders_are_added_to_those_that_are_there(calibrated_copy):
    # On fewer questions, what was fitted to more of them does not stay beside it.
    before = calibrate(calibrated_copy, [1], max_rows=50)
    assert set(before.by_orders) == {1}
    assert before.record["data"]["num_used"]["calibration"] == 50
    four = calibrate(calibrated_copy, [4], max_rows=50)
    after = calibrate(calibrated_copy, [24], max_rows=50)
    assert set(after.by_orders) == {1, 4, 24}
    assert after.by_orders[4] == four.by_orders[4]
    assert after.by_orders[1].calibrator == before.by_orders[1].calibrator
    assert kept_calibration(calibrated_copy).by_orders == after.by_orders
    with pytest.raises(CalibrationError, match="not calibrated for answers over 24") as error:
        four.for_orders(24)
    assert "medqa calibrate RUN --orders 24" in error.value.hint


def test_the_usual_orders_are_those_of_report_and_answers():
    config = load_recipe("medmcqa", [])
    assert usual_orders(config) == (1, 4)
    sections = ("evaluate", "serve")
    assert usual_orders(changed_config(config, ["evaluate.orders=1"], sections)) == (1,)
    assert usual_orders(changed_config(config, ["serve.orders=24"], sections)) == (1, 4, 24)


@pytest.mark.parametrize(
    ("field", "name"),
    [("adapter_sha256", "adapter"), ("base_model", "base model"), ("prompt_sha256", "prompt")],
)
def test_a_calibration_of_another_model_is_refused(calibrated_copy, field, name):
    values = read_values(calibrated_copy / "adapter")
    values["identity"][field] = "0" * 64
    write_values(calibrated_copy / "adapter", values)
    with pytest.raises(CalibrationError, match=f"belongs to another {name} and") as error:
        Answerer.load(calibrated_copy)
    assert "medqa calibrate" in error.value.hint


def test_a_calibration_does_not_travel_to_another_run_s_adapter(
    calibrated_run, finished_run, tmp_path, caplog
):
    other = Path(shutil.copytree(finished_run, tmp_path / "other"))
    shutil.copy(calibrated_run / "adapter/calibration.json", other / "adapter")
    with pytest.raises(CalibrationError, match="belongs to another adapter"):
        kept_calibration(other)
    report = evaluate(other, ["evaluate.explanations=0", "evaluate.traps=0"], max_rows=5)
    assert report["calibration"]["calibrated"] is False
    assert "belongs to another adapter" in report["calibration"]["reason"]
    assert "belongs to another adapter" in caplog.text


def test_other_training_questions_are_refused(calibrated_copy, tmp_path):
    data = Path(RunFolder.open(calibrated_copy).config.data.name)
    moved = Path(shutil.copytree(data, tmp_path / "data"))
    lines = (moved / "train.jsonl").read_text().splitlines()
    (moved / "train.jsonl").write_text("\n".join(lines[:-20]) + "\n")
    record = json.loads((calibrated_copy / "run.json").read_text())
    record["config"]["data"]["name"] = str(moved)
    (calibrated_copy / "run.json").write_text(json.dumps(record))
    before = file_sha256(calibrated_copy / "adapter/calibration.json")
    with pytest.raises(CalibrationError, match="are not those that were held back") as error:
        calibrate(calibrated_copy)
    assert "put the data back" in error.value.hint
    assert file_sha256(calibrated_copy / "adapter/calibration.json") == before


def test_a_whole_report_holds_what_calibration_gives(calibrated_copy):
    report = evaluate(calibrated_copy)
    found, kept = report["calibration"], kept_calibration(calibrated_copy)
    assert found["calibrated"]
    assert found["parameters"] == kept.by_orders[1].calibrator.to_json()
    assert found["score"]["num_questions"] == 24
    assert set(found["sets"]) == {"lac", "aps"}
    assert [row["max_risk"] for row in found["abstention"]] == [0.5, 0.4, 0.3, 0.2, 0.1]
    assert report["orders"]["calibrated"]["parameters"] == kept.by_orders[4].calibrator.to_json()
    assert report["version"] == 2
    rows = [json.loads(line) for line in (calibrated_copy / "explanations.jsonl").read_text().splitlines()]
    assert [row["drawn"] for row in rows] == [True, True, False, False]
    evaluate(calibrated_copy, ["evaluate.explanations=0", "evaluate.traps=0", "evaluate.orders=1"])
    assert not (calibrated_copy / "explanations.jsonl").exists()


def test_a_report_from_before_is_told(calibrated_copy, caplog):
    (calibrated_copy / "report.json").write_text("{}")
    with caplog.at_level("INFO"):
        calibrate(calibrated_copy, [1])
    assert "was measured before this calibration" in caplog.text


def test_evaluation_questions_that_are_trained_on_are_not_held_back_either(calibrated_settings, tmp_path):
    """A leak leaves the corpus before anything is held back."""
    from conftest import word_questions

    rows = word_questions(160)
    write_medmcqa(tmp_path / "data/train.jsonl", rows)
    write_medmcqa(tmp_path / "data/validation.jsonl", rows[:30])
    config = load_recipe("medmcqa", [*calibrated_settings, f"data.name={tmp_path / 'data'}"])
    data = begin_corpus(config.data, 0).result()
    kept = {e.id for part in (data.train, data.calibration, data.selection) for e in part}
    assert data.calibration
    assert not kept & {e.id for e in rows[:30]}
