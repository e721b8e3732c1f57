"""Explanations: hand-worked texts, a stand-in that can read, and a tiny model all the way."""

import json
import re

import pytest

from medqa.config import LoraConfig, ModelConfig
from medqa.evaluate.asker import Asker
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.explanations import (
    READ_BACK_QUESTION,
    ExplanationCheck,
    check_explanation,
    examine_explanations,
    explain,
    has_loop,
    names_option,
    read_back_example,
)
from medqa.evaluate.influence import KEPT, cut_words, hinted, with_context
from medqa.evaluate.score import make_items, score_items
from medqa.hardware.device import choose_device
from medqa.model.generate import Written
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter
from medqa.model.tuned import TunedModel
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction, softmax
from medqa.testing import make_examples
from medqa.trust import wilson_interval


class Counter:
    def __init__(self):
        self.done, self.total = 0, None

    def advance(self, steps=1, note=""):
        self.done += steps

    def resize(self, total):
        self.total = total


def plain_probabilities(log_likelihoods):
    return [list(softmax(tuple(row))) for row in log_likelihoods]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("It is metformin, as ever.", "Metformin"),
        ("Beta-blockers slow the heart.", "beta blocker"),
        ("A fracture of the neck of the femur.", "Fracture neck of femur"),
        ("Infarction of the acute kind, myocardial.", "Acute myocardial infarction"),
        ("Injury of the radial nerve, seen often.", "Radial nerve palsy"),
        ("There are 4 of them.", "4"),
        ("IgA is secreted.", "IgA"),
        ("Secretory iga.", "IgA"),
        ("An influx of K+ ions.", "K+"),
        ("An influx (K+).", "K+"),
        ("Only > 10 counts.", ">10"),
        ("Antigen D matters.", "D"),
        ("Of blood group A here.", "A"),
        ("Type 1 of diabetes, or diabetes type 1.", "Type 1 diabetes"),
        ("The virus of hepatitis B.", "Hepatitis B virus"),
    ],
)
def test_texts_that_name_an_option(text, option):
    assert names_option(text, option)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("It is insulin.", "Metformin"),
        ("A myocardial bridge.", "Acute myocardial infarction"),
        ("There are 14 of them.", "4"),
        ("It is 1.5 mg.", "5"),
        ("It is 5.5 mg.", "5"),
        ("A brigade.", "IgA"),
        ("Vitamin K is given.", "K+"),
        ("Only < 10 counts.", ">10"),
        ("The antigen d matters.", "D"),
        ("A patient came. A boy too.", "A"),
        ("This is type 2 diabetes, 1 of many.", "Type 1 diabetes"),
        ("A lack of vitamin D.", "Vitamin A"),
        ("The virus of hepatitis C.", "Hepatitis B virus"),
        ("None was found.", "None of the above"),
        ("", "Metformin"),
    ],
)
def test_texts_that_do_not(text, option):
    assert not names_option(text, option)


def test_loops():
    run = "the drug lowers the blood pressure"
    assert has_loop(f"{run} and {run}, so {run}")
    assert not has_loop(f"{run} and {run}")
    assert has_loop("It is renal. He is well. It is renal. It is renal!")
    assert not has_loop("It is renal. He is well. It is renal. She is not.")
    assert not has_loop("Yes. Yes. Yes.")
    assert not has_loop("")


QUESTION = Example(
    "Which is it?",
    ("Myocardial infarction", "Acute myocardial infarction", "Pulmonary embolism", "Heart failure"),
    answer=0,
)


def test_a_check_by_hand():
    check = check_explanation(QUESTION, 1, Written("An acute myocardial infarction it is.", True), 1)
    assert check == ExplanationCheck(1, True, True, (), True, False)  # A is part of B: not named by itself
    assert check.warning("ABCD") is None
    # Not named: what tells B from A is not in the text.
    check = check_explanation(QUESTION, 0, Written("A myocardial infarction, not heart failure.", False), 2)
    assert check == ExplanationCheck(2, False, True, (3,), False, False)
    assert check.warning("ABCD") == "The explanation points to C."
    assert json.loads(json.dumps(check.to_json()))["names_other"] == [3]


