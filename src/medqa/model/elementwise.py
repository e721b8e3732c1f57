"""Rotation and activation, launched operation by operation or compiled into one kernel each.

Compiling takes seconds and saves about a sixth of a step on a large GPU: for long jobs only.

Shape legend: N tokens, H heads, E width of a head, I width of the activation.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import silu

from medqa.hardware.device import Device

__all__ = ["LAUNCHED", "Elementwise", "compile_elementwise"]

# Norm of the difference by the norm; half precision rounds once more where nothing is compiled.
MAX_ERROR = {"fp32": 1e-5, "bf16": 1e-2}

Operation = Callable[..., torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """One way to run the operations that are neither products nor attention.

    Attributes:
        rotate: (x_NHE, cos_N1E, sin_N1E) turned by its angles.
        rotate_back: The same, turned back: its gradient.
        swiglu: both_NI, gate and up side by side, to silu(gate) * up.
        swiglu_back: (both_NI, grad_NI) to the gradient by both.
    """

    rotate: Operation
    rotate_back: Operation
    swiglu: Operation
    swiglu_back: Operation


def _turn(x_NHE: torch.Tensor, cos_N1E: torch.Tensor, sin_N1E: torch.Tensor, sign: int) -> torch.Tensor:
    x1, x2 = x_NHE.chunk(2, -1)
    out_NHE = torch.empty_like(x_NHE, memory_format=torch.contiguous_format)
    out1, out2 = out_NHE.chunk(2, -1)
    torch.mul(x1, cos_N1E, out=out1)
    out1.addcmul_(x2, sin_N1E, value=-sign)
    torch.mul(x2, cos_N1E, out=out2)
    out2.addcmul_(x1, sin_N1E, value=sign)
    return out_NHE


def _swiglu(both_NI: torch.Tensor) -> torch.Tensor:
    gate_NI, up_NI = both_NI.chunk(2, -1)
    return silu(gate_NI).mul_(up_NI)


def _swiglu_back(both_NI: torch.Tensor, grad_NI: torch.Tensor) -> torch.Tensor:
    gate_NI, up_NI = both_NI.chunk(2, -1)
    grad_both_NI = torch.empty_like(both_NI)
    grad_gate_NI, grad_up_NI = grad_both_NI.chunk(2, -1)
    torch.ops.aten.silu_backward.grad_input(grad_NI * up_NI, gate_NI, grad_input=grad_gate_NI)
    torch.mul(silu(gate_NI), grad_NI, out=grad_up_NI)
    return grad_both_NI


LAUNCHED = Elementwise(
    lambda x, cos, sin: _turn(x, cos, sin, 1),
    lambda x, cos, sin: _turn(x, cos, sin, -1),
    _swiglu,
    _swiglu_back,
)


def _rotate_whole(x_NHE: torch.Tensor, cos_N1E: torch.Tensor, sin_N1E: torch.Tensor) -> torch.Tensor:
    x1, x2 = x_NHE.chunk(2, -1)
    return torch.cat([x1 * cos_N1E - x2 * sin_N1E, x2 * cos_N1E + x1 * sin_N1E], -1)


def _rotate_back_whole(x_NHE: torch.Tensor, cos_N1E: torch.Tensor, sin_N1E: torch.Tensor) -> torch.Tensor:
    return _rotate_whole(x_NHE, cos_N1E, -sin_N1E)


def _swiglu_whole(both_NI: torch.Tensor) -> torch.Tensor:
    gate_NI, up_NI = both_NI.chunk(2, -1)
    return silu(gate_NI) * up_NI


def _swiglu_back_whole(both_NI: torch.Tensor, grad_NI: torch.Tensor) -> torch.Tensor:
    gate_NI, up_NI = both_NI.chunk(2, -1)
    sigmoid_NI = gate_NI.sigmoid()
    grad_gate_NI = grad_NI * up_NI * sigmoid_NI * (1 + gate_NI * (1 - sigmoid_NI))
    return torch.cat([grad_gate_NI, grad_NI * gate_NI * sigmoid_NI], -1)


def compile_elementwise(model_config: Any, device: Device) -> tuple[Elementwise, str]:
    """Compile each operation, for any number of tokens, and keep the result only if it is right.

    Args:
        model_config: transformers configuration with the model's widths.
        device: Where the model is.

    Returns:
        The compiled operations, or the launched ones, and why.
    """
    start = time.monotonic()
    plain = (_rotate_whole, _rotate_back_whole, _swiglu_whole, _swiglu_back_whole)
    try:
        num_heads, inner = model_config.num_attention_heads, model_config.intermediate_size
        width = getattr(model_config, "head_dim", None) or model_config.hidden_size // num_heads
        heads = (num_heads, model_config.num_key_value_heads, width)
        compiled = Elementwise(*map(torch.compile, plain))
        error = max(_error(compiled, device, heads, inner, num_tokens) for num_tokens in (96, 160))
    except Exception as exc:  # noqa: BLE001 - whatever a compiler or its missing parts raise
        return LAUNCHED, f"they can't be compiled here: {str(exc).strip().splitlines()[0]}"
    if not error < MAX_ERROR.get(device.precision, 0.0):
        return LAUNCHED, f"compiled, they are off by {error:.1%} here"
    return compiled, f"compiled in {time.monotonic() - start:.0f} s, off by {error:.0e}"


def _error(
    compiled: Elementwise,
    device: Device,
    heads: tuple[int, int, int],
    inner: int,
    num_tokens: int,
) -> float:
    """Run every operation on the shapes that a model has; the largest relative difference."""
    generator = torch.Generator().manual_seed(num_tokens)

    def randn(*shape: int) -> Any:
        x = torch.randn(num_tokens, *shape, generator=generator)
        x = x.to(device.torch_device, device.weight_dtype)
        torch._dynamo.mark_dynamic(x, 0)
        return x

    num_heads, num_kv_heads, width = heads
    wide = randn((num_heads + 2 * num_kv_heads) * width)
    cos, sin = randn(1, width // 2), randn(1, width // 2)
    cases: list[tuple[str, tuple[torch.Tensor, ...]]] = []
    for number in (num_heads, num_kv_heads):
        # Queries and keys are views into one product, or what a norm made of them; gradients are whole.
        view = wide[:, : number * width].unflatten(-1, (number, width))
        torch._dynamo.mark_dynamic(view, 0)
        whole = randn(number, width)
        cases += [("rotate", (x, cos, sin)) for x in (view, whole)]
        cases.append(("rotate_back", (whole, cos, sin)))
    both = randn(2 * inner)
    cases += [("swiglu", (both,)), ("swiglu_back", (both, randn(inner)))]
    errors = []
    with torch.no_grad():  # as where they are used, or they would be compiled again there
        for name, inputs in cases:
            ours, expected = (getattr(way, name)(*inputs).float() for way in (compiled, LAUNCHED))
            errors.append((ours - expected).norm() / expected.norm())
    return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())
