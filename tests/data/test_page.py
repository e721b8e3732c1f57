"""The page: its sums, its examples, and that the data's own markup stays text."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from medqa.config import DataConfig
from medqa.data.build import build_corpus
from medqa.data.corpus import Corpus
from medqa.data.diff import SHOWN, clip, compare, marked_loss
from medqa.data.distributions import bars, distributions
from medqa.data.findings import leaks
from medqa.data.flow import trace
from medqa.data.page import page_view, write_page
from medqa.data.rules import Drop, RuleResult
from medqa.records import Example
from medqa.testing import write_medmcqa

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br"}


def question(number, **changes):
    """Make a question that resembles no other one."""
    word = "".join(chr(97 + (number // 26**place) % 26) for place in range(3))
    fields = {
        "question": f"Which {word}ose enzyme does {word}idine inhibit in {word}opathy?",
        "options": tuple(f"{word}{ending}" for ending in ("ase", "ogen", "itin", "erol")),
        "answer": number % 4,
        "id": f"q{number}",
        "subject": ("Surgery", "Anatomy")[number % 2],
        "explanation": f"The {word}ase is what it binds to, as trials in {word}opathy have shown.",
    }
    return Example(**{**fields, **changes})


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    first = question(0)
    train = [
        *map(question, range(120)),
        dataclasses.replace(first, id="copy", question=first.question.upper()),
        question(500, answer=0),
        question(500, answer=1, id="conflict"),
        question(600, options=("same", "same", "other", "fourth"), id="repeated"),
        question(601, explanation="Ans. is 'b' i.e., kzxogen. Ref: Harrison 18th/e p 12", answer=1),
        question(602, question="What is  seen   in this <b>bold</b>\n\n\nsetting of care?"),
        question(603, answer=None, id="keyless"),
        *(question(700 + n) for n in range(3)),
    ]
    write_medmcqa(folder / "train.jsonl", train)
    with (folder / "train.jsonl").open("a") as f:
        f.write(
            '{"id": "broken", "question": "", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0}\n'
        )
    write_medmcqa(
        folder / "validation.jsonl", [*(question(900 + n) for n in range(5)), question(701, id="v")]
    )
    return DataConfig(name=str(folder), calibration_share=0.1, selection_share=0.05)


@pytest.fixture(scope="module")
def corpus(config):
    return build_corpus(config, 0)


class Outline(HTMLParser):
    """Collects what a page holds, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.links = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def rendered(corpus, config, tmp_path):
    path = tmp_path / "data_report.html"
    write_page(corpus, config, path)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_train_rows": 20},
        {"weight": 2.0},
        {"weight": 0.5},
        {"drop_leaks": False},
        {"clean": False},
        {"skip_rules": ("citation", "contradicted key")},
    ],
    ids=str,
)
def test_every_row_that_was_read_is_accounted_for(config, changes):
    config = config.model_copy(update=changes)
    corpus = build_corpus(config, 0)
    flow = trace(corpus)
    assert flow.num_read == sum(source["num_read"] for source in corpus.record["sources"])
    assert sum(part.count for part in flow.parts) == flow.num_read
    assert sum(loss.bar.count for loss in flow.losses) == flow.num_left_out == flow.parts[-1].count
    assert flow.parts[0].count + flow.num_repeats == len(corpus.train)
    assert flow.parts[1].count == len(corpus.calibration)


def test_each_reason_is_counted(corpus, config):
    counts = {loss.name: loss.bar.count for loss in trace(corpus).losses}
    expected = {
        "broken": 1,
        "no key": 1,
        "repeated option": 1,
        "duplicate": 1,
        "conflicting keys": 2,
        "leak": 1,
    }
    assert counts == expected


def test_the_page_is_whole_and_loads_nothing(corpus, config, tmp_path):
    text = rendered(corpus, config, tmp_path)
    page = Outline(text)
    assert page.tags.count("h1") == 1
    assert "script" not in page.tags
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(page.ids) == len(set(page.ids))
    assert "Not for publishing if the data are private" in text
    assert corpus.record["sha256"] in text
    assert "max_train_rows:" in text


def test_every_section_has_its_examples(corpus, config):
    view = page_view(corpus, config)
    assert len(view["cards"]) == 3
    rules = {rule["name"]: rule for rule in view["rules"]}
    assert rules["repeated option"]["dropped"][0]["card"]["id"] == "repeated"
    before = "".join(piece.text for piece in rules["markup"]["samples"][0]["before"])
    assert "<b>bold</b>" in before
    assert {card["id"] for card in view["same"]["conflicts"][0]["cards"]} == {"q500", "conflict"}
    kinds = {kind["name"]: kind for kind in view["leaks"]["kinds"]}
    assert kinds["exact"]["pairs"][0]["train"]["id"] == "q701"
    assert kinds["exact"]["pairs"][0]["evaluation"]["id"] == "v"
    assert view["sources"][0]["broken"][0].endswith("the question is empty")


