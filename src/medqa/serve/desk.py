"""The one place that answers go out from, whatever asked for them: counted, timed, and recorded first."""

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Literal, TypeVar

from fastapi import HTTPException, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from medqa.config import ServeConfig
from medqa.errors import MedQAError
from medqa.records import Answer, Example
from medqa.serve.audit import AuditError, AuditLog, AuditRecord
from medqa.serve.service import Service
from medqa.serve.wire import status_of

__all__ = ["Client", "Desk", "unless_gone"]

T = TypeVar("T")

LOOK_AFTER_S = 0.2

Client = Literal["api", "page", "chat"]

_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Desk:
    """A service whose answers are counted and, if there is an audit log, written down before they go out.

    Attributes:
        service: The service.
        defaults: How it answers if nothing else is said.
        calibrated: Whether anything is known of its confidence.
        registry: The numbers, for Prometheus.
    """

    def __init__(self, service: Service, audit: AuditLog | None = None) -> None:
        """Take a service, and the log if there is one."""
        self.service, self._audit = service, audit
        self.defaults, self.calibrated = service.defaults, service.calibrated
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "medqa_answers", "Answers by client and outcome", ["client", "outcome"], registry=self.registry
        )
        self._letter_s = Histogram(
            "medqa_letter_seconds", "Time to the letter", buckets=_BUCKETS, registry=self.registry
        )
        self._explanation_s = Histogram(
            "medqa_explanation_seconds",
            "Time to the whole explanation, check and all",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for name, text, value in (
            ("medqa_waiting", "Questions and explanations that wait", lambda: service.num_waiting),
            ("medqa_writing", "Explanations being written", lambda: service.num_writing),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    async def answer(
        self,
        example: Example,
        *,
        explain: bool = False,
        settings: ServeConfig | None = None,
        client: Client = "api",
        id: str | None = None,
    ) -> Answer:
        """Answer one question; see `Service.answer`."""
        answer = None
        async with contextlib.aclosing(
            self._told(example, explain, settings, client, id, as_it_comes=False)
        ) as parts:
            async for part in parts:
                if isinstance(part, Answer):
                    answer = part
        if answer is None:
            raise AssertionError("a stream without an answer")
        return answer

    def stream(
        self,
        example: Example,
        *,
        explain: bool = True,
        settings: ServeConfig | None = None,
        client: Client = "page",
        id: str | None = None,
    ) -> AsyncGenerator[Answer | str, None]:
        """Answer one question as it comes; see `Service.stream`."""
        return self._told(example, explain, settings, client, id, as_it_comes=True)

    async def _told(
        self,
        example: Example,
        explain: bool,
        settings: ServeConfig | None,
        client: Client,
        id: str | None,
        *,
        as_it_comes: bool,
    ) -> AsyncGenerator[Answer | str, None]:
        start = time.monotonic()
        answer: Answer | None = None
        pieces: list[str] = []
        record = AuditRecord(
            id=id or uuid.uuid4().hex,
            client=client,
            latency_ms=0.0,
            example=example,
            adapter_sha256=self.service.answerer.run.record["adapter_sha256"],
            max_risk=(settings or self.defaults).max_risk,
            explained=explain,
        )

        def ms() -> float:
            return 1000 * (time.monotonic() - start)

        try:
            async with contextlib.aclosing(
                self.service.stream(example, explain=explain, settings=settings)
            ) as parts:
                async for part in parts:
                    if isinstance(part, Answer):
                        first, answer = answer is None, part
                        (self._letter_s if first else self._explanation_s).observe(ms() / 1000)
                        if not first or not explain or as_it_comes:
                            told = dataclasses.replace(record, answer=part)
                            if not first and as_it_comes:  # the letter has its line already
                                told = dataclasses.replace(told, event="explanation")
                            pieces.clear()  # this line has them, and is written even if nobody waits for it
                            await self._record(told, ms())
                    else:
                        pieces.append(part)
                    yield part
        except (GeneratorExit, asyncio.CancelledError):
            self._answers.labels(client, "left").inc()
            if self._audit is not None and answer is not None and as_it_comes and pieces:
                # Nothing can be awaited while a generator is closed: the line follows by itself.
                seen = _broken_off(record, answer, pieces)
                left = dataclasses.replace(seen, event="explanation", error="left", latency_ms=ms())
                self._audit.write_later(left)
            raise
        except Exception as exc:
            status, word = status_of(exc) if isinstance(exc, MedQAError) else (500, "bug")
            self._answers.labels(client, word).inc()
            failed = dataclasses.replace(_broken_off(record, answer, pieces), status=status, error=word)
            if answer is not None and as_it_comes:  # the letter has its line already
                failed = dataclasses.replace(failed, event="explanation")
            with contextlib.suppress(AuditError):  # no answer goes out: what went wrong is told all the same
                await self._record(failed, ms())
            raise
        self._answers.labels(client, "abstained" if answer and answer.abstain else "answered").inc()

    async def _record(self, record: AuditRecord, latency_ms: float) -> None:
        if self._audit is not None:
            await self._audit.write(dataclasses.replace(record, latency_ms=latency_ms))


def _broken_off(record: AuditRecord, answer: Answer | None, pieces: Sequence[str]) -> AuditRecord:
    """Record what was seen of an answer that did not come to its end."""
    if answer is None or not pieces:
        return dataclasses.replace(record, answer=answer)
    seen = dataclasses.replace(answer, explanation="".join(pieces), explanation_finished=False)
    return dataclasses.replace(record, answer=seen)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work while the client is there.

    Raises:
        HTTPException: 499, which nobody reads, if it has gone; the work is cancelled.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    try:
        # Most answers are there before it is worth looking.
        await asyncio.wait((task,), timeout=LOOK_AFTER_S)
        if not task.done():
            left = asyncio.ensure_future(gone())
            try:
                await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
            finally:
                left.cancel()
        if not task.done():
            raise HTTPException(499, "the client has gone")
        return task.result()
    finally:
        task.cancel()
