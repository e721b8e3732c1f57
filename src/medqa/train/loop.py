"""The optimisation loop: batches in, a tuned adapter out. Decides nothing about files or names."""

import dataclasses
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from medqa.config import TrainConfig
from medqa.errors import TrainingError
from medqa.files import write_text
from medqa.hardware.device import Device, MemoryPlan, is_out_of_memory, plan_memory
from medqa.model.batch import AnswerLoss, TokenisedRow, collate
from medqa.model.lora import compute_context, recompute_activations, trainable_parameters
from medqa.progress import track
from medqa.train.checkpoint import TrainState, load_checkpoint, newest_checkpoint, save_checkpoint
from medqa.train.schedule import learning_rate, plan_steps

__all__ = ["train_adapter"]

log = logging.getLogger(__name__)

# The loss scaler starts high and halves at each overflow: a dozen skips are its normal start.
MIN_SKIPPED, MAX_SKIPPED_SHARE = 20, 0.02


def train_adapter(
    model: Any,
    rows: Sequence[TokenisedRow],
    config: TrainConfig,
    device: Device,
    folder: Path,
    notice: Callable[[str], None],
) -> TrainState:
    """Train the adapter of a PeftModel on the rows, in place.

    Writes metrics.jsonl and checkpoints/ in the folder, and goes on from the newest checkpoint
    there. The result does not depend on interruptions.

    Args:
        model: PeftModel whose adapter is trained.
        rows: Tokenised training rows.
        config: How to train.
        device: Where, and in which precision.
        folder: Run folder.
        notice: Told of anything the user must know, such as a halved batch.

    Raises:
        TrainingError: If the loss is not finite, or memory runs out at one row.
    """
    return _Loop(model, rows, config, device, folder, notice).run()


@dataclasses.dataclass
class _StepResult:
    loss: float
    answer_nll: float
    grad_norm: float
    num_tokens: int


