"""Is an export the model that was tuned? Both are asked the same questions, and their answers compared."""

import dataclasses
import logging
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medqa.config import SourceConfig
from medqa.data.corpus import TrainingData
from medqa.data.draw import sample
from medqa.data.places import STARTER
from medqa.data.prepared import corpus_of
from medqa.data.sources import read_split
from medqa.errors import MedQAError, PublishError
from medqa.evaluate.calibrate import refuse_other_questions
from medqa.evaluate.engine import Engine
from medqa.evaluate.score import make_items
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction
from medqa.runs import RunFolder
from medqa.trust.calibration import Calibration, LogLikelihoods

__all__ = ["BOUNDS", "HeldOut", "Parity", "compare", "find_held_out", "is_valid"]

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

BOUNDS = {
    "adapter": 1.0,
    "merged": 1.0,
    "merged fp32": 1.0,
    "f32": 1.0,
    "f16": 0.99,
    "bf16": 0.99,
    "q8_0": 0.99,
}
"""Least share of questions with the same letter; other quantisations are reported, and bound to nothing."""

_EXACT = ("adapter", "merged fp32", "f32")
_MAX_CHANGE = 1e-3
"""Largest change of a probability where nothing is rounded but sums in another order."""

_MIN_QUESTIONS = 20