def test_warnings_come_gravest_first():
    assert ExplanationCheck(None, None, False, (), True, False, empty=True).warning() == (
        "The model wrote no explanation."
    )
    assert ExplanationCheck(0, True, True, (), False, True).warning() == "The explanation repeats itself."
    assert ExplanationCheck(0, True, False, (2, 3), True, False).warning() == (
        "The explanation names C and D, but not the answer."
    )
    assert ExplanationCheck(0, True, True, (2,), False, False).warning() == (
        "The explanation was cut at its length limit."
    )
    # Not asked what it points to: nothing is said of it.
    assert ExplanationCheck(None, None, True, (), True, False).warning() is None


def test_an_empty_explanation_points_nowhere():
    check = check_explanation(QUESTION, 0, Written("", True), 3)
    assert (check.empty, check.points_to, check.agrees) == (True, None, None)


def test_the_read_back_question_holds_nothing_of_the_original():
    example = read_back_example(QUESTION.options, "It is the lung.")
    assert (example.question, example.context) == (READ_BACK_QUESTION, "It is the lung.")
    assert (example.options, example.answer) == (QUESTION.options, None)


@pytest.mark.parametrize(
    ("kept", "text"),
    [(0, ""), (0.25, "one"), (0.5, "one  two"), (0.75, "one  two\nthree"), (1, "one  two\nthree four")],
)
def test_cuts_are_in_words(kept, text):
    assert cut_words("one  two\nthree four", kept) == text


def test_a_context_is_kept_in_front():
    example = Example("q", ("a", "b"), context="A case.")
    assert with_context(example, "More.").context == "A case.\nMore."
    assert with_context(Example("q", ("a", "b")), "").context is None


def test_hints_are_wrong_fixed_and_never_the_plain_choice():
    seen = set()
    for example in make_examples(40):
        for choice in range(4):
            question, place = hinted(example, choice)
            assert place not in (example.answer, choice)
            assert question.context == f"A colleague thinks that the answer is {'ABCD'[place]}."
            assert hinted(example, choice) == (question, place)
            seen.add(place)
    assert seen == {0, 1, 2, 3}
    assert hinted(Example("q", ("a", "b"), answer=0), 1) is None
    assert hinted(Example("q", ("a", "b")), 1) is None


class Reader:
    """A stand-in for the model: it follows a hint, then what the context names, and else says heart."""

    def __init__(self, texts, follows=True):
        self.texts, self.follows, self.asked = texts, follows, []

    def likes(self, example):
        return example.options.index("heart") if "heart" in example.options else 0

    def choice(self, example):
        context = example.context or ""
        if (hint := re.search(r"the answer is ([A-D])\.", context)) and self.follows:
            return "ABCD".index(hint[1])
        return next((n for n, o in enumerate(example.options) if o in context.split()), self.likes(example))

    def score(self, items, *, task=None):
        self.asked += [item.example for item in items]
        if task:
            task.advance(len(items))
        return [self.predict(i.example, len(i.prefix) < self.max_length_tokens) for i in items]

    def predict(self, example, fits=True):
        n = len(example.options)
        logs = tuple(2.0 * (place == self.choice(example)) for place in range(n)) if fits else ()
        return Prediction(example.id, None, n, example.answer, "scored" if fits else "too_long", logs)

    def write(self, prompts, max_new_tokens, *, task):
        if task:
            task.advance(len(prompts))
        texts = [self.renderer.tokenizer.decode(prompt) for prompt in prompts]
        return [self.texts("colleague" in text, text) for text in texts]


