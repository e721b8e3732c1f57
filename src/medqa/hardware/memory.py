"""Plan what fits into a device's memory: rows per pass, and whether activations are computed again."""

import dataclasses
from typing import Any, NamedTuple

from medqa.config import RunConfig
from medqa.hardware.device import Device

__all__ = ["MemoryPlan", "Widths", "default_batch", "plan_memory", "row_gib"]

# Share of the free memory that a plan may use; the rest is for what it does not foresee.
USABLE_SHARE = 0.8
# Values kept for the backward pass, per token and block, in units of the hidden and of the
# intermediate width. Fitted to a 1.5B Qwen2 on an H100: 28.0 GiB at 16 rows of up to 512 tokens.
KEPT_HIDDEN, KEPT_INTERMEDIATE = 12, 4


class Widths(NamedTuple):
    """What a model's memory goes by."""

    hidden: int
    intermediate: int
    num_blocks: int


# The default base model, for what can be said before any model is loaded.
QWEN3_WIDTHS, QWEN3_PARAMETERS = Widths(2048, 6144, 28), 1.72e9


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Rows per pass and whether to recompute activations, with the reason."""

    rows: int
    checkpointing: bool
    reason: str


def plan_memory(device: Device, model_config: Any, longest_tokens: int, batch_size: int) -> MemoryPlan:
    """Choose rows per pass from the free memory; recompute activations only where one row won't fit.

    An estimate: training still halves the pass if memory runs out all the same.

    Args:
        device: Where the model is already loaded.
        model_config: transformers configuration with the model's widths.
        longest_tokens: Length of the longest row.
        batch_size: Rows per optimizer step.
    """
    return _plan(device, _widths(model_config), longest_tokens, batch_size, device.free_memory_gib())


def row_gib(model_config: Any, num_tokens: int, precision: str) -> float:
    """Estimate what a row keeps for the backward pass, in GiB.

    Args:
        model_config: transformers configuration with the model's widths.
        num_tokens: Length of the row.
        precision: What the device computes in: "bf16", "fp16" or "fp32".
    """
    return _row_gib(_widths(model_config), num_tokens, precision)


def _widths(model_config: Any) -> Widths:
    return Widths(
        model_config.hidden_size,
        getattr(model_config, "intermediate_size", 4 * model_config.hidden_size),
        model_config.num_hidden_layers,
    )


def _row_gib(widths: Widths, num_tokens: int, precision: str) -> float:
    kept = KEPT_HIDDEN * widths.hidden + KEPT_INTERMEDIATE * widths.intermediate
    return widths.num_blocks * kept * (4 if precision == "fp32" else 2) * num_tokens / 2**30


def _plan(
    device: Device, widths: Widths, longest_tokens: int, batch_size: int, free: float | None
) -> MemoryPlan:
    if free is None:
        return MemoryPlan(batch_size, False, "the device doesn't tell its free memory")
    a_row = _row_gib(widths, longest_tokens, device.precision)
    rows = int(USABLE_SHARE * free / a_row)
    reason = f"{free:.1f} GiB free, about {a_row:.2f} GiB a row of {longest_tokens} tokens"
    if rows < 1:
        return MemoryPlan(1, True, f"{reason}: activations are recomputed in the backward pass")
    return MemoryPlan(min(rows, batch_size), False, reason)


def default_batch(device: Device) -> str:
    """Say what the default recipe would do on this device: rows per pass for Qwen3-1.7B, and why."""
    free = device.free_memory_gib()
    weights_gib = QWEN3_PARAMETERS * (2 if device.precision == "bf16" else 4) / 2**30
    if free is not None and free < weights_gib:
        return f"none: Qwen3-1.7B's weights take {weights_gib:.1f} GiB, {free:.1f} GiB are free"
    left = None if free is None else free - weights_gib
    plan = _plan(device, QWEN3_WIDTHS, 512, RunConfig().train.batch_size, left)
    again = ", activations recomputed" if plan.checkpointing else ""
    return f"{plan.rows} rows a pass for Qwen3-1.7B{again}: {plan.reason}"
