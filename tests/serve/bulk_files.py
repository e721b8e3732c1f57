"""Files of questions, and something quick that answers them."""

import csv
import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from medqa.errors import DataError
from medqa.records import LETTERS, Answer
from medqa.serve.bulk import answer_file

SETTINGS = {"adapter": "abc", "serve": {"orders": 1}}


def fake(examples):
    """Answer by a hash; a question that says so is too long."""
    return [answer_one(example) for example in examples]


def answer_one(example):
    if "too long" in example.question:
        return DataError(
            f"the question takes {len(example.question)} tokens, the model takes at most 8", "cut"
        )
    count = len(example.options)
    choice = hashlib.sha256(example.question.encode()).digest()[0] % count
    chances = {LETTERS[n]: 0.5 if n == choice else 0.5 / (count - 1) for n in range(count)}
    unsure = example.question.endswith("1")
    return Answer(
        question=example.question,
        letter=LETTERS[choice],
        option=example.options[choice],
        confidence=0.5,
        probabilities=chances,
        explanation="Since\nit is.",
        explanation_finished=True,
        model="tiny + run",
        calibration="temperature",
        answer_set=(LETTERS[choice], LETTERS[choice - 1]),
        alpha=0.1,
        abstain=unsure,
        reason="not sure" if unsure else None,
        explanation_check={"agrees": True, "warning": None},
    )


def run(source, target, answer=fake, chunk_rows=3, **more):
    return answer_file(
        source, target, lambda: answer, **{"chunk_rows": lambda: chunk_rows, "settings": SETTINGS, **more}
    )


def refuse_to_load():
    pytest.fail("loaded without need")


def questions(count):
    return [
        {
            "id": f"q{n}",
            "question": f"Which, in «{n}»?\n{n}",
            "options": [f"a{n}", f'b, "{n}"', "ç"][: 2 + n % 2],
        }
        for n in range(count)
    ]


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
                for row in rows
            )
    return path


def read(path, *, options_too=True):
    """Read with nothing of ours, and make of CSV's texts what they were."""
    if path.suffix == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
        for row in rows:
            if row["probabilities"]:
                row["probabilities"] = {k: v for k, v in row["probabilities"].items() if v is not None}
            row["explanation_check"] = row["explanation_check"] and json.loads(row["explanation_check"])
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = {
        "" if options_too else "options",
        "id",
        "question",
        "letter",
        "option",
        "explanation",
        "model",
        "calibration",
        "reason",
        "notice",
    }
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {k: v or None if k in {*texts, "error"} else json.loads(v) if v else None for k, v in row.items()}
            for row in csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        ]
