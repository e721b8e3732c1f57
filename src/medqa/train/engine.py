"""What the loop asks of whatever computes a step, and the plain way to do it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from medqa.config import TrainConfig
from medqa.hardware.device import Device
from medqa.hardware.group import current_group
from medqa.hardware.memory import MemoryPlan, plan_memory
from medqa.model.batch import AnswerLoss, TokenisedRow, collate
from medqa.model.decoder import PackedDecoder
from medqa.model.lora import compute_context, recompute_activations, trainable_parameters
from medqa.train.together import own_passes, whole_in_all

__all__ = [
    "ADAMW_FIELDS",
    "Engine",
    "PlainEngine",
    "StepResult",
    "Tensors",
    "plan_passes",
]

ADAMW_FIELDS = ("step", "exp_avg", "exp_avg_sq")

# Packed passes hold about as many tokens as their rows on average; a little more, since rows are whole.
PACKED_SPREAD = 1.1

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class StepResult:
    """What a step's gradients came with.

    Attributes:
        loss: Mean loss of the rows, in nats.
        answer_nll: Mean negative log-likelihood of the letters, in nats.
        grad_norm: Global norm of the gradient of the mean loss, before it is clipped.
        num_tokens: Tokens of the rows, padding apart.
    """

    loss: float
    answer_nll: float
    grad_norm: float
    num_tokens: int


class Engine(Protocol):
    """Computes gradients and updates the adapter."""

    balanced: bool
    """Whether it wants batches of like size in tokens, rather than of rows of like length."""
    decoder: PackedDecoder | None
    """The packed way through the model, if it goes it."""
    record: dict[str, str]
    """Which way it goes and why, for run.json."""

    def gradients(
        self, rows: Sequence[TokenisedRow], rows_a_pass: int, following: Sequence[TokenisedRow] = ()
    ) -> StepResult:
        """Compute the clipped gradient of the mean loss over the rows.

        Args:
            rows: Rows of the step.
            rows_a_pass: Most rows of one forward pass.
            following: Rows of the step after it, which can be made ready meanwhile.

        Raises:
            RuntimeError: If memory runs out; `discard` makes it fit for another try.
        """

    def update(self, rate: float) -> None:
        """Take an optimizer step with the gradients at a learning rate, and drop them."""

    def discard(self) -> None:
        """Drop gradients and whatever memory can be given back."""

    def recompute(self) -> None:
        """From now on compute activations again in the backward pass, to save memory."""

    def expect(self, steps: Sequence[Sequence[TokenisedRow]], rows_a_pass: int) -> None:
        """Learn which rows are to come: batches of one shape can be captured once and replayed.

        Args:
            steps: Rows of every step.
            rows_a_pass: Most rows of one pass.
        """

    def tensor_names(self) -> list[str]:
        """Name the weights that are trained."""

    def tensors(self) -> tuple[Tensors, dict[str, Tensors]]:
        """Return weights by parameter name, and AdamW's state by parameter name and field."""

    def load(self, weights: Tensors, optimizer: dict[str, Tensors]) -> None:
        """Take over what `tensors` returned."""

    def scaler_state(self) -> dict[str, Any]:
        """Return the fp16 loss scaler's state; empty in other precisions."""

    def load_scaler(self, state: dict[str, Any]) -> None:
        """Take over what `scaler_state` returned."""

    def finish(self) -> None:
        """Leave the trained weights in the model."""


def plan_passes(
    rows: Sequence[TokenisedRow], config: TrainConfig, device: Device, model_config: Any, engine: Engine
) -> MemoryPlan:
    """Choose rows per pass: as set, or what fits into the free memory."""
    if config.micro_batch_size != "auto":
        size = min(config.micro_batch_size, config.batch_size)
        return MemoryPlan(size, False, "set by train.micro_batch_size")
    lengths = [len(row) for row in rows]
    tokens = math.ceil(PACKED_SPREAD * sum(lengths) / len(lengths)) if engine.balanced else max(lengths)
    return plan_memory(device, model_config, min(tokens, max(lengths)), config.batch_size)


