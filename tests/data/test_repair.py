"""Lost letters: small made-up corpora always; the kept list of words against the real corpus where it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared
from medqa.data.repair import Lexicon
from medqa.data.vocabulary import LOST, Vocabulary, fold, tokens

LIST = Path(__file__).parent / "lost_letters.txt"


def read_list():
    """Return pairs (damaged, whole) and traps."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    middle = lines.index("[traps]")
    return [tuple(line.split()) for line in lines[1:middle]], " ".join(lines[middle + 1 :]).split()


WHOLE = [
    "The portal vein and the hepatic artery supply the liver, an important part of its support",
    "The heart pumps blood into the aorta; a short partial block is seen in the main artery",
    "Birth after abortion is reported; the portion of certain fertility data starts to support it",
    "Deviation of the septum is described, the synovial fluid and the subclavian artery are normal",
    "Dr Martin and Dr Robert reported on a robe, a stale loaf and a sieve in the main hall",
] * 12


def damage(text):
    for lost in LOST:
        text = text.replace(lost, "")
    return text


@pytest.fixture(scope="module")
def lexicon():
    real = [text for text in WHOLE if "Martin" not in text]
    return Lexicon.learn(Vocabulary([*WHOLE, *map(damage, real), *map(damage, real)]))


def test_damaged_words_are_put_right_in_every_case(lexicon):
    assert lexicon("the hepatic aery") == "the hepatic artery"
    assert lexicon("Aery, poal vein") == "Artery, portal vein"
    assert lexicon("IT WAS REPOED") == "IT WAS REPORTED"
    assert lexicon("septal detion") == "septal deviation"
    assert lexicon("aeryLeft") == "arteryLeft"


def test_real_words_stay(lexicon):
    for word in ("main", "robe", "stale", "sieve", "head", "PA", "artery", "heart"):
        assert lexicon(f"a {word} here") == f"a {word} here"


def test_parts_of_broken_words_and_signs_stay(lexicon):
    assert lexicon("hea-d and hea-rt") == "hea-d and hea-rt"
    assert lexicon("PaO2 is low, Pa is a unit", "a short row, whole") == "PaO2 is low, Pa is a unit"


def test_a_whole_corpus_is_left_alone():
    lexicon = Lexicon.learn(Vocabulary(WHOLE))
    assert not lexicon.repairs
    assert all(lexicon(text) == text for text in WHOLE)


@given(st.text(max_size=60))
def test_repairing_only_puts_letters_in_and_does_so_once(lexicon, text):
    once = lexicon(text)
    assert lexicon(once) == once

    def bare(words):
        return damage(words.lower())

    assert bare(once) == bare(text)


def test_tokens_part_where_words_were_glued():
    assert tokens("bihStructure POAL 3a mRNA") == ["bih", "Structure", "POAL", "a", "m", "RNA"]
    assert [fold(word) for word in ("PA", "Pa", "POAL", "POALS")] == ["PA", "pa", "POAL", "poals"]


def test_the_kept_list_is_large_and_consistent():
    pairs, traps = read_list()
    assert len(pairs) >= 300
    assert len(traps) >= 100
    assert all(damage(whole) == damaged for damaged, whole in pairs)
    assert not {damaged for damaged, _ in pairs} & set(traps)


@pytest.mark.slow
def test_precision_and_recall_on_the_real_corpus():
    """Words that occur in at least 5 rows: at least 0.99 right of those touched, 0.9 of the damaged found."""
    from medqa.config import DataConfig
    from medqa.data.sources import read_split
    from medqa.data.vocabulary import row_text

    examples = read_split(
        DataConfig(name=str(shared("data/medmcqa"))), "train", allow_repeated_options=True
    ).examples
    vocabulary = Vocabulary(row_text(example) for example in examples)
    lexicon = Lexicon.learn(vocabulary)
    pairs, traps = read_list()
    frequent = [(damaged, whole) for damaged, whole in pairs if vocabulary.rows[fold(damaged)] >= 5]
    right = [p for p in frequent if p[0] in lexicon.repairs and lexicon.repairs[p[0]].whole == p[1]]
    touched = [p for p in frequent if p[0] in lexicon.repairs]
    sprung = [trap for trap in traps if fold(trap) in lexicon.repairs]
    assert len(frequent) >= 300, len(frequent)
    assert len(right) / len(frequent) >= 0.9
    assert len(right) / (len(touched) + len(sprung)) >= 0.99
