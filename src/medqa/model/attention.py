"""Causal attention over rows laid end to end, each looking at itself alone.

Shape legend: N tokens, H query heads, G key and value heads, E width of a head, S rows.
"""

from typing import Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from medqa.model.packed import PackedRows

__all__ = ["AttentionKernel", "attend", "choose_kernel"]

AttentionKernel = Literal["varlen", "row by row"]

# bf16 keeps 8 bits; two kernels that add up in another order differ by a few of the last.
MAX_ERROR = 2e-2


def attend(
    q_NHE: torch.Tensor,
    k_NGE: torch.Tensor,
    v_NGE: torch.Tensor,
    batch: PackedRows,
    kernel: AttentionKernel,
) -> torch.Tensor:
    """Attend within each row.

    Args:
        q_NHE: Queries, rotated.
        k_NGE: Keys, rotated; each serves H / G query heads.
        v_NGE: Values.
        batch: Where the rows are.
        kernel: "varlen" is one kernel for all rows, and can be captured; "row by row" runs everywhere.

    Shapes:
        returns: (N, H, E).
    """
    if kernel == "varlen":
        # What torch's own nested tensors call; its public wrapper came with torch 2.10 only.
        out: torch.Tensor = torch.ops.aten._flash_attention_forward(
            q_NHE, k_NGE, v_NGE, batch.bound_S, batch.bound_S, batch.longest, batch.longest, 0.0, True, False
        )[0]
        return out
    sizes = [stop - start for start, stop in zip(batch.bounds, batch.bounds[1:], strict=False)]
    heads_first = (x.transpose(0, 1)[None].split(sizes, 2) for x in (q_NHE, k_NGE, v_NGE))
    grouped = q_NHE.shape[1] != k_NGE.shape[1]
    rows = [
        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        for q, k, v in zip(*heads_first, strict=True)
        if q.shape[2]
    ]
    return torch.cat(rows, 2)[0].transpose(0, 1)


def choose_kernel(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> tuple[AttentionKernel, str]:
    """Take the one kernel for all rows where it is there and right, forward and backward.

    Args:
        device: Where the model is.
        dtype: Precision of its activations.
        shape: H, G and E.

    Returns:
        The kernel, and why.
    """
    if device.type == "cpu" or dtype == torch.float32:
        return "row by row", "flash attention needs an accelerator and half precision"
    H, G, E = shape
    generator = torch.Generator().manual_seed(0)
    bounds = (0, 5, 5, 40, 64)
    bound_S = torch.tensor(bounds, dtype=torch.int32, device=device)
    empty = torch.empty(0, device=device)
    batch = PackedRows(empty, empty, bound_S, empty, longest=35, bounds=bounds)
    inputs = [torch.randn(64, heads, E, generator=generator) for heads in (H, G, G)]
    upstream = torch.randn(64, H, E, generator=generator)
    results = []
    try:
        kernels: tuple[AttentionKernel, ...] = ("varlen", "row by row")
        for kernel in kernels:
            leaves = [x.to(device, dtype).requires_grad_() for x in inputs]
            q, k, v = leaves
            out = attend(q, k, v, batch, kernel)
            grads = torch.autograd.grad(out, leaves, upstream.to(device, dtype))
            results.append([x.detach().float() for x in (out, *grads)])
        error = max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as exc:
        return (
            "row by row",
            f"flash attention over rows of any length does not run here: {str(exc).splitlines()[0]}",
        )
    if not error < MAX_ERROR:
        return "row by row", f"flash attention over rows of any length is off by {error:.1%} here"
    return "varlen", f"flash attention over rows of any length, checked here: off by {error:.1%}"
