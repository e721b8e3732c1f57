"""Log-likelihood of each option's letter: one forward pass a question, many questions at once.

Shape legend: B rows, T tokens of the longest row, D width of the hidden state, L letters.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from medqa.errors import DeviceError, ModelError
from medqa.hardware.device import Device, is_out_of_memory
from medqa.model.batch import head_logits, pad
from medqa.model.lora import compute_context
from medqa.progress import Task
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction

__all__ = ["Item", "PromptKind", "default_batch_tokens", "make_items", "score_items"]

log = logging.getLogger(__name__)

PromptKind = Literal["medqa", "lm_eval"]


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A question as it is scored.

    Attributes:
        example: The question.
        prefix: Token ids before the letter.
        letters: Token ids of each option's letter.
    """

    example: Example
    prefix: list[int]
    letters: list[list[int]]


def make_items(renderer: PromptRenderer, examples: Sequence[Example], prompt: PromptKind) -> list[Item]:
    """Render and tokenise questions under our own prompt or lm-eval's."""
    if prompt == "lm_eval":
        return [Item(e, *renderer.lm_eval_ids(e)) for e in examples]
    prefixes = renderer.encode_all([renderer.prefix_text(e) for e in examples])
    letters = (renderer.letter_ids(len(e.options)) for e in examples)
    return [Item(*parts) for parts in zip(examples, prefixes, letters, strict=True)]


def default_batch_tokens(device: Device) -> int:
    """Padded tokens per pass: small on the CPU, where a large pass gains nothing."""
    return 2048 if device.is_cpu else 32768


def score_items(
    model: Any,
    items: Sequence[Item],
    device: Device,
    *,
    max_length_tokens: int,
    batch_tokens: int,
    task: Task | None = None,
) -> list[Prediction]:
    """Score every question, in the order given.

    A question whose prompt exceeds `max_length_tokens` is not cut: its status says "too_long". Where
    memory runs out, this pass and those after it are halved.

    Args:
        model: PeftModel; its adapter applies unless it is switched off around the call.
        items: Questions from `make_items`.
        device: Where the model is.
        max_length_tokens: Longest input the model takes.
        batch_tokens: Padded tokens per pass.
        task: Told of progress.

    Raises:
        DeviceError: If memory runs out with a single question.
        ModelError: If a likelihood is not finite.
    """
    scored: dict[int, tuple[float, ...]] = {}
    lengths = [len(item.prefix) + max(map(len, item.letters)) for item in items]
    fitting = [number for number, length in enumerate(lengths) if length <= max_length_tokens]
    waiting = list(_batches(fitting, lengths, batch_tokens))
    while waiting:
        batch = waiting.pop(0)
        try:
            scores = _score(model, [items[n] for n in batch], device)
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            batch_tokens //= 2
            if len(batch) == 1:
                raise DeviceError(
                    f"memory ran out with a single question of {lengths[batch[0]]} tokens",
                    "close other programs on the device, or --set model.device=cpu",
                ) from exc
            log.warning("Memory ran out: going on with %d tokens a pass (same result)", batch_tokens)
            rest = [number for part in (batch, *waiting) for number in part]
            waiting = list(_batches(rest, lengths, batch_tokens))
            device.release_memory()
            continue
        scored.update(zip(batch, scores, strict=True))
        if task:
            task.advance(len(batch))
    if task:
        task.advance(len(items) - len(fitting))
    return [
        Prediction(
            id=item.example.id,
            subject=item.example.subject,
            num_options=len(item.example.options),
            answer=item.example.answer,
            status="scored" if number in scored else "too_long",
            log_likelihoods=scored.get(number, ()),
        )
        for number, item in enumerate(items)
    ]


def _batches(numbers: list[int], lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in sorted(numbers, key=lambda n: -lengths[n]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _score(model: Any, items: list[Item], device: Device) -> list[tuple[float, ...]]:
    with torch.inference_mode(), compute_context(model, device):
        single = all(len(letter) == 1 for item in items for letter in item.letters)
        scores = (_score_single_tokens if single else _score_sequences)(model, items, device)
    if not all(math.isfinite(value) for row in scores for value in row):
        raise ModelError(
            "the model gives likelihoods that are not finite",
            "`medqa doctor --selftest` checks the device; or try --set model.dtype=fp32 and train again",
        )
    return scores


def _hidden(model: Any, rows: list[list[int]], device: Device) -> torch.Tensor:
    """Last hidden states of right-padded rows, without an attention mask (see Batch)."""
    ids_BT = pad(rows).to(device.torch_device)
    hidden: torch.Tensor = model.get_base_model().get_decoder()(ids_BT, use_cache=False).last_hidden_state
    return hidden


def _score_single_tokens(model: Any, items: list[Item], device: Device) -> list[tuple[float, ...]]:
    """Score letters of one token each: one pass over the prefixes."""
    hidden_BTD = _hidden(model, [item.prefix for item in items], device)
    last_B = torch.tensor([len(item.prefix) - 1 for item in items], device=hidden_BTD.device)
    last_BD = hidden_BTD[torch.arange(len(items), device=last_B.device), last_B]
    logs_BV = head_logits(model.get_base_model(), last_BD).log_softmax(-1)
    letters = [[letter[0] for letter in item.letters] for item in items]
    width = max(map(len, letters))
    index_BL = torch.tensor([row + [0] * (width - len(row)) for row in letters], device=last_B.device)
    rows = logs_BV.gather(1, index_BL).tolist()
    return [tuple(row[: len(item.letters)]) for row, item in zip(rows, items, strict=True)]


def _score_sequences(model: Any, items: list[Item], device: Device) -> list[tuple[float, ...]]:
    """Score letters of any length: one row per option, the log-likelihoods of its tokens added."""
    result = []
    for item in items:
        hidden_BTD = _hidden(model, [item.prefix + letter for letter in item.letters], device)
        scores = []
        for row, letter in enumerate(item.letters):
            span = slice(len(item.prefix) - 1, len(item.prefix) + len(letter) - 1)
            logits = head_logits(model.get_base_model(), hidden_BTD[row, span])
            targets = torch.tensor(letter, device=logits.device)
            scores.append(-torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item())
        result.append(tuple(scores))
    return result
