"""The Answerer: one loaded model, question in, Answer out. Every surface stands on it."""

from pathlib import Path
from typing import Any

from medqa.config import ServeConfig
from medqa.errors import CalibrationError, DataError
from medqa.evaluate.asker import Asker
from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.explanations import explain as write_and_check
from medqa.evaluate.orders import OrderedPrediction, score_orders
from medqa.evaluate.score import default_batch_tokens
from medqa.model.tuned import TunedModel, load_tuned
from medqa.records import LETTERS, Answer, Example, Prediction
from medqa.trust.calibration import Calibration, Judgement

__all__ = ["Answerer"]


class Answerer:
    """Answer questions with a tuned model.

    The letter is the option of highest probability, fixed before a word of the explanation is written, and
    the same on every call: nothing is sampled. Where the run is calibrated, so is the confidence.
    """

    def __init__(self, tuned: TunedModel) -> None:
        """Take a loaded model, and the calibration that is shipped with it.

        Raises:
            CalibrationError: If that is damaged or another model's.
        """
        self._tuned = tuned
        self._calibrations = load_calibration(tuned)

    @classmethod
    def load(cls, path: Path, trust_remote_code: str | None = None) -> "Answerer":
        """Load the model of a finished run.

        Raises:
            RunError: If the run is missing or half written.
            ModelError: If the base model is not the one that the adapter was trained on.
            CalibrationError: If its calibration is damaged or another model's.
        """
        return cls(load_tuned(path, trust_remote_code))

    def answer(
        self, example: Example, *, explain: bool = True, settings: ServeConfig | None = None
    ) -> Answer:
        """Answer one question.

        Args:
            example: The question; its key, if it has one, is not looked at.
            explain: Whether to write the explanation too, which takes far longer than the letter.
            settings: How to answer; as the run says if not given.

        Raises:
            DataError: If an option is given twice, or the question is longer than the model takes.
            CalibrationError: If sets, a risk or orders are asked for that the run isn't calibrated for.
        """
        settings = settings or self._tuned.run.config.serve
        calibration = self._calibration(settings)
        found = self._score(example.require_distinct_options(), settings)
        judgement = _judge(found.prediction, calibration, settings)
        row = self._explain(example, found.prediction, judgement, settings) if explain else None
        return Answer(
            question=example.question,
            letter=LETTERS[judgement.choice],
            option=example.options[judgement.choice],
            confidence=judgement.confidence,
            probabilities=dict(zip(LETTERS, judgement.probabilities, strict=False)),
            explanation=row["explanation"] if row else None,
            explanation_finished=row["check"]["finished"] if row else None,
            model=f"{self._tuned.base.name} + {self._tuned.run.path.name}",
            calibration=self._calibrations.label if self._calibrations and calibration else None,
            answer_set=tuple(LETTERS[place] for place in judgement.answer_set) if calibration else None,
            alpha=settings.alpha if calibration else None,
            abstain=judgement.abstain,
            reason=judgement.reason,
            caveat=judgement.caveat,
            num_orders=found.num_orders,
            consistency=found.consistency(judgement.choice) if found.num_orders > 1 else None,
            explanation_check={**row["check"], "warning": row["warning"]} if row else None,
        )

    def _calibration(self, settings: ServeConfig) -> Calibration | None:
        if self._calibrations is not None:
            return self._calibrations.for_orders(settings.orders)
        if settings.max_risk is not None:
            raise CalibrationError(
                f"{self._tuned.run.path} is not calibrated: nothing is known of the risk",
                f"`medqa calibrate {self._tuned.run.path}`",
            )
        return None

    def _score(self, example: Example, settings: ServeConfig) -> OrderedPrediction:
        [found] = score_orders(self._tuned, [example], settings.orders)
        if found.prediction.status == "too_long":
            num_tokens, limit = (
                len(self._tuned.renderer.prefix_ids(example)),
                self._tuned.base.max_length_tokens,
            )
            raise DataError(
                f"the question takes {num_tokens} tokens, the model takes at most {limit}",
                "shorten the question or its context",
            )
        return found

    def _explain(
        self, example: Example, prediction: Prediction, judgement: Judgement, settings: ServeConfig
    ) -> dict[str, Any]:
        """Write the explanation of the choice, and check it."""
        batch_tokens = default_batch_tokens(self._tuned.device)
        asker = Asker(self._tuned, batch_tokens, lambda _: [list(judgement.probabilities)])
        [row] = write_and_check(asker, [example], [prediction], settings.max_explanation_tokens)
        return row


def _judge(prediction: Prediction, calibration: Calibration | None, settings: ServeConfig) -> Judgement:
    if calibration is not None:
        return calibration.judge(
            prediction.log_likelihoods,
            alpha=settings.alpha,
            max_risk=settings.max_risk,
            subject=prediction.subject,
        )
    choice, probabilities = prediction.choice, prediction.probabilities
    return Judgement(choice, probabilities[choice], probabilities, (), abstain=False, reason=None)
