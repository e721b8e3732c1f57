import pytest
from hypothesis import given
from hypothesis import strategies as st

from medqa.data.clean import clean, clean_explanation
from medqa.records import Example


def cleaned(text, options=("Heparin sodium", "Warfarin"), answer=0):
    """Clean one explanation; the key is A unless a case needs another."""
    return clean_explanation(Example("q", options, answer=answer, explanation=text))[0].explanation


REST = "Inhibits thrombin through antithrombin, quickly."


@pytest.mark.parametrize(
    "opening",
    [
        "Ans. is 'b' i.e., ",
        "Ans. (c) ",
        "Ans: A. ",
        "Ans. B: ",
        "Answer- D. ",
        "(a) ",
        "'c' i.e., ",
        "C i.e. ",
        "A. i.e. ",
        "Answer is A ",
        "The correct answer is option C. ",
        "Ans. is 'a' i.e., 'b' ",
        "Answer: ",
        "Option B: ",
        "A) ",
        "a. ",
    ],
)
def test_openings_that_only_name_the_key_go(opening):
    assert cleaned(opening + REST) == REST


@pytest.mark.parametrize(
    "text",
    [
        "A patient with this rash needs a biopsy of the lesion.",
        "E. coli is the commonest cause of urinary infection.",
        "Vitamin C deficiency gives bleeding gums and slow healing.",
        "Answering needs the formula for clearance and its units.",
        "Both ventricles contract together after the septum does.",
        "C-reactive protein rises within hours of an injury.",
        "E. Coli is the commonest cause of urinary infection.",
        "B. Anthracis forms spores that last for years in soil.",
        "Hypoxia is seen if O2 <normal and CO2 >normal at rest.",
        "B-cell lymphomas express CD20 in nearly every patient.",
    ],
)
def test_openings_that_say_something_stay(text):
    assert cleaned(text) == text


def test_markup_entities_and_blanks():
    assert cleaned("<p>Low&nbsp;pH  &amp; high<br/>lactate are\n\n typical here</p>") == (
        "Low pH & high lactate are\ntypical here"
    )
    assert cleaned("A value of p <0.05 and x> 3 is kept as it is") == (
        "A value of p <0.05 and x> 3 is kept as it is"
    )


def test_bare_keys_are_dropped_and_counted():
    examples = [
        Example("q", ("Heparin sodium", "Warfarin"), answer=0, explanation=text)
        for text in ("Ans. is 'a' i.e., Heparin sodium", REST, None)
    ]
    better, counts = clean(examples)
    assert [e.explanation for e in better] == [None, REST, None]
    assert counts["bare key"] == 1
    assert counts["answer marker"] == 1


def test_questions_and_options_are_untouched():
    example = Example("Ans. (a) <b>q</b>", ("(a) x", "b"), answer=0, explanation="(a) " + REST)
    better, _ = clean_explanation(example)
    assert (better.question, better.options, better.answer) == (example.question, example.options, 0)


@given(st.text(max_size=80), st.sampled_from(["", "Ans. (a) ", "<b>", "C i.e. "]))
def test_cleaning_twice_changes_nothing_more(text, opening):
    once = cleaned(opening + text)
    if once is not None:
        again = cleaned(once)
        assert again in (once, None) or len(again) < len(once)
