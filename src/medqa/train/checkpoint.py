"""Checkpoints: everything that training goes on from, in safetensors and JSON, never pickle.

checkpoints/step-000120/
    adapter.safetensors    fp32 adapter weights
    optimizer.safetensors  AdamW's moments and step counts, and the random states
    state.json             step, rows a forward pass, sums for the metrics
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medqa.errors import RunError
from medqa.files import read_json, write_folder, write_json
from medqa.model.lora import trainable_parameters

__all__ = ["TrainState", "load_checkpoint", "newest_checkpoint", "save_checkpoint"]

KEEP = 2
ADAMW_FIELDS = ("step", "exp_avg", "exp_avg_sq")


@dataclasses.dataclass
class TrainState:
    """What the loop needs to know beside the tensors."""

    step: int = 0
    """Optimizer steps done."""
    micro_batch_size: int = 0
    """Rows per forward pass; shrinks when memory runs out."""
    num_tokens: int = 0
    """Tokens trained on, padding apart."""
    seconds: float = 0.0
    """Time spent in training steps."""
    recompute: bool = False
    """Whether activations are recomputed in the backward pass, for lack of memory."""
    num_skipped: int = 0
    """fp16 steps left out because the scaled gradient overflowed."""
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    """State of the fp16 loss scaler; empty in other precisions."""


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint with the highest step, or None."""
    return max(folder.glob("step-*"), default=None)


def save_checkpoint(folder: Path, model: Any, optimizer: torch.optim.Optimizer, state: TrainState) -> Path:
    """Write a checkpoint; it appears under its name only when it is whole. Keeps the newest two."""
    path = folder / f"step-{state.step:06d}"
    named = trainable_parameters(model)
    with write_folder(path) as beside:
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in named},
            beside / "adapter.safetensors",
        )
        tensors = {
            f"{name}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
            for name, p in named
            for key, value in optimizer.state[p].items()
        }
        tensors["random|cpu"] = torch.get_rng_state()
        device = named[0][1].device
        if device.type != "cpu":
            tensors["random|device"] = torch.get_device_module(device).get_rng_state()
        save_file(tensors, beside / "optimizer.safetensors")
        write_json(beside / "state.json", dataclasses.asdict(state))
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> TrainState:
    """Put a checkpoint's tensors into model and optimizer.

    Raises:
        RunError: If the checkpoint is damaged or of another adapter.
    """
    named = trainable_parameters(model)
    device = named[0][1].device
    try:
        weights = load_file(path / "adapter.safetensors")
        tensors = load_file(path / "optimizer.safetensors")
        state = TrainState(**read_json(path / "state.json"))
        expected = {f"{name}|{field}" for name, _ in named for field in ADAMW_FIELDS} | {"random|cpu"}
        if set(weights) != {name for name, _ in named} or not expected <= set(tensors):
            raise RunError(f"{path} is a checkpoint of another adapter", "resume with the run's own settings")
        if not isinstance(state.step, int) or not isinstance(state.micro_batch_size, int):
            raise TypeError(f"state.json: step {state.step!r}")
        with torch.no_grad():
            for name, p in named:
                p.copy_(weights[name])
        for name, p in named:
            optimizer.state[p] = {
                # AdamW keeps its step count on the CPU.
                field: tensors[f"{name}|{field}"].to("cpu" if field == "step" else device)
                for field in ADAMW_FIELDS
            }
        torch.set_rng_state(tensors["random|cpu"])
        if "random|device" in tensors and device.type != "cpu":
            torch.get_device_module(device).set_rng_state(tensors["random|device"])
    except (SafetensorError, OSError, TypeError, RuntimeError, KeyError) as exc:
        raise RunError(
            f"{path} is damaged: {exc}", f"delete it to go on from an older one: rm -r {path}"
        ) from exc
    return state
