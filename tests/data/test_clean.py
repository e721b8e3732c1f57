import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.data.clean import cleaning_rules, minimal_rules
from medqa.data.draw import reordered
from medqa.data.repair import Lexicon
from medqa.data.rules import Drop, apply_rules, chosen_rules, clean_rows
from medqa.data.vocabulary import Vocabulary
from medqa.errors import ConfigError
from medqa.records import LETTERS, Example

OPTIONS = ("Heparin sodium", "Warfarin", "Aspirin", "Alteplase")
REST = "Inhibits thrombin through antithrombin, quickly."


@pytest.fixture(scope="module")
def rules():
    vocabulary = Vocabulary(["the disease of Franklin is rare", "treatment surgery blood vessel"] * 9)
    return cleaning_rules(vocabulary, Lexicon.learn(vocabulary))


def clean(rules, text, key="A", options=OPTIONS, question="q"):
    return apply_rules(rules, Example(question, options, LETTERS.index(key), explanation=text))


@pytest.mark.parametrize(
    ("opening", "key"),
    [
        ("Ans. is 'b' i.e., ", "B"),
        ("Ans. (c) ", "C"),
        ("Ans: A. ", "A"),
        ("Answer- D. ", "D"),
        ("(a) ", "A"),
        ("'c' i.e., ", "C"),
        ("C i.e. ", "C"),
        ("Answer is A ", "A"),
        ("The correct answer is option C. ", "C"),
        ("Ans. is 'a' i.e., 'b' ", "A"),
        ("Answer: ", "A"),
        ("Answer is option 2. ", "B"),
        ("279. Ans: a ", "A"),
        ("Option B: ", "B"),
        ("A) ", "A"),
        ("a. ", "A"),
        ("Explanation: ", "A"),
    ],
)
def test_openings_that_only_name_the_key_go(rules, opening, key):
    assert clean(rules, opening + REST, key).explanation == REST


@pytest.mark.parametrize(
    "text",
    [
        "A patient with this rash needs a biopsy of the lesion.",
        "E. coli is the commonest cause of urinary infection.",
        "Vitamin C deficiency gives bleeding gums and slow healing.",
        "Answering needs the formula for clearance and its units.",
        "C-reactive protein rises within hours of an injury.",
        "B. Anthracis forms spores that last for years in soil.",
        "Hypoxia is seen if O2 <normal and CO2 >normal at rest.",
        "B-cell lymphomas express CD20 in nearly every patient.",
        "The best option for a patient in shock is to give fluid.",
        "Page charts of growth are kept from birth in this clinic.",
        "In the table of elements sodium stands in the first group.",
        "Both conditions may present with the clinical picture above.",
        "A figure of eight bandage holds the clavicle in its place.",
        "Lesions of hepatitis B and hepatitis C are chronic in adults.",
        "The treatment option a patient prefers counts for much here.",
        "The answers a clinician needs are rarely found in one book.",
        "Ultrasound is the investigation of choice. A scan is quick.",
        "P(Total) = P(A) + P(B) where the events exclude each other.",
        "Chronic &acute forms differ; &ethambutol is given for both.",
        "The share is 4/10 *100 = 40 in the group of treated persons.",
        "Source reduction removes the places where mosquitoes breed.",
        "\u03b2-blockers slow the heart and lower its need for oxygen.",
        "c-myc is an oncogene that is found in Burkitt lymphoma.",
        "Blood of group O Rh negative may be given to anybody at all.",
        "Ans. B cells mature in the marrow, T cells in the thymus.",
    ],
)
def test_texts_that_say_something_stay(rules, text):
    assert clean(rules, text).explanation == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (REST + " Ref: Harrison 19th edition page 123", REST),
        (REST + "Ref - Robbins basic pathology 9th ed. pg no: 784-785", REST),
        (REST + " (Ref: Nelson's 20/e p 2628-2631)", REST),
        (REST + " Reference: Park's textbook of preventive medicine, 23rd edition, pg no:256", REST),
        (REST + " Ref: KD Tripathi 8th ed.", REST),
        ("Refer kDT 7/e p 516 " + REST, REST),
        ("Robbins basic pathology 9th edition page no 63 " + REST, REST),
        (REST + " B D Chaurasia 7th edition Page no: 112,114", REST),
        (REST + " Look at the image below.", REST),
        ("Refer KDT 7th/293 " + REST, REST),
        ("Sabiston 20th edition Pgno : 1366. " + REST, REST),
        (
            "It ends fatally within a week. " + REST + " Park 23rd ed p 5",
            "It ends fatally within a week. " + REST,
        ),
        (REST + " (Figure 2-28)", REST),
        ("<p>Low&nbsp;pH  &amp; high<br/>lactate are typical</p>", "Low pH & high lactate are typical"),
        ("Harrison&;s triad is described in this disease", "Harrison's triad is described in this disease"),
        ("A rare \u2022 B cells \u2022 T cells \u2022 NK cells", "A rare\n- B cells\n- T cells\n- NK cells"),
        ("Causes are o Infection o Injury o Ischaemia", "Causes are\n- Infection\n- Injury\n- Ischaemia"),
        ("A rare diseaseFranklin described it first.", "A rare disease Franklin described it first."),
        ("It clots.Therefore it is given early.", "It clots. Therefore it is given early."),
        ("It is seen in men, so option C is wrong here.", 'It is seen in men, so "Aspirin" is wrong here.'),
        ("Thinning drugs (choice B) need control.", 'Thinning drugs ("Warfarin") need control.'),
        (
            "Rule out options B, C and D before it.",
            'Rule out "Warfarin", "Aspirin" and "Alteplase" before it.',
        ),
    ],
)
def test_residue_goes_and_the_rest_stays(rules, before, after):
    assert clean(rules, before).explanation == after


