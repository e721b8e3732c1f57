"""Write many texts token by token, each beginning and ending when it likes: continuous batching.

Greedy, as `write_explanations`. Here are the texts, and the plain way to advance them: transformers' own
forward pass with its own cache, one text after the other. It is the reference, and the way for models that
the packed decoder does not know.

Shape legend: B = 1, T tokens of a prompt, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from medqa.hardware.device import Device
from medqa.model.batch import head_logits
from medqa.model.generate import Written
from medqa.model.lora import compute_context
from medqa.progress import Task
from medqa.prompts import PromptRenderer

__all__ = ["PlainWriter", "Writer", "Writing", "write_through"]

# Each text takes its own pass.
NUM_PLAIN = 4


class Writing:
    """A text on its way.

    Attributes:
        ids: Tokens so far, without the stop token.
        finished: Whether it ended by itself; None while it goes on.
    """

    def __init__(self, renderer: PromptRenderer, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Begin with nothing."""
        self._renderer, self._shown = renderer, 0
        self.prompt, self.max_new_tokens = list(prompt), max_new_tokens
        self.ids: list[int] = []
        self.finished: bool | None = None if max_new_tokens > 0 else False

    def add(self, token: int) -> None:
        """Take one more token: the stop token, or one that reaches the limit, ends the text."""
        if token in self._renderer.stop_ids:
            self.finished = True
            return
        self.ids.append(token)
        if len(self.ids) >= self.max_new_tokens:
            self.finished = False

    def piece(self) -> str:
        """Return the text that is new since the last call; half a character waits for its other half."""
        text = self._text().lstrip()
        if self.finished is None and text.endswith("\ufffd"):
            return ""
        new, self._shown = text[self._shown :], len(text)
        return new

    def written(self) -> Written:
        """Return the whole text."""
        return Written(self._text().strip(), bool(self.finished))

    def _text(self) -> str:
        return str(self._renderer.tokenizer.decode(self.ids, skip_special_tokens=True))


class Writer(Protocol):
    """Advances texts, all of them a token a step."""

    @property
    def num_free(self) -> int:
        """How many more texts can be begun."""

    def start(self, writings: Sequence[Writing]) -> None:
        """Read the prompts, and write the first token of each."""

    def step(self) -> None:
        """Write the next token of every text; texts that end leave."""

    def stop(self, writing: Writing) -> None:
        """Leave a text as it is; nothing happens if it has ended."""


class PlainWriter:
    """Transformers' own forward pass, for one text after the other."""

    def __init__(self, model: Any, device: Device) -> None:
        """Take a PeftModel in evaluation mode."""
        self._model, self._device = model, device
        self._caches: dict[Writing, Any] = {}

    @property
    def num_free(self) -> int:
        """How many more texts can be begun."""
        return max(0, NUM_PLAIN - len(self._caches))

    def start(self, writings: Sequence[Writing]) -> None:
        """Read the prompts, and write the first token of each."""
        for writing in writings:
            if writing.finished is None:
                self._advance(writing, writing.prompt, None)

    def step(self) -> None:
        """Write the next token of every text."""
        for writing, cache in list(self._caches.items()):
            self._advance(writing, writing.ids[-1:], cache)

    def stop(self, writing: Writing) -> None:
        """Leave a text as it is."""
        self._caches.pop(writing, None)

    def _advance(self, writing: Writing, ids: list[int], cache: Any) -> None:
        causal_lm = self._model.get_base_model()
        with torch.inference_mode(), compute_context(self._model, self._device):
            ids_BT = torch.tensor([ids], device=self._device.torch_device)
            out = causal_lm.get_decoder()(ids_BT, past_key_values=cache, use_cache=True)
            logits_BV = head_logits(causal_lm, out.last_hidden_state[:, -1])
        writing.add(int(logits_BV.argmax(-1)))
        if writing.finished is None:
            self._caches[writing] = out.past_key_values
        else:
            self.stop(writing)


def write_through(writer: Writer, writings: Sequence[Writing], task: Task | None = None) -> None:
    """Write texts to their ends, the longest prompts first, each beginning as soon as there is room."""
    waiting = sorted(writings, key=lambda writing: -len(writing.prompt))
    going: list[Writing] = []
    while waiting or going:
        begun, waiting = waiting[: writer.num_free], waiting[writer.num_free :]
        writer.start(begun)
        writer.step()
        now = [*going, *begun]
        going = [writing for writing in now if writing.finished is None]
        if task:
            task.advance(len(now) - len(going))
