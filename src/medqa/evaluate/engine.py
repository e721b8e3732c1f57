"""What scores questions and writes explanations: the model on this machine, or one behind a server.

Whatever is measured, calibrated or answered goes through an `Engine`, and does not know which it is.
"""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from medqa.errors import EngineError
from medqa.evaluate.score import Item, choose_decoder, default_batch_tokens, make_items, score_items
from medqa.hardware.group import Group, current_group
from medqa.model.captured import CapturedReader
from medqa.model.decoder import PackedDecoder
from medqa.model.generate import Written, write_explanations
from medqa.model.packed_writer import PackedWriter, choose_writer
from medqa.model.tuned import TunedModel
from medqa.model.writer import PlainWriter, Writer, Writing, write_through
from medqa.progress import Task
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction

__all__ = ["Engine", "LocalEngine"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# The packed writer is tried with these before it is used.
_TRIED = (
    Example("Which vitamin deficiency causes scurvy?", ("Vitamin A", "Vitamin C")),
    Example("Which organ makes insulin?", ("Liver", "Spleen", "Pancreas", "Kidney")),
)


class _Times:
    """Counts a step of this process as one of each."""

    def __init__(self, task: Task, size: int) -> None:
        self._task, self._size = task, size

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._task.advance(steps * self._size, note)

    def resize(self, total: int) -> None:
        self._task.resize(total)


def _all_of(task: Task | None, group: Group) -> Task | None:
    shares = group.size > 1 and not group.sharded
    return _Times(task, group.size) if task is not None and shares else task


class Engine(Protocol):
    """A tuned model, wherever it runs."""

    @property
    def renderer(self) -> PromptRenderer:
        """Its prompt."""

    @property
    def max_length_tokens(self) -> int:
        """Longest input that it takes."""

    @property
    def has_base(self) -> bool:
        """Whether the base model, without the adapter, can be asked too."""

    @property
    def way(self) -> str:
        """How it gets its scores, in a word or two, for the record."""

    def device_record(self) -> dict[str, Any]:
        """Say what it runs on: at least `name` and `precision`."""

    def score(
        self, items: Sequence[Item], *, adapted: bool = True, task: Task | None = None
    ) -> list[Prediction]:
        """Score every question, in the order given, as `score_items` does."""

    def write(
        self, prompts: Sequence[list[int]], max_new_tokens: int, *, task: Task | None = None
    ) -> list[Written]:
        """Write the text that follows each prompt, in the order given, as `write_explanations` does."""

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str | Written]:
        """Write the text that follows one prompt: its pieces as they come, lastly the whole."""

    def close(self) -> None:
        """End what is under way, from any thread; once more does nothing."""


