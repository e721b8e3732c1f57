import dataclasses
import json
import math

import pytest

from medqa.errors import DataError
from medqa.records import Example, Prediction, softmax


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": " ", "options": ("a", "b")}, "question is empty"),
        ({"question": "q", "options": ("a",)}, "1 option"),
        ({"question": "q", "options": tuple("abcdefghijk")}, "11 option"),
        ({"question": "q", "options": ("a", " ")}, "option B is empty"),
        ({"question": "q", "options": ("a", "b"), "answer": 2}, "outside the 2 options"),
        ({"question": "q", "options": ("a", "b"), "answer": -1}, "outside"),
    ],
)
def test_a_broken_question_is_refused_with_the_reason(fields, message):
    with pytest.raises(DataError, match=message) as caught:
        Example(**fields)
    assert caught.value.hint


def test_repeated_options_are_found_and_case_counts():
    assert Example("q", ("x", "y", " x ")).repeated_option() == " x "
    assert Example("q", ("D", "d")).repeated_option() is None
    with pytest.raises(DataError, match="more than once"):
        Example("q", ("x", "x")).require_distinct_options()


def test_an_example_without_id_is_named_by_its_content():
    assert Example("q", ("a", "b")).id == Example("q", ("a", "b"), answer=1).id
    assert Example("q", ("a", "b")).id != Example("q", ("b", "a")).id


def test_records_survive_json():
    example = Example("q\u00e9", ("a", "b"), answer=1, subject="S")
    back = json.loads(json.dumps(example.to_json()))
    assert Example(**{**back, "options": tuple(back["options"])}) == example


def test_prediction_probabilities_are_a_softmax_by_hand():
    p = Prediction("i", None, 2, 0, "scored", (math.log(3) - 700, -700.0))
    assert p.probabilities == pytest.approx((0.75, 0.25))
    assert p.choice == 0
    assert softmax((0.0, 0.0)) == (0.5, 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.id = "x"
