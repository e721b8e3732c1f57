"""The Answerer: questions in, Answers out. Every surface stands on it.

It puts together what an engine scores and writes; it knows nothing of requests, queues or files. The parts
are public, so that a server can score many people's questions in one pass and hand out a text while it is
written: `prepare`, then the scores, `judge`, then the text, `read_back`, `with_explanation`.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medqa.config import ServeConfig
from medqa.errors import CalibrationError, DataError, MedQAError, RefusedByEngineError
from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.engine import Engine, LocalEngine
from medqa.evaluate.explanations import check_explanation, read_back
from medqa.evaluate.orders import OrderedPrediction, score_each
from medqa.evaluate.origin import short_name
from medqa.evaluate.remote import load_remote
from medqa.evaluate.score import make_items
from medqa.model.generate import Written
from medqa.model.tuned import load_tuned
from medqa.records import LETTERS, Answer, Example, Prediction
from medqa.runs import RunFolder
from medqa.serve.askable import why_not_askable
from medqa.trust.calibration import Calibration, Judgement

__all__ = ["Answerer"]

log = logging.getLogger(__name__)

Answered = Sequence[tuple[Example, Answer]]

# Ways to answer that are remembered as possible; they come from strangers.
MAX_PROMISED = 1000

# Taken to find the fastest way through the model.
_SOME = Example("Which organ makes insulin?", ("Liver", "Spleen", "Pancreas", "Kidney"))


class Answerer:
    """Answer questions with a tuned model.

    The letter is the option of highest probability, fixed before a word of the explanation is written, and
    the same on every call: nothing is sampled. Where the run is calibrated, so is the confidence.

    Attributes:
        engine: What scores and writes.
        run: The run folder.
        defaults: How the run answers if nothing else is said.
        model: Name of the model, as it stands on every answer.
    """

    def __init__(self, engine: Engine, run: RunFolder) -> None:
        """Take a model, and the calibration that is shipped with it.

        Raises:
            CalibrationError: If that is damaged or another model's.
        """
        self.engine, self.run = engine, run
        self.defaults = run.config.serve
        self.model = f"{short_name(run.record['base_model']['name'])} + {run.name}"
        self._calibrations = load_calibration(run, engine.renderer)
        self._promised: set[tuple[int, float, float | None]] = set()  # what it was found calibrated for

    @classmethod
    def load(
        cls,
        path: Path,
        trust_remote_code: str | None = None,
        *,
        engine: str | None = None,
        fast: bool = False,
    ) -> "Answerer":
        """Load the model of a finished run.

        Args:
            path: Run folder.
            trust_remote_code: Name of the base model, if its own code may run.
            engine: `openai:URL` of a server that has the model; this machine's own device if not given.
            fast: Whether to take the fastest way through the model: it takes some seconds to find, and is
                worth it for more than a few questions.

        Raises:
            RunError: If the run is missing or half written.
            ModelError: If the base model is not the one that the adapter was trained on.
            CalibrationError: If its calibration is damaged or another model's.
            EngineError: If the server can't be reached, or has another model.
        """
        if engine is not None:
            remote = load_remote(path, engine)
            return cls(remote, remote.run)
        tuned = load_tuned(path, trust_remote_code)
        some = make_items(tuned.renderer, [_SOME], "medqa")
        return cls(LocalEngine.fastest(tuned, some) if fast else LocalEngine(tuned), tuned.run)

    @property
    def calibrated(self) -> bool:
        """Whether anything is known of the confidence."""
        return self._calibrations is not None

    @property
    def calibration(self) -> str | None:
        """Name of the calibration that is applied."""
        return self._calibrations.label if self._calibrations else None

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
        [answer] = self.answer_many([example], explain=explain, settings=settings)
        if isinstance(answer, MedQAError):
            raise answer
        return answer

    def answer_many(
        self, examples: Sequence[Example], *, explain: bool = False, settings: ServeConfig | None = None
    ) -> list[Answer | MedQAError]:
        """Answer many questions, in the order given.

        Returns:
            One entry a question: its answer, or the error that says why it can't be answered.

        Raises:
            CalibrationError: If sets, a risk or orders are asked for that the run isn't calibrated for.
            MedQAError: If the engine fails.
        """
        settings = settings or self.defaults
        self.prepare(None, settings)
        problems = [why_not_askable(example) for example in examples]
        fine = [n for n, problem in enumerate(problems) if problem is None]
        found: list[Any] = list(problems)
        scored = score_each(self.engine, [examples[n] for n in fine], settings.orders)
        for n, one in zip(fine, scored, strict=True):
            found[n] = one if isinstance(one, MedQAError) else self._judged(examples[n], one, settings)
        if explain:
            answered = [(n, one) for n, one in enumerate(found) if isinstance(one, Answer)]
            explained = self._explained([(examples[n], one) for n, one in answered], settings)
            for (number, _), answer in zip(answered, explained, strict=True):
                found[number] = answer
        return found

    def stream(
        self, example: Example, *, explain: bool = True, settings: ServeConfig | None = None
    ) -> Iterator[Answer | str]:
        """Answer one question as it comes: the answer, pieces of its explanation, the whole answer.

        Takes and raises what `answer` does.
        """
        settings = settings or self.defaults
        answer = self.answer(example, explain=False, settings=settings)
        yield answer
        if not explain:
            return
        written = Written("", False)
        for part in self.engine.stream(self.prompt(example, answer), settings.max_explanation_tokens):
            if isinstance(part, Written):
                written = part
            else:
                yield part
        [place] = read_back(self.engine, [(example, written.text)]) if written.text else [None]
        yield self.with_explanation(example, answer, written, place)

    def prepare(self, example: Example | None, settings: ServeConfig) -> None:
        """Refuse what can't be answered before the model is asked.

        Raises:
            DataError: If the question is too long to be one, or an option is given twice.
            CalibrationError: If sets, a risk or orders are asked for that the run isn't calibrated for.
        """
        if example is not None and (problem := why_not_askable(example)):
            raise problem
        promised = (settings.orders, settings.alpha, settings.max_risk)
        if promised not in self._promised:
            calibration = self._calibration(settings)
            if calibration is not None:
                calibration.judge([0.0, 0.0], alpha=settings.alpha, max_risk=settings.max_risk)
            if len(self._promised) < MAX_PROMISED:
                self._promised.add(promised)

    def judge(self, example: Example, found: OrderedPrediction, settings: ServeConfig) -> Answer:
        """Make an answer, without an explanation, of a question's scores.

        Raises:
            DataError: If the question was longer than the model takes.
        """
        if found.prediction.status == "too_long":
            num_tokens = len(self.engine.renderer.prefix_ids(example))
            raise DataError(
                f"the question takes {num_tokens} tokens, the model takes at most "
                f"{self.engine.max_length_tokens}",
                "shorten the question or its context",
            )
        calibration = self._calibration(settings)
        judgement = _judge(found.prediction, calibration, settings)
        return Answer(
            question=example.question,
            letter=LETTERS[judgement.choice],
            option=example.options[judgement.choice],
            confidence=judgement.confidence,
            probabilities=dict(zip(LETTERS, judgement.probabilities, strict=False)),
            explanation=None,
            explanation_finished=None,
            model=self.model,
            calibration=self.calibration if calibration else None,
            answer_set=tuple(LETTERS[place] for place in judgement.answer_set) if calibration else None,
            alpha=settings.alpha if calibration else None,
            abstain=judgement.abstain,
            reason=judgement.reason,
            caveat=judgement.caveat,
            num_orders=found.num_orders,
            consistency=found.consistency(judgement.choice) if found.num_orders > 1 else None,
        )

    def prompt(self, example: Example, answer: Answer) -> list[int]:
        """Return the token ids that the explanation of an answer follows."""
        return self.engine.renderer.answer_ids(example, LETTERS.index(answer.letter))

    def with_explanation(
        self, example: Example, answer: Answer, written: Written, pointed: int | None
    ) -> Answer:
        """Add an explanation, and what was found of it.

        Args:
            example: The question.
            answer: Its answer without.
            written: The explanation.
            pointed: The option that the model reads from it alone, by `read_back`; None if it wasn't asked.
        """
        check = check_explanation(example, LETTERS.index(answer.letter), written, pointed)
        return dataclasses.replace(
            answer,
            explanation=written.text,
            explanation_finished=check.finished,
            explanation_check={**check.to_json(), "warning": check.warning()},
        )

    def _judged(
        self, example: Example, found: OrderedPrediction, settings: ServeConfig
    ) -> Answer | DataError:
        try:
            return self.judge(example, found, settings)
        except DataError as exc:
            return exc

    def _explained(self, answered: Answered, settings: ServeConfig) -> list[Answer | RefusedByEngineError]:
        """Add explanations; one that the engine refuses has its error in its place."""
        try:
            return [*self._explained_together(answered, settings)]
        except RefusedByEngineError as exc:
            if len(answered) == 1:
                return [exc]
            log.warning("Of %d explanations some are refused; asking for each: %s", len(answered), exc)
        return [one for pair in answered for one in self._explained([pair], settings)]

    def _explained_together(self, answered: Answered, settings: ServeConfig) -> list[Answer]:
        prompts = [self.prompt(example, answer) for example, answer in answered]
        written = self.engine.write(prompts, settings.max_explanation_tokens)
        rows = [(example, text.text) for (example, _), text in zip(answered, written, strict=True)]
        places = iter(read_back(self.engine, [row for row in rows if row[1]]))
        return [
            self.with_explanation(example, answer, text, next(places) if text.text else None)
            for (example, answer), text in zip(answered, written, strict=True)
        ]

    def _calibration(self, settings: ServeConfig) -> Calibration | None:
        if self._calibrations is not None:
            return self._calibrations.for_orders(settings.orders)
        # A level other than the run's own was asked for by somebody, who would believe that it had held.
        if settings.max_risk is not None or settings.alpha != self.run.config.serve.alpha:
            raise CalibrationError(
                f"{self.run.path} is not calibrated: nothing is known of the risk",
                f"`medqa calibrate {self.run.path}`",
            )
        return None


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
