"""Log-likelihood of each option's letter: one forward pass a question, many questions at once.

Shape legend: B rows, T tokens of the longest row, M places that are looked at, D width of the hidden
state, V vocabulary, L letters.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from medqa.errors import DeviceError, ModelError
from medqa.hardware.device import Device, is_out_of_memory
from medqa.hardware.group import current_group
from medqa.model.batch import head_logits, pad
from medqa.model.captured import CapturedReader
from medqa.model.decoder import PackedDecoder, why_not_packed
from medqa.model.lora import causal_lm, compute_context, without_adapter
from medqa.progress import Task
from medqa.prompts import PromptRenderer
from medqa.records import Example, Prediction

__all__ = ["Item", "PromptKind", "choose_decoder", "default_batch_tokens", "make_items", "score_items"]

log = logging.getLogger(__name__)

PromptKind = Literal["medqa", "lm_eval"]

# How many questions show that packed scoring equals plain scoring, and within how many nats.
NUM_COMPARED = 8
MAX_ERROR = {"fp32": 1e-3, "bf16": 0.15}


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

    def predicted(self, log_likelihoods: tuple[float, ...] | None) -> Prediction:
        """Make the prediction of it; None says that it was too long for the model."""
        return Prediction(
            id=self.example.id,
            subject=self.example.subject,
            num_options=len(self.example.options),
            answer=self.example.answer,
            status="too_long" if log_likelihoods is None else "scored",
            log_likelihoods=log_likelihoods or (),
        )


def make_items(renderer: PromptRenderer, examples: Sequence[Example], prompt: PromptKind) -> list[Item]:
    """Render and tokenise questions under our own prompt or lm-eval's."""
    if prompt == "lm_eval":
        return [Item(e, *ids) for e, ids in zip(examples, renderer.lm_eval_ids(examples), strict=True)]
    prefixes = renderer.encode_all([renderer.prefix_text(e) for e in examples])
    letters = (renderer.letter_ids(len(e.options)) for e in examples)
    return [Item(*parts) for parts in zip(examples, prefixes, letters, strict=True)]


def default_batch_tokens(device: Device) -> int:
    """Tokens per pass: small on the CPU, where a large pass gains nothing."""
    return 2048 if device.is_cpu else 32768


def score_items(
    model: Any,
    items: Sequence[Item],
    device: Device,
    *,
    max_length_tokens: int,
    batch_tokens: int,
    adapted: bool = True,
    decoder: PackedDecoder | CapturedReader | None = None,
    task: Task | None = None,
) -> list[Prediction]:
    """Score every question, in the order given.

    A question whose prompt exceeds `max_length_tokens` is not cut: its status says "too_long". Where
    memory runs out, this pass and those after it are halved.

    Args:
        model: PeftModel.
        items: Questions from `make_items`.
        device: Where the model is.
        max_length_tokens: Longest input the model takes.
        batch_tokens: Tokens per pass, padding counted in.
        adapted: Whether the adapter applies; without it, this is the base model.
        decoder: The packed way through the model, which is faster; the plain one if not given.
        task: Told of progress.

    Raises:
        DeviceError: If memory runs out with a single question.
        ModelError: If a likelihood is not finite.
    """
    scored: dict[int, tuple[float, ...]] = {}
    lengths = [len(item.prefix) + max(map(len, item.letters)) for item in items]
    fitting = [number for number, length in enumerate(lengths) if length <= max_length_tokens]
    costs = [length * _num_rows(item) for length, item in zip(lengths, items, strict=True)]
    padded = decoder is None
    waiting = list(_batches(fitting, costs, batch_tokens, padded))
    while waiting:
        batch = waiting.pop(0)
        try:
            scores = _score(model, [items[n] for n in batch], device, decoder, adapted)
        except RuntimeError as exc:
            if current_group().sharded or not is_out_of_memory(exc):
                raise  # sharded passes are made by all processes in step
            batch_tokens //= 2
            if len(batch) == 1:
                raise DeviceError(
                    f"memory ran out with a single question of {lengths[batch[0]]} tokens",
                    "close other programs on the device, or --set model.device=cpu",
                ) from exc
            log.warning("Memory ran out: going on with %d tokens a pass (same result)", batch_tokens)
            rest = [number for part in (batch, *waiting) for number in part]
            waiting = list(_batches(rest, costs, batch_tokens, padded))
            device.release_memory()
            continue
        scored.update(zip(batch, scores, strict=True))
        if task:
            task.advance(len(batch))
    if task:
        task.advance(len(items) - len(fitting))
    return [item.predicted(scored.get(number)) for number, item in enumerate(items)]


def choose_decoder(
    model: Any, items: Sequence[Item], device: Device, *, max_length_tokens: int
) -> PackedDecoder | None:
    """Take the packed way through the model where there is one and it scores some of the items alike.

    Args:
        model: PeftModel.
        items: Questions that will be scored.
        device: Where the model is.
        max_length_tokens: Longest input the model takes.
    """
    reason = "fp16" if device.precision == "fp16" else why_not_packed(model)
    reason = "the weights are sharded" if current_group().sharded else reason
    if reason is not None:
        log.info("Scoring the plain way: %s", reason)
        return None
    decoder, reason = _packed(model, items, device, max_length_tokens)
    # Several processes score alike, or it would show which of them scored a question.
    reason = next((one for one in current_group().gather(reason) if one is not None), None)
    if reason is not None:
        log.warning("Scoring the plain way, slower: %s", reason)
        return None
    return decoder