class _Loop:
    def __init__(
        self,
        model: Any,
        rows: Sequence[TokenisedRow],
        config: TrainConfig,
        device: Device,
        folder: Path,
        notice: Callable[[str], None],
    ) -> None:
        from accelerate import Accelerator

        self.model, self.rows, self.config, self.device = model, rows, config, device
        self.folder, self.notice = folder, notice
        self.steps = plan_steps(rows, config)
        optimizer = torch.optim.AdamW(
            [p for _, p in trainable_parameters(model)],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        # Told nothing of the device: it keeps one for the whole process, and this loop has its own.
        self.accelerator = Accelerator()
        self.loss_module = self.accelerator.prepare_model(AnswerLoss(model), device_placement=False)
        self.optimizer = optimizer
        self.scaler = device.grad_scaler()
        self.interrupted = False
        wanted = config.micro_batch_size
        if wanted == "auto":
            plan = plan_memory(device, model.config, max(map(len, rows)), config.batch_size)
        else:
            plan = MemoryPlan(min(wanted, config.batch_size), False, "set by train.micro_batch_size")
        log.info("%d rows a pass (%s)", plan.rows, plan.reason)
        self.state = TrainState(micro_batch_size=plan.rows, recompute=plan.checkpointing)

    def run(self) -> TrainState:
        """Train with interruptions held back to the end of a step, where a checkpoint is sound."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            # A signal that is ignored stays so: a shell does that for jobs in the background.
            ours = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
            previous = {s: signal.signal(s, self._interrupt) for s in ours}
        try:
            return self._run()
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            raise TrainingError(
                f"memory ran out at step {self.state.step + 1}, outside the passes that can be made smaller",
                "close other programs on the device, or a smaller train.lora.rank",
            ) from exc
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.interrupted:  # asked twice: at once
            raise KeyboardInterrupt
        self.interrupted = True
        log.warning("Stopping after this step (once more stops at once, without saving it)")

    def _run(self) -> TrainState:
        checkpoints = self.folder / "checkpoints"
        if (path := newest_checkpoint(checkpoints)) is not None:
            self.state = load_checkpoint(path, self.model, self.optimizer)
            if self.state.scaler:
                self.scaler.load_state_dict(self.state.scaler)
            log.info("Going on after step %d of %d", self.state.step, len(self.steps))
        if self.state.recompute:
            recompute_activations(self.model)
        self._trim_metrics()
        self.model.train()
        last_save = time.monotonic()
        with (
            (self.folder / "metrics.jsonl").open("a", encoding="utf-8", buffering=1) as metrics,
            track("Training", len(self.steps), self.state.step) as task,
        ):
            while self.state.step < len(self.steps):
                line = self._step()
                metrics.write(json.dumps(line) + "\n")
                rate = self.state.num_tokens / self.state.seconds
                task.advance(1, f"loss {line['loss']:.3f}, {rate:,.0f} tokens/s")
                if self.interrupted or time.monotonic() - last_save > 60 * self.config.checkpoint_minutes:
                    self._save()
                    last_save = time.monotonic()
                if self.interrupted:
                    raise KeyboardInterrupt
        self.model.eval()
        return self.state

    def _save(self) -> None:
        self.state.scaler = self.scaler.state_dict()
        save_checkpoint(self.folder / "checkpoints", self.model, self.optimizer, self.state)

    def _trim_metrics(self) -> None:
        """Drop the lines of steps that were done after the checkpoint and are done again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()[: self.state.step]
            write_text(path, "".join(line + "\n" for line in lines))

    def _step(self) -> dict[str, Any]:
        start = time.perf_counter()
        rate = learning_rate(self.state.step, len(self.steps), self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = [self.rows[index] for index in self.steps[self.state.step]]
        result = self._gradients(rows)
        if not math.isfinite(result.loss) or not math.isfinite(result.grad_norm):
            self._skip_or_stop(result)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.state.num_tokens += result.num_tokens
        self.state.seconds += time.perf_counter() - start
        return {
            "step": self.state.step,
            "loss": result.loss,
            "answer_nll": result.answer_nll,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            "num_rows": len(rows),
            "num_tokens": result.num_tokens,
            "num_skipped": self.state.num_skipped,
            "seconds": round(self.state.seconds, 3),
        }

    def _gradients(self, rows: list[TokenisedRow]) -> _StepResult:
        """Accumulate the gradient of the mean loss over the rows; halve the pass if memory is short."""
        while True:
            try:
                return self._accumulate(rows)
            except RuntimeError as exc:
                if not is_out_of_memory(exc):
                    raise
                # The traceback holds the tensors that filled the memory: leave the handler first.
                size = self.state.micro_batch_size
            self.optimizer.zero_grad(set_to_none=True)
            self.device.release_memory()
            self._halve(size)

    def _accumulate(self, rows: list[TokenisedRow]) -> _StepResult:
        loss_sum = answer_sum = torch.zeros((), device=self.device.torch_device)
        num_tokens = sum(len(row) for row in rows)
        size = self.state.micro_batch_size
        for start in range(0, len(rows), size):
            batch = collate(rows[start : start + size], self.config.answer_weight)
            batch = batch.to(self.device.torch_device)
            with compute_context(self.model, self.device):
                loss, answer_nll = self.loss_module(
                    batch.input_ids_BT,
                    batch.position_N,
                    batch.label_N,
                    batch.weight_N,
                    batch.is_answer_N,
                )
            self.accelerator.backward(self.scaler.scale(loss / len(rows)))
            loss_sum = loss_sum + loss.detach()
            answer_sum = answer_sum + answer_nll
        self.scaler.unscale_(self.optimizer)
        parameters = [p for _, p in trainable_parameters(self.model)]
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        sums = torch.stack([loss_sum, answer_sum, norm.float()]).tolist()
        return _StepResult(sums[0] / len(rows), sums[1] / len(rows), sums[2], num_tokens)

    def _halve(self, size: int) -> None:
        if size == 1 and not self.state.recompute:
            self.state.recompute = True
            recompute_activations(self.model)
            self.notice(
                f"Memory ran out with a single row at step {self.state.step + 1}: from here on activations "
                "are recomputed in the backward pass (slower, same result)"
            )
            return
        if size == 1:
            longest = max(len(row) for row in self.rows)
            raise TrainingError(
                f"memory ran out with a single row of up to {longest} tokens",
                f"--set train.max_length_tokens={longest // 2}, a smaller model or train.lora.rank",
            )
        self.state.micro_batch_size = (size + 1) // 2
        same = "same result up to rounding" if not self.config.lora.dropout else "dropout draws differently"
        passes = math.ceil(self.config.batch_size / self.state.micro_batch_size)
        self.notice(
            f"Memory ran out with {size} rows a pass at step {self.state.step + 1}: going on with "
            f"{self.state.micro_batch_size} rows a pass and {passes} passes a step ({same})"
        )

    def _skip_or_stop(self, result: _StepResult) -> None:
        """Let the scaler leave out an overflowing fp16 step and lower its scale; stop on anything else."""
        if self.device.precision != "fp16" or not math.isfinite(result.loss):
            raise self._not_finite(result)
        self.state.num_skipped += 1
        if self.state.num_skipped == 1:
            self.notice("fp16: steps whose scaled gradient overflows are left out while the scale is found")
        if self.state.num_skipped > MAX_SKIPPED_SHARE * len(self.steps) + MIN_SKIPPED:
            raise self._not_finite(result)

    def _not_finite(self, result: _StepResult) -> TrainingError:
        kept = newest_checkpoint(self.folder / "checkpoints")
        switch = (
            "--set train.learning_rate=" + f"{self.config.learning_rate / 3:.1g}"
            if self.device.precision == "fp32"
            else "--set model.dtype=fp32"
        )
        return TrainingError(
            f"step {self.state.step + 1}: loss {result.loss}, gradient norm {result.grad_norm}; "
            f"stopped at once, the last good checkpoint is {kept.name if kept else 'none yet'}",
            f"train again with {switch}; `medqa doctor` checks the device",
        )
