import dataclasses

import pytest

from medqa.errors import DataError
from medqa.records import NOTICE, Example
from medqa.serve.engine import Answerer
from medqa.testing import MAX_LENGTH_TOKENS, make_examples


@pytest.fixture(scope="module")
def answerer(finished_run):
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
    tuned = answerer._tuned
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
