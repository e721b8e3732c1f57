import contextlib
import itertools
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
def test_options_one_a_line(marks):
    for end in ["\n", "\r\n", "\n\n"]:
        text = f"{STEM}\n{lines(*marks)}\n".replace("\n", end)
        if end == "\n\n" and marks[0] in ("A\n", "A.\n"):
            continue  # the letter and its text stay together
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


THREE = ("Aspirin", "Heparin", "Warfarin")
NEXT_LINE = (
    "A. {}\nB. {}\nC. {}",
    "(a) {}\n(b) {}\n(c) {}",
    "1) {}\n2) {}\n3) {}",
    "**A.** {}\n**B.** {}\n**C.** {}",
)
SAME_LINE = ("A. {} B. {} C. {}", "(a) {} (b) {} (c) {}", "1) {} 2) {} 3) {}", "A. {}\nB. {}\nC. {}")
HEADINGS = [
    "Select the best answer:",
    "Choose the correct answer:",
    "Choose the single best answer.",
    "Best answer:",
    "Correct answer -",
    "Answers:",
    "ANSWER:",
    "Key:",
    "**Answer choices:**",
]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_name_of_the_key_before_the_options_is_their_heading(heading):
    for plain, key in itertools.product(
        [False, True], ["", "\nAnswer: B", "\nAns. (c)", "\nCorrect answer is B", "\nAnswer:\nB"]
    ):
        for options in ("{}\n{}\n{}", "- {}\n- {}\n- {}") if plain else NEXT_LINE:
            found = split_exam(f"Which drug helps?\n{heading}\n{options.format(*THREE)}{key}")
            assert (found.example.question, found.example.options) == ("Which drug helps?", THREE)
            assert (KEY_NOTE in found.notes) == bool(key)


@pytest.mark.parametrize("heading", [heading for heading in HEADINGS if heading[0] != "*"])
def test_a_heading_may_stand_in_one_line_with_the_options(heading):
    for space, key in itertools.product(
        [" ", "\n"], ["", "\nAnswer: B", "\nAns. (c)", " Correct answer is B"]
    ):
        for options in SAME_LINE:
            found = split_exam(f"Which drug helps?{space}{heading} {options.format(*THREE)}{key}")
            said = "Which drug helps?" if space == "\n" else f"Which drug helps? {heading}"
            assert (found.example.question, found.example.options) == (said, THREE)
            assert found.notes == ((KEY_NOTE,) if key else ())


IRON = ("Ferritin is low", "TIBC is high", "MCV is high")
PAIRS = ("1 and 2", "2 and 3", "1 and 3", "All")


@pytest.mark.parametrize("statements", ["1. {}\n2. {}\n3. {}", "a. {}\nb. {}\nc. {}", "1) {} 2) {} 3) {}."])
@pytest.mark.parametrize("heading", ["Select the correct answer:", "Answers:", "Which are right?", ""])
def test_statements_stay_in_the_question(statements, heading):
    for key, options in itertools.product(
        ["", "\nAnswer: A", "\nAns. (B)", "\nCorrect answer is 1 and 2"],
        ["\nA. {}\nB. {}\nC. {}\nD. {}", " (A) {} (B) {} (C) {} (D) {}"],
    ):
        stem = f"What is so in iron deficiency?\n{statements.format(*IRON)}"
        if not heading and options[0] == " ":
            heading = "Then:"
        found = split_exam(f"{stem}\n{heading}{options.format(*PAIRS)}{key}")
        assert found.example.options == PAIRS
        dropped = "nswer" in heading
        assert found.example.question == (stem if dropped else f"{stem}\n{heading}".strip())
        assert (KEY_NOTE in found.notes) == bool(key)


