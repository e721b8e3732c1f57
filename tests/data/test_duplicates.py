import dataclasses
import random

import pytest

from medqa.data.draw import examples_hash, reordered, sample, shuffled, weighted
from medqa.data.duplicates import group_duplicates
from medqa.data.fingerprints import Fingerprint, normalise
from medqa.data.leaks import audit_leaks
from medqa.data.splits import hold_back
from medqa.records import Example
from medqa.testing import make_examples

STEM = "Which of the following vessels supplies most of the blood of the adult liver at rest?"
OPTIONS = ("Portal vein", "Hepatic artery", "Splenic vein", "Renal artery")
BASE = Example(STEM, OPTIONS, 0, id="base")


def variant(**fields):
    return dataclasses.replace(BASE, **{"id": "other", **fields})


def grouped(*examples, threshold=0.8):
    return group_duplicates(examples, [Fingerprint.of(e) for e in examples], threshold)


def test_texts_are_compared_without_signs_case_and_lost_letters():
    assert normalise("The PORTAL  vein -?") == normalise("the poal vein") == "the poal vein"


@pytest.mark.parametrize(
    "other",
    [
        variant(),
        variant(question=STEM.upper() + " -"),
        variant(question=STEM.replace("rest?", "rests")),
        variant(options=OPTIONS[::-1], answer=3),
        variant(options=("Poal vein", *OPTIONS[1:])),
    ],
)
def test_copies_and_near_copies_are_grouped(other):
    groups = grouped(BASE, other)
    assert groups.duplicates == [[0, 1]] or groups.duplicates == [[1, 0]]
    assert not groups.conflicts
    assert groups.split[0] == groups.split[1]


@pytest.mark.parametrize(
    "other",
    [
        variant(question=STEM.replace("most", "least")),
        variant(question=STEM.replace("adult", "3 month old")),
        variant(question=STEM.replace("supplies", "does not supply")),
        variant(question="What is the commonest site of a carcinoid tumour in a man of forty years?"),
    ],
)
def test_questions_that_ask_for_something_else_are_no_duplicates(other):
    assert not grouped(BASE, other).duplicates


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"question": "The attributable risk is best told by which study of all these here?"},
         {"question": "The relative risk is best told by which study of all these here?"}),
        ({"context": "A man of forty has a cough and fever for two weeks."},
         {"context": "A woman of forty has a rash on both of her hands."}),
        ({"options": ("> 10", "5", "6", "7")}, {"options": ("< 10", "5", "6", "7")}),
        ({"options": ("Fe2+", "Fe2-", "Cu", "Zn")}, {"options": ("Fe2+", "Fe2-", "Cu", "Zn"), "answer": 1}),
    ],
)  # fmt: skip
def test_what_differs_in_a_word_a_case_or_a_sign_is_no_duplicate(one, other):
    assert not grouped(variant(**one), variant(**other)).duplicates


def test_questions_on_one_case_are_different_but_never_cut_by_a_split():
    case = "A man of forty years has had chest pain for two hours; his pressure is low. " * 8
    rows = [
        variant(context=case, question=text, options=("yes", "no", "maybe"), answer=i % 2)
        for i, text in enumerate(("Should he be given oxygen at once?", "Does he need surgery of the bowel?"))
    ]
    groups = grouped(*rows)
    assert not groups.duplicates
    assert not groups.conflicts
    assert groups.split[0] == groups.split[1]


def test_draws_for_different_purposes_are_independent():
    rows = [Example(f"question number {i} of them", OPTIONS, 0) for i in range(4000)]
    part = weighted(rows[:2000], 0.2, 0)
    drawn = sample([*part, *rows[2000:]], 1200, 0)
    assert sum(row in part for row in drawn) == pytest.approx(1200 * 400 / 2400, rel=0.2)
    twice = sample(weighted(rows[:500], 2, 0), 500, 0)
    assert 300 < len({row.id for row in twice}) < 450


def test_a_large_group_does_not_keep_a_subject_from_its_share():
    rows = [Example(f"question number {i} of them", OPTIONS, 0, subject="s") for i in range(200)]
    groups = [0 if i < 40 else i for i in range(200)]
    assert len(hold_back(rows, groups, 0.05, "calibration")) == 10


def test_different_keys_are_a_conflict():
    groups = grouped(BASE, variant(answer=1), variant(question="Another question about bones and joints"))
    assert groups.conflicts == [[0, 1]]
    assert not groups.duplicates