class PlainEngine:
    """The model as transformers and PEFT run it, under autocast: any architecture, any device.

    The reference that every faster way is compared with.
    """

    balanced: bool = False
    decoder: PackedDecoder | None = None

    def __init__(self, model: Any, config: TrainConfig, device: Device, reason: str = "") -> None:
        """Make the optimizer.

        Args:
            model: PeftModel whose adapter is trained.
            config: How to train.
            device: Where.
            reason: Why not the fast way, for the record.
        """
        self.record: dict[str, str] = {"path": "plain", "reason": reason}

        self._model, self._config, self._device = model, config, device
        self._optimizer = torch.optim.AdamW(
            [p for _, p in trainable_parameters(model)],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self._loss = AnswerLoss(model)
        self._group = current_group()
        self._scaler = device.grad_scaler()

    def gradients(
        self, rows: Sequence[TokenisedRow], rows_a_pass: int, following: Sequence[TokenisedRow] = ()
    ) -> StepResult:
        """See `Engine`."""
        self._drop()  # those of passes that were only measured
        sums = torch.zeros(2, device=self._device.torch_device)
        parameters = [p for _, p in trainable_parameters(self._model)]
        with whole_in_all(self._group):
            for part in own_passes(rows, rows_a_pass, self._group):
                if part:
                    self._add(part, 1 / len(rows), sums)
                else:  # for its gradient of zero; and, sharded, the others need this process's weights
                    self._add(rows[:1], 0.0, torch.zeros_like(sums))
            flat = self._flat_gradient(parameters)
        self._exchange(parameters, flat, sums)
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        found = torch.cat([sums, norm.float()[None]]).tolist()
        num_tokens = sum(len(row) for row in rows)
        return StepResult(found[0] / len(rows), found[1] / len(rows), found[2], num_tokens)

    def _add(self, rows: Sequence[TokenisedRow], weight: float, sums: torch.Tensor) -> None:
        """One forward and backward pass."""
        batch = collate(rows, self._config.answer_weight).to(self._device.torch_device)
        with compute_context(self._model, self._device):
            loss, answer_nll = self._loss(
                batch.input_ids_BT, batch.position_N, batch.label_N, batch.weight_N, batch.is_answer_N
            )
        self._scaler.scale(loss * weight).backward()
        sums += torch.stack([loss.detach(), answer_nll])

    def _flat_gradient(self, parameters: list[torch.nn.Parameter]) -> torch.Tensor | None:
        """Put the gradients behind each other, to be added up as one message; None for one process."""
        if self._group.size == 1:
            return None
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])

    def _exchange(
        self, parameters: list[torch.nn.Parameter], flat: torch.Tensor | None, sums: torch.Tensor
    ) -> None:
        """Add up gradients and sums over all processes."""
        if flat is None:
            return
        self._group.sum_(sums)
        self._group.sum_(flat)
        start = 0
        for p in parameters:
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def update(self, rate: float) -> None:
        """See `Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)

    def discard(self) -> None:
        """See `Engine`."""
        self._drop()
        self._device.release_memory()

    def _drop(self) -> None:
        """Drop gradients that no update follows; a scaler that has unscaled once would want one."""
        self._optimizer.zero_grad(set_to_none=True)
        state, self._scaler = self._scaler.state_dict(), self._device.grad_scaler()
        self.load_scaler(state)

    def recompute(self) -> None:
        """See `Engine`."""
        recompute_activations(self._model)

    def expect(self, steps: Sequence[Sequence[TokenisedRow]], rows_a_pass: int) -> None:
        """See `Engine`: nothing to prepare."""

    def tensor_names(self) -> list[str]:
        """See `Engine`."""
        return [name for name, _ in trainable_parameters(self._model)]

    def tensors(self) -> tuple[Tensors, dict[str, Tensors]]:
        """See `Engine`."""
        named = trainable_parameters(self._model)
        return (
            {name: p.detach() for name, p in named},
            {
                name: {field: torch.as_tensor(value) for field, value in self._optimizer.state[p].items()}
                for name, p in named
            },
        )

    def load(self, weights: Tensors, optimizer: dict[str, Tensors]) -> None:
        """See `Engine`."""
        for name, p in trainable_parameters(self._model):
            p.data.copy_(weights[name])
            self._optimizer.state[p] = {
                # AdamW keeps its step count on the CPU, one for each parameter.
                field: optimizer[name][field].to("cpu" if field == "step" else p.device, copy=True)
                for field in ADAMW_FIELDS
            }

    def scaler_state(self) -> dict[str, Any]:
        """See `Engine`."""
        return dict(self._scaler.state_dict())

    def load_scaler(self, state: dict[str, Any]) -> None:
        """See `Engine`."""
        if state:
            self._scaler.load_state_dict(state)

    def finish(self) -> None:
        """See `Engine`: the model holds them all the time."""