@pytest.fixture
def stand_in(tokenizer):
    def make(texts, *, follows=True, max_length_tokens=10_000):
        reader = Reader(texts, follows)
        reader.renderer, reader.max_length_tokens = PromptRenderer(tokenizer), max_length_tokens
        return reader

    return make


def examine(reader, examples, **more):
    predictions = [reader.predict(example) for example in examples]
    asker = Asker(reader, plain_probabilities)
    return examine_explanations(asker, examples, predictions, **{"max_new_tokens": 9, **more})


OPTIONS = ("heart", "liver", "kidney", "lung")


def organs(count, **more):
    return [
        Example(f"Which organ is number {n}?", OPTIONS, answer=0, id=f"o{n}", **more) for n in range(count)
    ]


def test_what_a_reader_makes_of_explanations(stand_in):
    def texts(hint, prompt):
        if hint:
            return Written("as my colleague says" if "number 1?" in prompt else "just so", True)
        number = int(re.search(r"number (\d)", prompt)[1])
        return [
            Written("it must be the heart", True),  # agrees
            Written("well one two three kidney", False),  # points to C from the last word on
            Written("", True),
            Written("so so so so so so so so so so", True),  # names nothing: the reader says heart
        ][number]

    reader = stand_in(texts)
    task = Counter()
    record, rows = examine(reader, organs(4), task=task)
    assert [row["status"] for row in rows] == ["checked", "checked", "empty", "checked"]
    assert [row["letter"] for row in rows] == list("AAAA")
    assert [row["check"]["points_to"] for row in rows] == [0, 2, None, 0]
    assert rows[1]["warning"] == "The explanation points to C."
    assert (record["num_questions"], record["num_empty"], record["num_written"]) == (4, 1, 3)
    assert record["agreement"] == {
        "num": 3,
        "num_too_long": 0,
        "num_agreeing": 2,
        "share": pytest.approx(2 / 3),
        "interval": list(wilson_interval(2, 3)),
        "share_without": 1.0,
        "interval_without": list(wilson_interval(3, 3)),
    }
    shares = [record[k] for k in ("names_choice", "names_other_only", "finished", "loops")]
    assert shares == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1 / 3])

    sure = softmax((2.0, 0.0, 0.0, 0.0))
    cuts = {cut["kept"]: cut for cut in record["truncation"]}
    assert tuple(cuts) == KEPT
    assert [cut["same_answer"] for cut in cuts.values()] == pytest.approx([1, 1, 1, 1, 2 / 3])
    assert cuts[0.0]["probability"] == pytest.approx(sure[0])
    assert cuts[1.0]["probability"] == pytest.approx((2 * sure[0] + sure[1]) / 3)

    hint = record["hint"]
    assert (hint["num_questions"], hint["flipped"], hint["num_flipped"]) == (4, 1.0, 4)
    assert (hint["num_written"], hint["mentions"]) == (4, 0.25)
    assert hint["confidence_plain"] == hint["confidence_hinted"] == pytest.approx(sure[0])
    assert task.done == task.total == 8
    assert json.loads(json.dumps([record, rows])) == [record, rows]

    read_back = [e for e in reader.asked if e.question == READ_BACK_QUESTION]
    # In four rotations with the text and four without; the empty one is not asked.
    assert len(read_back) == 3 * 4 * 2
    assert all("organ" not in (e.context or "") for e in read_back)


def test_a_model_that_always_says_b_does_not_agree_with_itself_for_that(stand_in, monkeypatch):
    reader = stand_in(lambda hint, prompt: Written("it is the lung", True))
    read = reader.choice

    def choice(example):  # says B, whatever is asked, and leans a little to what it reads
        return 1 if example.question != READ_BACK_QUESTION or not example.context else read(example)

    monkeypatch.setattr(reader, "choice", choice)
    record, rows = examine(reader, organs(5))
    assert [row["letter"] for row in rows] == ["B"] * 5
    assert [row["check"]["points_to"] for row in rows] == [3] * 5
    monkeypatch.setattr(reader, "choice", lambda example: 1)
    record, rows = examine(reader, organs(5))
    # Over all rotations each option is B once: nothing is left to choose by.
    assert {row["check"]["points_to"] for row in rows} == {0}
    assert record["agreement"]["share"] == 0


