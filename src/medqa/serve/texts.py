"""Explanations being written: side by side by the model in this process, or by an engine elsewhere."""

import collections
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from medqa.evaluate.engine import Engine, LocalEngine
from medqa.model.generate import Written
from medqa.model.writer import Writer
from medqa.serve.waiting import Text

__all__ = ["Texts", "TextsElsewhere", "TextsHere"]

log = logging.getLogger(__name__)

# Waiting texts that are looked at for one with a free place.
MAX_LOOKED_AT = 64
# Texts that an engine elsewhere writes at a time.
MAX_LISTENING = 64


class Texts:
    """Texts that wait or are being written; all methods may be called from any thread."""

    def __init__(self, changed: threading.Condition) -> None:
        """Take what is told of every change, and guards what waits."""
        self._changed = changed
        self._waiting: collections.deque[Text] = collections.deque()
        self._usual_s = 0.0  # seconds that a text takes, lately

    @property
    def num_waiting(self) -> int:
        """Texts that are not begun."""
        return len(self._waiting)

    @property
    def num_writing(self) -> int:
        """Texts that are begun."""
        raise NotImplementedError

    def wait_s(self) -> float:
        """Foretell how long one more would wait; 0 if none waits now."""
        return self._usual_s * (self.num_waiting + 1) / max(1, self.num_writing) if self._waiting else 0.0

    def add(self, text: Text) -> None:
        """Let a text be written."""
        with self._changed:
            self._waiting.append(text)
            self._changed.notify_all()

    def leave(self, text: Text) -> None:
        """Write no more of a text: nobody waits for it."""
        text.left = True
        with self._changed, contextlib.suppress(ValueError):
            self._waiting.remove(text)

    def _next(self) -> Text | None:
        with self._changed:  # one that leaves takes itself out
            return self._waiting.popleft() if self._waiting else None

    def _took(self, text: Text) -> None:
        seconds = time.monotonic() - text.begun
        self._usual_s = seconds if not self._usual_s else 0.8 * self._usual_s + 0.2 * seconds


class TextsHere(Texts):
    """Texts of the model in this process, which one thread writes by calling `advance` again and again."""

    def __init__(self, engine: LocalEngine, changed: threading.Condition) -> None:
        """Take the model."""
        super().__init__(changed)
        self._engine = engine
        self._beginning: list[Text] = []  # taken from the queue, not yet being written
        self._writing: dict[Text, Writer] = {}

    @property
    def num_writing(self) -> int:
        """Texts that are begun."""
        return len(self._writing)

    def advance(self) -> None:
        """Begin texts while there is room, and advance all by one token."""
        try:
            self._begin()
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

    def _begin(self) -> None:
        """Begin the first texts that have room; one that must wait for its writer holds up no other."""
        begun: dict[Writer, list[Text]] = {}
        later: list[Text] = []
        try:
            while len(later) < MAX_LOOKED_AT and (text := self._next()) is not None:
                self._beginning.append(text)
                text.writing = text.writing or self._engine.begin(text.prompt, text.max_new_tokens)
                writer = self._engine.writer_for(text.writing)
                if len(begun.get(writer, ())) < writer.num_free:
                    begun.setdefault(writer, []).append(text)
                else:
                    later.append(self._beginning.pop())
        finally:
            with self._changed:
                self._waiting.extendleft(text for text in reversed(later) if not text.left)
        for writer, texts in begun.items():
            for text in texts:
                self._writing[text], text.begun = writer, time.monotonic()
            writer.start([text.writing for text in texts if text.writing is not None])
        self._beginning.clear()

    def _pass_on(self, text: Text) -> None:
        writing = text.writing
        if writing is None:
            raise AssertionError("a text that was not begun")
        if piece := writing.piece():
            text.send(piece)
        if writing.finished is not None:
            text.send(writing.written())
            self._end(text)
            self._took(text)

    def _end(self, text: Text) -> None:
        writer = self._writing.pop(text, None)
        if writer is not None and text.writing is not None:
            writer.stop(text.writing)


class TextsElsewhere(Texts):
    """Texts of an engine elsewhere, which writes many at a time: each has a thread that listens."""

    def __init__(self, engine: Engine, changed: threading.Condition) -> None:
        """Take the engine."""
        super().__init__(changed)
        self._engine = engine
        self._listening: dict[Text, Iterator[str | Written]] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(MAX_LISTENING, "medqa-explanation")

    @property
    def num_writing(self) -> int:
        """Texts that are begun."""
        return len(self._listening)

    def add(self, text: Text) -> None:
        """Let a text be written."""
        super().add(text)
        self._threads.submit(self._listen)

    def leave(self, text: Text) -> None:
        """Write no more of a text: nobody waits for it. The engine is hung up on at once."""
        super().leave(text)
        with self._changed:
            parts = self._listening.get(text)
        if parts is not None:
            parts.close()  # type: ignore[attr-defined]  # what an engine elsewhere gives can be closed

    def close(self) -> None:
        """Begin no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _listen(self) -> None:
        """Pass on what is written for the next text."""
        with self._changed:
            if not self._waiting:
                return  # whoever this was for has left
            text = self._waiting.popleft()
            text.begun = time.monotonic()
            parts = self._engine.stream(text.prompt, text.max_new_tokens)
            self._listening[text] = parts
        try:
            for part in parts:
                text.send(part)
            self._took(text)
        except Exception as exc:  # noqa: BLE001 - whatever it is, who waits must hear of it
            text.send(exc)
        finally:
            with self._changed:
                del self._listening[text]
                self._changed.notify_all()
