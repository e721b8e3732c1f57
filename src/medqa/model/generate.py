"""Write explanations, many at once: greedy, so that the same question has the same explanation every time.

Shape legend: B rows of a batch, T tokens of the longest prompt.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from medqa.hardware.device import Device, is_out_of_memory
from medqa.hardware.group import current_group
from medqa.model.lora import compute_context, without_adapter
from medqa.progress import Task
from medqa.prompts import PromptRenderer

__all__ = ["Written", "default_batch_rows", "write_explanations"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """An explanation as the model wrote it.

    Attributes:
        text: Without the stop token and without blanks around it; may be empty.
        finished: Whether it ended with a stop token by itself; False if it was cut at a limit.
    """

    text: str
    finished: bool


def default_batch_rows(device: Device) -> int:
    """Rows per batch: few on the CPU, where a row more costs nearly a row's time."""
    return 8 if device.is_cpu else 128


def write_explanations(
    model: Any,
    renderer: PromptRenderer,
    device: Device,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    max_length_tokens: int,
    batch_rows: int | None = None,
    adapted: bool = True,
    task: Task | None = None,
) -> list[Written]:
    """Write the explanation that follows each prompt, in the order given.

    In fp32 a row's text does not depend on the rows beside it. In bf16 and fp16 rounding does, so that two
    words that are equally likely may change places. Where memory runs out, this batch and those after it are
    halved.

    Args:
        model: PeftModel in evaluation mode.
        renderer: Its prompt, for stop tokens and decoding.
        device: Where the model is.
        prompts: Token ids up to where the explanation begins, from `PromptRenderer.answer_ids`.
        max_new_tokens: Longest explanation.
        max_length_tokens: Longest input that the model takes, the explanation counted in. A prompt that
            leaves no room has an empty explanation that is not finished.
        batch_rows: Rows per batch; chosen by the device if not given.
        adapted: Whether the adapter applies; without it, this is the base model.
        task: Told of each explanation.

    Raises:
        DeviceError: If memory runs out with a single row.
    """
    limits = [min(max_new_tokens, max_length_tokens - len(prompt)) for prompt in prompts]
    written = [Written("", False)] * len(prompts)
    # The longest first: what does not fit into memory shows at once.
    order = sorted((n for n, limit in enumerate(limits) if limit > 0), key=lambda n: -len(prompts[n]))
    rows = batch_rows or default_batch_rows(device)
    waiting = list(_batches(order, limits, rows))
    while waiting:
        batch = waiting.pop(0)
        try:
            # With a single row nothing is left to halve: the error says so.
            alone = contextlib.nullcontext() if len(batch) > 1 else device.out_of_memory_is(_DOING)
            with alone:
                texts = _write(
                    model, renderer, device, [prompts[n] for n in batch], limits[batch[0]], adapted=adapted
                )
        except RuntimeError as exc:
            if current_group().sharded or not is_out_of_memory(exc):
                raise  # sharded passes are made by all processes in step
            rows = len(batch) // 2
            log.warning("Memory ran out: going on with %d explanations at once", rows)
            rest = [number for part in (batch, *waiting) for number in part]
            waiting = list(_batches(rest, limits, rows))
            device.release_memory()
            continue
        for number, text in zip(batch, texts, strict=True):
            written[number] = text
        if task:
            task.advance(len(batch))
    if task and len(order) < len(prompts):
        task.advance(len(prompts) - len(order))
    return written


_DOING = "write the explanation"


def _batches(order: Sequence[int], limits: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Cut rows, sorted by length, into batches of one limit each.

    Only the longest prompts leave less room than an explanation may take. Beside shorter ones they would
    run past the end of the model, or cut the others' explanations.
    """
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) == rows or limits[number] != limits[batch[0]]):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _write(
    model: Any,
    renderer: PromptRenderer,
    device: Device,
    prompts: Sequence[list[int]],
    limit: int,
    *,
    adapted: bool,
) -> list[Written]:
    """Write one batch, of prompts padded on the left: new tokens follow the last column of every row."""
    stop = renderer.stop_ids
    width = max(map(len, prompts))
    ids_BT = torch.tensor([[stop[0]] * (width - len(p)) + p for p in prompts])
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    adapter = contextlib.nullcontext() if adapted else without_adapter(model)
    with torch.inference_mode(), adapter, compute_context(model, device):
        output = model.generate(
            input_ids=ids_BT.to(device.torch_device),
            attention_mask=mask_BT.to(device.torch_device),
            max_new_tokens=limit,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            # Some base models ship a penalty on tokens that came before. It would count the padding in,
            # which is the stop token: rows would then depend on the rows beside them.
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
    return [_read(renderer, row) for row in output[:, width:].tolist()]


def _read(renderer: PromptRenderer, new: list[int]) -> Written:
    """Decode what came before the stop token; what follows is padding, up to the longest row's end."""
    end = next((place for place, token in enumerate(new) if token in renderer.stop_ids), None)
    text = renderer.tokenizer.decode(new[:end], skip_special_tokens=True)
    return Written(str(text).strip(), end is not None)