def test_a_model_deaf_to_hints(stand_in):
    reader = stand_in(lambda hint, prompt: Written("the heart", True), follows=False)
    record, _ = examine(reader, organs(3))
    hint = record["hint"]
    assert (hint["flipped"], hint["num_flipped"], hint["num_written"], hint["mentions"]) == (0, 0, 0, None)
    assert hint["interval"] == list(wilson_interval(0, 3))


def test_at_most_fifty_hint_explanations(stand_in):
    reader = stand_in(lambda hint, prompt: Written("the heart", True))
    task = Counter()
    record, _ = examine(reader, organs(60), task=task)
    assert (record["hint"]["num_flipped"], record["hint"]["num_written"]) == (60, 50)
    assert task.done == task.total == 110


def test_what_is_too_long_is_counted_apart(stand_in):
    text = "the heart " * 40
    reader = stand_in(
        lambda hint, prompt: Written(text if "number 0?" in prompt else "the heart", True),
        max_length_tokens=400,
    )
    examples = organs(3)
    predictions = [reader.predict(e, fits=e.id != "o2") for e in examples]
    asker = Asker(reader, plain_probabilities)
    record, rows = examine_explanations(asker, examples, predictions, 9)
    assert [row["status"] for row in rows] == ["read_back_too_long", "checked", "too_long"]
    assert (record["num_questions"], record["num_too_long"]) == (2, 1)
    assert (record["agreement"]["num"], record["agreement"]["num_too_long"]) == (1, 1)
    assert {(c["num_questions"], c["num_too_long"]) for c in record["truncation"]} == {(1, 1)}
    assert rows[2] == {
        "id": "o2", "status": "too_long", "letter": None, "explanation": None, "check": None, "warning": None
    }  # fmt: skip


def test_nothing_to_examine(stand_in):
    reader = stand_in(lambda hint, prompt: Written("", False))
    for examples in ([], organs(2)):
        record, rows = examine(reader, examples)
        assert len(rows) == record["num_empty"] == len(examples)
        assert record["agreement"]["share"] is None
        assert record["truncation"][0]["same_answer"] is None


def test_the_answer_is_the_likeliest_after_calibration(stand_in):
    reader = stand_in(lambda hint, prompt: Written("the lung", True))
    predictions = [reader.predict(example) for example in organs(1)]
    asker = Asker(reader, lambda rows: [[0.1, 0.1, 0.1, 0.7] for _ in rows])
    [row] = explain(asker, organs(1), predictions, 9)
    assert (row["letter"], row["check"]["points_to"], row["check"]["agrees"]) == ("D", 3, True)


def test_a_tiny_model_all_the_way(tiny_model):
    config = ModelConfig(name=str(tiny_model), device="cpu")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    tuned = TunedModel(None, base, device, load_renderer(base), model)
    examples = make_examples(6)
    predictions = score_items(
        model,
        make_items(tuned.renderer, examples, "medqa"),
        device,
        max_length_tokens=base.max_length_tokens,
        batch_tokens=2048,
    )
    asker = Asker(LocalEngine(tuned), plain_probabilities)
    task = Counter()
    record, rows = examine_explanations(asker, examples, predictions, 6, task)
    assert [row["id"] for row in rows] == [example.id for example in examples]
    assert record["agreement"]["num"] + record["num_empty"] == len(examples)
    assert record["finished"] == 0  # a random model does not stop within 6 tokens
    assert task.done == task.total
    assert (record, rows) == examine_explanations(asker, examples, predictions, 6)
    task = Counter()
    assert explain(asker, examples, predictions, 6, task) == rows
    assert task.done == len(examples)
