"""Merge the adapter into its base model: in fp32, then cast once.

A merge in half precision rounds twice, and an update of a low rank is about as small as the rounding. That is
how a merged model comes to answer unlike the one that was tuned.
"""

import logging
from pathlib import Path
from typing import Any, Literal

import torch

from medqa.errors import ModelError, PublishError
from medqa.files import read_json
from medqa.hardware.device import choose_device
from medqa.model.load import BaseFiles, find_base
from medqa.model.quiet import no_library_bars
from medqa.model.tuned import TunedModel, load_tuned
from medqa.prompts import PromptRenderer
from medqa.runs import RunFolder

__all__ = ["Precision", "load_to_merge", "merge", "precisions_to_try", "write_merged"]

log = logging.getLogger(__name__)

Precision = Literal["bf16", "fp16", "fp32"]

_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_SHARD_SIZE = "4GB"


def load_to_merge(path: Path, trust_remote_code: str | None) -> TunedModel:
    """Load a tuned model in fp32, on the accelerator if it has room for that."""
    # Wherever the run was made: a run of a GPU is exported on this machine, whatever it has.
    config = RunFolder.open(path).config.model.model_copy(update={"device": "auto"})
    device = choose_device(config)
    base = find_base(config.model_copy(update={"trust_remote_code": trust_remote_code}))
    free, needed = device.free_memory_gib(), 1.2 * 4 * base.num_parameters / 2**30
    changes = {"dtype": "fp32", "device": "auto"}
    if not device.is_cpu and free is not None and free < needed:
        log.warning("%s has %.1f GiB free, fp32 takes %.1f: exporting on the CPU", device.name, free, needed)
        changes["device"] = "cpu"
    return load_tuned(path, trust_remote_code, **changes)


def precisions_to_try(base: BaseFiles) -> tuple[Precision, ...]:
    """Name the precisions that a merged model may be kept in, the first choice first.

    That is the one of the base model's own files, then fp32: bf16 has 8 significant bits, and an adapter's
    update may be smaller than their rounding. fp16 rounds less, and may overflow in such models.
    """
    config = read_json(base.path / "config.json")
    dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    if dtype == "bfloat16":
        return ("bf16", "fp32")
    return ("fp16", "fp32") if dtype == "float16" else ("fp32",)


def merge(tuned: TunedModel) -> Any:
    """Add the adapter's update to the weights of its base model. The tuned model is used up.

    Args:
        tuned: A model whose weights are in fp32.

    Returns:
        A transformers causal language model, in fp32.

    Raises:
        ModelError: If the sum is not finite.
    """
    if tuned.device.weight_dtype != torch.float32:
        raise ValueError(f"weights of {tuned.device.weight_dtype}: the sum would be rounded twice")
    try:
        return tuned.model.merge_and_unload(safe_merge=True)
    except ValueError as exc:
        raise ModelError(
            f"the adapter can't be merged: {exc}", "train again; a weight is not finite"
        ) from exc


def write_merged(model: Any, renderer: PromptRenderer, out: Path, precision: Precision) -> None:
    """Write a merged model as a folder that transformers, vLLM and others load. The model is used up.

    Args:
        model: As `merge` returned it; its weights are cast in place, one by one, to spare memory.
        renderer: Its prompt: tokenizer and chat template go along, and where it stops.
        out: Folder to fill.
        precision: Of the weights.

    Raises:
        PublishError: If a weight is too large for the precision.
    """
    model = model.to(_DTYPES[precision])
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise PublishError(f"{name} has values too large for {precision}", "--dtype fp32")
    # How it answers: greedily, and where it stops.
    model.config.name_or_path = ""  # a folder of this machine
    stops = renderer.stop_ids
    model.config.eos_token_id = stops[0] if len(stops) == 1 else stops
    model.generation_config = type(model.generation_config)(
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=renderer.tokenizer.pad_token_id,
        bos_token_id=model.config.bos_token_id,
    )
    with no_library_bars():
        model.save_pretrained(str(out), max_shard_size=_SHARD_SIZE)
    renderer.tokenizer.save_pretrained(str(out))