_ALPHA = 0.1
# How far confidence may drift from being right, and sets from holding the right option, before a calibration
# no longer holds: about the calibration error that is expected by chance of 2,000 questions.
_MAX_DRIFT = 0.02
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Questions that the model was not trained on, and is not measured on either.

    Attributes:
        examples: The questions.
        source: Where they come from, in a few words.
        data: All that was held back, to calibrate anew with; None if it isn't at hand.
    """

    examples: list[Example]
    source: str
    data: TrainingData | None


@dataclasses.dataclass(frozen=True)
class Parity:
    """How an export answers, beside the tuned model.

    Attributes:
        kind: What it was exported as.
        num_questions: Questions that both answered.
        num_same: Of these, those with the same letter.
        max_change: Largest change in the probability of an option.
        mean_change: Mean over the questions of the largest change in the probability of an option.
        num_tokenised_alike: Prompts that the export's own tokenizer cuts alike.
        questions: Where the questions come from.
        precision: What both were computed in.
        others: Some questions with another letter: id, the tuned model's letter and confidence, the export's.
        drift: Of the shipped calibration: how far `confidence` and `coverage` drift; None without one.
    """

    kind: str
    num_questions: int
    num_same: int
    max_change: float
    mean_change: float
    num_tokenised_alike: int
    questions: str
    precision: str
    others: tuple[dict[str, Any], ...]
    drift: dict[str, float] | None

    @property
    def share_same(self) -> float:
        """Share of the questions with the same letter."""
        return self.num_same / self.num_questions

    @property
    def bound(self) -> float | None:
        """Least share that is asked of this kind."""
        return BOUNDS.get(self.kind)

    @property
    def is_kept(self) -> bool:
        """Whether enough of the letters are the same for this kind, and the probabilities of an exact one."""
        exact = self.kind not in _EXACT or self.max_change <= _MAX_CHANGE
        return exact and (self.bound is None or self.share_same >= self.bound)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {**dataclasses.asdict(self), "share_same": self.share_same, "bound": self.bound}

    def __str__(self) -> str:
        return (
            f"{self.num_same:,} of {self.num_questions:,} letters are the same ({self.share_same:.1%}); "
            f"probabilities change by {self.mean_change:.2g} on average, {self.max_change:.2g} at most"
        )

    def require(self, cure: str) -> None:
        """Raise PublishError if the export is not the tuned model within its bounds.

        Args:
            cure: What to do about it.
        """
        if not self.is_kept:
            some = "; ".join(
                f"{one['id']}: {one['tuned']} at {one['confidence']:.1%} became {one['exported']}"
                for one in self.others
            )
            also = f", and probabilities within {_MAX_CHANGE:g}" if self.kind in _EXACT else ""
            raise PublishError(
                f"the export is not the model that was tuned: {self}; {self.kind} has to keep "
                f"{self.bound:.0%}{also}" + (f" ({some})" if some else ""),
                cure,
            )
        if self.num_tokenised_alike < self.num_questions:
            num_others = self.num_questions - self.num_tokenised_alike
            raise PublishError(
                f"the export cuts {num_others:,} of {self.num_questions:,} prompts into other tokens",
                "--to merged keeps the tokenizer as it is; of that, update transformers",
            )


def find_held_out(run: RunFolder, num_questions: int) -> HeldOut:
    """Find questions to compare by: those held back from the run's training, else the built-in ones.

    Args:
        run: The run.
        num_questions: How many at most; drawn by hash, always the same.
    """
    seed = run.config.train.seed
    try:
        data = corpus_of(run.config.data, seed)
        refuse_other_questions(run, data)
        held_out = [*data.calibration, *data.selection]
        if len(held_out) >= _MIN_QUESTIONS:
            return HeldOut(sample(held_out, num_questions, seed, "export"), "held back from training", data)
        why = f"this run held {len(held_out) or 'no'} questions back"
    except MedQAError as exc:
        why = exc.message
    log.warning("The export is compared on built-in questions only: %s", why)
    built_in = read_split(SourceConfig(name=STARTER), "validation").examples
    return HeldOut(sample(built_in, num_questions, seed, "export"), "built into the program", None)


def compare(
    kind: str,
    renderer: PromptRenderer,
    reference: Sequence[Prediction],
    exported: Engine,
    held_out: HeldOut,
    calibration: Calibration | None,
) -> Parity:
    """Ask an export what the tuned model was asked.

    Args:
        kind: What it was exported as, such as "merged" or "q8_0".
        renderer: Of the tuned model.
        reference: What the tuned model made of the questions.
        exported: The export.
        held_out: The questions.
        calibration: Shipped with the run.

    Raises:
        PublishError: If there is no question that both can answer.
    """
    examples = held_out.examples
    found = exported.score(make_items(exported.renderer, examples, "medqa"))
    pairs = [
        (example, a, b)
        for example, a, b in zip(examples, reference, found, strict=True)
        if a.status == b.status == "scored"
    ]
    if not pairs:
        raise PublishError("no question that both the tuned model and the export can answer", "train again")
    changes = [
        max(abs(p - q) for p, q in zip(a.probabilities, b.probabilities, strict=True)) for _, a, b in pairs
    ]
    others = [
        {
            "id": example.id,
            "tuned": "ABCDEFGHIJ"[a.choice],
            "confidence": a.probabilities[a.choice],
            "exported": "ABCDEFGHIJ"[b.choice],
        }
        for example, a, b in pairs
        if a.choice != b.choice
    ]
    return Parity(
        kind,
        len(pairs),
        len(pairs) - len(others),
        max(changes),
        float(np.mean(changes)),
        sum(_is_cut_alike(renderer, exported, example) for example, _, _ in pairs),
        held_out.source,
        exported.device_record()["precision"],
        tuple(others[:_SHOWN]),
        _drift(pairs, calibration),
    )


def _is_cut_alike(renderer: PromptRenderer, exported: Engine, example: Example) -> bool:
    """Ask the export's own tokenizer, where it has one: llama.cpp's, or that of the written folder."""
    tokenize = getattr(exported, "tokenize", None)
    ids = renderer.prefix_ids(example)
    if tokenize is None:
        return bool(exported.renderer.prefix_ids(example) == ids)
    text = renderer.prefix_text(example)
    # llama.cpp does not compose letters, as many tokenizers do first.
    return ids in (tokenize(text), tokenize(unicodedata.normalize("NFC", text)))


def _drift(
    pairs: Sequence[tuple[Example, Prediction, Prediction]], calibration: Calibration | None
) -> dict[str, float] | None:
    """Measure how far confidence and sets, as the shipped calibration makes them, drift from the truth."""
    keyed = [pair for pair in pairs if pair[0].answer is not None]
    if calibration is None or not keyed:
        return None

    def account(place: int) -> tuple[float, float]:
        found = LogLikelihoods.of(
            [pair[place].log_likelihoods for pair in keyed],  # type: ignore[union-attr]
            [example.answer or 0 for example, _, _ in keyed],
        )
        probabilities = calibration.probabilities(found.values)
        rows = np.arange(len(found))
        right = probabilities.argmax(axis=1) == found.answers
        covered = calibration.sets(probabilities, _ALPHA)[rows, found.answers]
        return float(probabilities.max(axis=1).mean() - right.mean()), float(covered.mean())

    (gap, coverage), (new_gap, new_coverage) = account(1), account(2)
    return {"confidence": new_gap - gap, "coverage": new_coverage - coverage}


def is_valid(parity: Parity) -> bool:
    """Say whether the shipped calibration holds for the export too; there must be one."""
    drift = parity.drift
    return (
        drift is not None and abs(drift["confidence"]) <= _MAX_DRIFT and abs(drift["coverage"]) <= _MAX_DRIFT
    )
