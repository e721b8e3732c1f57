"""What a training run is made of, once decided: adapter, engine, rows, and the pace if there is a time."""

import logging
from typing import Any

from medqa.config import RunConfig, TrainConfig
from medqa.data.draw import draw_hash, stratified_rows
from medqa.model.batch import TokenisedRow
from medqa.model.lora import attach_adapter
from medqa.runs import RunFolder
from medqa.train.budget import explained_rows
from medqa.train.choice import choose_engine
from medqa.train.pace import Pace, Replay
from medqa.train.prepare import Prepared
from medqa.train.timed import TimedRun

__all__ = ["Tuning"]

log = logging.getLogger(__name__)


class Tuning:
    """An adapter on the model, what computes its steps, and the rows to train on.

    Attributes:
        prepared: Device, questions, base model.
        config: How to train; as planned, if there is a time.
        model: PeftModel.
        engine: What computes the steps.
        timed: The time, if there is one.
        plan: What was planned for it.
        pace: Keeps to it.
        rows: The rows to train on.
        notices: What the user was told on the way.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: TrainConfig,
        end: float | None,
        plan: dict[str, Any] | None = None,
    ) -> None:
        """Attach the adapter, choose how to compute, and plan.

        Args:
            prepared: Device, questions, base model.
            config: How to train.
            end: When everything must be done, if there is a limit.
            plan: What an earlier run had planned; empty if it had no limit. None for a new one.
        """
        self._run: RunFolder | None = None
        self.prepared, self.config, self.notices = prepared, config, prepared.notices()
        for text in self.notices:
            log.warning("%s", text)
        self.timed, self.plan = None, None
        self.pace: Pace | None = None
        if end is None:
            self.rows = self._rows((plan or {}).get("num_rows"))
            if plan and plan.get("steps"):
                self.pace = Replay(plan["steps"])
            if plan is None:  # what was begun may go on
                prepared.refuse_slow_training(config.epochs * sum(map(len, self.rows)))
        self.model = attach_adapter(prepared.model, config.lora, config.seed)
        self.engine = choose_engine(
            self.model, prepared.rows, config, prepared.device, self.notice, prepared.elementwise
        )
        if end is not None:
            self.timed = TimedRun(prepared, end)
            self.plan, self.pace = self.timed.plan(self.model, self.engine, self.notice)
            decided = {"epochs": self.plan.epochs, "explanation_share": self.plan.explanation_share}
            self.config = config.model_copy(update=decided)
            self.rows = self._rows(self.plan.num_rows)

    def applied(self, config: RunConfig) -> RunConfig:
        """Put what was planned into all settings."""
        return config.model_copy(update={"train": self.config})

    def notice(self, text: str) -> None:
        """Tell the user, and keep it."""
        log.warning("%s", text)
        self.notices.append(text)
        if self._run is not None:
            self._run.note(text)

    def keep_in(self, run: RunFolder) -> None:
        """Keep what the user was told, and will be, in the run."""
        for text in self.notices:
            if text not in run.record["notices"]:
                run.note(text)
        self._run = run
        if self.pace is not None:
            pace = self.pace
            pace.tell = lambda num_steps: run.update(
                plan={**run.record["plan"], "num_steps": num_steps, "steps": pace.steps}
            )

    def _rows(self, num_rows: int | None) -> list[TokenisedRow]:
        """Draw rows, and which of them keep their explanation."""
        config, prepared = self.config, self.prepared
        numbers = stratified_rows(prepared.examples, num_rows, config.seed)
        rows = [prepared.rows[number] for number in numbers]
        if config.explanation_share == 1:
            return rows
        order = [draw_hash(prepared.examples[number], config.seed, "explanation") for number in numbers]
        kept = explained_rows(order, config.explanation_share)
        return [row if place in kept else row.without_explanation() for place, row in enumerate(rows)]
