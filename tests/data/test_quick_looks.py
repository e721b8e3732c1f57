"""Quick looks spare most texts the long patterns; they must never hide a match of one."""

import dataclasses
import re

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.data import citations, layout, markers
from medqa.data.draw import plain_values
from medqa.data.vocabulary import INNER_CAPITAL, Vocabulary, fold, row_text, runs, tokens, word_set
from medqa.testing import make_examples

WORDS = """
o O Q 1 2 3 a B * # ( ) [ ] . , : ; - < > \u2022 \u00d8 option Options choice answers ans is OPTION number
Ref REF: reference Refer Source SOURCE: therefore prefer Also Image Text see Harrison 19th ed e p. 234 pg www.
http://x ISBN (Eds.) (1999) textbook of In: chapter 4 Table image images picture photograph fig figure 1.2
flow chart flowchart graph shown marked arrow spot the diagnosis below given <img identify illustration
diseaseFranklin painO x_image image2
"""
BLANKS = st.sampled_from(["", " ", "\n", "  "])
TORN = st.lists(
    st.tuples(st.sampled_from(re.findall(r"\S+", WORDS)) | st.text(max_size=3), BLANKS), max_size=12
).map(lambda pairs: "".join(word + blank for word, blank in pairs))


@settings(max_examples=400, deadline=None)
@given(text=TORN)
@hypothesis.example("identify*marked")
def test_a_quick_look_never_hides_a_match(text):
    plain = text.replace("\u017f", "s")  # the long s is an s only to the patterns
    words = word_set(plain)
    if markers._REFERENCE.search(plain):
        assert words & markers._REFERENCE_WORDS
    if citations._POINTER.search(plain):
        assert words & citations._PICTURE_WORDS or "<img" in plain.lower()
    if citations._QUESTION_POINTER.search(plain):
        assert citations.points_at_picture(plain)
    if layout._BULLET.search(plain):
        assert layout._SIGN.search(plain) or "o" in words
    if layout._GLUED.search(plain):
        assert INNER_CAPITAL.search(plain)
    if first := citations._START.search(plain):
        announced = citations._ANNOUNCES.search(plain)
        assert announced
        begin = max(0, len(plain[: announced.start()].rstrip()) - citations._MAX_BEFORE)
        assert citations._START.search(plain, begin).span() == first.span()


@settings(max_examples=400, deadline=None)
@given(text=TORN)
def test_runs_of_letters_hold_the_same_words(text):
    assert [word for run in runs(text) for word in tokens(run)] == tokens(text)


@pytest.mark.parametrize("book", citations._BOOKS.split("|"))
def test_every_book_is_found_by_its_branch(book):
    plain = re.compile(rf"\b(?:{citations._BOOKS})", re.IGNORECASE)
    text = f"see {book.replace(chr(92) + 's?', ' ').replace('?', '').upper()}, and more"
    assert citations._BOOK.search(text)[0] == plain.search(text)[0]


def test_words_counted_in_processes_are_those_of_one(monkeypatch):
    texts = [row_text(example) + " mmHg Heart HEART heart artery PA" for example in make_examples(40)]
    alone = Vocabulary(texts)
    monkeypatch.setattr("medqa.data.vocabulary._MIN_CHUNK", 4)
    spread = Vocabulary(texts)
    assert vars(spread) == vars(alone)
    assert alone.rows["heart"] == alone.names["heart"] == 40
    for word in alone.rows:
        assert alone.rows[word] == sum(word in map(fold, tokens(text)) for text in texts)


def test_plain_values_are_those_of_the_record():
    for example in make_examples(3):
        full = dataclasses.replace(example, context="c", original=("a", "b"), answer=0)
        for one in (example, full, dataclasses.replace(example, answer=None)):
            assert list(plain_values(one).items()) == list(one.to_json().items())
