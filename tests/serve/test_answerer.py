import dataclasses

import pytest

from medqa.config import ServeConfig
from medqa.errors import CalibrationError, DataError
from medqa.evaluate import orders as orders_module
from medqa.records import NOTICE, Example
from medqa.serve.answerer import Answerer
from medqa.testing import MAX_LENGTH_TOKENS, make_examples


@pytest.fixture(scope="module")
def answerer(finished_run):
    """Not calibrated."""
    return Answerer.load(finished_run)


def test_an_answer_is_whole_and_the_same_every_time(answerer):
    example = make_examples(3)[2]
    answer = answerer.answer(example)
    assert answer == answerer.answer(example)
    assert answer.option == example.options["ABCD".index(answer.letter)]
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.confidence == max(answer.probabilities.values()) == answer.probabilities[answer.letter]
    assert answer.notice == NOTICE
    assert answer.explanation is not None


def test_the_letter_does_not_depend_on_the_explanation_or_the_key(answerer):
    example = make_examples(1)[0]
    quick = answerer.answer(dataclasses.replace(example, answer=3), explain=False)
    assert quick.explanation is None
    assert (quick.letter, quick.probabilities) == (
        answerer.answer(example).letter,
        answerer.answer(example).probabilities,
    )


def test_the_explanation_follows_the_fixed_letter_and_says_if_it_was_cut(answerer, monkeypatch):
    tuned = answerer.engine.tuned
    seen = {}
    generate = tuned.model.generate

    def spy(**kwargs):
        seen.update(kwargs)
        return generate(**kwargs)

    monkeypatch.setattr(tuned.model, "generate", spy)
    answer = answerer.answer(make_examples(1)[0])
    text = tuned.renderer.tokenizer.decode(seen["input_ids"][0])
    assert text.endswith(f"Answer: {answer.letter}. {answer.option}\n\n")
    assert answer.explanation_finished is False  # a random model does not stop within 8 tokens


@pytest.mark.parametrize("count", [2, 5, 10])
def test_two_to_ten_options(answerer, count):
    answer = answerer.answer(Example("Which?", tuple("abcdefghij"[:count])), explain=False)
    assert list(answer.probabilities) == list("ABCDEFGHIJ"[:count])


def test_questions_it_cannot_take(answerer):
    with pytest.raises(DataError, match="more than once"):
        answerer.answer(Example("q", ("same", "same")))
    with pytest.raises(DataError, match=f"at most {MAX_LENGTH_TOKENS}"):
        answerer.answer(Example("long " * MAX_LENGTH_TOKENS, ("a", "b")))


def test_an_explanation_without_room_is_marked_as_cut(answerer):
    words = "w " * 480
    for extra in range(30):
        question = Example(words + "x" * extra, ("a", "b"))
        try:
            answer = answerer.answer(question)
        except DataError:
            break
        assert answer.explanation_finished is False


@pytest.fixture(scope="module")
def calibrated(calibrated_run):
    return Answerer.load(calibrated_run)


def test_a_calibrated_answer_says_how_far_to_trust_it(calibrated):
    example = make_examples(1)[0]
    answer = calibrated.answer(example, explain=False)
    made = calibrated._calibrations.by_orders[1]
    [found] = orders_module.score_orders(calibrated.engine, [example], 1)
    judged = made.judge(found.prediction.log_likelihoods)
    assert (answer.confidence, answer.letter) == (judged.confidence, "ABCD"[judged.choice])
    assert answer.answer_set == tuple("ABCD"[place] for place in judged.answer_set)
    assert answer.answer_set[0] == answer.letter
    assert (answer.alpha, answer.abstain, answer.reason, answer.caveat) == (0.1, False, None, None)
    assert answer.calibration == calibrated._calibrations.label
    assert (answer.num_orders, answer.consistency) == (1, None)
    assert answer.explanation_check is None
    smaller = calibrated.answer(example, explain=False, settings=ServeConfig(alpha=0.2))
    assert set(smaller.answer_set) <= set(answer.answer_set)
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_a_risk_that_is_out_of_reach_is_no_answer_with_its_reason(calibrated):
    # A random model is right one time in four: no confidence is enough for so few wrong answers.
    answer = calibrated.answer(make_examples(1)[0], explain=False, settings=ServeConfig(max_risk=0.1))
    assert answer.abstain
    assert answer.reason.startswith("no confidence is enough for at most 10 % wrong answers")
    assert answer.letter in "ABCD"  # the best guess is told all the same


def test_another_number_of_options_than_it_was_calibrated_on_has_a_caveat(calibrated):
    two = Example("Which?", ("a", "b"))
    answer = calibrated.answer(two, explain=False)
    assert answer.caveat == "calibrated on questions of 4 options, and this one has 2"
    assert set(answer.answer_set) == {"A", "B"}
    assert not answer.abstain
    promised = calibrated.answer(two, explain=False, settings=ServeConfig(max_risk=0.9))
    assert (promised.abstain, promised.reason) == (True, answer.caveat)


def test_over_several_orders_it_says_how_steady_the_answer_is(calibrated):
    example = make_examples(1)[0]
    answer = calibrated.answer(example, explain=False, settings=ServeConfig(orders=4))
    [found] = orders_module.score_orders(calibrated.engine, [example], 4)
    assert answer.num_orders == 4
    assert answer.consistency == found.consistency("ABCD".index(answer.letter))
    turned = dataclasses.replace(example, options=example.options[2:] + example.options[:2])
    again = calibrated.answer(turned, explain=False, settings=ServeConfig(orders=4))
    assert again.option == answer.option  # every rotation is asked either way
    assert again.confidence == pytest.approx(answer.confidence, abs=1e-4)
    with pytest.raises(CalibrationError, match="not calibrated for answers over 24 option orders"):
        calibrated.answer(example, settings=ServeConfig(orders=24))
    with pytest.raises(CalibrationError, match=r"no answer sets for alpha 0\.3"):
        calibrated.answer(example, settings=ServeConfig(alpha=0.3))


def test_an_explanation_is_checked_and_the_user_warned(calibrated):
    answer = calibrated.answer(make_examples(1)[0])
    check = answer.explanation_check
    assert {"points_to", "agrees", "names_choice", "finished", "warning"} <= set(check)
    assert check["finished"] is answer.explanation_finished is False
    assert check["warning"]


def test_without_a_calibration_nothing_is_promised(answerer):
    answer = answerer.answer(make_examples(1)[0], explain=False)
    assert (answer.calibration, answer.answer_set, answer.alpha) == (None, None, None)
    with pytest.raises(CalibrationError, match="nothing is known of the risk") as error:
        answerer.answer(make_examples(1)[0], settings=ServeConfig(max_risk=0.3))
    assert "medqa calibrate" in error.value.hint
    assert answerer.answer(make_examples(1)[0], explain=False, settings=ServeConfig(orders=4)).num_orders == 4
