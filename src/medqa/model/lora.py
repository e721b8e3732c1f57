"""Attach a low-rank adapter, load one, and count what it trains."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from medqa.config import LoraConfig
from medqa.errors import ModelError, RunError, machine_fault
from medqa.files import read_json
from medqa.hardware.device import Device

__all__ = [
    "attach_adapter",
    "causal_lm",
    "compute_context",
    "load_adapter",
    "recompute_activations",
    "trainable_parameters",
    "without_adapter",
]


def attach_adapter(model: Any, config: LoraConfig, seed: int) -> Any:
    """Add a fresh fp32 adapter to a frozen model.

    Returns:
        A PeftModel; its first output equals the base model's, since the B factors start at zero.

    Raises:
        ModelError: If a target layer does not exist.
    """
    import peft

    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    blocks = None
    if config.last_blocks is not None:
        num_blocks = model.config.num_hidden_layers
        blocks = list(range(max(0, num_blocks - config.last_blocks), num_blocks))
        # PEFT takes a choice of blocks only together with names.
        targets = _linear_names(model) if isinstance(targets, str) else targets
    lora = peft.LoraConfig(
        layers_to_transform=blocks,
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
    )
    torch.manual_seed(seed)
    try:
        with _ignore_peft_warning():
            tuned = peft.get_peft_model(model, lora, autocast_adapter_dtype=True)
    except ValueError as exc:
        raise ModelError(f"train.lora.targets: {exc}", "all-linear fits every model") from exc
    if hasattr(tuned.get_base_model().get_output_embeddings(), "base_layer"):
        raise ModelError(
            f"train.lora.targets: {config.targets!r} adapts the head", "adapt the blocks; all-linear does"
        )
    return tuned


@contextlib.contextmanager
def _ignore_peft_warning() -> Iterator[None]:
    """Silence the use of names that newer transformers has renamed; the oldest allowed has only these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield


def _linear_names(model: Any) -> list[str]:
    """Name the linear layers inside the transformer blocks."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, m in model.get_decoder().named_modules()
            if isinstance(m, torch.nn.Linear)
        }
    )


def load_adapter(model: Any, folder: Path, device: Device) -> Any:
    """Put a saved adapter on a frozen model.

    Raises:
        ModelError: If the adapter does not fit the model.
    """
    import peft

    _refuse_unusual(folder / "adapter_config.json", peft.LoraConfig(task_type="CAUSAL_LM").to_dict())
    try:
        with _ignore_peft_warning():
            tuned = peft.PeftModel.from_pretrained(
                model, str(folder), torch_device=str(device.torch_device), autocast_adapter_dtype=True
            )
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as exc:
        if fault := machine_fault(exc):
            raise fault from exc
        raise ModelError(
            f"the adapter {folder} does not fit this base model: {str(exc).splitlines()[0]}",
            "use the base model that the adapter was trained on",
        ) from exc
    tuned.eval()
    return tuned


# What `attach_adapter` chooses, and what says where an adapter comes from.
_CHOSEN = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform"),
    *("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"),
)


def _refuse_unusual(file: Path, usual: dict[str, Any]) -> None:
    """Refuse settings that this program never writes: some make PEFT read other files, pickles among them."""
    hint = "copy the run again, or train again; if it was so, don't use it"
    try:
        settings = read_json(file)
    except RunError as exc:
        raise ModelError(exc.message, hint) from exc
    for key, value in settings.items():
        # Keys of another version of PEFT: off, or as here.
        if key not in _CHOSEN and value and value != usual.get(key):
            raise ModelError(f"{file}: {key} is {value!r}, which this program does not write", hint)


def causal_lm(model: Any) -> Any:
    """Return the transformers model in a PeftModel; a merged model is one already."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def compute_context(model: Any, device: Device) -> Iterator[None]:
    """Run in the device's precision: base in it, adapter fp32 and cast inside the product.

    PEFT would cast activations up to the adapter's fp32 otherwise.
    """
    from peft.helpers import disable_input_dtype_casting

    with device.autocast(), disable_input_dtype_casting(model):
        yield


@contextlib.contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Switch the adapter off: the model is its own base."""
    with model.disable_adapter():
        yield


def recompute_activations(model: Any) -> None:
    """Keep only each block's input for the backward pass and compute the rest again there."""
    with _ignore_peft_warning():
        model.get_base_model().gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )


def trainable_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Name the parameters that training changes, in a fixed order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