@pytest.mark.parametrize(
    "text",
    [
        "Which?\nA. x\nB. y\nAnswer: B\n1. z\n2. w",
        "Which?\nA. x\nB. y\nAnswer: B\nAnd which?\n(a) z\n(b) w",
        "Which?\nA. x\nB. y (Ans. B) And which? (a) z (b) w",
        "Which?\n1. x\n2. y\nAnswers: 1. z\n2. w",
        "Which?\n1. x\n2. y\nExplanation: see below.\nA. z\nB. w",
        "Which?\n1. x\n2. y\nAnswer: 2\nA. z\nB. w",
        "Which?\n1. x\n2. y\nAnswer: y\nSo:\nA. z\nB. w",
        "Which?\nA. x\nB. y\nExplanation: A. is wrong.\nB. is right.",
        "Which?\nA. x\nB. y\nNow which? 1) z 2) w",
        "Which?\nA. x\nB. y\n1. z\n2. w\n1. q\n2. r",
        "Which? A. x B. y Answer: B C. z",
        "Which?\nA. x C. z\nB. y D. w",
        "Which?\nA. x\nAnswer: B\nB. y",
        "Which?\nA. x\nExplanation: it is not.\nB. y\nExplanation: it is.",
        "Which?\nfoo\nbar\nAnswer: B\nExplanation:\nA. z\nB. w",
        "Which?\nfoo\nbar\nAnswer: y\nSo:\n1. z\n2. w",
        "Which?\nfoo\nbar\nAnswer: B\nWhich other?\nbaz\nqux",
        "Why?\nHe is 40.\nHe is weak.\nReferences: K 3.5 to 5\nWhich is low?\nfoo\nbar",
        "Which?\nAnswer: B\nA. x\nB. y",
        "Which? (Answer: B)\nA. x\nB. y",
        "Which? (Answer: y)\nA. x\nB. y",
        "Which?\n1) x\n2) y\nExplanation: as below.\nWhich other?\nA. z\nB. w",
        "Match:\nA. x - 1. z\nB. y - 2. w\n(a) A-1, B-2\n(b) A-2, B-1",
        "Which?\nAnswer: B\nfoo\nbar",
        "Choose the correct answer:\nA. x\nB. y",
    ],
)
def test_a_second_list_or_a_key_out_of_place_is_refused(text):
    with pytest.raises(DataError) as error:
        split_exam(text)
    assert error.value.hint


def test_lists_that_are_no_options_are_let_be():
    found = split_exam("Which?\nA. x\nB. y\nAnswer: B\nReferences:\n1. A book, p. 4\n2. Another")
    assert (found.example.options, found.notes) == (("x", "y"), (KEY_NOTE, REST_NOTE))
    found = split_exam("Of (a) x and (b) y, which?\nA. (a) only\nB. (b) only\nC. (a) and (b)")
    assert found.example.options == ("(a) only", "(b) only", "(a) and (b)")
    found = split_exam("Which?\nA. x\nB. y\nAnswer: A. x\nExplanation: Unlike hepatitis B. it clears.")
    assert (found.example.options, found.notes) == (("x", "y"), (KEY_NOTE, REST_NOTE))


@pytest.mark.parametrize(
    "stem",
    [
        "A man is weak.\nReferences: K 3.5 to 5\nWhich is low?",
        "A man is weak.\nReference: K 3.5 to 5; Na 135 to 145.\n\nWhich is low?",
        "Labs:\n1. K 2.9\n2. Na 140\nReferences: K 3.5 to 5\nWhich is low?",
        "He asks: why?\nHe is 40.\nHe is weak.\nReferences: K 3.5 to 5\nWhich is low?",
        "A claim was made.\nExplanation: the cause is gout.\nWhich drug helps?",
        "Key: A patient has a rash.\nWhich is low?",
        "Key: A patient has a rash. Which is low?",
        "Key: K is potassium.\nWhich is low?",
        "Scale key: 1 = mild, 2 = grave. Which fits?",
        "A nurse says the answer is B because he is old.\nIs she right?",
        "The most (correct) thing is?",
        "A table marks \u2713 for yes. Which?",
        "HLA *B27 is tested. Which?",
    ],
)
def test_what_stands_before_the_options_is_never_cut(stem):
    for options, end in itertools.product(
        ["A. foo\nB. bar", "1) foo 2) bar", "foo\nbar", "- foo\n- bar"],
        ["", "\nAnswer: B", "\nReferences: a book"],
    ):
        if ("1. K" in stem or "why?" in stem) and options[0] != "A":
            continue  # two lists of numbers, or two of lines
        found = split_exam(f"{stem}\n{options}{end}")
        assert (found.example.question, found.example.options) == (stem, ("foo", "bar"))
        assert found.notes == ({"": (), "\nA": (KEY_NOTE,), "\nR": (REST_NOTE,)}[end[:2]])


