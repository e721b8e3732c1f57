"""The fast way through a step: packed rows, fused products, flat optimizer, the pass captured as a graph."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from medqa.config import TrainConfig
from medqa.hardware.device import Device, is_out_of_memory
from medqa.hardware.graphs import capture, has_graphs
from medqa.hardware.group import Group, current_group
from medqa.model.batch import TokenisedRow
from medqa.model.decoder import PackedDecoder
from medqa.model.elementwise import LAUNCHED, compile_elementwise
from medqa.model.packed import PackedBatch, Slots, pack, slots_for
from medqa.train.engine import ADAMW_FIELDS, StepResult, Tensors
from medqa.train.schedule import deal
from medqa.train.together import whole_in_all

__all__ = ["PackedEngine"]

log = logging.getLogger(__name__)

# A capture costs about as much as four passes, and saves half of each later one.
MIN_PASSES = 16
# Compiling takes ten seconds or so, and saves a sixth: it pays after a minute of training.
MIN_COMPILED_TOKENS = 3_000_000
# Twice the same pass differs too: half precision adds up atomically, in another order each time.
MAX_GRAPH_ERROR = {"fp32": 1e-3, "bf16": 3e-2}


@dataclasses.dataclass
class _Captured:
    batch: PackedBatch
    replay: Callable[[], None]


class PackedEngine:
    """Computes steps with a PackedDecoder, and updates all weights as one tensor."""

    balanced: bool = True

    def __init__(
        self,
        decoder: PackedDecoder,
        config: TrainConfig,
        device: Device,
        notice: Callable[[str], None],
    ) -> None:
        self.decoder: PackedDecoder | None = decoder
        self._decoder, self._config, self._device = decoder, config, device
        self._notice = notice
        self.record: dict[str, str] = {"path": "fast"}
        self._adapter = decoder.adapter
        self._parameter = torch.nn.Parameter(self._adapter.weights)
        self._parameter.grad = self._adapter.grad
        self._optimizer = _adamw(self._parameter, config)
        self._sums = torch.zeros(2, device=device.torch_device)
        self._group = current_group()
        self._tried = False
        self._graphs = has_graphs(device) and decoder.kernel == "varlen"
        self._slots: Slots | None = None
        self._captured: _Captured | None = None
        self._ahead: tuple[tuple[int, ...], list[PackedBatch]] | None = None

    def expect(self, steps: Sequence[Sequence[TokenisedRow]], rows_a_pass: int) -> None:
        """See `Engine`."""
        self._slots, self._captured, self._ahead = None, None, None
        passes = [rows for step in steps for rows in _passes(step, rows_a_pass, self._group)]
        if self._graphs and not self._decoder.recompute and len(passes) >= MIN_PASSES:
            self._slots = slots_for(passes)
            self._compile(self._slots.num_tokens * len(passes))

    def _compile(self, num_tokens: int) -> None:
        """Compile what is elementwise, if it isn't yet and there is so much to do that it pays."""
        if self._decoder.elementwise is LAUNCHED and num_tokens > MIN_COMPILED_TOKENS and not self._tried:
            self._tried = True
            self._decoder.elementwise, reason = compile_elementwise(self._decoder.config, self._device)
            log.info("Rotation and activation: %s", reason)
            self.record["elementwise"] = reason

    def gradients(
        self, rows: Sequence[TokenisedRow], rows_a_pass: int, following: Sequence[TokenisedRow] = ()
    ) -> StepResult:
        """See `Engine`."""
        self._adapter.grad.zero_()
        self._sums.zero_()
        with whole_in_all(self._group):
            for batch in self._packed(rows, rows_a_pass):
                self._add(batch)
        self._group.sum_(self._sums)
        self._group.sum_(self._adapter.grad)
        grad = self._adapter.grad.mul_(self._adapter.factor)
        norm = torch.linalg.vector_norm(grad) / len(rows)
        grad.mul_((self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0) / len(rows))
        if following:  # while the device computes
            self._ahead = self._pack_ahead(following, rows_a_pass)
        loss, answer_nll, norm_value = torch.cat([self._sums, norm[None]]).tolist()
        return StepResult(loss / len(rows), answer_nll / len(rows), norm_value, sum(map(len, rows)))

    def _pack_ahead(
        self, rows: Sequence[TokenisedRow], rows_a_pass: int
    ) -> tuple[tuple[int, ...], list[PackedBatch]] | None:
        """Pack a step's passes before its turn; not if memory is short, as this step's gradient is whole."""
        try:
            return _key(rows), self._packed(rows, rows_a_pass)
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            return None

    def _packed(self, rows: Sequence[TokenisedRow], rows_a_pass: int) -> list[PackedBatch]:
        """Pack a step's passes, if that was not done ahead."""
        if self._ahead is not None and self._ahead[0] == _key(rows):
            return self._ahead[1]
        return [
            pack(part, self._config.answer_weight, self._slots).staged(self._device.torch_device)
            for part in _passes(rows, rows_a_pass, self._group)
        ]

    def _add(self, batch: PackedBatch) -> None:
        """Add the rows' summed loss and its gradient."""
        if self._slots is not None and self._captured is None:
            self._capture(batch, self._slots)
        if self._captured is None:
            self._pass(batch.to(self._device.torch_device))
            return
        batch.copy_into(self._captured.batch)
        self._captured.replay()

    def _pass(self, batch: PackedBatch) -> None:
        """One forward and backward pass; captured or not, the same."""
        loss, answer_nll = self._decoder.loss(batch)
        self._adapter.add_gradients(torch.autograd.grad(loss, self._adapter.leaves))
        self._sums += torch.stack([loss.detach(), answer_nll.detach()])

    def _capture(self, batch: PackedBatch, slots: Slots) -> None:
        """Capture a pass, and keep it only if its replay gives what the pass gave."""
        kept = self._adapter.grad.clone(), self._sums.clone()
        static = batch.to(self._device.torch_device)
        try:
            # One after the other: memory for both at once would halve the rows of a pass.
            plain = self._result(lambda: self._pass(static))
            replay = capture(self._device, lambda: self._pass(static))
            error = _apart(plain, self._result(replay))
            reason = (
                "" if error < MAX_GRAPH_ERROR[self._device.precision] else f"its result is off by {error:.1%}"
            )
        except RuntimeError as exc:
            if is_out_of_memory(exc):
                raise
            reason = str(exc).splitlines()[0]
        self._adapter.grad.copy_(kept[0])
        self._sums.copy_(kept[1])
        self.record["graph"] = reason or f"{slots.num_tokens:,} tokens a pass, replay off by {error:.0e}"
        if reason:
            self._slots, self._ahead = None, None
            self._notice(f"Each kernel is launched by itself, slower: a pass can't be a graph here: {reason}")
            return
        self._captured = _Captured(static, replay)
        log.info(
            "Passes are one graph of %s tokens and %s labels, launched at once (off by %.0e)",
            f"{slots.num_tokens:,}",
            f"{slots.num_labels:,}",
            error,
        )

    def _result(self, way: Callable[[], None]) -> torch.Tensor:
        """Return what a way leaves in sums and gradient."""
        self._adapter.grad.zero_()
        self._sums.zero_()
        way()
        return torch.cat([self._sums, self._adapter.grad])

    def update(self, rate: float) -> None:
        """See `Engine`."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._adapter.refresh()

    def discard(self) -> None:
        """See `Engine`."""
        self._slots, self._captured, self._ahead = None, None, None
        self._device.release_memory()

    def recompute(self) -> None:
        """See `Engine`."""
        self._decoder.recompute = True
        self._slots, self._captured, self._ahead = None, None, None

    def tensor_names(self) -> list[str]:
        """See `Engine`."""
        return list(self._adapter.named(self._adapter.weights))

    def tensors(self) -> tuple[Tensors, dict[str, Tensors]]:
        """See `Engine`."""
        state = self._optimizer.state[self._parameter]
        fields = {field: self._adapter.named(state[field]) for field in ADAMW_FIELDS if field != "step"}
        step = torch.as_tensor(state["step"])
        weights = self._adapter.named(self._adapter.weights)
        return weights, {
            name: {"step": step, **{field: values[name] for field, values in fields.items()}}
            for name in weights
        }

    def load(self, weights: Tensors, optimizer: dict[str, Tensors]) -> None:
        """See `Engine`."""
        for name, view in self._adapter.named(self._adapter.weights).items():
            view.copy_(weights[name])
        self._adapter.refresh()
        state: dict[str, torch.Tensor] = {}
        for field in ADAMW_FIELDS[1:]:
            state[field] = torch.zeros_like(self._adapter.weights)
            for name, view in self._adapter.named(state[field]).items():
                view.copy_(optimizer[name][field])
        step = next(iter(optimizer.values()))["step"]
        fused = self._optimizer.defaults["fused"]
        state["step"] = step.to(self._parameter.device if fused else "cpu", copy=True)
        self._optimizer.state[self._parameter] = state

    def scaler_state(self) -> dict[str, Any]:
        """See `Engine`: no scaler, the path takes no fp16."""
        return {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        """See `Engine`."""

    def finish(self) -> None:
        """See `Engine`."""
        self._captured = None
        self._adapter.store()


def _apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """Compare two results; the relative difference of sums or gradient, whichever is larger."""
    sums = ((second[:2] - first[:2]).abs() / first[:2].abs()).max()
    gradient = (second[2:] - first[2:]).norm() / first[2:].norm()
    # A NaN must not pass for a small number.
    return float(torch.stack([sums, gradient]).nan_to_num(nan=torch.inf).max())


def _key(rows: Sequence[TokenisedRow]) -> tuple[int, ...]:
    return tuple(map(id, rows))


def _passes(rows: Sequence[TokenisedRow], rows_a_pass: int, group: Group) -> list[list[TokenisedRow]]:
    """Deal a step's rows to the processes, and this one's to as few passes as it takes, alike in tokens."""
    own = [rows[index] for index in deal([len(row) for row in rows], group.size)[group.rank]]
    if not own:  # fewer rows than processes
        return []
    parts = deal([len(row) for row in own], -(-len(own) // rows_a_pass))
    return [[own[index] for index in part] for part in parts]


def _adamw(parameter: torch.nn.Parameter, config: TrainConfig) -> torch.optim.Optimizer:
    """Make AdamW as one kernel, where the device has it."""
    rate, decay = config.learning_rate, config.weight_decay
    try:
        return torch.optim.AdamW([parameter], lr=rate, weight_decay=decay, fused=True)
    except RuntimeError:  # the same update in a few kernels
        return torch.optim.AdamW([parameter], lr=rate, weight_decay=decay)
