"""Everything that is measured of a tuned model: scores, option orders, explanations, traps, worst errors."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from medqa.config import EvaluateConfig
from medqa.data.build import QuestionSet
from medqa.data.draw import sample
from medqa.errors import CalibrationError
from medqa.evaluate.asker import Asker
from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.confidence import measure_orders
from medqa.evaluate.engine import Engine
from medqa.evaluate.explanations import examine_explanations, explain
from medqa.evaluate.orders import OrderedPrediction, count_askings, score_orders
from medqa.evaluate.score import PromptKind, make_items
from medqa.evaluate.traps import spring_traps
from medqa.progress import track
from medqa.records import LETTERS, Example, Prediction
from medqa.runs import RunFolder
from medqa.trust.calibration import Calibration
from medqa.trust.calibrators import padded, softmax_rows
from medqa.trust.store import CalibrationFile

__all__ = ["Measurement"]

log = logging.getLogger(__name__)

NUM_WORST = 20
_SEED = 0  # which questions are drawn does not depend on the run, so that runs compare


class Measurement:
    """What one model makes of a set of questions.

    Attributes:
        predictions: Of every question, by prompt ("medqa", "lm_eval") and model ("base", "tuned"); without
            those of the base model where the engine has none.
        calibration: What is known of the model's confidence; None if nothing is, or it is another model's.
        why_uncalibrated: Why so, in a sentence.
        ordered: Answers over several option orders, if they were asked for.
        explained: One row for each question whose explanation was written; those of the worst errors are not
            `drawn`, and no rate is to be taken from them.
    """

    def __init__(
        self, engine: Engine, run: RunFolder, questions: QuestionSet, config: EvaluateConfig
    ) -> None:
        """Score base and tuned model under our own prompt, and lm-eval's if wanted."""
        self._engine, self._run, self._examples, self._config = engine, run, questions.examples, config
        self.calibration, self.why_uncalibrated = self._load_calibration()
        self.predictions = self._predict()
        self._asker = Asker(engine, self.probabilities)
        self._max_new_tokens = run.config.serve.max_explanation_tokens
        self.ordered: list[OrderedPrediction] | None = None
        self.explained: list[dict[str, Any]] = []

    def _load_calibration(self) -> tuple[CalibrationFile | None, str]:
        try:
            found = load_calibration(self._run, self._engine.renderer)
        except CalibrationError as exc:
            log.warning("Confidence is the model's own: %s", exc.message)
            return None, exc.message
        if found is None:
            return None, f"the run has no calibration: `medqa calibrate {self._run.path}`"
        return found, "it is calibrated for other numbers of option orders only"

    def _predict(self) -> dict[tuple[str, str], list[Prediction]]:
        engine, examples = self._engine, self._examples
        prompts: tuple[PromptKind, ...] = ("medqa", "lm_eval") if self._config.lm_eval else ("medqa",)
        models = ("base", "tuned") if engine.has_base else ("tuned",)
        predictions: dict[tuple[str, str], list[Prediction]] = {}
        with track("Scoring", len(models) * len(prompts) * len(examples)) as task:
            for prompt in prompts:
                items = make_items(engine.renderer, examples, prompt)
                for name in models:
                    predictions[prompt, name] = engine.score(items, adapted=name == "tuned", task=task)
        return predictions

    @property
    def tuned(self) -> list[Prediction]:
        """What the tuned model made of the questions under our own prompt."""
        return self.predictions["medqa", "tuned"]

    def calibrated(self, num_orders: int = 1) -> Calibration | None:
        """The calibration for answers over so many orders, if that was fitted."""
        return self.calibration.by_orders.get(num_orders) if self.calibration else None

    def probabilities(self, log_likelihoods: Sequence[Sequence[float]]) -> list[list[float]]:
        """Turn log-likelihoods into probabilities: calibrated ones if there is a calibration."""
        found, values = self.calibrated(), padded(log_likelihoods)
        rows = softmax_rows(values) if found is None else found.probabilities(values)
        return [list(map(float, row[: len(own)])) for row, own in zip(rows, log_likelihoods, strict=True)]

    def orders(self) -> dict[str, Any] | None:
        """Ask every question in several option orders, and measure it; None if that isn't wanted."""
        number = self._config.orders
        if number == 1:
            return None
        num_askings = count_askings(self._examples, number) - len(self._examples)
        with track("Option orders", num_askings) as task:
            self.ordered = score_orders(self._engine, self._examples, number, known=self.tuned, task=task)
        return measure_orders(self.ordered, number, self.calibrated(number))

    def explanations(self) -> dict[str, Any] | None:
        """Write and check the explanations of some questions; None if none are wanted."""
        if not self._config.explanations:
            return None
        drawn, predictions = self._drawn(self._config.explanations, "explanations")
        with track("Explanations", len(drawn)) as task:
            record, rows = examine_explanations(self._asker, drawn, predictions, self._max_new_tokens, task)
        self.explained += [{**row, "drawn": True} for row in rows]
        return record

    def traps(self) -> list[dict[str, Any]] | None:
        """Change some questions into traps, and measure what the model makes of them; None if unwanted."""
        if not self._config.traps:
            return None
        drawn, predictions = self._drawn(self._config.traps, "traps")
        with track("Traps", len(drawn)) as task:
            return spring_traps(self._asker, drawn, predictions, task)

    def _drawn(self, count: int, purpose: str) -> tuple[list[Example], list[Prediction]]:
        by_id = {id(e): p for e, p in zip(self._examples, self.tuned, strict=True)}
        drawn = sample(self._examples, count, _SEED, purpose)
        return drawn, [by_id[id(example)] for example in drawn]

    def worst(self) -> list[dict[str, Any]]:
        """The wrong answers given with most confidence, each with its explanation if those are wanted."""
        scored = [
            (e, p)
            for e, p in zip(self._examples, self.tuned, strict=True)
            if p.status == "scored" and p.answer is not None
        ]
        found = self.probabilities([p.log_likelihoods for _, p in scored])
        wrong = [
            (max(row), number)
            for number, ((_, p), row) in enumerate(zip(scored, found, strict=True))
            if int(np.argmax(row)) != p.answer
        ]
        places = [number for _, number in sorted(wrong, key=lambda one: -one[0])[:NUM_WORST]]
        rows = self._explain([scored[place] for place in places[: self._config.explanations]])
        rows += [None] * (len(places) - len(rows))
        return [_worst(scored[place][0], found[place], row) for place, row in zip(places, rows, strict=True)]

    def _explain(self, asked: Sequence[tuple[Example, Prediction]]) -> list[dict[str, Any] | None]:
        """Write and check explanations; some may be among those drawn, but ids need not be unique."""
        if not asked:
            return []
        with track("Explanations of the worst errors", len(asked)) as task:
            rows = explain(
                self._asker,
                [example for example, _ in asked],
                [prediction for _, prediction in asked],
                self._max_new_tokens,
                task,
            )
        self.explained += [{**row, "drawn": False} for row in rows]
        return list(rows)


def _worst(example: Example, probabilities: list[float], row: dict[str, Any] | None) -> dict[str, Any]:
    choice = int(np.argmax(probabilities))
    return {
        "id": example.id,
        "subject": example.subject,
        "question": example.question,
        "context": example.context,
        "options": list(example.options),
        "letter": LETTERS[choice],
        "key": LETTERS[example.answer] if example.answer is not None else None,
        "confidence": probabilities[choice],
        "probabilities": probabilities,
        "explanation": row["explanation"] if row else None,
        "warning": row["warning"] if row else None,
    }
