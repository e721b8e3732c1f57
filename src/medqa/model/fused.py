"""The products of a transformer block with a low-rank adapter, each in as few kernels as stock torch allows.

Every function here equals a plain composition of torch operations; the tests compare the two. None
waits for the device or depends on values in it, so that a step made of them can be captured as a graph.

Shape legend: N tokens, I and O width into and out of a layer, R summed ranks of the adapters that share
its input, H heads, E width of a head, M labelled tokens, D width of the hidden state, V vocabulary,
C labelled tokens of one chunk.
"""

from typing import Any

import torch
from torch.nn.functional import linear

from medqa.model.elementwise import LAUNCHED, Elementwise

__all__ = ["adapted_linear", "rotate", "swiglu", "weighted_nll"]

# 512 rows of logits of a vocabulary of 150,000 are 0.3 GiB in fp32.
CHUNK_LABELS = 512


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
    ) -> torch.Tensor:
        h_NR = x_NI @ a_RI.T
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, h_NR)
        return linear(x_NI, weight_OI, bias_O).addmm_(h_NR, b_OR.T)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [grad_NO] = grads
        x_NI, weight_OI, a_RI, b_OR, h_NR = ctx.saved_tensors
        grad_h_NR = grad_NO @ b_OR
        grad_x = (grad_NO @ weight_OI).addmm_(grad_h_NR, a_RI) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_h_NR.T @ x_NI, grad_NO.T @ h_NR


def adapted_linear(
    x_NI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    a_RI: torch.Tensor,
    b_OR: torch.Tensor,
) -> torch.Tensor:
    """Compute x W' + bias + (x A') B' with a frozen W.

    Several layers with one input are one call: their weights stacked along O, their A factors along
    R, and their B factors on the diagonal of b_OR, times their scale.

    Source:
        Hu et al. 2021, equation 3. Not stored: anything of size (N, O).
    """
    out: torch.Tensor = _AdaptedLinear.apply(x_NI, weight_OI, bias_O, a_RI, b_OR)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_NHE: torch.Tensor,
        cos_N1E: torch.Tensor,
        sin_N1E: torch.Tensor,
        elementwise: Elementwise,
    ) -> torch.Tensor:
        ctx.save_for_backward(cos_N1E, sin_N1E)
        ctx.elementwise = elementwise
        return elementwise.rotate(x_NHE, cos_N1E, sin_N1E)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_N1E, sin_N1E = ctx.saved_tensors
        return ctx.elementwise.rotate_back(grads[0], cos_N1E, sin_N1E), None, None, None


def rotate(
    x_NHE: torch.Tensor, cos_N1E: torch.Tensor, sin_N1E: torch.Tensor, elementwise: Elementwise = LAUNCHED
) -> torch.Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle: rotary position embedding.

    Shapes:
        x_NHE: (N, H, E); cos_N1E, sin_N1E: (N, 1, E / 2); returns (N, H, E).

    Source:
        Su et al. 2021, in the half-split order of Llama's and Qwen's weights.
    """
    out: torch.Tensor = _Rotate.apply(x_NHE, cos_N1E, sin_N1E, elementwise)
    return out


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both_NI: torch.Tensor, elementwise: Elementwise) -> torch.Tensor:
        ctx.save_for_backward(both_NI)
        ctx.elementwise = elementwise
        return elementwise.swiglu(both_NI)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        [both_NI] = ctx.saved_tensors
        return ctx.elementwise.swiglu_back(both_NI, grads[0]), None


def swiglu(both_NI: torch.Tensor, elementwise: Elementwise = LAUNCHED) -> torch.Tensor:
    """Compute silu(gate) * up from the two side by side.

    Keeps only its input for the backward pass.

    Shapes:
        both_NI: (N, 2 I); returns (N, I).
    """
    out: torch.Tensor = _SwiGlu.apply(both_NI, elementwise)
    return out


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: torch.Tensor,
        head_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        label_M: torch.Tensor,
        weight_M: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nll_M = torch.empty(len(label_M), dtype=torch.float32, device=hidden_MD.device)
        grad_MD = torch.empty_like(hidden_MD)
        for start in range(0, len(label_M), CHUNK_LABELS):
            part = slice(start, start + CHUNK_LABELS)
            logits_CV = linear(hidden_MD[part], head_VD, bias_V)
            log_CV = torch.log_softmax(logits_CV, -1, dtype=torch.float32)
            label_C1 = label_M[part, None]
            torch.neg(log_CV.gather(1, label_C1)[:, 0], out=nll_M[part])
            # Gradient of the weighted sum by the logits, (softmax - one-hot) * weight, in the same memory.
            log_CV.exp_().scatter_add_(1, label_C1, torch.full_like(label_C1, -1, dtype=torch.float32))
            torch.mul(log_CV, weight_M[part, None], out=logits_CV)
            torch.mm(logits_CV, head_VD, out=grad_MD[part])
        ctx.save_for_backward(grad_MD)
        ctx.mark_non_differentiable(nll_M)
        return (nll_M * weight_M).sum(), nll_M

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [grad_MD] = ctx.saved_tensors
        return grad_MD * grads[0], None, None, None, None


def weighted_nll(
    hidden_MD: torch.Tensor,
    head_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    label_M: torch.Tensor,
    weight_M: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the weighed negative log-likelihoods of the labels under a frozen head.

    The gradient is made together with the loss, a chunk of labels at a time: logits of all labels
    would be the largest tensor of the step.

    Shapes:
        hidden_MD: (M, D); head_VD: (V, D); label_M, weight_M: (M,).

    Returns:
        The weighed sum, which can be differentiated, and the likelihoods (M,), which can't.

    Source:
        The idea of Hsu et al. 2024 (Liger kernel), in plain torch and without reading counts back.
    """
    out: tuple[torch.Tensor, torch.Tensor] = _WeightedNll.apply(hidden_MD, head_VD, bias_V, label_M, weight_M)
    return out
