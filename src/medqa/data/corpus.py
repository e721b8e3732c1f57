"""What comes out of the sources: questions for each purpose, and the account of every row."""

import dataclasses
from typing import Any

from medqa.data.account import Account
from medqa.records import Example

__all__ = ["Corpus", "TrainingData"]

_SUMMARY = (
    "name",
    "split",
    "files",
    "licences",
    "num_with_key",
    "num_used",
    "num_with_explanation",
    "splits",
    "sha256",
)
"""Keys of a record that run.json takes over: all but the lists of ids."""


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What training needs of a corpus: everything but the texts behind the record.

    Attributes:
        train: The questions to train on.
        calibration: Held back from training, to calibrate on.
        selection: Held back from training, to choose by.
        record: What was done, in numbers and ids, for data.json and run.json: no question's text.
    """

    train: list[Example]
    calibration: list[Example]
    selection: list[Example]
    record: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """The record without its lists of ids, for run.json."""
        return {key: self.record[key] for key in _SUMMARY}


@dataclasses.dataclass(frozen=True)
class Corpus(TrainingData):
    """Everything that came out of the sources.

    Attributes:
        account: What was done, with texts, for the page.
    """

    account: Account
