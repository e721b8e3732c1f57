import contextlib
import json
import re
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.data import exam, exam_marks
from medqa.data.exam import KEY_NOTE, NUMBER_NOTE, REST_NOTE, TICK_NOTE, split_exam
from medqa.errors import DataError
from medqa.prompts import lm_eval_prompt, question_text
from medqa.records import Example

FOUR = ("foo", "bar baz", "qux", "quux")
STEM = "A 45-year-old man with hepatitis B. has a rash. Which vitamin A. level is low?"


def lines(*marks):
    return "\n".join(f"{mark}{text}" for mark, text in zip(marks, FOUR, strict=True))


@pytest.mark.parametrize(
    "marks",
    [
        ("A. ", "B. ", "C. ", "D. "),
        ("A) ", "B) ", "C) ", "D) "),
        ("(A) ", "(B) ", "(C) ", "(D) "),
        ("[A] ", "[B] ", "[C] ", "[D] "),
        ("a. ", "b. ", "c. ", "d. "),
        ("a)", "b)", "c)", "d)"),
        ("(a)", "(b)", "(c)", "(d)"),
        ("A: ", "B: ", "C: ", "D: "),
        ("A - ", "B - ", "C - ", "D - "),
        ("A \u2013 ", "B \u2013 ", "C \u2013 ", "D \u2013 "),
        ("A.", "B.", "C.", "D."),
        ("A\t", "B\t", "C\t", "D\t"),
        ("A\n", "B\n", "C\n", "D\n"),
        ("A.\n", "B.\n", "C.\n", "D.\n"),
        ("1. ", "2. ", "3. ", "4. "),
        ("1) ", "2) ", "3) ", "4) "),
        ("(1) ", "(2) ", "(3) ", "(4) "),
        ("  A. ", "\tB. ", "  C. ", "  D. "),
        ("**A.** ", "**B.** ", "**C.** ", "**D.** "),
        ("- A. ", "- B. ", "- C. ", "- D. "),
        ("\u2022 ", "\u2022 ", "\u2022 ", "\u2022 "),
        ("- ", "- ", "- ", "- "),
        ("", "", "", ""),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_options_one_a_line(marks, end):
    text = f"{STEM}\n{lines(*marks)}\n".replace("\n", end)
    if end == "\n\n" and marks[0] in ("A\n", "A.\n"):
        return  # the letter and its text stay together
    found = split_exam(text)
    assert (found.example.question, found.example.options) == (STEM, FOUR)
    assert found.example.answer is None
    assert found.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "Which? A. foo B. bar baz C. qux D. quux",
        "Which? a) foo b) bar baz c) qux d) quux",
        "Which? (A) foo (B) bar baz (C) qux (D) quux",
        "Which? (a)foo (b)bar baz (c)qux (d)quux",
        "Which?\nA. foo  B. bar baz\nC. qux  D. quux",
        "Which?\nA. foo B. bar baz C. qux D. quux",
        "Which?\nA. foo\nB. bar baz C. qux D. quux",
        "Which?\nA. foo\nB. bar\nbaz\nC. qux\n   D. quux",
    ],
)
def test_options_on_one_line_or_over_several(text):
    found = split_exam(text).example
    assert (found.question, found.options) == ("Which?", FOUR)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Most common site is a) foo b) bar c) baz d) qux", ("foo", "bar", "baz", "qux")),
        ("Which?\nA. Staph\nB. due to\nE. coli", ("Staph", "due to E. coli")),
        ("Which? A. Staph B. E. coli C. H. pylori", ("Staph", "E. coli", "H. pylori")),
        ("Which?\nA. vitamin C. deficiency\nB. foo\nC. bar", ("vitamin C. deficiency", "foo", "bar")),
        (
            "Which?\nA. Hepatitis A\nB. Hepatitis B\nC. Hepatitis C",
            ("Hepatitis A", "Hepatitis B", "Hepatitis C"),
        ),
        ("Which?\nA. 1.5 mg\nB. 2.5 mg", ("1.5 mg", "2.5 mg")),
        ("Which?\n1.5 mg\n2.5 mg", ("1.5 mg", "2.5 mg")),
        ("Which?\n- foo\n- bar\n  more\n- baz", ("foo", "bar more", "baz")),
        ("Which are right?\n1. x\n2. y\n3. z\nA. 1 and 2\nB. 2 and 3", ("1 and 2", "2 and 3")),
        ("Of (a) x and (b) y, which?\nA. a only\nB. both", ("a only", "both")),
        ("1. Which?\n1. x\n2. y", ("x", "y")),
    ],
)
def test_what_looks_like_an_option_and_is_none(text, options):
    assert split_exam(text).example.options == options


