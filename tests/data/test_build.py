import dataclasses
import json

import pytest

from medqa.config import DataConfig, MixConfig
from medqa.data.build import audit_training, build_corpus, evaluation_set
from medqa.data.draw import examples_hash, stratified_rows
from medqa.data.folder import write_corpus
from medqa.errors import ConfigError, DataError
from medqa.records import Example
from medqa.testing import make_examples, write_medmcqa


def config(folder, **fields):
    return DataConfig(name=str(folder), **{"calibration_share": 0.0, "selection_share": 0.0, **fields})


@pytest.fixture
def folder(tmp_path):
    """Make 40 training rows: one twice, one with a rival key, one in the evaluation split, one marked."""
    rows = make_examples(44)
    extra = [
        dataclasses.replace(rows[0], id="copy"),
        dataclasses.replace(rows[1], id="rival", answer=(rows[1].answer + 1) % 4),
        dataclasses.replace(rows[40], id="leak"),
        dataclasses.replace(
            rows[2], id="marked", question="How many chambers has the heart of a healthy adult man?",
            explanation="Ans. is 'x' i.e., four chambers. Two atria and two ventricles, parted by a septum.",
        ),
    ]  # fmt: skip
    write_medmcqa(tmp_path / "train.jsonl", [*rows[:40], *extra])
    write_medmcqa(tmp_path / "validation.jsonl", rows[40:])
    return tmp_path


def test_every_row_is_accounted_for(folder):
    corpus = build_corpus(config(folder), 0)
    record = corpus.record
    assert record["num_with_key"] == 44
    assert record["duplicates"]["num_left_out"] == 1
    assert record["conflicts"]["groups"] == [["q1", "rival"]] or record["conflicts"]["num_rows"] == 2
    assert record["leaks"]["num_train_rows_left_out"] == 1
    assert len(corpus.train) == record["num_used"] == 44 - 1 - 2 - 1
    assert record["sha256"] == examples_hash(corpus.train)
    assert record["splits"]["train"]["num_used"] == len(corpus.train)


def test_the_record_holds_no_text_of_the_questions(folder):
    text = json.dumps(build_corpus(config(folder), 0).record)
    for example in make_examples(44):
        assert example.question not in text


def test_without_cleaning_rows_are_as_published_but_leaks_go(folder):
    corpus = build_corpus(config(folder, clean=False), 0)
    assert len(corpus.train) == 43
    assert any((e.explanation or "").startswith("Ans. is") for e in corpus.train)
    everything = build_corpus(config(folder, clean=False, drop_leaks=False), 0)
    assert len(everything.train) == 44
    assert everything.record["leaks"]["num_train_rows_left_out"] == 0


def test_copies_that_stay_are_never_parted_by_a_split(folder):
    shares = {"calibration_share": 0.4, "selection_share": 0.0, "drop_leaks": False}
    corpus = build_corpus(config(folder, clean=False, **shares), 0)
    held, used = ({e.question for e in part} for part in (corpus.calibration, corpus.train))
    assert held
    assert not held & used


def test_no_group_of_like_questions_comes_apart(tmp_path, monkeypatch):
    """Near copies share a group; one of them resembles a stranger, so that the whole group is trained on."""
    from conftest import word_questions
    from medqa.data import build

    rows = word_questions(120)
    for number in range(0, 60, 3):  # pairs alike in all but a word
        question = rows[number].question.removesuffix("?") + " besides?"
        rows[number + 1] = dataclasses.replace(rows[number], question=question, id=f"near{number}")
    # Half of what is asked in the first of each pair of these is asked again elsewhere, in other words.
    for number in range(0, 30, 3):
        half = " ".join(rows[number].question.split()[:4])
        rows[number + 2] = dataclasses.replace(rows[number + 2], question=f"{half} otherwise{number}?")
    write_medmcqa(tmp_path / "train.jsonl", rows)
    write_medmcqa(tmp_path / "validation.jsonl", word_questions(9, seed=1))
    seen = []
    split = build._split

    def spied(config, kept, prints, groups, audit):
        parts = split(config, kept, prints, groups, audit)
        seen.append((groups, parts))
        return parts

    monkeypatch.setattr(build, "_split", spied)
    shares = {"calibration_share": 0.4, "selection_share": 0.2, "clean": False}
    corpus = build_corpus(config(tmp_path, **shares), 0)
    [(groups, parts)] = seen
    numbers = {name: {groups.split[row] for row in chosen} for name, chosen in parts.items()}
    assert all(numbers.values())
    assert not numbers["train"] & numbers["calibration"]
    assert not numbers["train"] & numbers["selection"]
    assert not numbers["calibration"] & numbers["selection"]
    assert sum(map(len, parts.values())) == len(corpus.train + corpus.calibration + corpus.selection) == 120
    held = {e.id for e in corpus.calibration + corpus.selection}
    pairs = [{rows[n].id, rows[n + 1].id} for n in range(0, 60, 3)]
    assert all(pair <= held or not pair & held for pair in pairs)
    assert any(pair <= held for pair in pairs[10:])
    assert not any(pair & held for pair in pairs[:10])  # more than 0.3 of them is found in a stranger