@pytest.mark.parametrize(
    "key", ["Answer: B", "Ans. (b)", "Answer: bar", "Answer: B. bar", "Correct answer is B."]
)
def test_a_key_before_the_question_is_cut(key):
    for options in ("A. foo\nB. bar", "foo\nbar", "(a) foo (b) bar"):
        found = split_exam(f"{key}\nWhich?\n{options}\nAnswer: B")
        assert (found.example, found.notes) == (Example("Which?", ("foo", "bar")), (KEY_NOTE,))


@pytest.mark.parametrize(
    "options",
    [
        "A. foo\nB. bar (correct)\nC. baz",
        "A. foo\nB. bar [Correct answer].\nC. baz",
        "A. foo\nB. bar (right answer)\nC. baz",
        "A. foo\n\u2713 B. bar\nC. baz",
        "A. foo\nB. \u2705 bar\nC. baz",
        "A. foo B. bar \u2714 C. baz",
        "A. foo\n*B. bar\nC. baz",
        "A. foo\nB. bar\n*C. baz",
        "A. foo\nB. bar *\nC. baz",
        "A. foo\nB. bar \u2190 correct answer\nC. baz",
        "- foo\n- bar (correct)\n- baz",
        "foo\n\u2713 bar\nbaz",
        "\u2610 foo\n\u2611 bar\n\u2610 baz",
        "- foo\n\u2713 bar\n- baz",
    ],
)
def test_a_mark_at_the_right_option_is_cut(options):
    found = split_exam(f"Which?\n{options}")
    assert (found.example.options, found.notes) == (("foo", "bar", "baz"), (TICK_NOTE,))


VACCINE = "Which vaccine is live?"
VACCINES = ("MMR", "Hepatitis B", "Tetanus")


@pytest.mark.parametrize(
    "end",
    [
        "Solution: A",
        "Correct: A",
        "Correct option: A",
        "[Answer: A]",
        "Ans. A) MMR Ref: a book, p. 4",
        "The correct answer is MMR.",
        "The correct answer is: A. MMR",
        "Answers: A and C",
        "Answer and explanation: A. MMR is live.",
        "Ref: a book, p. 4",
        "Option A is correct.",
        "**Correct Answer:** A) MMR\n\n**Explanation:** It is attenuated.",
        "The correct answer is MMR.\nReferences:\n1. A book\n2. Another",
    ],
)
def test_what_tells_the_answer_after_the_options_is_cut(end):
    found = split_exam(f"{VACCINE}\nPossible answers:\nA. MMR\nB. Hepatitis B\nC. Tetanus\n{end}")
    assert (found.example.question, found.example.options) == (VACCINE, VACCINES)
    assert found.notes


@pytest.mark.parametrize(
    ("stem", "options"),
    [
        (
            "Which are features of nephrotic syndrome?\nI. Proteinuria\nII. Low albumin\nIII. Haematuria",
            "\nChoose the correct option:\nA. I only\nB. I and II\nC. All",
        ),
        (
            "Assertion (A): Insulin lowers glucose.\nReason (R): It brings GLUT4 to the membrane.",
            "\nChoose the correct answer:\nA. Both A and R are true\nB. A is true, R is false\nC. Neither",
        ),
        (
            "1. Scurvy follows lack of vitamin C\n2. Gums bleed\n"
            "Select the correct answer using the codes given below:",
            "\n(a) 1 only\n(b) 2 only\n(c) 1 and 2",
        ),
        ("Ferritin 5\nReference range: 15 to 200\nWhat is the cause?", "\n(A) x (B) y (C) z"),
        ("He lacks (a) thiamine (b) vitamin C. Give the answer:", "\nA. a only\nB. b only\nC. both"),
    ],
)
def test_other_layouts_of_exams(stem, options):
    for key in ["", "\nAns: (b)", "\nCorrect option: B", "\nKey - B"]:
        found = split_exam(f"{stem}{options}{key}")
        assert (found.example.question, len(found.example.options)) == (stem, 3)
        assert found.notes == ((KEY_NOTE,) if key else ())


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
# No "a)" or "a-": two of them are a second list, which is refused.
words = (
    st.tuples(st.sampled_from(LETTERS), st.text(LETTERS + ",-/+%()0123456789", min_size=1, max_size=8))
    .map("".join)
    .filter(lambda word: word[1] not in ")-")
)
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
        "Ans: b ",
        "Answers:\n",
        "key: a x\n",
        "\u2713 ",
        "x? Ans: A. y ",
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
