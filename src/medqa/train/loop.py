"""The optimisation loop: batches in, a tuned adapter out. Decides nothing about files or names."""

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from medqa.config import TrainConfig
from medqa.errors import TrainingError
from medqa.hardware.device import Device, is_out_of_memory
from medqa.hardware.group import current_group, loss_of_process
from medqa.model.batch import TokenisedRow
from medqa.progress import track
from medqa.train.checkpoint import TrainState, load_checkpoint, newest_checkpoint, save_checkpoint
from medqa.train.choice import choose_engine
from medqa.train.engine import Engine, StepResult, plan_passes
from medqa.train.metrics import trim_metrics
from medqa.train.pace import Pace
from medqa.train.schedule import learning_rate, plan_steps
from medqa.train.stop import StoppedError, StopRequest
from medqa.train.together import is_shared_lack

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
    *,
    engine: Engine | None = None,
    pace: Pace | None = None,
    num_steps: int | None = None,
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
        engine: What computes the steps; chosen if not given.
        num_steps: End after so many steps; all are done if not given.
        pace: Cuts or adds steps so that training ends in time; all steps are done if not given.

    Raises:
        TrainingError: If the loss is not finite, or memory runs out at one row.
        StoppedError: If a signal asked to stop; a checkpoint is written by then.
    """
    engine = engine or choose_engine(model, rows, config, device, notice)
    return _Loop(model, rows, config, device, folder, notice, engine, pace, num_steps).run()


class _Loop:
    def __init__(
        self,
        model: Any,
        rows: Sequence[TokenisedRow],
        config: TrainConfig,
        device: Device,
        folder: Path,
        notice: Callable[[str], None],
        engine: Engine,
        pace: Pace | None,
        num_steps: int | None,
    ) -> None:
        self.num_steps = num_steps
        self.model, self.rows, self.config, self.device = model, rows, config, device
        self.folder, self.notice, self.engine, self.pace = folder, notice, engine, pace
        self.group = current_group()
        self.stop = StopRequest(self.group.size)
        plan = plan_passes(rows, config, device, model.config, engine)
        log.info("%d rows a pass (%s)", plan.rows, plan.reason)
        self.state = TrainState(
            # As small as the fullest device of all processes takes.
            micro_batch_size=-self.group.most(-plan.rows)[0],
            recompute=bool(self.group.most(int(plan.checkpointing))[0]),
            balanced=engine.balanced,
        )
        self.steps: list[list[int]] = []

    def run(self) -> TrainState:
        """Train with interruptions held back to the end of a step, where a checkpoint is sound."""
        try:
            with self.stop.listening():
                return self._run()
        except RuntimeError as exc:
            if lost := loss_of_process(exc):
                raise lost from exc
            if not is_out_of_memory(exc):
                raise
            raise TrainingError(
                f"memory ran out at step {self.state.step + 1}, outside the passes that can be made smaller",
                "close other programs on the device, or a smaller train.lora.rank"
                + (", or train.micro_batch_size=1" if self.group.sharded else ""),
            ) from exc

    def _begin(self) -> None:
        """Take up the newest checkpoint, if there is one, and lay out the steps."""
        path = self.group.agree(newest_checkpoint(self.folder / "checkpoints"))
        if path is not None:
            if not path.is_dir():
                raise TrainingError(
                    f"process {self.group.rank} does not see {path}", "all hosts must share the run folder"
                )
            self.state = load_checkpoint(path, self.engine, self.device.torch_device)
            self.engine.load_scaler(self.state.scaler)
        self.steps = plan_steps([len(row) for row in self.rows], self.config, balanced=self.state.balanced)
        self.state.num_steps = self.state.num_steps or self.num_steps or len(self.steps)
        if path is not None:
            log.info("Going on after step %d of %d", self.state.step, self.state.num_steps)
        if self.state.recompute:
            self.engine.recompute()
        self._expect()
        self._trim_metrics()

    def _expect(self) -> None:
        # All steps, done or not: a run that goes on computes in the shapes that it began with.
        steps = [[self.rows[index] for index in step] for step in self.steps]
        self.engine.expect(steps, self.state.micro_batch_size)

    def _run(self) -> TrainState:
        self._begin()
        self.model.train()
        num_tokens = [0, *itertools.accumulate(sum(len(self.rows[i]) for i in step) for step in self.steps)]
        if self.pace:
            # Clocks differ: the first process's counts.
            self.state.num_steps = self.group.agree(self.pace.begin(self.state.step, num_tokens))
        last_save = time.monotonic()
        with (
            self._metrics().open("a", encoding="utf-8", buffering=1) as metrics,
            track("Training", self.state.num_steps, self.state.step) as task,
        ):
            while self.state.step < self.state.num_steps:
                line = self._step()
                metrics.write(json.dumps(line) + "\n")
                rate = self.state.num_tokens / self.state.seconds
                task.advance(1, f"loss {line['loss']:.3f}, {rate:,.0f} tokens/s")
                due = time.monotonic() - last_save > 60 * self.config.checkpoint_minutes
                stops, due = self._decide(due)
                if stops or due:
                    if self.group.is_first:
                        os.fsync(metrics.fileno())  # a checkpoint is of no use without
                    self._save()
                    last_save = time.monotonic()
                if stops:
                    raise StoppedError
                task.resize(self.state.num_steps)
        self.engine.finish()
        self.model.eval()
        return self.state

    def _decide(self, due: bool) -> tuple[bool, bool]:
        """Agree with the other processes on the number of steps, and whether to stop, or at least to save.

        A signal that comes in later than that counts at the next step, in all of them.
        """
        first, num_steps = self.group.is_first, self.state.num_steps
        if self.pace and first:
            num_steps = self.pace.review(self.state.step, num_steps)
        self.state.num_steps, stops, saves = self.group.most(
            num_steps if first else 0, int(self.stop.asked), int(due and first)
        )
        return bool(stops), bool(saves)

    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl" if self.group.is_first else Path(os.devnull)

    def _save(self) -> None:
        self.state.scaler = self.engine.scaler_state()
        with self.stop.saving():
            if self.group.is_first:
                save_checkpoint(
                    self.folder / "checkpoints", self.engine, self.device.torch_device, self.state
                )
            self.group.wait()  # a process that ends takes the others with it: not before all is saved

    def _trim_metrics(self) -> None:
        """Drop the lines of steps that were done after the checkpoint and are done again."""
        if self.group.is_first and (missing := trim_metrics(self.folder / "metrics.jsonl", self.state.step)):
            self.notice(
                f"metrics.jsonl was damaged: {missing} of the {self.state.step} steps done are not in it, "
                "nor in the loss curve; the adapter is not touched by that"
            )

    def _step(self) -> dict[str, Any]:
        start = time.perf_counter()
        if self.config.lora.dropout and self.group.size > 1:
            # Each draws otherwise, and draws that again when the run goes on.
            torch.manual_seed(hash((self.config.seed, self.state.step, self.group.rank)))
        rate = learning_rate(self.state.step, self.state.num_steps, self.config)
        rows, following = (self._rows(step) for step in (self.state.step, self.state.step + 1))
        result = self._gradients(rows, following)
        if not math.isfinite(result.loss) or not math.isfinite(result.grad_norm):
            self._skip_or_stop(result)
        self.engine.update(rate)
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

    def _rows(self, step: int) -> list[TokenisedRow]:
        return [self.rows[index] for index in self.steps[step]] if step < self.state.num_steps else []

    def _gradients(self, rows: list[TokenisedRow], following: list[TokenisedRow]) -> StepResult:
        """Compute the gradient of the mean loss over the rows; halve the pass if memory is short."""
        while True:
            try:
                return self.engine.gradients(rows, self.state.micro_batch_size, following)
            except RuntimeError as exc:
                # What one process meets alone, it can't mend alone.
                if not is_shared_lack(exc, self.group):
                    raise
            # The traceback held the tensors that filled the memory: here, it is gone.
            self.engine.discard()
            self._halve(self.state.micro_batch_size)
            self._expect()

    def _halve(self, size: int) -> None:
        if size == 1 and not self.state.recompute:
            self.state.recompute = True
            self.engine.recompute()
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

    def _skip_or_stop(self, result: StepResult) -> None:
        """Let the scaler leave out an overflowing fp16 step and lower its scale; stop on anything else."""
        if self.device.precision != "fp16" or not math.isfinite(result.loss):
            raise self._not_finite(result)
        self.state.num_skipped += 1
        if self.state.num_skipped == 1:
            self.notice("fp16: steps whose scaled gradient overflows are left out while the scale is found")
        if self.state.num_skipped > MAX_SKIPPED_SHARE * len(self.steps) + MIN_SKIPPED:
            raise self._not_finite(result)

    def _not_finite(self, result: StepResult) -> TrainingError:
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