def _packed(
    model: Any, items: Sequence[Item], device: Device, max_length_tokens: int
) -> tuple[PackedDecoder | None, str | None]:
    """Try the packed way; it, and why not to take it."""
    some = sorted(items, key=lambda item: len(item.prefix))[:: max(1, len(items) // NUM_COMPARED)]
    try:
        decoder = PackedDecoder(model)
        error = max(
            _apart(model, some, device, max_length_tokens, decoder, adapted) for adapted in (True, False)
        )
    except RuntimeError as exc:
        return None, f"the fast one does not run here: {str(exc).splitlines()[0]}"
    if not error < MAX_ERROR[device.precision]:
        return None, f"the fast one differs by {error:.2g} nats here"
    log.info("Scoring packed rows: equals the plain way on %d questions (off by %.0e nats)", len(some), error)
    return decoder, None


def _apart(
    model: Any,
    items: Sequence[Item],
    device: Device,
    max_length_tokens: int,
    decoder: PackedDecoder,
    adapted: bool,
) -> float:
    """Score some questions both ways; the largest difference, infinite if none could be scored."""
    ways: list[list[float]] = []
    for way in (None, decoder):
        predictions = score_items(
            model,
            items,
            device,
            max_length_tokens=max_length_tokens,
            batch_tokens=default_batch_tokens(device),
            adapted=adapted,
            decoder=way,
        )
        ways.append([value for prediction in predictions for value in prediction.log_likelihoods])
    return max((abs(a - b) for a, b in zip(*ways, strict=True)), default=math.inf)


def _num_rows(item: Item) -> int:
    """Rows that a question takes: one, or one an option where letters have several tokens."""
    return 1 if all(len(letter) == 1 for letter in item.letters) else len(item.letters)


def _batches(numbers: list[int], lengths: list[int], batch_tokens: int, padded: bool) -> Iterator[list[int]]:
    batch: list[int] = []
    filled = 0
    for number in sorted(numbers, key=lambda n: -lengths[n]):
        taken = lengths[batch[0]] if batch and padded else lengths[number]
        if batch and filled + taken > batch_tokens:
            yield batch
            batch, filled, taken = [], 0, lengths[number]
        batch.append(number)
        filled += taken
    if batch:
        yield batch


def _score(
    model: Any,
    items: list[Item],
    device: Device,
    decoder: PackedDecoder | CapturedReader | None,
    adapted: bool,
) -> list[tuple[float, ...]]:
    """Score letters of one token with a row a question, longer ones with a row an option."""
    single = all(len(letter) == 1 for item in items for letter in item.letters)
    if single:
        rows = [item.prefix for item in items]
        spans = [(len(row) - 1, len(row)) for row in rows]
    else:
        rows = [item.prefix + letter for item in items for letter in item.letters]
        spans = [(len(i.prefix) - 1, len(i.prefix) + len(letter) - 1) for i in items for letter in i.letters]
    # Before the pass: a copy to the device would wait for its end, and hold up every other thread so long.
    index_ML = _letter_index(items, single).to(device.torch_device)
    with torch.no_grad():  # not inference mode, for which compiled operations would be compiled again
        hidden_MD = _hidden(model, rows, spans, device, decoder, adapted)
        logs_MV = head_logits(causal_lm(model), hidden_MD).log_softmax(-1)
        values = logs_MV.gather(1, index_ML).tolist()
    scores = (_letters_of_one_token if single else _letters_of_several)(values, items)
    if not all(math.isfinite(value) for row in scores for value in row):
        raise ModelError(
            "the model gives likelihoods that are not finite",
            "`medqa doctor --selftest` checks the device; or try --set model.dtype=fp32 and train again",
        )
    return scores


def _hidden(
    model: Any,
    rows: list[list[int]],
    spans: list[tuple[int, int]],
    device: Device,
    decoder: PackedDecoder | CapturedReader | None,
    adapted: bool,
) -> torch.Tensor:
    """Last hidden states (M, D) at the spans of the rows, packed or padded without a mask (see Batch)."""
    if decoder is not None:
        return decoder.read(rows, spans, adapted=adapted)
    with contextlib.nullcontext() if adapted else without_adapter(model), compute_context(model, device):
        ids_BT = pad(rows).to(device.torch_device)
        hidden_BTD = causal_lm(model).get_decoder()(ids_BT, use_cache=False).last_hidden_state
    width = ids_BT.shape[1]
    index = [row * width + place for row, span in enumerate(spans) for place in range(*span)]
    picked: torch.Tensor = hidden_BTD.flatten(0, 1)[torch.tensor(index, device=hidden_BTD.device)]
    return picked


def _letter_index(items: list[Item], single: bool) -> torch.Tensor:
    """Tokens that are looked up: of each question all letters, filled up with 0; or of each place its own."""
    if not single:
        return torch.tensor([[token] for item in items for letter in item.letters for token in letter])
    letters = [[letter[0] for letter in item.letters] for item in items]
    width = max(map(len, letters))
    return torch.tensor([row + [0] * (width - len(row)) for row in letters])


def _letters_of_one_token(values: list[list[float]], items: list[Item]) -> list[tuple[float, ...]]:
    return [tuple(row[: len(item.letters)]) for row, item in zip(values, items, strict=True)]


def _letters_of_several(values: list[list[float]], items: list[Item]) -> list[tuple[float, ...]]:
    """Add up the log-likelihoods of each letter's tokens."""
    each = iter(value for [value] in values)
    return [tuple(sum(next(each) for _ in letter) for letter in item.letters) for item in items]
