"""Traps: what each makes of a question, and what is counted, with a stand-in that reads."""

import collections
import dataclasses
import json
from types import SimpleNamespace

import pytest

from medqa.evaluate.asker import Asker
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.traps import (
    LANGUAGES,
    NO_OPTION,
    NO_QUESTION,
    NONE_OF_THE_ABOVE,
    TRAPS,
    Donors,
    language_questions,
    spring_traps,
)
from medqa.model.load import find_base, load_model, load_renderer
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction, softmax
from medqa.testing import make_examples
from medqa.trust import wilson_interval

BY_NAME = {trap.name: trap for trap in TRAPS}
OF_SUBJECT = {
    "Anatomy": [("Femur", "Ulna", "Radius", "Tibia"), ("Vagus", "Phrenic", "Ulnar", "Median")],
    "Pharmacology": [
        ("Aspirin", "Warfarin", "Digoxin", "Insulin"),
        ("Naloxone", "Atropine", "Heparin", "Iron"),
    ],
}
EXAMPLES = [
    Example(f"Which one of {subject} is number {n}?", options, answer=(n + shift) % 4, subject=subject)
    for shift, (subject, rows) in enumerate(OF_SUBJECT.items())
    for n, options in enumerate(rows)
]
ANCHORED = Example("Which?", ("One", "Two", "Three", "All of the above"), answer=3, subject="Anatomy")


def change(name, example, examples=EXAMPLES):
    return BY_NAME[name].change(example, Donors(examples))


def test_options_only_and_question_only():
    example = dataclasses.replace(EXAMPLES[0], context="A case.")
    changed = change("options_only", example)
    assert (changed.question, changed.context) == (NO_QUESTION, None)
    assert (changed.options, changed.answer, changed.id) == (example.options, example.answer, example.id)
    changed = change("question_only", example)
    assert changed.options == (NO_OPTION,) * 4
    assert (changed.question, changed.context, changed.answer) == (
        example.question,
        "A case.",
        example.answer,
    )


@pytest.mark.parametrize("example", EXAMPLES)
def test_none_of_the_above(example):
    right = example.options[example.answer]
    changed = change("none_right", example)
    assert changed.options[-1] == NONE_OF_THE_ABOVE
    assert changed.answer == 3
    assert set(changed.options[:-1]) == set(example.options) - {right}
    changed = change("none_wrong", example)
    assert changed.options[-1] == NONE_OF_THE_ABOVE
    assert changed.options[changed.answer] == right
    assert len(set(changed.options) & set(example.options)) == 3
    assert changed == change("none_wrong", example)


@pytest.mark.parametrize("example", EXAMPLES)
def test_no_right_option(example):
    changed = change("no_right_option", example)
    assert changed.answer is None
    [foreign] = set(changed.options) - set(example.options)
    # Of the same subject, where one is there.
    assert foreign in [e.options[e.answer] for e in EXAMPLES if e.subject == example.subject]
    assert changed.options.index(foreign) == example.answer
    alone = [example, *(e for e in EXAMPLES if e.subject != example.subject)]
    [foreign] = set(change("no_right_option", example, alone).options) - set(example.options)
    assert foreign in [e.options[e.answer] for e in alone[1:]]
    assert change("no_right_option", example, [example]) is None


def test_an_option_that_is_there_already_is_not_put_in():
    same = dataclasses.replace(EXAMPLES[0], question="Again?", options=("femur.", "x", "y", "z"), id="same")
    assert change("no_right_option", EXAMPLES[0], [EXAMPLES[0], same]) is None


@pytest.mark.parametrize("example", EXAMPLES)
def test_absurd(example):
    changed = change("absurd", example)
    assert changed.answer is None
    assert changed.question == example.question
    assert changed.options in [e.options for e in EXAMPLES if e.subject != example.subject]
    assert change("absurd", example, [e for e in EXAMPLES if e.subject == example.subject]) is None
    assert change("absurd", dataclasses.replace(example, subject=None)) is None


def test_draws_do_not_depend_on_the_order_of_the_questions():
    examples = make_examples(30)
    for trap in TRAPS:
        forward = [trap.change(e, Donors(examples)) for e in examples]
        assert forward == [trap.change(e, Donors(examples[::-1])) for e in examples]


def test_questions_that_are_not_fit():
    twice = dataclasses.replace(EXAMPLES[0], options=("Femur", "Ulna", "Femur", "Tibia"), id="twice")
    for name in ("none_right", "none_wrong", "no_right_option"):
        assert change(name, ANCHORED) is None
        assert change(name, twice) is None
    assert change("question_only", ANCHORED) is not None
    keyless = dataclasses.replace(EXAMPLES[0], answer=None)
    assert [trap.name for trap in TRAPS if trap.change(keyless, Donors(EXAMPLES))] == ["absurd"]
    # Options that speak of others are lent to nobody.
    assert change("absurd", EXAMPLES[2], [EXAMPLES[2], ANCHORED]) is None


def test_the_language_set():
    sets = language_questions()
    assert list(sets) == ["en", *LANGUAGES]
    keys = [example.answer for example in sets["en"]]
    assert len(keys) == 12
    assert set(collections.Counter(keys).values()) == {3}  # each letter as often
    for examples in sets.values():
        assert [example.answer for example in examples] == keys
        assert all(e.require_distinct_options() and len(e.options) == 4 for e in examples)
    ids = [e.id for examples in sets.values() for e in examples]
    assert len(set(ids)) == len(ids) == 60
    for code in LANGUAGES:
        assert not {e.question for e in sets[code]} & {e.question for e in sets["en"]}