def test_a_vignette_of_several_lines_keeps_its_lines():
    stem = "A man lacks vitamin\nB. He has hepatitis\n\nC. Labs:\n1. Hb 10\n2. WBC 4\nWhich?"
    assert split_exam(f"{stem}\nA) x\nB) y").example.question == stem


def test_ten_options_and_not_eleven():
    text = "Which?\n" + "\n".join(f"{letter}. option {letter}" for letter in "ABCDEFGHIJ")
    assert len(split_exam(text).example.options) == 10
    with pytest.raises(DataError, match="11 option"):
        split_exam(text + "\nK. one more")


KEYS = [
    "Answer: B",
    "Ans. (b)",
    "Ans: b",
    "ANSWER B",
    "Ans- B bar",
    "Correct answer: B. bar",
    "Right answer - B",
    "The correct answer is B.",
    "The answer is (B) because of bar",
    "Key: B",
    "Answer key: B",
    "**Answer: B**",
    "Answer = 2",
    "Answer: bar",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_cut_told_of_and_not_used(key):
    found = split_exam(f"Which?\nA. foo\nB. bar\n{key}")
    assert found.example == Example("Which?", ("foo", "bar"))
    assert found.notes == (KEY_NOTE,)
    assert split_exam(f"Which?\nfoo\nbar\n\n{key}\n").example == found.example
    again = split_exam(f"Which?\nA. foo\nB. bar\n{key}\nExplanation: for a reason.\n\nSource: a book")
    assert (again.example, again.notes) == (found.example, (KEY_NOTE, REST_NOTE))


@pytest.mark.parametrize(
    "key", [key for key in KEYS if key not in ("Answer: bar", "**Answer: B**", "ANSWER B")]
)
def test_a_key_within_the_last_line_is_cut(key):
    found = split_exam(f"Which? A. foo B. bar ({key})")
    assert found.example == Example("Which?", ("foo", "bar"))
    assert KEY_NOTE in found.notes


def test_other_ways_to_give_the_answer_away():
    assert split_exam("Answer: B\nWhich?\nA. x\nB. y").notes == (KEY_NOTE,)
    ticked = split_exam("Which?\nA. x\n\u2713 B. y\nC. z (correct answer)")
    assert (ticked.example.options, ticked.notes) == (("x", "y", "z"), (TICK_NOTE,))
    reason = split_exam("Which?\nA. x\nB. y\nExplanation: y it is")
    assert (reason.example.options, reason.notes) == (("x", "y"), (REST_NOTE,))
    # A question may speak of answers and keys.
    stem = "The answer is a matter of taste.\nKey findings: none. Which answer fits?"
    assert split_exam(f"{stem}\nA. the answer is a matter\nB. no key").notes == ()
    assert split_exam(f"{stem}\nA. the answer is a matter\nB. no key").example.question == stem


@pytest.mark.parametrize(
    ("head", "notes"),
    [
        ("12. ", (NUMBER_NOTE,)),
        ("12) ", (NUMBER_NOTE,)),
        ("Q12. ", (NUMBER_NOTE,)),
        ("Question 12: ", (NUMBER_NOTE,)),
        ("Question 12 of 40\n", (NUMBER_NOTE,)),
        ("Question: ", ()),
        ("Q. ", ()),
    ],
)
def test_the_number_of_the_question_is_no_part_of_it(head, notes):
    found = split_exam(f"{head}A 45-year-old man. Which?\nA. x\nB. y")
    assert (found.example.question, found.notes) == ("A 45-year-old man. Which?", notes)


@pytest.mark.parametrize(
    "stem", ["1. foo 2. bar: which?", "1. foo\n2. bar\nwhich?", "Q fever: which?", "1.5 mg?"]
)
def test_a_question_may_begin_with_a_number_or_q(stem):
    assert split_exam(f"{stem}\nA. x\nB. y").example.question == stem


def test_a_context_is_taken_where_the_text_names_one():
    found = split_exam("Context: A trial.\nDid it work?\nA. yes\nB. no\nC. maybe").example
    assert (found.context, found.question) == ("A trial.", "Did it work?")
    found = split_exam(
        "Context: A trial.\nOf two arms.\n\nQuestion: Did it work?\nChoices:\nA. yes\nB. no"
    ).example
    assert (found.context, found.question) == ("A trial.\nOf two arms.", "Did it work?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no text"),
        (" \n ", "no text"),
        ("Hello there", "no options were found"),
        ("Which?", "no options were found"),
        ("Which?\nonly one", "no options were found"),
        ("A. x\nB. y", "no question before the options"),
        ("Context: x\nA. x\nB. y", "no question before the options"),
        ("Which?\nA. x\nB. y\nD. z", "'D. z' does not come next"),
        ("Which?\nA. x\nB. of hepatitis\nB. more\nC. z", "'B. more' does not come next"),
        ("Which?\nB. x\nC. y", "'B. x' stands alone"),
        ("Which?\nA. x", "'A. x' stands alone"),
        ("Which?\nA. x\nB.", "option B is empty"),
        ("Which?\nA. x\nB. y\n\nPlease explain.", "'Please explain.'"),
        ("Which?\nA. x\nB. y\nC. z E. Q D. W", "may be an option"),
        ("Which?\nA. x\nB. y\nC. z\nAnswer: B\nD. w", "after what looks like the key"),
        ("One?\nA. x\nB. y\nTwo?\nA. x\nB. y", "2 lists of options"),
        ("One? A. x B. y Two? A. x B. y", "2 lists of options"),
        ("Which?\nA. x\nB. y\n1. z\n2. w", "2 lists of options"),
        ("Which?\n(A) x\n(B) y\nA. z\nB. w", "2 lists of options"),
        ("Which? A. vitamin B. or so B. y C. z", "is there twice"),
        ("Blood group?\nA\nB\nAB\nO", "'O' does not come next"),
        ("Is it so?\nHe says no.\n" + "A long story. " * 30, "is an option"),
        ("Which?\nfoo\n- bar", "'- bar' is an option"),
        ("Which?\n" + "foo\n" * 11, "is an option"),
        ("x" * (exam.MAX_CHARACTERS + 1), "100,001 characters"),
        ("Which \ud800?\nA. x\nB. y", "surrogate"),
    ],
)
def test_what_is_not_clear_is_refused_and_never_guessed(text, message):
    with pytest.raises(DataError, match=re.escape(message)) as error:
        split_exam(text)
    assert error.value.hint


