"""One model for many askers: questions that wait are scored together, explanations are written side by side.

A worker thread owns the model. Round after round it scores the questions that wait, up to 64 in one pass, and
then advances every explanation by one token; letters therefore never wait for an explanation to end. With an
engine elsewhere the two jobs have a thread each, and an explanation another.

    asker -> Service.answer, Service.stream -> queue of bounded length -> worker -> future, or pieces of text

A full queue refuses at once, with the time after which to try again. An asker who leaves is forgotten;
closing takes in nothing more and finishes what there is.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable

from medqa.config import ServeConfig
from medqa.errors import BusyError
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.explanations import READ_BACK_ORDERS, read_back_example
from medqa.evaluate.orders import OrderedPrediction, score_orders
from medqa.model.writer import Writer
from medqa.records import Answer, Example
from medqa.serve.answerer import Answerer
from medqa.serve.waiting import Question, Text, within
from medqa.trust.permutation import NumOrders

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
            max_waiting: Questions and explanations that may wait; more are refused.
            time_limit_s: Longest time for one asker, explanation and all.
        """
        self.answerer, self.defaults, self.calibrated = answerer, answerer.defaults, answerer.calibrated
        self.time_limit_s, self._max_waiting = time_limit_s, max_waiting
        self._questions: collections.deque[Question] = collections.deque()
        self._texts: collections.deque[Text] = collections.deque()
        self._beginning: list[Text] = []  # taken from the queue, not yet being written
        self._writing: dict[Text, Writer] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._rate = 0.0  # questions a second, lately
        engine = answerer.engine
        self._engine = engine if isinstance(engine, LocalEngine) else None
        if self._engine is not None:
            jobs: list[tuple[Callable[[], None], str]] = [(self._work, "medqa-model")]
        else:
            jobs = [(self._work, "medqa-letters")]
            self._threads_of_texts = concurrent.futures.ThreadPoolExecutor(64, "medqa-explanation")
        self._workers = [threading.Thread(target=job, name=name, daemon=True) for job, name in jobs]
        for worker in self._workers:
            worker.start()

    @property
    def num_waiting(self) -> int:
        """Questions and explanations that wait for their turn."""
        return len(self._questions) + len(self._texts)

    @property
    def num_writing(self) -> int:
        """Explanations that are being written."""
        return len(self._writing)

    @property
    def ready(self) -> bool:
        """Whether it takes questions."""
        return not self._closing and all(worker.is_alive() for worker in self._workers)

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
        found = await self._scored(example, settings.orders, end)
        answer = self.answerer.judge(example, found, settings)
        yield answer
        if not explain:
            return
        text = Text(self.answerer.prompt(example, answer), settings.max_explanation_tokens)
        self._enqueue(self._texts, text)
        try:
            while isinstance(part := await within(text.parts.get(), end, self.time_limit_s), str):
                yield part
        finally:
            self._leave(text)
        if isinstance(part, BaseException):
            raise part
        pointed = None
        if part.text:
            back = read_back_example(example.options, part.text)
            read = await self._scored(back, READ_BACK_ORDERS, end)
            pointed = read.prediction.choice if read.prediction.status == "scored" else None
        yield self.answerer.with_explanation(example, answer, part, pointed)

    def close(self) -> None:
        """Take in nothing more, finish what there is, and stop the worker."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = time.monotonic() + CLOSE_S
        for worker in self._workers:
            worker.join(max(0.0, end - time.monotonic()))
        if self._engine is None:
            self._threads_of_texts.shutdown(wait=False, cancel_futures=True)
        if any(worker.is_alive() for worker in self._workers):
            log.warning("Closing without %d explanations that are not finished", self.num_writing)

    async def _scored(self, example: Example, num_orders: NumOrders, end: float) -> OrderedPrediction:
        scored: concurrent.futures.Future[OrderedPrediction] = concurrent.futures.Future()
        self._enqueue(self._questions, Question(example, num_orders, scored))
        try:
            return await within(asyncio.wrap_future(scored), end, self.time_limit_s)
        finally:
            scored.cancel()

    def _enqueue(self, queue: "collections.deque[Question] | collections.deque[Text]", one: object) -> None:
        with self._changed:
            if self._closing:
                raise BusyError("the server is shutting down", "try again later", retry_after_s=10)
            wait_s = len(self._questions) / self._rate if self._rate else 0.0
            # What would be told that it took too long is better told at once.
            if len(queue) >= self._max_waiting or wait_s > self.time_limit_s:
                raise BusyError(
                    f"{len(queue)} are waiting already",
                    "try again in a moment",
                    retry_after_s=max(wait_s, 1.0),
                )
            queue.append(one)  # type: ignore[arg-type]  # each caller has the queue of its kind
            self._changed.notify_all()

    def _leave(self, text: Text) -> None:
        text.left = True
        with self._changed, contextlib.suppress(ValueError):
            self._texts.remove(text)

    def _work(self) -> None:
        """Score and write, round after round, until closing has nothing left to do."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._questions or self._texts or self._writing
                )
                if self._closing and not (self._questions or self._texts or self._writing):
                    return
                batch = [self._questions.popleft() for _ in range(min(BATCH, len(self._questions)))]
            self._score([q for q in batch if q.scored.set_running_or_notify_cancel()])
            if self._engine is not None:
                self._write(self._engine)
            else:
                self._hand_over()

    def _score(self, batch: list[Question]) -> None:
        if not batch:
            return
        start = time.monotonic()
        try:
            found = score_orders(
                self.answerer.engine, [q.example for q in batch], [q.num_orders for q in batch]
            )
        except Exception as exc:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            for question in batch:
                question.scored.set_exception(exc)
            return
        for question, one in zip(batch, found, strict=True):
            question.scored.set_result(one)
        rate = len(batch) / max(time.monotonic() - start, 1e-6)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate

    def _write(self, engine: LocalEngine) -> None:
        """Begin texts while there is room, and advance all by one token."""
        try:
            self._begin(engine)
            for text in [text for text in self._writing if text.left]:
                self._end(text)
            for writer in set(self._writing.values()):
                writer.step()
        except Exception as exc:
            log.exception("Writing explanations failed")
            for text in {*self._writing, *self._beginning}:
                text.send(exc)
                self._end(text)
            self._beginning.clear()
            return
        for text in list(self._writing):
            self._pass_on(text)

    def _begin(self, engine: LocalEngine) -> None:
        begun: dict[Writer, list[Text]] = {}
        while (text := self._next_text()) is not None:
            self._beginning.append(text)
            text.writing = text.writing or engine.begin(text.prompt, text.max_new_tokens)
            writer = engine.writer_for(text.writing)
            if len(begun.get(writer, ())) >= writer.num_free:
                with self._changed:
                    self._texts.appendleft(text)
                self._beginning.pop()
                break
            begun.setdefault(writer, []).append(text)
        for writer, texts in begun.items():
            self._writing |= dict.fromkeys(texts, writer)
            writer.start([text.writing for text in texts if text.writing is not None])
        self._beginning.clear()

    def _next_text(self) -> Text | None:
        with self._changed:  # one that leaves takes itself out
            return self._texts.popleft() if self._texts else None

    def _pass_on(self, text: Text) -> None:
        writing = text.writing
        if writing is None:
            raise AssertionError("a text that was not begun")
        if piece := writing.piece():
            text.send(piece)
        if writing.finished is not None:
            text.send(writing.written())
            self._end(text)

    def _end(self, text: Text) -> None:
        writer = self._writing.pop(text, None)
        if writer is not None and text.writing is not None:
            writer.stop(text.writing)

    def _hand_over(self) -> None:
        """Give each explanation to a thread that listens to the engine elsewhere."""
        while (text := self._next_text()) is not None:
            self._threads_of_texts.submit(self._listen, text)

    def _listen(self, text: Text) -> None:
        parts = self.answerer.engine.stream(text.prompt, text.max_new_tokens)
        try:
            for part in parts:
                if text.left:
                    return
                text.send(part)
        except Exception as exc:  # noqa: BLE001 - whatever it is, who waits must hear of it
            text.send(exc)
        finally:
            with contextlib.suppress(AttributeError):  # not every iterator can be closed
                parts.close()  # type: ignore[attr-defined]