def test_held_back_rows_are_the_same_for_every_seed_and_never_trained_on(folder):
    shares = {"calibration_share": 0.2, "selection_share": 0.1}
    one, two = (build_corpus(config(folder, **shares), seed) for seed in (0, 1))
    assert one.calibration == two.calibration
    assert one.calibration
    assert one.selection
    parts = [{e.id for e in part} for part in (one.train, one.calibration, one.selection)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 40


def test_sources_are_mixed_with_weights_and_caps_and_keep_their_origin(folder, tmp_path):
    own = [
        Example(
            f"Which drug number {i} thins the blood of a patient with a clot?", ("a", "b", "c", "d"), i % 4
        )
        for i in range(10)
    ]
    write_medmcqa(tmp_path / "own.jsonl", own)
    mix = MixConfig(name=str(tmp_path / "own.jsonl"), weight=2, max_rows=4, licence="cc-by-4.0")
    corpus = build_corpus(config(folder, mix=[mix], weight=0.5), 0)
    sources = corpus.record["sources"]
    assert [source["num_used"] for source in sources] == [20, 8]
    assert sources[1]["num_read"] == 10
    assert sources[1]["num_drawn"] == 4
    assert corpus.record["licences"] == ["cc-by-4.0", "unknown"]
    assert {e.licence for e in corpus.train if e.source.endswith("own.jsonl")} == {"cc-by-4.0"}
    assert corpus.train == build_corpus(config(folder, mix=[mix], weight=0.5), 0).train


def test_two_splits_of_one_source_keep_their_own_weights(folder, tmp_path):
    write_medmcqa(
        tmp_path / "more.jsonl", [dataclasses.replace(e, id=f"m{e.id}") for e in make_examples(60)[50:]]
    )
    mix = MixConfig(name=str(folder), split="more", weight=3)
    sources = build_corpus(config(folder, mix=[mix]), 0).record["sources"]
    assert [source["num_used"] for source in sources] == [40, 30]


def test_without_an_evaluation_split_the_user_is_told(tmp_path, caplog):
    write_medmcqa(tmp_path / "train.jsonl", make_examples(20))
    assert not build_corpus(config(tmp_path), 0).record["leaks"]["looked_for"]
    assert "Leaks are not looked for" in caplog.text
    caplog.clear()
    assert len(build_corpus(config(tmp_path / "train.jsonl"), 0).train) == 20
    assert "holds both training and evaluation questions" in caplog.text


def test_unknown_rules_and_empty_corpora_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="no rule 'markups'"):
        build_corpus(config(folder, skip_rules=["markups"]), 0)
    both = tmp_path / "both"
    write_medmcqa(both / "train.jsonl", make_examples(3))
    write_medmcqa(both / "validation.jsonl", make_examples(3))
    with pytest.raises(DataError, match="no question is left of 3"):
        build_corpus(config(both), 0)


def test_an_audit_of_other_questions_reads_the_training_rows_again(folder):
    audit = audit_training(config(folder), make_examples(60)[38:60])
    assert audit.flagged["exact"] == ["q38", "q39", "q40"]


def test_a_corpus_on_disk_is_whole(folder, tmp_path):
    settings = config(folder, calibration_share=0.2)
    corpus = build_corpus(settings, 0)
    write_corpus(corpus, settings, tmp_path / "out")
    names = ["calibration.jsonl", "data.json", "data_report.html", "selection.jsonl", "train.jsonl"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [e.id for e in corpus.train]
    assert json.loads((tmp_path / "out/data.json").read_text())["sha256"] == corpus.record["sha256"]


def test_max_train_rows_draws_by_hash(folder):
    corpus = build_corpus(config(folder, max_train_rows=5), 0)
    assert len(corpus.train) == corpus.record["num_used"] == 5


def test_questions_that_occur_again_are_told(tmp_path, caplog):
    write_medmcqa(tmp_path / "validation.jsonl", [*make_examples(5), *make_examples(2)])
    record = evaluation_set(DataConfig(name=str(tmp_path)), 0).record
    assert record["num_occurring_again"] == 2
    assert "occur more than once" in caplog.text


def test_evaluation_and_training_need_keys(tmp_path):
    keyless = [dataclasses.replace(e, answer=None) for e in make_examples(3)]
    write_medmcqa(tmp_path / "test.jsonl", keyless)
    with pytest.raises(DataError, match="no question has a key"):
        evaluation_set(DataConfig(name=str(tmp_path), eval_split="test"), 0)
    with pytest.raises(DataError, match="no question has a key"):
        build_corpus(DataConfig(name=str(tmp_path), train_split="test"), 0)


def test_a_stratified_draw_holds_every_subject_and_does_not_hang_on_the_order():
    examples = [
        dataclasses.replace(e, subject="large" if number % 10 else "small")
        for number, e in enumerate(make_examples(200))
    ]
    rows = stratified_rows(examples, 50, seed=0)
    assert rows == sorted(set(rows))
    assert len(rows) == 50
    assert sum(examples[row].subject == "small" for row in rows) == 5
    turned = stratified_rows(examples[::-1], 50, seed=0)
    assert {199 - row for row in turned} == set(rows)
    assert stratified_rows(examples, 50, seed=1) != rows
    assert set(stratified_rows(examples, 20, seed=0)) < set(rows)
    assert stratified_rows(examples, None, seed=0) == list(range(200))