class LocalEngine:
    """The model in this process.

    Attributes:
        tuned: The model.
        decoder: The packed way through it; None for the plain one.
        batch_tokens: Tokens per pass.
    """

    has_base = True

    def __init__(
        self, tuned: TunedModel, decoder: PackedDecoder | None = None, batch_tokens: int | None = None
    ) -> None:
        """Take a model, the way through it if known, and tokens per pass if not the device's usual."""
        self.tuned = tuned
        self.decoder = decoder or tuned.decoder
        self.batch_tokens = batch_tokens or default_batch_tokens(tuned.device)
        self._reader: CapturedReader | None = None
        self._group = current_group()

    @classmethod
    def fastest(
        cls, tuned: TunedModel, items: Sequence[Item], batch_tokens: int | None = None
    ) -> "LocalEngine":
        """Take the packed way where the run's settings allow it and it scores some of the items alike."""
        decoder = tuned.decoder
        if decoder is None and tuned.run.config.train.fast_path:
            decoder = choose_decoder(
                tuned.model, items, tuned.device, max_length_tokens=tuned.base.max_length_tokens
            )
        return cls(tuned, decoder, batch_tokens)

    @property
    def renderer(self) -> PromptRenderer:
        """Its prompt."""
        return self.tuned.renderer

    @property
    def way(self) -> str:
        """Which way through the model is taken."""
        return "plain" if self.decoder is None else "packed"

    def device_record(self) -> dict[str, Any]:
        """Say what it runs on, with reasons."""
        return self.tuned.device.record()

    @property
    def max_length_tokens(self) -> int:
        """Longest input that it takes."""
        return self.tuned.base.max_length_tokens

    def score(
        self, items: Sequence[Item], *, adapted: bool = True, task: Task | None = None
    ) -> list[Prediction]:
        """Score every question, each in one of the processes; see `score_items`."""
        scored = score_items(
            self.tuned.model,
            self._group.share(items),
            self.tuned.device,
            max_length_tokens=self.max_length_tokens,
            batch_tokens=self.batch_tokens,
            adapted=adapted,
            decoder=self._reader or self.decoder,
            task=_all_of(task, self._group),
        )
        return self._whole(items, scored)

    def warm_up(self) -> None:
        """Get ready to answer a few questions at a time, at once: capture passes, try the writer."""
        if self.decoder is not None:
            self._reader = CapturedReader(self.decoder, self.tuned.device)
            if self._reader.num_captured:
                log.info("Passes are captured for %d numbers of tokens", self._reader.num_captured)
        # The first time takes the longest.
        self.score(make_items(self.renderer, _TRIED, "medqa"))
        self.write([self.renderer.answer_ids(example, 0) for example in _TRIED], 2)

    def write(
        self, prompts: Sequence[list[int]], max_new_tokens: int, *, task: Task | None = None
    ) -> list[Written]:
        """Write the text that follows each prompt, each in one of the processes.

        What does not fit into one of the packed writer's slots goes through `write_explanations`.
        """
        own, task = self._group.share(prompts), _all_of(task, self._group)
        return self._whole(prompts, self._write(own, max_new_tokens, task))

    def _whole(self, asked: Sequence[Any], share: list[T]) -> list[T]:
        """Gather what all processes found, in the order asked."""
        whole = self._group.in_order(self._group.gather(share))
        if len(whole) != len(asked):
            raise EngineError(f"{len(whole)} results of {len(asked)} questions", "please report it")
        return whole

    def _write(self, prompts: Sequence[list[int]], max_new_tokens: int, task: Task | None) -> list[Written]:
        writings = [self.begin(prompt, max_new_tokens) for prompt in prompts]
        packed = self._packed_writer
        short = [w for w in writings if packed is not None and packed.fits(w)]
        if packed is not None:
            write_through(packed, short, task)
        rest = iter(
            write_explanations(
                self.tuned.model,
                self.renderer,
                self.tuned.device,
                [w.prompt for w in writings if w not in set(short)],
                max_new_tokens=max_new_tokens,
                max_length_tokens=self.max_length_tokens,
                task=task,
            )
        )
        return [w.written() if w in set(short) else next(rest) for w in writings]

    def begin(self, prompt: Sequence[int], max_new_tokens: int) -> Writing:
        """Begin a text that is as long as the model allows at most."""
        room = self.max_length_tokens - len(prompt)
        return Writing(self.renderer, prompt, max(0, min(max_new_tokens, room)))

    def writer_for(self, writing: Writing) -> Writer:
        """Choose what writes a text: the packed writer, or the plain one where that does not serve."""
        packed = self._packed_writer
        return packed if packed is not None and packed.fits(writing) else self._plain_writer

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str | Written]:
        """Write the text that follows one prompt: its pieces as they come, lastly the whole."""
        writing = self.begin(prompt, max_new_tokens)
        writer = self.writer_for(writing)
        try:
            writer.start([writing])
            while True:
                if piece := writing.piece():
                    yield piece
                if writing.finished is not None:
                    break
                writer.step()
        finally:
            writer.stop(writing)
        yield writing.written()

    def close(self) -> None:
        """Do nothing: nothing here goes on by itself."""

    @functools.cached_property
    def _plain_writer(self) -> PlainWriter:
        return PlainWriter(self.tuned.model, self.tuned.device)

    @functools.cached_property
    def _packed_writer(self) -> PackedWriter | None:
        prompts = [self.renderer.answer_ids(example, 0) for example in _TRIED]
        writer = choose_writer(
            self.decoder, self.tuned.device, self.renderer, prompts, self.max_length_tokens
        )
        return writer if all(self._group.gather(writer is not None)) else None
