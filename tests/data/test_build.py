import pytest

from medqa.config import DataConfig
from medqa.data.build import evaluation_set, examples_hash, sample, training_set
from medqa.errors import DataError
from medqa.testing import make_examples, write_medmcqa


def test_sampling_does_not_depend_on_the_order_of_the_file():
    examples = make_examples(50)
    assert sample(examples, 10, 0) == sample(examples[::-1], 10, 0)
    assert sample(examples, 10, 0) != sample(examples, 10, 1)
    assert sample(examples, 10, 0) == sample(examples, 20, 0)[:10]
    assert sample(examples, 99, 0) == examples


def test_training_set_counts_what_it_did(small_data):
    questions = training_set(DataConfig(name=str(small_data), max_train_rows=5), 0)
    assert len(questions.examples) == questions.record["num_used"] == 5
    assert questions.record["num_read"] == 40
    assert questions.record["sha256"] == examples_hash(questions.examples)


def test_questions_that_occur_again_are_told(tmp_path, caplog):
    write_medmcqa(tmp_path / "validation.jsonl", [*make_examples(5), *make_examples(2)])
    record = evaluation_set(DataConfig(name=str(tmp_path)), 0).record
    assert record["num_occurring_again"] == 2
    assert "occur more than once" in caplog.text


def test_evaluation_needs_keys(tmp_path):
    import dataclasses

    keyless = [dataclasses.replace(e, answer=None) for e in make_examples(3)]
    write_medmcqa(tmp_path / "test.jsonl", keyless)
    with pytest.raises(DataError, match="no question has a key"):
        evaluation_set(DataConfig(name=str(tmp_path), eval_split="test"), 0)
    with pytest.raises(DataError, match="no question has a key"):
        training_set(DataConfig(name=str(tmp_path), train_split="test"), 0)
