"""Two runs, paired: by hand, against itself, and what can't be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medqa.errors import RunError
from medqa.evaluate.compare import compare_runs
from medqa.evaluate.run import evaluate
from medqa.files import read_sealed, seal
from medqa.recipe import load_recipe
from medqa.train.run import train

QUICK = ["evaluate.explanations=0", "evaluate.traps=0", "evaluate.orders=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, calibrated_run, calibrated_settings):
    """A calibrated run, and another one of other settings that is not calibrated; both evaluated."""
    folder = tmp_path_factory.mktemp("compared")
    first = Path(shutil.copytree(calibrated_run, folder / "first"))
    changes = ["train.learning_rate=3e-2", "data.calibration_share=0", "train.explanation_share=0"]
    second = train(
        load_recipe("medmcqa", [*calibrated_settings, *changes]), folder / "second", "medmcqa"
    ).path
    evaluate(first, QUICK)
    evaluate(second, QUICK)
    return first, second


def rows_of(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_two_runs_are_compared_question_by_question(runs):
    found = compare_runs(*runs)
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert found["runs"] == [str(run) for run in runs]
    assert set(found["prompts"]) == {"medqa", "lm_eval"}
    for prompt, one in found["prompts"].items():
        right = [
            np.array([np.argmax(r["log_likelihoods"]) == r["answer"] for r in rows_of(run)
                      if (r["prompt"], r["model"]) == (prompt, "tuned")])
            for run in runs
        ]  # fmt: skip
        assert one["accuracy"] == [report["scores"][prompt]["tuned"]["accuracy"] for report in reports]
        assert one["accuracy_gain"] == pytest.approx(right[1].mean() - right[0].mean())
        assert one["num_fixed"] == (right[1] & ~right[0]).sum()
        assert one["num_broken"] == (right[0] & ~right[1]).sum()
        assert {s: part["num_questions"] for s, part in one["subjects"].items()} == {
            "Anatomy": 12,
            "Surgery": 12,
        }
        assert one["without_flagged"] is None
    confidence = found["confidence"]
    assert confidence["calibrated"] == [True, False]
    nll = [reports[0]["calibration"]["score"]["nll"], reports[1]["scores"]["medqa"]["tuned"]["nll"]]
    assert confidence["nll"]["each"] == pytest.approx(nll)
    assert confidence["nll"]["change"] == pytest.approx(nll[1] - nll[0])
    low, high = confidence["nll"]["change_interval"]
    assert low <= confidence["nll"]["change"] <= high
    assert found == compare_runs(*runs)


def test_the_other_way_round_the_signs_turn(runs):
    one, other = compare_runs(*runs), compare_runs(*runs[::-1])
    for key in ("nll", "brier", "ece"):
        assert one["confidence"][key]["change"] == pytest.approx(-other["confidence"][key]["change"])
    assert one["prompts"]["medqa"]["accuracy_gain"] == -other["prompts"]["medqa"]["accuracy_gain"]


def test_a_run_against_itself_has_not_changed(runs):
    found = compare_runs(runs[0], runs[0])
    for one in found["prompts"].values():
        assert (one["accuracy_gain"], one["num_fixed"], one["num_broken"], one["mcnemar_p"]) == (0, 0, 0, 1)
        assert one["accuracy_gain_interval"] == [0, 0]
    for one in (found["confidence"][key] for key in ("nll", "brier", "ece")):
        assert (one["change"], one["change_interval"]) == (0, [0, 0])


def edited(run, tmp_path, **changes):
    copy = Path(shutil.copytree(run, tmp_path / "edited"))
    report = read_sealed(copy / "report.json")
    for key, value in changes.items():
        report[key] = {**report[key], **value} if isinstance(value, dict) else value
    (copy / "report.json").write_text(json.dumps(seal(report)))
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"sha256": "0" * 64}}, "not the same questions"),
        ({"adapter_sha256": "0" * 64}, "not measured with this adapter and this program"),
        ({"version": 1}, "not measured with this adapter and this program"),
    ],
)
def test_what_can_t_be_compared_is_refused_with_a_way_out(runs, tmp_path, changes, message):
    other = edited(runs[1], tmp_path, **changes)
    for pair in ((runs[0], other), (other, runs[0])):
        with pytest.raises(RunError, match=message) as error:
            compare_runs(*pair)
        assert "medqa evaluate" in error.value.hint


def test_without_a_report_or_its_predictions_the_command_is_told(runs, finished_run, tmp_path):
    bare = Path(shutil.copytree(finished_run, tmp_path / "bare"))
    (bare / "report.json").unlink(missing_ok=True)
    with pytest.raises(RunError, match="was not evaluated on all its questions") as error:
        compare_runs(runs[0], bare)
    assert error.value.hint == f"`medqa evaluate {bare}`"
    copy = edited(runs[1], tmp_path)
    (copy / "predictions.jsonl").write_text("{")
    with pytest.raises(RunError, match=r"is not what .* was made of") as error:
        compare_runs(runs[0], copy)
    assert "medqa evaluate" in error.value.hint
    report = read_sealed(copy / "report.json")
    del report["predictions_sha256"]  # as older reports are
    (copy / "report.json").write_text(json.dumps(report))
    for damage in ("{", '{"model": "tuned"}\n'):
        (copy / "predictions.jsonl").write_text(damage)
        with pytest.raises(RunError, match="can't be read"):
            compare_runs(runs[0], copy)


def test_a_digit_of_a_report_that_was_changed_is_found(runs, tmp_path):
    copy = edited(runs[1], tmp_path)
    text = (copy / "report.json").read_text()
    (copy / "report.json").write_text(text.replace('"accuracy": 0.', '"accuracy": 0.9', 1))
    with pytest.raises(RunError, match=r"report.json is damaged: .* the checksum differs"):
        compare_runs(runs[0], copy)


def test_flagged_questions_are_left_out_beside_the_whole(runs, tmp_path):
    rows = [r for r in rows_of(runs[0]) if (r["prompt"], r["model"]) == ("medqa", "tuned")]
    ids = [r["id"] for r in rows[:4]]
    other = edited(runs[1], tmp_path, leaks={"flagged": {"exact": ids}})
    one = compare_runs(runs[0], other)["prompts"]["medqa"]
    assert (one["num_questions"], one["without_flagged"]["num_questions"]) == (24, 20)


def test_on_the_command_line(runs, monkeypatch, capsys):
    import sys

    from medqa.cli.app import main

    def medqa(*args):
        monkeypatch.setattr(sys, "argv", ["medqa", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    code, out, _ = medqa("compare", *runs, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(compare_runs(*runs)))
    code, out, _ = medqa("compare", *runs)
    flat = " ".join(out.split())
    assert code == 0
    assert "accuracy, own prompt" in flat
    assert "Not calibrated: B" in flat
