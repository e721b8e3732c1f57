"""Checkpoints: everything that training goes on from, in safetensors and JSON, never pickle.

checkpoints/step-000120/
    adapter.safetensors    fp32 adapter weights
    optimizer.safetensors  AdamW's moments and step counts, and the random states
    state.json             step, rows a forward pass, sums for the metrics, and the checksums of all of it
"""

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medqa.errors import RunError, machine_fault
from medqa.files import beside, file_sha256, seal, unsealed, write_folder, write_json
from medqa.hardware.device import is_out_of_memory
from medqa.train.engine import ADAMW_FIELDS, Engine, Tensors

__all__ = ["TrainState", "load_checkpoint", "newest_checkpoint", "save_checkpoint"]

KEEP = 2
_TENSORS = ("adapter.safetensors", "optimizer.safetensors")


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
    num_steps: int = 0
    """Steps of the whole run."""
    balanced: bool = False
    """How rows were grouped into batches; see `plan_epoch`."""
    scaler: dict[str, float] = dataclasses.field(default_factory=dict)
    """State of the fp16 loss scaler; empty in other precisions."""


def newest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint with the highest step, or None."""
    return max(folder.glob("step-*"), default=None)


def save_checkpoint(folder: Path, engine: Engine, device: torch.device, state: TrainState) -> Path:
    """Write a checkpoint; it appears under its name only when it is whole. Keeps the newest two."""
    path = folder / f"step-{state.step:06d}"
    weights, optimizer = engine.tensors()
    with write_folder(path) as part:
        save_file(_on_host(weights), part / "adapter.safetensors")
        tensors = {f"{name}|{field}": value for name, of in optimizer.items() for field, value in of.items()}
        tensors["random|cpu"] = torch.get_rng_state()
        if device.type != "cpu":
            tensors["random|device"] = torch.get_device_module(device).get_rng_state()
        save_file(_on_host(tensors), part / "optimizer.safetensors")
        files = {name: file_sha256(part / name) for name in _TENSORS}
        write_json(part / "state.json", seal({"state": dataclasses.asdict(state), "files": files}))
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        # Hidden first: killed in between, a half deleted one must not bear its name.
        shutil.rmtree(old.replace(beside(old)))
    return path


def _on_host(tensors: Tensors) -> Tensors:
    """Copy tensors, some of which are views into one and the same, which safetensors refuses."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }


def load_checkpoint(path: Path, engine: Engine, device: torch.device) -> TrainState:
    """Put a checkpoint's tensors into the engine.

    Raises:
        RunError: If the checkpoint is damaged or of another adapter.
    """
    try:
        written = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if "sha256" in written:
            written = unsealed(written)
            for name in _TENSORS:
                if file_sha256(path / name) != written["files"][name]:
                    raise ValueError(f"{name}: its checksum differs")
        else:  # of the version before, which had no checksums
            written = {"state": written}
        weights, tensors = (load_file(path / name) for name in _TENSORS)
        state = TrainState(**written["state"])
        names = set(engine.tensor_names())
        expected = {f"{name}|{field}" for name in names for field in ADAMW_FIELDS} | {"random|cpu"}
        if set(weights) != names or not expected <= set(tensors):
            raise RunError(f"{path} is a checkpoint of another adapter", "resume with the run's own settings")
        optimizer = {name: {field: tensors[f"{name}|{field}"] for field in ADAMW_FIELDS} for name in names}
        engine.load(weights, optimizer)
        torch.set_rng_state(tensors["random|cpu"])
        if "random|device" in tensors and device.type != "cpu":
            torch.get_device_module(device).set_rng_state(tensors["random|device"])
    except (
        *(SafetensorError, OSError, TypeError, ValueError, RuntimeError, KeyError, AttributeError),
    ) as exc:
        if is_out_of_memory(exc) or machine_fault(exc):
            raise  # the checkpoint may be whole
        raise RunError(
            f"{path} is damaged: {exc}", f"delete it to go on from an older one: rm -r {path}"
        ) from exc
    return state
