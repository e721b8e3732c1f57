import dataclasses
import json
import logging
import os
import time

import pytest

from medqa.config import DataConfig, MixConfig
from medqa.data import prepared
from medqa.data.build import build_corpus
from medqa.data.cache import NUM_ENTRIES, entry_path, source_files, store
from medqa.data.folder import read_corpus, write_corpus
from medqa.data.prepared import begin_corpus
from medqa.errors import ConfigError, DataError
from medqa.runs import home
from medqa.testing import make_examples, write_medmcqa


@pytest.fixture
def config(tmp_path):
    write_medmcqa(tmp_path / "data/train.jsonl", make_examples(44))
    write_medmcqa(tmp_path / "data/validation.jsonl", make_examples(60)[43:])
    shares = {"calibration_share": 0.2, "selection_share": 0.1}
    return DataConfig(name=str(tmp_path / "data"), **shares)


@pytest.fixture
def child_always(monkeypatch):
    monkeypatch.setattr(prepared, "SMALL_BYTES", 0)


@pytest.fixture
def no_child(monkeypatch):
    monkeypatch.setattr(prepared, "SMALL_BYTES", 0)
    monkeypatch.setattr(prepared, "_Child", lambda request: pytest.fail("a child was started"))


def key(config, seed=0):
    return entry_path(config, seed, source_files(config))


def kept(config, seed=0):
    """Put a corpus into the cache."""
    store(
        build_corpus(config, seed),
        [("medqa.data.mix", logging.WARNING, "3 rows have no key")],
        key(config, seed),
    )
    return key(config, seed)


def parts(data):
    return data.train, data.calibration, data.selection, data.record, data.summary


def test_a_child_makes_what_build_corpus_does_and_the_next_run_finds_it(
    config, child_always, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "medqa")
    data = begin_corpus(config, 3).result()
    assert parts(data) == parts(build_corpus(config, 3))
    assert "questions to train on" in caplog.text
    monkeypatch.setattr(prepared, "_Child", lambda request: pytest.fail("a child was started"))
    assert begin_corpus(config, 3).result() == data
    assert str(home() / "corpora") in caplog.text


def test_small_sources_are_built_at_once_and_not_kept(config, monkeypatch):
    monkeypatch.setattr(prepared, "_Child", lambda request: pytest.fail("a child was started"))
    assert parts(begin_corpus(config, 0).result()) == parts(build_corpus(config, 0))
    assert not (home() / "corpora").exists()
    begin_corpus(DataConfig(name="builtin:starter"), 0).cancel()


def test_what_was_logged_is_said_again(config, no_child, caplog):
    kept(config)
    begin_corpus(config, 0).result()
    assert "3 rows have no key" in caplog.text


def test_the_key_tells_settings_seed_and_files_apart(config, tmp_path):
    write_medmcqa(tmp_path / "more.jsonl", make_examples(3))
    mixed = config.model_copy(update={"mix": (MixConfig(name=str(tmp_path / "more.jsonl")),)})
    first = key(config)
    assert key(config) == first
    others = [key(config, 1), key(config.model_copy(update={"clean": False})), key(mixed)]
    for name in ("train", "validation"):
        write_medmcqa(tmp_path / f"data/{name}.jsonl", make_examples(70)[50:])
        others.append(key(config))
    (tmp_path / "data/README.md").write_text("---\nlicense: mit\n---\n")
    others.append(key(config))
    os.utime(tmp_path / "more.jsonl", (1, 1))
    others.append(key(mixed))
    assert len({first, *others}) == 8


@pytest.mark.parametrize("name", ["train.jsonl", "data.json", "entry.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_entry_is_said_and_made_again(config, child_always, caplog, monkeypatch, name, damage):
    file = kept(config) / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-40])
    started = []
    monkeypatch.setattr(prepared, "_Child", started.append)
    begin_corpus(config, 0)
    assert len(started) == 1
    assert "damaged" in caplog.text or (name, damage) == ("entry.json", "gone")


