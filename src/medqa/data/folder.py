"""A corpus on disk: what `medqa data` writes, and what training reads.

train.jsonl             questions to train on, one JSON object a line
calibration.jsonl       held back, for calibration
selection.jsonl         held back, to choose by
data.json               what was done, in numbers and ids
data_report.html        what was done, as a page with examples
"""

import json
from pathlib import Path

from medqa.config import DataConfig
from medqa.data.corpus import Corpus, TrainingData
from medqa.data.draw import plain_values
from medqa.data.page import write_page
from medqa.errors import DataError, RunError
from medqa.files import jsonl_text, read_json, write_folder, write_json, write_text
from medqa.records import Example

__all__ = ["read_corpus", "write_corpus", "write_questions"]

_PARTS = ("train", "calibration", "selection")


def write_corpus(corpus: Corpus, config: DataConfig, path: Path) -> None:
    """Write a corpus into a new folder: all of it or nothing.

    Raises:
        DataError: If the folder can't be made.
    """
    try:
        with write_folder(path) as beside:
            write_questions(corpus, beside)
            write_page(corpus, config, beside / "data_report.html")
    except OSError as exc:
        raise DataError(f"{path} can't be written: {exc}", "--out gives another place") from exc


def write_questions(corpus: Corpus, folder: Path) -> None:
    """Write the questions and the record into a folder that is there, without the page."""
    for name in _PARTS:
        write_text(folder / f"{name}.jsonl", jsonl_text(map(plain_values, getattr(corpus, name))))
    write_json(folder / "data.json", corpus.record)


def read_corpus(path: Path) -> TrainingData:
    """Read a corpus back, without its page.

    Raises:
        DataError: If the folder is not whole.
    """
    try:
        record = read_json(path / "data.json")
        parts = {name: _read_examples(path / f"{name}.jsonl") for name in _PARTS}
        for name, rows in parts.items():
            if (num_used := record["splits"][name]["num_used"]) != len(rows):
                raise DataError(f"{path}/{name}.jsonl has {len(rows)} questions, data.json says {num_used}")
    except RunError as exc:
        raise DataError(exc.message, exc.hint) from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise DataError(f"{path} can't be read as a corpus: {exc!r}", "make it again: `medqa data`") from exc
    return TrainingData(**parts, record=record)


def _read_examples(file: Path) -> list[Example]:
    examples: list[Example] = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            row["options"] = tuple(row["options"])
            if "original" in row:
                row["original"] = tuple(row["original"])
            examples.append(Example(**row))
    return examples
