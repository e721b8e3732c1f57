"""What is said of an export is what was found, and a wrong one is refused."""

import logging

import pytest

from medqa.errors import PublishError
from medqa.model.tuned import load_tuned
from medqa.publish.parity import HeldOut, compare, find_held_out, is_valid
from medqa.records import Prediction
from medqa.runs import RunFolder
from medqa.testing import make_examples
from medqa.trust.calibration import LogLikelihoods
from medqa.trust.fitting import fit_calibration

EXAMPLES = make_examples(100)


def predictions(shift=0.0, swapped=(), too_long=()):
    """Predictions that are right on every second question; `shift` of the best, others `swapped`."""
    found = []
    for number, example in enumerate(EXAMPLES):
        best = (example.answer + number % 2) % len(example.options)
        values = [-3.0] * len(example.options)
        values[best] = -0.5 + shift
        if number in swapped:
            values.append(values.pop(0))
        status = "too_long" if number in too_long else "scored"
        kept = () if number in too_long else tuple(values)
        found.append(Prediction(example.id, None, len(values), example.answer, status, kept))
    return found


class Fake:
    def __init__(self, renderer, found):
        self.renderer, self.found = renderer, found

    def score(self, items):
        return self.found

    def device_record(self):
        return {"name": "fake", "precision": "fp32"}


@pytest.fixture(scope="module")
def renderer(finished_run):
    return load_tuned(finished_run).renderer


@pytest.fixture(scope="module")
def calibration():
    found = predictions()
    return fit_calibration(
        LogLikelihoods.of([one.log_likelihoods for one in found], [one.answer for one in found])
    )


HELD_OUT = HeldOut(EXAMPLES, "held back from training", None)


def test_the_same_answers_are_the_same(renderer, calibration):
    parity = compare("merged", renderer, predictions(), Fake(renderer, predictions()), HELD_OUT, calibration)
    assert (parity.num_same, parity.num_questions, parity.max_change, parity.others) == (100, 100, 0, ())
    assert parity.drift == {"confidence": 0, "coverage": 0}
    assert is_valid(parity)
    parity.require("no need")
    assert "100 of 100 letters are the same (100.0%)" in str(parity)


def test_another_letter_is_named_and_refused(renderer):
    parity = compare(
        "merged", renderer, predictions(), Fake(renderer, predictions(swapped={7})), HELD_OUT, None
    )
    assert parity.num_same == 99
    assert [one["id"] for one in parity.others] == [EXAMPLES[7].id]
    # softmax of (-0.5, -3, -3, -3): the two letters change places
    assert parity.max_change == pytest.approx(0.8023 - 0.0659, abs=1e-3)
    assert parity.mean_change == pytest.approx(parity.max_change / 100)
    with pytest.raises(PublishError, match=r"99 of 100 letters.*merged has to keep 100%.*became") as error:
        parity.require("--dtype fp32")
    assert error.value.hint == "--dtype fp32"


@pytest.mark.parametrize(("kind", "num_swapped", "passes"), [("q8_0", 1, True), ("q8_0", 2, False)])
def test_eight_bits_keep_99_of_100_letters(renderer, kind, num_swapped, passes):
    found = predictions(swapped=range(num_swapped))
    parity = compare(kind, renderer, predictions(), Fake(renderer, found), HELD_OUT, None)
    if passes:
        parity.require("-")
    else:
        with pytest.raises(PublishError):
            parity.require("-")


def test_four_bits_are_reported_and_bound_to_nothing(renderer):
    found = predictions(swapped=range(50))
    parity = compare("q4_k_m", renderer, predictions(), Fake(renderer, found), HELD_OUT, None)
    parity.require("-")
    assert parity.to_json()["bound"] is None
    assert parity.to_json()["share_same"] == 0.5
    assert len(parity.others) == 5


def test_an_export_that_is_surer_needs_another_calibration(renderer, calibration):
    parity = compare(
        "q4_k_m", renderer, predictions(), Fake(renderer, predictions(3.0)), HELD_OUT, calibration
    )
    assert parity.num_same == 100
    assert parity.drift["confidence"] > 0.02
    assert not is_valid(parity)


def test_questions_that_one_of_them_cannot_take_are_left_out(renderer):
    found = predictions(too_long={1, 2})
    parity = compare("merged", renderer, predictions(too_long={3}), Fake(renderer, found), HELD_OUT, None)
    assert parity.num_questions == 97
    everything = predictions(too_long=range(100))
    with pytest.raises(PublishError, match="no question that both"):
        compare("merged", renderer, everything, Fake(renderer, everything), HELD_OUT, None)


def test_a_tokenizer_that_cuts_otherwise_is_refused(renderer):
    class Cutting(Fake):
        def tokenize(self, text):
            return self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"][self.cut :]

    engine = Cutting(renderer, predictions())
    engine.cut = 0
    parity = compare("f32", renderer, predictions(), engine, HELD_OUT, None)
    assert parity.num_tokenised_alike == 100
    engine.cut = 1
    parity = compare("f32", renderer, predictions(), engine, HELD_OUT, None)
    with pytest.raises(PublishError, match="cuts 100 of 100 prompts into other tokens"):
        parity.require("-")


def test_questions_are_those_held_back_from_training(calibrated_run, calibrated_settings):
    run = RunFolder.open(calibrated_run)
    held_out = find_held_out(run, 20)
    ids = {example.id for example in held_out.data.train}
    assert held_out.source == "held back from training"
    assert len(held_out.examples) == 20
    assert not ids & {example.id for example in held_out.examples}
    assert find_held_out(run, 20).examples == held_out.examples


def test_without_them_the_built_in_ones_are_taken_and_it_is_said(calibrated_run, finished_run, caplog):
    with caplog.at_level(logging.WARNING, logger="medqa"):
        held_out = find_held_out(RunFolder.open(finished_run), 10)
        assert (held_out.source, held_out.data) == ("built into the program", None)
        assert "held no questions back" in caplog.text
        caplog.clear()
        run = RunFolder.open(calibrated_run)
        record = dict(run.record, config={**run.record["config"]})
        record["config"]["data"] = {**record["config"]["data"], "name": "/nowhere/data"}
        held_out = find_held_out(RunFolder(run.path, record), 10)
        assert held_out.data is None
        assert "/nowhere/data" in caplog.text
