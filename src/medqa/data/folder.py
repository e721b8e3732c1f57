"""A corpus on disk: what `medqa data` writes.

train.jsonl             questions to train on, one JSON object a line
calibration.jsonl       held back, for calibration
early_stopping.jsonl    held back, to tell when to stop
data.json               what was done, in numbers and ids
data_report.html        what was done, as a page with examples
"""

from pathlib import Path

from medqa.config import DataConfig
from medqa.data.build import Corpus
from medqa.data.page import write_page
from medqa.errors import DataError
from medqa.files import write_folder, write_json, write_jsonl

__all__ = ["write_corpus"]


def write_corpus(corpus: Corpus, config: DataConfig, path: Path) -> None:
    """Write a corpus into a new folder: all of it or nothing.

    Raises:
        DataError: If the folder can't be made.
    """
    try:
        with write_folder(path) as beside:
            for name in ("train", "calibration", "early_stopping"):
                rows = getattr(corpus, name)
                write_jsonl(beside / f"{name}.jsonl", (example.to_json() for example in rows))
            write_json(beside / "data.json", corpus.record)
            write_page(corpus, config, beside / "data_report.html")
    except OSError as exc:
        raise DataError(f"{path} can't be written: {exc}", "--out gives another place") from exc
