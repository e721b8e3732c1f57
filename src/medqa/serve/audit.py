"""The audit log: one JSON line an answer, on the disk before the answer goes out.

Questions are kept as SHA-256 only, and as text where that is asked for. A plain hash proves that a question
is the one that was answered, with nothing but `sha256sum`. It does not keep a question secret from somebody
who can guess it, as anybody can where it is in a published exam; a key would not change that for whoever can
read the log, since the key would lie beside it. So the log belongs to those who may know what was asked: its
owner alone can read it (0600), and with text or without, it is to be guarded like the questions.

A letter, and an explanation as a whole, is given only once its line is written and synced: none is missing,
whatever is killed and when. The pieces of an explanation that is being streamed have no line until it ends or
its reader leaves, so kill -9 loses those. The reverse can happen: a line whose answer never arrived, because
the process was killed or the client had gone. If a line can't be written (disk full), the answer isn't given
either. A line that was torn in the middle of a write is mended at the next start: its bytes become the text
of a line of the event "torn".
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from medqa.errors import RunError
from medqa.records import Answer, Example
from medqa.serve.logfile import LogFile

__all__ = ["AuditError", "AuditLog", "AuditRecord"]

_log = logging.getLogger(__name__)

_Done = concurrent.futures.Future[None]


class AuditError(RunError):
    """An answer can't be recorded now, so it must not be given: HTTP 503."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """What one line says.

    `error` is a type, not a sentence, since sentences quote the question. `event` is "answer", or
    "explanation" for a second line with the same id, where the letter went out before its explanation.
    """

    id: str
    client: Literal["api", "page", "chat"]
    latency_ms: float
    example: Example | None = None
    answer: Answer | None = None
    adapter_sha256: str | None = None
    max_risk: float | None = None
    explained: bool = False
    status: int = 200
    error: str | None = None
    event: Literal["answer", "explanation"] = "answer"

    def to_json(self, *, with_text: bool) -> dict[str, Any]:
        """Return plain values: always the same keys, those of texts only where asked for."""
        example, answer = self.example, self.answer
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {
            "time": now.replace("+00:00", "Z"),
            "id": self.id,
            "event": self.event,
            "client": self.client,
            "status": self.status,
            "error": self.error,
            "latency_ms": round(self.latency_ms, 1),
            "question_sha256": _sha256(example.question) if example else None,
            "options_sha256": _sha256(json.dumps(example.options, ensure_ascii=False)) if example else None,
            "context_sha256": _sha256(example.context) if example else None,
            "explanation_sha256": _sha256(answer.explanation) if answer else None,
            "adapter_sha256": self.adapter_sha256,
            "max_risk": self.max_risk,
            "explained": self.explained,
        }
        for name in _OF_ANSWER:
            line[name] = getattr(answer, name) if answer else None
        if with_text:
            line |= {
                "question": example.question if example else None,
                "context": example.context if example else None,
                "options": example.options if example else None,
                "explanation": answer.explanation if answer else None,
            }
        return line


_OF_ANSWER = (
    *("model", "calibration", "letter", "confidence", "probabilities", "answer_set", "alpha"),
    *("abstain", "reason", "caveat", "num_orders", "consistency", "explanation_finished"),
)


class AuditLog:
    """An append-only file of answers; safe to use from many threads and from asyncio.

    One thread writes: it takes all lines that wait, writes them and syncs once, so that many answers share
    the time of one sync. A file that would get longer than `max_bytes` is renamed first, to FILE.1, the next
    to FILE.2 and so on: the highest number is the newest, and a numbered file never changes.

    Args:
        path: The file; made if it isn't there, gone on with if it is.
        with_text: Whether to write question, context, options and explanation too.
        max_bytes: Length at which a file is put aside.

    Raises:
        RunError: If the file can't be written, or another process writes it.
    """

    def __init__(self, path: Path, *, with_text: bool = False, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._with_text = with_text
        try:
            self._file = LogFile(path.resolve(), max_bytes)
            self._file.open()
        except OSError as exc:
            raise RunError(
                f"the audit log {path} can't be written: {exc.strerror or exc}",
                "give --audit-log a file in a folder that exists and that this user may write to",
            ) from exc
        self._waiting: queue.SimpleQueue[tuple[bytes, _Done] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._num_failed = 0
        self._thread = threading.Thread(target=self._write_until_closed, name="audit-log", daemon=True)
        self._thread.start()

    def __enter__(self) -> "AuditLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def write(self, record: AuditRecord) -> None:
        """Return once the record is on the disk.

        Raises:
            AuditError: If it can't be put there; the next one may succeed.
        """
        await asyncio.wrap_future(self._submit(record))

    def write_now(self, record: AuditRecord) -> None:
        """Do what `write` does, from a thread."""
        self._submit(record).result()

    def write_later(self, record: AuditRecord) -> None:
        """Put a record in the queue and don't wait; the log of the program tells if it can't be written."""
        with contextlib.suppress(AuditError):
            self._submit(record)

    def close(self) -> None:
        """Write what waits, and take no more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._waiting.put(None)
        self._thread.join()

    def _submit(self, record: AuditRecord) -> _Done:
        values = record.to_json(with_text=self._with_text)
        # ASCII: no character of a question can end a line, and no tear can cut one in two.
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        done: _Done = concurrent.futures.Future()
        # A client that goes away doesn't take its line along.
        done.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise AuditError("the audit log is closed", "the server is shutting down: ask again later")
            self._waiting.put((line, done))
        return done

    def _write_until_closed(self) -> None:
        batch: list[tuple[bytes, _Done]] = []
        try:
            while (first := self._waiting.get()) is not None:
                batch = [first]
                # Only this thread takes, so what is counted is there. The last may be the end.
                more = [self._waiting.get() for _ in range(self._waiting.qsize())]
                batch += [entry for entry in more if entry is not None]
                self._commit(batch)
                if None in more:
                    break
        finally:
            # After a bug in here nobody may wait for ever.
            with self._lock:
                self._closed = True
            while not self._waiting.empty():
                if (entry := self._waiting.get()) is not None:
                    batch.append(entry)
            for _, done in batch:
                if not done.done():
                    done.set_exception(AuditError("the audit log has stopped", "see the server's own log"))
            self._file.close()

    def _commit(self, batch: list[tuple[bytes, _Done]]) -> None:
        try:
            self._file.append(b"".join(line for line, _ in batch))
        except (OSError, RunError) as exc:
            if not self._num_failed:
                _log.error("the audit log can't be written, no answers are given: %s", exc)
            self._num_failed += len(batch)
            for _, done in batch:
                error = AuditError(
                    "the answer could not be recorded in the audit log, so it is not given",
                    "ask again later; the operator finds the cause in the server's log",
                )
                error.__cause__ = exc
                done.set_exception(error)
            return
        if self._num_failed:
            _log.warning("the audit log is written again; %d answer(s) were not given", self._num_failed)
            self._num_failed = 0
        for _, done in batch:
            done.set_result(None)


def _sha256(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()
