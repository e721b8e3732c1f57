import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.data.keys import KeyRow, has_key, named_option, read_key, resolve_keys
from medqa.errors import DataError

OPTIONS = ("Thiamine", "Riboflavin", "Niacin", "Cobalamin")
LETTERS = "ABCD"


def rows_of(keys, explanations=None, options=OPTIONS):
    explanations = explanations or [None] * len(keys)
    return [
        KeyRow(f"f.csv:{line}", key, options, explanation)
        for line, (key, explanation) in enumerate(zip(keys, explanations, strict=True), 2)
    ]


def saying(keys, start):
    """Explanations that name the option that each key means when counted from `start`."""
    return [f"It is {OPTIONS[key - start]} that is lacking." for key in keys]


@pytest.mark.parametrize(
    ("keys", "style"),
    [
        ([0, 1, 2], "0-based"),
        (["0", "3.0", 2.0, -1, "", None, float("nan")], "0-based"),
        ([1, 2, 4], "1-based"),
        (["A", "d", "(B)", "b.", "Option C", "[C]", "Answer: D"], "letter"),
        (["thiamine", " NIACIN "], "text"),
        ([None, "-1", -1.0, " "], "none"),
        ([7, 12], "none"),
        (["see notes"], "none"),
    ],
)
def test_styles_that_the_values_alone_decide(keys, style):
    found = resolve_keys(rows_of(keys))
    assert found.style == style
    assert found.evidence


def test_the_top_is_that_of_each_row():
    rows = [KeyRow("f:1", 2, ("a", "b"), None), KeyRow("f:2", 2, OPTIONS, None)]
    assert resolve_keys(rows).style == "1-based"
    rows = [KeyRow("f:1", 0, ("a", "b"), None), KeyRow("f:2", 3, OPTIONS, None)]
    assert resolve_keys(rows).style == "0-based"


def test_numbers_that_leave_it_open_are_refused():
    with pytest.raises(DataError) as caught:
        resolve_keys(rows_of([3, 1, 2, 1]), column="key", name="f.csv")
    assert caught.value.message == "f.csv: key: keys 1, 2, 3 fit both counting from 0 and from 1"
    assert caught.value.hint == "say which: --set data.keys=0-based or --set data.keys=1-based"


@pytest.mark.parametrize(("start", "style"), [(0, "0-based"), (1, "1-based")])
def test_explanations_decide_what_the_numbers_leave_open(start, style):
    keys = [1, 2, 3] * 4
    found = resolve_keys(rows_of(keys, saying(keys, start)))
    assert found.style == style
    other = "from 0" if start else "from 1"
    assert f"agree with 12 of 12 explanations, {other} with 0" in found.evidence


def test_too_few_or_torn_explanations_decide_nothing():
    few = [1, 2, 3]
    with pytest.raises(DataError, match=r"don't decide \(keys read from 0 agree with 3 of 3"):
        resolve_keys(rows_of(few, saying(few, 0)))
    keys = [1, 2, 3] * 10
    torn = [*saying(keys[:15], 0), *saying(keys[15:], 1)]
    with pytest.raises(DataError, match="from 0 agree with 15 of 30 explanations, from 1 with 15"):
        resolve_keys(rows_of(keys, torn))


def test_explanations_that_contradict_the_values_are_told():
    keys = [0, *[1, 2, 3] * 8]
    explanations = ["", *saying(keys[1:], 1)]
    with pytest.raises(DataError) as caught:
        resolve_keys(rows_of(keys, explanations), name="f.csv")
    assert "keys read from 0 agree with 0 of 24 explanations, from 1 with 24" in caught.value.message
    assert "--set data.keys=0-based" in caught.value.hint
    agreeing = resolve_keys(rows_of(keys, ["", *saying(keys[1:], 0)]))
    assert "from 0 agree with 24 of 24 explanations, from 1 with 0" in agreeing.evidence


def test_both_ends_are_refused_with_counts_and_lines():
    with pytest.raises(DataError) as caught:
        resolve_keys(rows_of([0, 4, 1, 0, 0, 0, 2]), name="f.csv")
    message = caught.value.message
    assert "of 7 keys, 4 are 0, which only counting from 0 has (f.csv:2, f.csv:5, f.csv:6, ...)" in message
    assert "1 is the number of options, which only counting from 1 has (f.csv:3)" in message
    assert "--set data.keys=" in caught.value.hint


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (["A", "B", 2], ["2 are a letter (f.csv:2, f.csv:3)", "1 is a number (f.csv:4)"]),
        (["A", "niacin"], ["1 is a letter (f.csv:2)", "1 is an option's text (f.csv:3)"]),
        ([0, "niacin", "C"], ["1 is a number", "1 is an option's text", "1 is a letter"]),
    ],
)
def test_mixed_kinds_are_refused_with_counts_and_lines(keys, parts):
    with pytest.raises(DataError) as caught:
        resolve_keys(rows_of(keys))
    for part in parts:
        assert part in caught.value.message
    assert "niacin" not in str(caught.value).lower()