@pytest.mark.parametrize(
    ("example", "rule"),
    [
        (Example("q", ("a", "a ", "b"), 0), "repeated option"),
        (Example("Identify the structure marked in the image", OPTIONS, 0), "picture"),
        (Example("The lesion shown in the figure below is", OPTIONS, 0), "picture"),
        (Example("q", OPTIONS, 0, explanation="Ans. is 'a' and 'c' i.e., both of these."), "several answers"),
        (Example("q", OPTIONS, 0, explanation="Ans. is 'b' i.e., Warfarin. " + REST), "contradicted key"),
    ],
)
def test_rows_that_would_teach_wrong_are_left_out(rules, example, rule):
    kept, _, results = clean_rows(rules, [example], repr)
    assert not kept
    assert [name for name, result in results.items() if result.dropped] == [rule]


@pytest.mark.parametrize(
    "example",
    [
        # The explanation's letter is a slip: its words are the key's.
        Example("q", OPTIONS, 0, explanation="Ans. is 'b' i.e., Heparin sodium acts at once."),
        # "All of the above" is right, whatever single letter is named.
        Example("q", (*OPTIONS[:3], "All of the above"), 3, explanation="Ans. A. Heparin is one of them."),
        Example("q", (*OPTIONS[:3], "Both A and B"), 3, explanation="Ans. A and B both act on thrombin."),
        # A list that goes through the options names no answer.
        Example("q", OPTIONS, 1, explanation="(a) Heparin acts at once. (b) Warfarin acts in days."),
        Example("A 40-year-old woman pictures her pain as a knife. Cause?", OPTIONS, 0),
    ],
)
def test_rows_that_only_look_wrong_stay(rules, example):
    assert isinstance(apply_rules(rules, example), Example)