def starter():
    for name in ("train", "validation"):
        for line in (resources.files("medqa.data") / "starter" / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            yield Example(row["question"], tuple(row[f"op{letter}"] for letter in "abcd"))


def test_every_built_in_question_comes_back_from_our_own_layout_and_from_others():
    for example in starter():
        assert split_exam(question_text(example)) == exam.Pasted(example)
        assert split_exam(lm_eval_prompt(example)[0]) == exam.Pasted(example)
        on_one_line = f"7. {question_text(example)}".replace("\n", " ")
        assert split_exam(on_one_line).example == example


LETTERS = "abcdefgh\u00e4\u03b2"
words = st.tuples(
    st.sampled_from(LETTERS), st.text(LETTERS + ",-/+%()0123456789", min_size=1, max_size=8)
).map("".join)
phrases = st.lists(words, min_size=1, max_size=8).map(" ".join)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(phrases, min_size=1, max_size=3),
    st.lists(phrases, min_size=2, max_size=10),
    st.none() | phrases,
    st.sampled_from("?.: "),
)
def test_our_own_layout_comes_back(stem, options, context, end):
    example = Example(("\n".join(stem) + end).strip(), tuple(options), context=context)
    assert split_exam(question_text(example)) == exam.Pasted(example)


MARKS = ("A.", "B.", "C)", "(a)", "(b)", "1.", "2.", "- ", "**", "\u2713")
WORDS = ("foo", "E. coli", "is", "Answer:", "Ans B", "Context:", "Question:", "Explanation:")
BLANKS = ("\n", "\n\n", " ", "? ", "\t", "\r\n", "\u2028")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(MARKS + WORDS + BLANKS), max_size=30).map("".join) | st.text(max_size=80))
def test_any_text_is_split_or_refused(text):
    with contextlib.suppress(DataError):
        found = split_exam(text).example
        assert found.answer is None
        # Nothing is made up, and nothing changes places.
        said = "".join((found.context or "", found.question, *found.options))
        letters = iter(text)
        assert all(letter in letters for letter in said if letter.isalnum())


@pytest.mark.parametrize(
    "unit",
    [
        "A. ",
        "A. x\n",
        "A. B. ",
        "? A. x B. y ",
        "answer ",
        "x?\n",
        "\n \n",
        " ",
        "(",
        "**A",
        "Ans: ",
        "1. 2) ",
    ],
)
def test_the_time_grows_with_the_text_and_not_faster(unit, monkeypatch):
    # Steps are counted, not seconds: marks are what a text can have many of.
    seen = []
    follow = exam_marks._run

    def counted(marks, text):
        marks = list(marks)
        seen.append(len(marks))
        return follow(marks, text)

    monkeypatch.setattr(exam_marks, "_run", counted)
    text = unit * (exam.MAX_CHARACTERS // 4 // len(unit))
    with pytest.raises(DataError):
        split_exam(text)
    assert sum(seen) <= 2 * len(text)
    with pytest.raises(DataError, match="characters, expected at most"):
        split_exam(unit * (1_000_000 // len(unit)))
