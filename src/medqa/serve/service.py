"""One model for many askers: questions that wait are scored together, explanations are written side by side.

A worker thread owns the model. Round after round it scores the questions that wait, up to 64 in one pass, and
then advances every explanation by one token; letters therefore never wait for an explanation to end. With an
engine elsewhere the two jobs have a thread each, and an explanation another.

    asker -> Service.answer, Service.stream -> queue of bounded length -> worker -> future, or pieces of text

A full queue refuses at once, with the time after which to try again, and so does one whose end is further
away than the time limit. An asker who leaves is forgotten; closing takes in nothing more and finishes what
there is.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence

from medqa.config import ServeConfig
from medqa.errors import BusyError
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.explanations import READ_BACK_ORDERS, read_back_example
from medqa.evaluate.orders import OrderedPrediction, score_each
from medqa.records import Answer, Example
from medqa.serve.answerer import Answerer
from medqa.serve.texts import TextsElsewhere, TextsHere
from medqa.serve.waiting import CHARACTERS_A_TOKEN, Line, Question, Text, tell, within

__all__ = ["Service"]

log = logging.getLogger(__name__)

BATCH = 64
MAX_WAITING = 1024
TIME_LIMIT_S = 60.0
# How long closing waits for what is going on.
CLOSE_S = 30.0


class Service:
    """Answers many askers with one model.

    Attributes:
        answerer: The model.
        defaults: How it answers if nothing else is said.
        calibrated: Whether anything is known of its confidence.
        time_limit_s: Seconds until an asker is told that it took too long.
    """

    def __init__(
        self, answerer: Answerer, *, max_waiting: int = MAX_WAITING, time_limit_s: float = TIME_LIMIT_S
    ) -> None:
        """Start the worker.

        Args:
            answerer: The model.
            max_waiting: Questions, and explanations, that may wait; more are refused.
            time_limit_s: Longest time for one asker, explanation and all.
        """
        self.answerer, self.defaults, self.calibrated = answerer, answerer.defaults, answerer.calibrated
        self.time_limit_s, self._max_waiting = time_limit_s, max_waiting
        engine = answerer.engine
        self._engine = engine if isinstance(engine, LocalEngine) else None
        # A round is about one pass, so that who comes meanwhile waits for no more than that.
        most = CHARACTERS_A_TOKEN * self._engine.batch_tokens if self._engine else math.inf
        self._line = Line(BATCH, most)
        self._changed = threading.Condition()
        self._texts = (
            TextsHere(self._engine, self._changed) if self._engine else TextsElsewhere(engine, self._changed)
        )
        self._closing = False
        self._num_askers = 0  # who has been told something, or waits for it
        self._worker = threading.Thread(target=self._work, name="medqa-model", daemon=True)
        self._worker.start()

    @property
    def num_waiting(self) -> int:
        """Questions and explanations that wait for their turn."""
        return len(self._line) + self._texts.num_waiting

    @property
    def num_writing(self) -> int:
        """Explanations that are being written."""
        return self._texts.num_writing

    @property
    def ready(self) -> bool:
        """Whether it takes questions."""
        return not self._closing and self._worker.is_alive()

    async def answer(
        self, example: Example, *, explain: bool = False, settings: ServeConfig | None = None
    ) -> Answer:
        """Answer one question; see `Answerer.answer`.

        Raises:
            BusyError: If too many wait already, or the service is closing.
            TimeLimitError: If it takes longer than the time limit.
            MedQAError: Whatever `Answerer.answer` raises.
        """
        last: Answer | None = None
        async for part in self.stream(example, explain=explain, settings=settings):
            if isinstance(part, Answer):
                last = part
        if last is None:
            raise AssertionError("a stream without an answer")
        return last

    async def stream(
        self, example: Example, *, explain: bool = True, settings: ServeConfig | None = None
    ) -> AsyncGenerator[Answer | str, None]:
        """Answer one question as it comes: the answer, pieces of its explanation, the whole answer.

        Closing the generator early stops the writing. Raises what `answer` does.
        """
        settings = settings or self.defaults
        self.answerer.prepare(example, settings)
        end = time.monotonic() + self.time_limit_s
        with self._asking():
            found = await self._scored(Question(example, settings.orders), end)
            answer = self.answerer.judge(example, found, settings)
            yield answer
            if not explain:
                return
            text = Text(self.answerer.prompt(example, answer), settings.max_explanation_tokens)
            self._add_text(text)
            try:
                while isinstance(part := await within(text.parts.get(), end, self.time_limit_s), str):
                    yield part
            finally:
                self._texts.leave(text)
            if isinstance(part, BaseException):
                raise part
            pointed = None
            if part.text:
                back = Question(read_back_example(example.options, part.text), READ_BACK_ORDERS)
                read = await self._scored(back, end, at_last=True)
                pointed = read.prediction.choice if read.prediction.status == "scored" else None
            yield self.answerer.with_explanation(example, answer, part, pointed)

    def close(self, within_s: float = CLOSE_S) -> bool:
        """Take in nothing more, finish what there is, and stop the worker.

        Args:
            within_s: How long to wait for that.

        Returns:
            Whether all was finished.
        """
        end = time.monotonic() + within_s
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join(max(0.0, end - time.monotonic()))
        finished = not self._worker.is_alive()
        if not finished:
            log.warning("Closing with %d answers that are not finished", self._num_askers)
        self.answerer.engine.close()
        if isinstance(self._texts, TextsElsewhere):
            self._texts.close()
        return finished

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Keep the worker at work until somebody has the last of an answer."""
        with self._changed:
            self._num_askers += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_askers -= 1
                self._changed.notify_all()

    async def _scored(self, question: Question, end: float, *, at_last: bool = False) -> OrderedPrediction:
        """Wait for a question's scores.

        Args:
            question: The question.
            end: Until when.
            at_last: Whether it is the last step of something that is as good as finished: taken in any case.
        """
        with self._changed:
            wait_s = self._line.wait_s(question.cost)
            if not at_last:
                self._refuse_if(len(self._line) >= self._max_waiting, wait_s, len(self._line))
            self._line.add(question)
            self._changed.notify_all()
        try:
            return await within(question.scored, end, self.time_limit_s)
        finally:
            if question.scored.cancelled():
                with self._changed:
                    self._line.leave(question)

    def _add_text(self, text: Text) -> None:
        with self._changed:
            num_waiting = self._texts.num_waiting
            self._refuse_if(num_waiting >= self._max_waiting, self._texts.wait_s(), num_waiting)
            self._texts.add(text)

    def _refuse_if(self, full: bool, wait_s: float, num_waiting: int) -> None:
        if self._closing:
            raise BusyError("the server is shutting down", "try again later", retry_after_s=10)
        # What would be told that it took too long is better told at once.
        if full or wait_s > self.time_limit_s:
            what = f"{num_waiting} are waiting already" if num_waiting else "this takes too long to read"
            raise BusyError(what, "try again in a moment, or ask less", retry_after_s=max(wait_s, 1.0))

    def _work(self) -> None:
        """Score and write, round after round, until closing has nothing left to do."""
        here = self._texts if isinstance(self._texts, TextsHere) else None

        def busy() -> bool:
            return bool(self._line or (here and (here.num_waiting or here.num_writing)))

        while True:
            with self._changed:
                self._changed.wait_for(lambda: busy() or (self._closing and not self._num_askers))
                if not busy():
                    return
                batch = self._line.take()
            self._score(batch)
            if here is not None:
                here.advance()

    def _score(self, batch: Sequence[Question]) -> None:
        batch = [question for question in batch if not question.scored.cancelled()]
        if not batch:
            return
        start = time.monotonic()
        found: Sequence[OrderedPrediction | BaseException]
        try:
            found = score_each(
                self.answerer.engine, [q.example for q in batch], [q.num_orders for q in batch]
            )
        except Exception as exc:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            found = [exc] * len(batch)
        tell(batch, found)
        with self._changed:
            self._line.took(batch, time.monotonic() - start)
