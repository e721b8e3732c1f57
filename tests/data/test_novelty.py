import itertools

import numpy as np
import pytest

from medqa.config import DataConfig
from medqa.data.build import MAX_RESEMBLANCE, build_corpus
from medqa.data.fingerprints import Fingerprint
from medqa.data.novelty import resemblance
from medqa.records import Example
from medqa.testing import write_medmcqa

OPTIONS = ("Iron", "Zinc", "Iodine", "Copper")


def prints_of(*questions):
    return [Fingerprint.of(Example(question, OPTIONS[:2], 0)) for question in questions]


def test_a_copy_outside_the_group_is_found_and_one_inside_is_not():
    prints = prints_of(
        "which mineral does thyroxine hold", "what heals a fracture", "which mineral does thyroxine hold"
    )
    assert resemblance([0], prints, [0, 1, 2]) == pytest.approx([1.0])
    assert resemblance([0], prints, [0, 1, 0])[0] < MAX_RESEMBLANCE


def test_rare_words_count_more_than_common_ones():
    filler = [f"which statement about topic{i} holds" for i in range(200)]
    prints = prints_of(
        "which statement about thyroxine holds", *filler, "name one thing that lowers thyroxine"
    )
    groups = list(range(len(prints)))
    with_rare = resemblance([0], prints, groups)[0]
    without = resemblance([0], prints[:-1], groups[:-1])[0]
    assert with_rare > without


def test_it_equals_the_plain_definition():
    draw = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    prints = prints_of(*(" ".join(draw.choice(words, 6)) for _ in range(40)))
    groups = [int(g) for g in draw.integers(0, 30, 40)]

    def terms(p):
        texts = (p.context, p.question, *p.options)
        return {
            t for text in texts for w in [text.split()] for t in (*w, *map(" ".join, itertools.pairwise(w)))
        }

    rows = [3, 7, 11]
    mine = set().union(*(terms(prints[r]) for r in rows))
    counts = {t: sum(t in terms(p) for p in prints) for t in mine}
    weight = {t: np.log(41 / n) ** 2 * (n <= 0.01 * 40 + 2) for t, n in counts.items()}
    expected = [
        max(
            sum(weight[t] for t in terms(prints[r]) & terms(p)) * (groups[i] != groups[r])
            for i, p in enumerate(prints)
        )
        / sum(weight[t] for t in terms(prints[r]))
        for r in rows
    ]
    assert resemblance(rows, prints, groups) == pytest.approx(expected)


def test_nothing_asked_for_is_nothing_found():
    assert resemblance([], prints_of("a question"), [0]).shape == (0,)


def test_what_is_held_back_resembles_nothing_that_is_trained_on(tmp_path):
    draw = np.random.default_rng(1)
    words = [f"w{chr(97 + a)}{chr(97 + b)}" for a in range(26) for b in range(8)]
    rows = [
        Example(" ".join(draw.choice(words, 8)), tuple(draw.choice(words, 4, replace=False)), 0, id=f"q{i}")
        for i in range(300)
    ]
    alike = [
        Example(f"{e.question[:20]} truly", (*e.options[:3], "none"), 0, id=f"{e.id}x") for e in rows[:150]
    ]
    write_medmcqa(tmp_path / "train.jsonl", [*rows, *alike])
    config = DataConfig(name=str(tmp_path), calibration_share=0.3, selection_share=0.1)
    corpus = build_corpus(config, 0)
    held = [*corpus.calibration, *corpus.selection]
    assert held
    prints = [Fingerprint.of(e) for e in (*held, *corpus.train)]
    groups = [0] * len(held) + list(range(1, len(corpus.train) + 1))  # only training questions count
    assert (resemblance(range(len(held)), prints, groups) < MAX_RESEMBLANCE).all()
