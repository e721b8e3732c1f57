"""Training questions that ask which option an explanation points to."""

import dataclasses

import pytest

from medqa.evaluate.explanations import READ_BACK_QUESTION, names_option
from medqa.records import Example
from medqa.testing import make_examples
from medqa.train.read_back import read_back_questions

EXAMPLES = make_examples(40)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.01, 1), (0.1, 4), (0.26, 11), (1, 40)])
def test_the_share_is_of_all_questions(share, count):
    assert len(read_back_questions(EXAMPLES, share, 0)) == count


def test_only_the_explanation_and_the_options_are_asked_and_the_key_follows():
    made = read_back_questions(EXAMPLES, 1, 0)
    by_id = {f"{e.id}, read back": e for e in EXAMPLES}
    assert {e.id for e in made} == set(by_id)
    for question in made:
        whole = by_id[question.id]
        assert (question.question, question.context) == (READ_BACK_QUESTION, whole.explanation)
        assert question.explanation is None
        assert sorted(question.options) == sorted(whole.options)
        assert question.options[question.answer] == whole.options[whole.answer]
        assert (question.subject, question.source, question.licence) == (
            whole.subject,
            whole.source,
            whole.licence,
        )
        assert whole.question not in str(question)
    moved = [e for e in made if e.options != by_id[e.id].options]
    assert len(moved) > 30  # one order of 24 is the one given
    assert len({e.answer for e in made}) == 4


def test_only_explanations_that_name_the_key_tell():
    silent = [dataclasses.replace(e, explanation="It is known.", id=f"s{e.id}") for e in EXAMPLES[:5]]
    none = [dataclasses.replace(e, explanation=None, id=f"n{e.id}") for e in EXAMPLES[5:10]]
    keyless = [dataclasses.replace(e, answer=None, id=f"k{e.id}") for e in EXAMPLES[10:15]]
    told = EXAMPLES[15:18]
    made = read_back_questions([*silent, *none, *keyless, *told], 0.5, 0)
    assert {e.id for e in made} == {f"{e.id}, read back" for e in told}  # fewer than asked for
    assert all(names_option(e.context, e.options[e.answer]) for e in made)


def test_options_that_speak_of_each_other_keep_their_places():
    bound = Example("Which?", ("atria", "ventricles", "bones", "Both A and B"), 3, "bound")
    bound = dataclasses.replace(bound, explanation="Both atria and ventricles: both A and B.")
    above = Example(
        "Which?", ("atria", "ventricles", "All of the above"), 0, "above", explanation="The atria."
    )
    for question in read_back_questions([bound, above], 1, 3):
        assert question.options[-1] in ("Both A and B", "All of the above")
        if question.id.startswith("bound"):
            assert question.options == bound.options


def test_the_draw_is_the_same_each_time_and_goes_by_the_seed_not_the_order():
    one = read_back_questions(EXAMPLES, 0.25, 0)
    assert one == read_back_questions(EXAMPLES, 0.25, 0)
    assert {e.id for e in one} == {e.id for e in read_back_questions(EXAMPLES[::-1], 0.25, 0)}
    assert {e.id for e in one} != {e.id for e in read_back_questions(EXAMPLES, 0.25, 1)}
