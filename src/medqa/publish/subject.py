"""What every way to export starts from: the run, and how its tuned model answers."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.engine import Engine, LocalEngine
from medqa.evaluate.score import make_items
from medqa.hardware.device import Device
from medqa.model.load import BaseFiles, load_model
from medqa.model.lora import load_adapter
from medqa.model.tuned import TunedModel
from medqa.prompts import PromptRenderer
from medqa.publish.merge import load_to_merge, merge
from medqa.publish.parity import HeldOut, Parity, compare, find_held_out
from medqa.records import Prediction
from medqa.runs import RunFolder
from medqa.trust.store import CalibrationFile

__all__ = ["Subject"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A tuned model on its way out, without the model itself: one at a time is in memory.

    Attributes:
        path: Run folder, as it was given.
        trust_remote_code: Name of the base model, if its own code may run.
        run: The run.
        base: The base model's files.
        renderer: The prompt of training.
        device: Where models are loaded, in fp32.
        held_out: Questions to compare by.
        reference: What the tuned model made of them.
        shipped: The run's calibration.
        out: Folder to make.
    """

    path: Path
    trust_remote_code: str | None
    run: RunFolder
    base: BaseFiles
    renderer: PromptRenderer
    device: Device
    held_out: HeldOut
    reference: list[Prediction]
    shipped: CalibrationFile | None
    out: Path

    @classmethod
    def ask(
        cls, path: Path, run: RunFolder, out: Path, num_questions: int, trust_remote_code: str | None
    ) -> "Subject":
        """Load the tuned model, and ask it what the export will be asked.

        Raises:
            MedQAError: Of the kind that says what is wrong with the run.
        """
        tuned = load_to_merge(path, trust_remote_code)
        shipped = load_calibration(run, tuned.renderer)
        held_out = find_held_out(run, num_questions)
        log.info("Asking the tuned model %d questions, %s", len(held_out.examples), held_out.source)
        reference = LocalEngine(tuned).score(make_items(tuned.renderer, held_out.examples, "medqa"))
        return cls(
            path,
            trust_remote_code,
            run,
            tuned.base,
            tuned.renderer,
            tuned.device,
            held_out,
            reference,
            shipped,
            out,
        )

    def merge(self) -> Any:
        """Load and merge anew: a model that is kept for a second try would be in memory beside the export."""
        log.info("Merging in fp32")
        return merge(load_to_merge(self.path, self.trust_remote_code))

    def load(self, base: BaseFiles, adapter: Path | None, renderer: PromptRenderer) -> LocalEngine:
        """Load what was written."""
        model = load_model(base, self.device)
        if adapter is not None:
            model = load_adapter(model, adapter, self.device)
        return LocalEngine(TunedModel(self.run, base, self.device, renderer, model))

    def compare(self, kind: str, engine: Engine, num_questions: int | None = None) -> Parity:
        """Ask an export what the tuned model was asked: the first `num_questions`, or all."""
        log.info("Asking the export the same")
        calibration = self.shipped.for_orders(1) if self.shipped else None
        held_out = dataclasses.replace(self.held_out, examples=self.held_out.examples[:num_questions])
        return compare(kind, self.renderer, self.reference[:num_questions], engine, held_out, calibration)