def test_markup_in_the_data_stays_text(corpus, config, tmp_path):
    evil = Example(EVIL, (EVIL, EVIL + "2"), 0, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL)
    results = {
        name: RuleResult(1, [(EVIL, "question", EVIL, EVIL + " after")], [(evil, Drop(EVIL))])
        for name in corpus.account.results
    }
    account = dataclasses.replace(corpus.account, kept=[evil] * len(corpus.account.kept), results=results)
    source = {**corpus.record["sources"][0], "name": EVIL, "licences": [EVIL], "broken": [EVIL]}
    record = {**corpus.record, "sources": [source], "num_with_explanation": 1}
    config = config.model_copy(update={"name": EVIL, "eval_split": EVIL})
    text = rendered(Corpus([evil], corpus.calibration, corpus.selection, record, account), config, tmp_path)
    assert "script" not in Outline(text).tags
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "&amp;lt;" not in text


def test_leaks_that_were_not_looked_for_are_told(corpus, config, tmp_path):
    account = dataclasses.replace(corpus.account, audit=None, evaluation=[])
    blind = dataclasses.replace(corpus, account=account)
    assert leaks(account, config) is None
    text = rendered(blind, config, tmp_path)
    assert "Leaks were not looked for" in text
    assert "may be too high" in text


def test_what_is_switched_off_is_told(config, tmp_path):
    off = config.model_copy(update={"clean": False, "drop_leaks": False})
    text = rendered(build_corpus(off, 0), off, tmp_path)
    assert "Cleaning is switched off" in text
    assert "No training row is left out for it" in text
    skipping = config.model_copy(update={"skip_rules": ("contradicted key",)})
    text = rendered(build_corpus(skipping, 0), skipping, tmp_path)
    assert "Switched off by <code>data.skip_rules</code>: contradicted key" in text


def words(pieces, changed):
    return [piece.text for piece in pieces if piece.changed == changed]


def test_words_that_differ_are_marked():
    before, after = compare("the main aery is open", "the main artery is open")
    assert words(before, True) == ["aery"]
    assert words(after, True) == ["artery"]
    assert words(after, False) == ["the main ", " is open"]


def test_blanks_that_differ_are_made_visible():
    before, after = compare("one  two\n\n\nthree", "one two\nthree")
    assert words(before, True) == ["␣␣", "↵\n↵\n↵\n"]
    assert words(after, True) == ["␣", "↵\n"]


def test_long_texts_are_shown_around_the_change():
    lead, tail = "lead " * 400, " tail" * 400
    before, after = compare(f"{lead}aery{tail}", f"{lead}artery{tail}")
    for pieces, word in ((before, "aery"), (after, "artery")):
        assert words(pieces, True) == [word]
        text = "".join(piece.text for piece in pieces)
        assert text.startswith("… lead")
        assert text.endswith("tail\u00a0…")
        assert len(text) < SHOWN


def test_the_end_of_the_window_is_no_change():
    text = " ".join(f"word{number}" for number in range(600))
    before, after = compare(f"Ans. is b. {text}", text)
    assert words(before, True) == ["Ans. is b. "]
    assert words(after, True) == []


def test_long_changes_are_shortened_and_texts_can_vanish():
    gone = " ".join(f"word{number}" for number in range(90))
    before, after = compare(gone, "")
    assert after == []
    assert 200 < len(before[0].text) < 300
    assert " … " in before[0].text


def test_put_back_letters_are_marked():
    pieces = marked_loss("hypertension", "rt")
    assert [(piece.text, piece.changed) for piece in pieces] == [
        ("hype", False),
        ("rt", True),
        ("ension", False),
    ]
    assert words(marked_loss("rtart", "rt"), True) == ["rt", "rt"]


def test_clipped_texts_end_at_a_word():
    assert clip("short") == "short"
    assert clip(None) == ""
    assert clip("some words here", 12) == "some words\u00a0…"
    assert clip("x" * 50, 12) == "x" * 12 + "\u00a0…"


def test_bars_are_shares_of_all_and_of_the_longest():
    assert [(bar.share, bar.length) for bar in bars([("a", 3), ("b", 1)])] == [(75, 100), (25, 33.33)]
    assert bars([]) == []
    assert bars([("a", 0)])[0].length == 0


def test_distributions_count_every_question(corpus):
    charts = distributions(corpus.account, corpus.train)
    total = len(corpus.train)
    for name in ("keys_after", "subjects", "question_words", "explanation_words", "num_options"):
        assert sum(bar.count for bar in charts[name]) == total, name
    assert sum(bar.count for bar in charts["keys_before"]) == corpus.record["num_with_key"]
    assert [bar.label for bar in charts["keys_before"]] == ["A", "B", "C", "D"]


def test_rare_subjects_and_long_texts_go_into_one_bar(corpus):
    train = [
        question(
            number,
            subject=f"subject {number % 40:02}",
            question="why " * (1 + number % 30 + 400 * (number == 5)),
        )
        for number in range(100)
    ]
    charts = distributions(corpus.account, train)
    assert len(charts["subjects"]) == 26
    assert charts["subjects"][-1].label == "15 further subjects"
    assert charts["question_words"][0].label == "1 to 5"
    assert charts["question_words"][-1] == dataclasses.replace(
        charts["question_words"][-1], label="over 30", count=1
    )
