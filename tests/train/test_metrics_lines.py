"""metrics.jsonl is trimmed to the steps of a checkpoint, whatever became of it."""

import json

import pytest

from medqa.train.metrics import trim_metrics


def line(step, **fields):
    return json.dumps({"step": step, "loss": 2.0, "answer_nll": 1.5, **fields}) + "\n"


def test_later_steps_go(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(map(line, (1, 2, 3, 4))))
    assert trim_metrics(file, 2) == 0
    assert file.read_text() == line(1) + line(2)


@pytest.mark.parametrize(
    "damaged",
    [
        line(2)[:10],
        "\x80",
        "[]",
        "5",
        '{"step": "x", "loss": 1.0}',
        line(2, loss="2"),
        '{"step": 2}',
        "[" * 10_000,
    ],
)
def test_what_is_no_line_goes_and_is_counted(tmp_path, damaged):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes((line(1) + damaged.rstrip("\n") + "\n" + line(3)).encode("latin-1"))
    assert trim_metrics(file, 3) == 1
    assert file.read_text() == line(1) + line(3)


def test_no_file_is_as_many_steps_missing(tmp_path):
    assert trim_metrics(tmp_path / "none", 0) == 0
    assert trim_metrics(tmp_path / "none", 4) == 4
    assert not (tmp_path / "none").exists()