@pytest.mark.parametrize(
    "piece", ["(", "Ref: ", "REF", "\n", " ", ". ", '"', "-", "o ", "option A, ", "Aa", "p 1,2"]
)
@pytest.mark.parametrize("field", ["question", "option", "explanation"])
def test_long_nonsense_takes_no_longer_than_its_length(rules, piece, field):
    """Twice the text takes about twice the time; a pattern that backtracks would take hours."""
    text = piece * (20_000 // len(piece)) + "x"
    example = Example(
        text if field == "question" else "q",
        (text if field == "option" else "a", "b"),
        0,
        explanation=text if field == "explanation" else "some words to explain it",
    )
    assert apply_rules(rules, example) is not None


def test_an_explanation_that_restates_the_key_goes_and_its_question_stays(rules):
    better = clean(rules, "Ans. is 'a' i.e., Heparin sodium")
    assert better.explanation is None
    assert better.question == "q"


def test_every_rule_can_be_switched_off_by_name(rules):
    assert [r.name for r in chosen_rules(rules, ["citation"])] == [
        r.name for r in rules if r.name != "citation"
    ]
    text = REST + " Ref: Harrison 19th edition page 123"
    assert clean(chosen_rules(rules, ["citation"]), text).explanation == text
    with pytest.raises(ConfigError, match="no rule 'citations'"):
        chosen_rules(rules, ["citations"])


def test_published_texts_are_kept_where_they_change(rules):
    better = clean(rules, REST, question="Low&nbsp;pH is")
    assert better.question == "Low pH is"
    assert better.original == ("Low&nbsp;pH is", *OPTIONS)
    assert clean(rules, REST).original is None


def test_counts_and_samples(rules):
    rows = [Example(f"question {i}", OPTIONS, 0, explanation="Ans. A. " + REST) for i in range(30)]
    _, _, results = clean_rows(rules, rows, repr)
    assert results["answer marker"].num_changed == 30
    assert len(results["answer marker"].changed) == 10
    id, field, before, after = results["answer marker"].changed[0]
    assert (id, field, before, after) == (rows[0].id, "explanation", "Ans. A. " + REST, REST)


def test_many_processes_give_what_one_gives(rules, monkeypatch):
    rows = [
        Example(f"question {i}", OPTIONS, i % 4, explanation=f"(a) {REST} Ref: Harrison {i}/e p 5")
        for i in range(60)
    ]
    alone, seen, counted = clean_rows(rules, rows, repr)
    assert seen == [repr(row) for row in alone]
    monkeypatch.setattr("medqa.data.rules._CHUNK", 3)
    spread, seen_there, counted_there = clean_rows(rules, rows, repr)
    assert (spread, seen_there) == (alone, seen)
    assert counted_there == counted


PIECES = st.sampled_from(
    [
        "Ans. is 'b' i.e., ", "(a) ", "Answer- D. ", "Option C ", "Ref: Harrison 19th ed p 12 ", "<b>",
        "&nbsp;",
        "See figure below. ", "\u2022 Pain ", "o Fever ", "diseaseFranklin ", "aery ", "(choice B) ", "p. 5",
        "All of the above ", "\n", ". ", "text ", "Explanation: ", "( ", ") ", "' ", "E. coli ", "",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=12), max_size=9).map("".join)
EXAMPLES = st.builds(
    Example,
    TEXTS.filter(str.strip),
    st.lists(TEXTS.filter(str.strip), min_size=2, max_size=5).map(tuple),
    st.just(0),
    explanation=st.none() | TEXTS,
)


@settings(max_examples=150, deadline=None)
@given(example=EXAMPLES)
def test_rules_keep_their_promises(rules, example):
    """Twice is once; no question or option is emptied; the key stays the same option."""
    for rule in rules:
        once = rule.apply(example)
        if isinstance(once, Drop):
            continue
        twice = rule.apply(once)
        assert isinstance(twice, Drop) or once.answer == twice.answer == example.answer
        assert len(once.options) == len(example.options)
    once = apply_rules(rules, example)
    if isinstance(once, Drop):
        return
    assert once.question.strip()
    assert all(option.strip() for option in once.options)
    assert once.explanation is None or once.explanation.strip()
    again = apply_rules(rules, once)
    assert isinstance(again, Drop) or again == once


@settings(max_examples=80, deadline=None)
@given(example=EXAMPLES, random=st.randoms(use_true_random=False))
def test_the_order_of_the_options_is_free(rules, example, random):
    """A row whose explanation names no letter is cleaned the same in any order of its options."""
    example = dataclasses.replace(example, explanation=None)
    order = list(range(len(example.options)))
    random.shuffle(order)
    straight, mixed = apply_rules(rules, example), apply_rules(rules, reordered(example, order))
    if isinstance(straight, Drop):
        assert isinstance(mixed, Drop)
    else:
        assert mixed.options[mixed.answer] == straight.options[straight.answer]
        assert sorted(mixed.options) == sorted(straight.options)


def test_without_cleaning_only_the_unusable_goes():
    rows = [Example("q", ("a", "a"), 0), Example("<b>q</b>", ("a", "b"), 0)]
    kept, _, _ = clean_rows(minimal_rules(), rows, repr)
    assert [e.question for e in kept] == ["<b>q</b>"]