def test_the_row_with_the_longest_explanation_stays():
    groups = grouped(BASE, variant(explanation="It carries three quarters of the flow."))
    assert groups.duplicates == [[1, 0]]


def test_the_same_question_with_other_options_is_never_cut_by_a_split():
    groups = grouped(BASE, variant(options=("Aorta", "Portal vein", "Vena cava", "Coeliac trunk"), answer=1))
    assert not groups.duplicates
    assert groups.split[0] == groups.split[1]


def leaks_of(train, *evaluation):
    return audit_leaks([Fingerprint.of(e) for e in train], evaluation, 0.8)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (variant(options=OPTIONS[::-1], answer=3), "exact"),
        (variant(question=STEM + " Choose"), "near"),
        (variant(options=("Aorta", "Portal vein", "Vena cava", "Coeliac trunk"), answer=1), "stem"),
        (variant(question="Which vessel is dilated in a cirrhotic man who vomits blood?"), "options"),
    ],
)
def test_each_kind_of_leak_is_found(row, kind):
    unrelated = make_examples(20)
    audit = leaks_of([*unrelated, row], BASE, *make_examples(3)[:0])
    assert {k: ids for k, ids in audit.flagged.items() if ids} == {kind: ["base"]}
    assert audit.train_rows == ({20: kind} if kind != "options" else {})
    assert audit.record()["num_flagged"] == 1


def test_an_answer_in_its_own_question_is_flagged():
    told = Example("The portal vein is dilated in cirrhosis. Which vessel is meant?", OPTIONS, 0, id="told")
    both = Example("Portal vein or hepatic artery: which is larger?", OPTIONS, 0, id="both")
    assert leaks_of([], told, both).flagged["answer in stem"] == ["told"]


def test_nothing_is_flagged_where_nothing_leaks():
    audit = leaks_of(make_examples(30), BASE)
    assert not audit.ids
    assert not audit.train_rows


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_splits_take_their_share_of_every_subject_whole_groups_and_by_hash(share):
    examples = [
        Example(f"question {i // 2} about {'bones' if i % 3 else 'nerves'}", OPTIONS, 0, subject=f"s{i % 5}")
        for i in range(400)
    ]
    groups = [i // 2 for i in range(400)]
    chosen = hold_back(examples, groups, share, "calibration")
    assert len(chosen) == pytest.approx(share * 400, abs=4)
    assert all(row ^ 1 in chosen for row in chosen)
    order = list(range(400))
    random.Random(1).shuffle(order)
    again = hold_back([examples[i] for i in order], [groups[i] for i in order], share, "calibration")
    assert {examples[i].question for i in chosen} == {examples[order[i]].question for i in again}
    other = hold_back(examples, groups, share, "selection", chosen)
    assert not chosen & other
    if share:
        assert other != chosen


def test_sampling_does_not_depend_on_the_order_of_the_file():
    examples = make_examples(50)
    assert sample(examples, 10, 0) == sample(examples[::-1], 10, 0)
    assert sample(examples, 10, 0) != sample(examples, 10, 1)
    assert sample(examples, 10, 0) == sample(examples, 20, 0)[:10]
    assert sample(examples, 99, 0) == examples


def test_weights_repeat_and_thin_out():
    examples = make_examples(10)
    assert len(weighted(examples, 0.3, 0)) == 3
    assert weighted(examples, 2, 0) == examples * 2
    assert len(weighted(examples, 1.5, 0)) == 15
    assert weighted(examples, 1, 0) == examples


def test_shuffling_moves_options_with_their_key_and_leaves_the_bound_ones():
    rows = [Example(f"question {i}", OPTIONS, i % 4) for i in range(60)]
    mixed = [shuffled(row, 0) for row in rows]
    assert all(m.options[m.answer] == r.options[r.answer] for m, r in zip(mixed, rows, strict=True))
    assert len({m.options for m in mixed}) > 15
    last = [shuffled(Example(f"q {i}", (*OPTIONS[:3], "All of the above"), 0), 0) for i in range(20)]
    assert {m.options[3] for m in last} == {"All of the above"}
    assert len({m.options for m in last}) > 3
    for bound in (
        Example("q", (*OPTIONS[:3], "Both A and B"), 3),
        Example("q", OPTIONS, 0, explanation="Thus option C is wrong."),
    ):
        assert shuffled(bound, 0) == bound
    assert examples_hash(mixed) == examples_hash([shuffled(row, 0) for row in rows])


def test_reordering_maps_the_key():
    assert reordered(BASE, [2, 0, 3, 1]).options[reordered(BASE, [2, 0, 3, 1]).answer] == "Portal vein"