def test_what_the_child_finds_but_is_damaged_is_made_again(config, monkeypatch, caplog):
    (kept(config) / "train.jsonl").write_text("")

    class Child:
        def __init__(self, request):
            self.rebuild = request.get("rebuild")

        def answer(self):
            if self.rebuild:
                kept(config)
            return {"folder": str(key(config)), "found": not self.rebuild}

    monkeypatch.setattr(prepared, "_Child", Child)
    monkeypatch.setattr(prepared, "is_on_disk", lambda name: False)  # as for a Hub id: the child looks
    assert parts(begin_corpus(config, 0).result()) == parts(build_corpus(config, 0))
    assert "damaged" in caplog.text


def test_errors_of_the_child_are_those_of_the_parent(config, child_always, tmp_path):
    pending = begin_corpus(config.model_copy(update={"skip_rules": ("markups",)}), 0)
    with pytest.raises(ConfigError, match="no rule 'markups'") as caught:
        pending.result()
    assert "the rules are" in caught.value.hint
    with pytest.raises(DataError, match=r"has no .* file for split"):  # shows at once
        begin_corpus(config.model_copy(update={"train_split": "other"}), 0)


def test_a_child_that_breaks_down_is_said(config, child_always, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "no number")
    with pytest.raises(DataError, match="exit code 1") as caught:
        begin_corpus(config, 0).result()
    assert "report it" in caught.value.hint
    assert "PYTHONHASHSEED" in capfd.readouterr().err


def gone(pid):
    """Wait until no process of a group is left."""
    for _ in range(200):
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_cancelled_child_ends(config, child_always):
    pending = begin_corpus(config, 0)
    pending.cancel()
    pending.cancel()
    assert gone(pending._child._process.pid)
    with pytest.raises(DataError, match="cancelled"):
        pending.result()
    assert not (home() / "corpora").exists()


def test_a_child_ends_with_its_parent(config, child_always):
    pending = begin_corpus(config, 0)
    process = pending._child._process
    process.stdin.close()  # as when the parent is gone
    process.wait(timeout=30)
    assert gone(process.pid)
    pending.cancel()
    assert not (home() / "corpora").exists()


def test_the_least_recently_used_go(config, no_child):
    paths = []
    for seed in range(NUM_ENTRIES):
        paths.append(kept(config, seed))
        os.utime(paths[-1] / "entry.json", (seed, seed))
    half_written = home() / "corpora/.x.1.part"
    half_written.mkdir()
    os.utime(half_written, (1, 1))
    assert begin_corpus(config, 0).result()  # used now
    paths.append(kept(config, NUM_ENTRIES))
    assert sorted(home().glob("corpora/*")) == sorted({*paths} - {paths[1]})
    assert not half_written.exists()


def test_a_corpus_of_medqa_data_and_an_entry_are_read_alike(config, tmp_path):
    corpus = build_corpus(config, 0)
    write_corpus(corpus, config, tmp_path / "out")
    assert parts(read_corpus(tmp_path / "out")) == parts(read_corpus(kept(config))) == parts(corpus)


def test_a_folder_that_is_no_corpus_is_refused(config, tmp_path):
    corpus = build_corpus(config, 0)
    write_corpus(dataclasses.replace(corpus, train=corpus.train[1:]), config, tmp_path / "out")
    num = len(corpus.train)
    with pytest.raises(DataError, match=rf"has {num - 1} questions, data\.json says {num}"):
        read_corpus(tmp_path / "out")
    (tmp_path / "out/data.json").write_text(json.dumps({"splits": None}))
    with pytest.raises(DataError, match="can't be read as a corpus"):
        read_corpus(tmp_path / "out")
    (tmp_path / "out/data.json").unlink()
    with pytest.raises(DataError, match="can't be read"):
        read_corpus(tmp_path / "out")