def plain_probabilities(log_likelihoods):
    return [list(softmax(tuple(row))) for row in log_likelihoods]


class Scholar:
    """A stand-in that knows the right texts in English, and is sure of nothing else."""

    def __init__(self, examples):
        known = [*examples, *language_questions()["en"]]
        self.right = {e.question: e.options[e.answer] for e in known if e.answer is not None}
        self.calls = 0

    def predict(self, example, max_length=10_000):
        n = len(example.options)
        right = self.right.get(example.question)
        if right in example.options:
            logs = tuple(3.0 * (option == right) for option in example.options)
        elif NONE_OF_THE_ABOVE in example.options and right:
            logs = tuple(1.0 * (option == NONE_OF_THE_ABOVE) for option in example.options)
        else:
            logs = (0.0,) * n
        fits = len(example.question) <= max_length
        status = "scored" if fits else "too_long"
        return Prediction(example.id, None, n, example.answer, status, logs if fits else ())

    def score(self, items, *, task):
        self.calls += 1
        if task:
            task.advance(len(items))
        return [self.predict(item.example, self.max_length_tokens) for item in items]


@pytest.fixture
def spring(tokenizer):
    def run(examples, max_length_tokens=10_000, task=None):
        scholar = Scholar(examples)
        scholar.renderer, scholar.max_length_tokens = PromptRenderer(tokenizer), max_length_tokens
        asker = Asker(scholar, plain_probabilities)
        records = spring_traps(
            asker, examples, [scholar.predict(e, max_length_tokens) for e in examples], task
        )
        assert scholar.calls == 1
        return {record["name"]: record for record in records}

    return run


def test_a_scholar_in_the_traps(spring):
    records = spring([*EXAMPLES, ANCHORED])
    assert list(records) == [*BY_NAME, *(f"language_{code}" for code in LANGUAGES)]
    sure, unsure, guess = softmax((3.0, 0, 0, 0))[0], softmax((1.0, 0, 0, 0))[0], 0.25

    blind = records["options_only"]
    first = sum(e.answer == 0 for e in [*EXAMPLES, ANCHORED])  # without a question the scholar says A
    assert (blind["num_questions"], blind["num_left_out"], blind["chance"]) == (5, 0, 0.25)
    assert blind["accuracy"] == pytest.approx(first / 5)
    assert blind["accuracy_interval"] == list(wilson_interval(first, 5))
    assert (blind["accuracy_plain"], blind["expected"], blind["chose_none"]) == (1, "chance", None)
    assert blind["confidence_change"] == pytest.approx(guess - sure)
    assert blind["confidence_change_interval"] == pytest.approx([guess - sure] * 2)

    right = records["none_right"]
    assert (right["num_questions"], right["num_left_out"]) == (4, 1)
    assert (right["accuracy"], right["chose_none"], right["confidence"]) == (1, 1, pytest.approx(unsure))
    wrong = records["none_wrong"]
    assert (wrong["accuracy"], wrong["chose_none"], wrong["confidence"]) == (1, 0, pytest.approx(sure))
    assert wrong["confidence_change"] == 0

    for name in ("no_right_option", "absurd"):
        record = records[name]
        assert (record["accuracy"], record["accuracy_interval"], record["expected"]) == (None, None, "falls")
        assert (record["confidence"], record["confidence_plain"]) == pytest.approx((guess, sure))

    german = records["language_de"]
    assert (german["num_questions"], german["accuracy_plain"], german["accuracy"]) == (12, 1, 0.25)
    assert german["title"] == "Textbook questions in German, not English."
    assert json.loads(json.dumps(records)) == records


def test_what_is_too_long_is_counted_apart(spring):
    long = Example("Long? " * 50, ("Lead", "Zinc", "Gold", "Tin"), answer=0, subject="Anatomy")
    task = SimpleNamespace(total=None, done=0)
    task.resize = lambda total: setattr(task, "total", total)
    task.advance = lambda steps, note="": setattr(task, "done", task.done + steps)
    records = spring([*EXAMPLES, long], max_length_tokens=200, task=task)
    for name in BY_NAME:
        assert (records[name]["num_questions"], records[name]["num_too_long"]) == (4, 1), name
    assert task.done == task.total == 6 * 5 + 5 * 12


def test_no_question_is_fit(spring):
    records = spring([dataclasses.replace(EXAMPLES[0], answer=None)])
    for name in BY_NAME:
        assert (records[name]["num_questions"], records[name]["num_left_out"]) == (0, 1)
        assert records[name]["confidence_change_interval"] is None


def test_a_tiny_model_all_the_way(tiny_model):
    from medqa.config import LoraConfig, ModelConfig
    from medqa.evaluate.score import choose_decoder, make_items, score_items
    from medqa.hardware.device import choose_device
    from medqa.model.lora import attach_adapter
    from medqa.model.tuned import TunedModel

    config = ModelConfig(name=str(tiny_model), device="cpu")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    tuned = TunedModel(None, base, device, load_renderer(base), model)
    examples = make_examples(16)
    items = make_items(tuned.renderer, examples, "medqa")
    decoder = choose_decoder(model, items, device, max_length_tokens=1024)
    predictions = score_items(model, items, device, max_length_tokens=1024, batch_tokens=2048)
    both = [
        spring_traps(Asker(LocalEngine(tuned, way), plain_probabilities), examples, predictions)
        for way in (None, decoder)
    ]
    assert [r["num_questions"] for r in both[0]] == [16] * 6 + [12] * 4
    for plain, packed in zip(*both, strict=True):
        assert plain["confidence"] == pytest.approx(packed["confidence"], abs=1e-4)