def test_blood_groups_are_letters_only_where_all_keys_are():
    groups = ("B", "A", "AB", "O")
    assert resolve_keys(rows_of(["AB", "O", "A"], options=groups)).style == "text"
    with pytest.raises(DataError, match="the keys fit both letters and the options' texts") as caught:
        resolve_keys(rows_of(["A", "B"], options=groups))
    assert "data.keys=letter or --set data.keys=text" in caught.value.hint
    in_order = ("A", "B", "AB", "O")
    assert resolve_keys(rows_of(["A", "B"], options=in_order)).style == "letter"  # the same either way


def test_numbers_as_options_make_numbers_as_keys_unclear():
    rows = rows_of([1, 2, 3, 2], options=("1", "2", "3", "5"))  # from 1 means the same as the texts
    with pytest.raises(DataError, match="fit both counting from 0 and from 1"):
        resolve_keys(rows)
    rows = rows_of([12, 2, 33], options=("2", "12", "24", "33"))  # cranial nerves, vertebrae
    assert resolve_keys(rows).style == "text"


def test_unreadable_keys_have_no_say_and_are_broken_without_their_text():
    rows = rows_of([0, 3, "Jane Doe", 9, "E"])
    assert resolve_keys(rows).style == "0-based"
    for row, reason in [
        (rows[2], "cop is no number, counted from 0"),
        (rows[3], "cop 9 is outside the 4 options, counted from 0"),
    ]:
        with pytest.raises(DataError) as caught:
            read_key("0-based", row.key, row.options, "cop")
        assert caught.value.message == reason


@pytest.mark.parametrize(
    ("style", "key", "reason"),
    [
        ("1-based", 0, "answer 0 is outside the 4 options, counted from 1"),
        ("0-based", "B", "answer is no number, counted from 0"),
        ("letter", 2, "answer is a number, not read as letters"),
        ("letter", "E", "answer is no letter of the 4 options"),
        ("text", "Biotin", "answer is not the text of one option"),
        ("none", "Biotin", "answer is none of the options, a letter or a number"),
        ("none", "5551234", "answer is none of the options, a letter or a number"),
        ("none", 8, "answer 8 is outside the 4 options"),
    ],
)
def test_why_a_key_can_not_be_read(style, key, reason):
    with pytest.raises(DataError) as caught:
        read_key(style, key, OPTIONS)
    assert caught.value.message == reason


def test_texts_must_be_those_of_one_option():
    with pytest.raises(DataError, match="not the text of one option"):
        read_key("text", "iron", ("Iron", "iron ", "Zinc"))
    scores = ("-1", "-2.5")
    assert read_key("text", -1, scores) == 0  # a T-score
    assert read_key("0-based", -1, scores) is None
    assert not has_key(-1)


def test_a_style_that_is_set_is_used_and_warned_about(caplog):
    keys = [1, 2, 3] * 8
    rows = rows_of(keys, saying(keys, 1))
    assert resolve_keys(rows, "1-based").evidence == "set by data.keys"
    assert not caplog.text
    found = resolve_keys(rows, "0-based", name="f.csv")
    assert found.style == "0-based"
    assert "f.csv: keys are read from 0 as set" in caplog.text
    assert "from 0 agree with 0 of 24 explanations, from 1 with 24" in caplog.text


@pytest.mark.parametrize(
    ("explanation", "index"),
    [
        (None, None),
        ("", None),
        ("Ans. B", 1),
        ("Ans. is 'c' i.e., the third", 2),
        ("Answer: (D) since", 3),
        ("answer is a.", 0),
        ("Correct option: B. It", 1),
        ("(c) is right", 2),
        ("(a) first (b) second", None),  # a list
        ("Answer a patient's question first", None),  # the article
        ("Ans. E", None),  # there is no such option
        ("Beriberi is due to lack of THIAMINE.", 0),
        ("Thiamine, unlike niacin, ...", None),
        ("Ans. B: it is niacin", None),  # says two things
        ("None of these words", None),
    ],
)
def test_what_an_explanation_speaks_for(explanation, index):
    assert named_option(explanation, OPTIONS) == index


def test_short_options_are_not_looked_for_inside_words():
    assert named_option("The affected arm needs a scan.", ("CT", "Ultrasonography")) is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.sampled_from(["0-based", "1-based", "letter", "text"]),
)
def test_any_file_is_read_rightly_or_refused(answers, style):
    written = {
        "0-based": lambda a: a,
        "1-based": lambda a: str(a + 1),
        "letter": lambda a: f"({LETTERS[a]})",
        "text": lambda a: OPTIONS[a].upper(),
    }[style]
    rows = rows_of([written(a) for a in answers], [f"It is {OPTIONS[a]}." for a in answers])
    try:
        found = resolve_keys(rows)
    except DataError as exc:
        assert "based" in style
        assert "fit both" in exc.message  # noqa: PT017
        return
    assert [read_key(found.style, row.key, row.options) for row in rows] == answers


KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()))


@settings(max_examples=150, deadline=None)
@given(KEYS, st.sampled_from(["0-based", "1-based", "letter", "text", "none"]))
def test_any_key_is_read_or_refused_without_being_told(key, style):
    with contextlib.suppress(DataError):
        index = read_key(style, key, OPTIONS)
        assert index is None or 0 <= index < 4
