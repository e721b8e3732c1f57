"""Check on a few rows that the packed way computes what the plain one computes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from medqa.hardware.device import Device
from medqa.model.batch import AnswerLoss, TokenisedRow, collate
from medqa.model.decoder import PackedDecoder
from medqa.model.lora import compute_context, trainable_parameters
from medqa.model.packed import pack

__all__ = ["Parity", "check_parity"]

# Loss: relative. Gradient: norm of the difference by the norm. Bounds by precision; see tests/model.
BOUNDS = {"fp32": (1e-4, 1e-3), "bf16": (1e-2, 1e-1)}


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far two ways of computing the same differ.

    Attributes:
        loss_error: Difference of the losses, by the plain one.
        gradient_error: Norm of the difference of the gradients, by the norm of the plain one.
        equal: Whether both are within the bounds of the precision.
    """

    loss_error: float
    gradient_error: float
    equal: bool

    def __str__(self) -> str:
        return f"loss off by {self.loss_error:.0e}, gradient by {self.gradient_error:.0e}"


def check_parity(
    model: Any,
    decoder: PackedDecoder,
    rows: Sequence[TokenisedRow],
    answer_weight: float,
    device: Device,
) -> Parity:
    """Compare loss and gradient on two rows, with random B factors in place of a fresh adapter's zeros.

    The adapter is left as it was.

    Args:
        model: PeftModel.
        decoder: The packed way through it.
        rows: Training rows; two of them are taken.
        answer_weight: Share of the loss on the letter.
        device: Where the model is.
    """
    by_length = sorted(rows, key=len)
    some = [by_length[0], by_length[len(rows) // 2]]  # few: on a CPU a long row takes seconds
    named = trainable_parameters(model)
    kept = [p.detach().clone() for _, p in named]
    generator = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for name, p in named:
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
        decoder.adapter.load()
        plain_loss, plain = _plain(model, some, answer_weight, device)
        packed_loss, packed = _packed(decoder, some, answer_weight, device)
    finally:
        with torch.no_grad():
            for (_, p), value in zip(named, kept, strict=True):
                p.copy_(value)
        decoder.adapter.load()
        model.train(was_training)
    apart = sum(float((packed[name] - grad).square().sum()) for name, grad in plain.items())
    whole = sum(float(grad.square().sum()) for grad in plain.values())
    loss_error = abs(packed_loss - plain_loss) / abs(plain_loss)
    gradient_error = (apart / whole) ** 0.5 if whole else float("inf")
    loss_bound, gradient_bound = BOUNDS[device.precision]
    return Parity(loss_error, gradient_error, loss_error < loss_bound and gradient_error < gradient_bound)


def _plain(
    model: Any, rows: Sequence[TokenisedRow], answer_weight: float, device: Device
) -> tuple[float, dict[str, torch.Tensor]]:
    batch = collate(rows, answer_weight).to(device.torch_device)
    named = trainable_parameters(model)
    with compute_context(model, device):
        loss, _ = AnswerLoss(model)(
            batch.input_ids_BT, batch.position_N, batch.label_N, batch.weight_N, batch.is_answer_N
        )
    grads = torch.autograd.grad(loss, [p for _, p in named])
    return float(loss.detach()), {name: grad for (name, _), grad in zip(named, grads, strict=True)}


def _packed(
    decoder: PackedDecoder, rows: Sequence[TokenisedRow], answer_weight: float, device: Device
) -> tuple[float, dict[str, torch.Tensor]]:
    adapter = decoder.adapter
    loss, _ = decoder.loss(pack(rows, answer_weight).to(device.torch_device))
    adapter.grad.zero_()
    adapter.add_gradients(torch.autograd.grad(loss, adapter.leaves))
    grads = adapter.named(adapter.grad * adapter.factor)
    adapter.grad.zero_()
    return float(loss.detach()), grads
