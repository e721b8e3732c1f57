"""An engine whose calls are made where a graphics card is lent for a call, as on ZeroGPU."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.score import Item
from medqa.model.generate import Written
from medqa.progress import Task
from medqa.prompts import PromptRenderer
from medqa.records import Prediction

__all__ = ["LentEngine"]

# What a call asks for; a shorter time is lent sooner.
SCORE_S, WRITE_S = 20, 60


class LentEngine:
    """The model of another engine, which is asked through decorated functions.

    Such a function runs in a process that was forked for it: arguments and results are copied, the model is
    not. It must therefore not be an argument, nor must a method of this class be what is decorated.
    """

    has_base = True

    def __init__(self, local: LocalEngine, lend: Callable[..., Any]) -> None:
        """Take the model, and what decorates a function so that it gets a card."""
        self._local = local

        def score(items: Sequence[Item], adapted: bool) -> list[Prediction]:
            return local.score(items, adapted=adapted)

        def write(prompts: Sequence[list[int]], max_new_tokens: int) -> list[Written]:
            return local.write(prompts, max_new_tokens)

        def stream(prompt: list[int], max_new_tokens: int) -> Iterator[str | Written]:
            yield from local.stream(prompt, max_new_tokens)

        self._score: Callable[..., list[Prediction]] = lend(score, duration=SCORE_S)
        self._write: Callable[..., list[Written]] = lend(write, duration=WRITE_S)
        self._stream: Callable[..., Iterator[str | Written]] = lend(stream, duration=WRITE_S)

    @property
    def renderer(self) -> PromptRenderer:
        """Its prompt."""
        return self._local.renderer

    @property
    def max_length_tokens(self) -> int:
        """Longest input that it takes."""
        return self._local.max_length_tokens

    @property
    def way(self) -> str:
        """How it gets its scores."""
        return f"{self._local.way}, lent"

    def device_record(self) -> dict[str, Any]:
        """Say what it runs on."""
        return self._local.device_record()

    def score(
        self, items: Sequence[Item], *, adapted: bool = True, task: Task | None = None
    ) -> list[Prediction]:
        """Score every question, in the order given."""
        found = self._score(list(items), adapted)
        if task is not None:
            task.advance(len(found))
        return found

    def write(
        self, prompts: Sequence[list[int]], max_new_tokens: int, *, task: Task | None = None
    ) -> list[Written]:
        """Write the text that follows each prompt."""
        found = self._write(list(prompts), max_new_tokens)
        if task is not None:
            task.advance(len(found))
        return found

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str | Written]:
        """Write the text that follows one prompt: its pieces as they come, lastly the whole."""
        yield from self._stream(prompt, max_new_tokens)

    def close(self) -> None:
        """Do nothing: each call ends by itself."""
