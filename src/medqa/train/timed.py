"""Training within a time: measure this machine, plan, keep the pace, and leave time to be measured."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from medqa.config import EvaluateConfig
from medqa.data.build import QuestionSet, evaluation_set
from medqa.data.draw import sample
from medqa.evaluate.calibrate import usual_orders
from medqa.evaluate.orders import count_askings
from medqa.evaluate.run import refuse_trained_on
from medqa.evaluate.score import Item, default_batch_tokens, make_items, score_items
from medqa.hardware.group import current_group
from medqa.model.batch import TokenisedRow
from medqa.train.budget import Costs, Speeds, TimePlan, plan_evaluation, plan_time
from medqa.train.engine import Engine, plan_passes
from medqa.train.pace import Pace
from medqa.train.prepare import Prepared
from medqa.train.schedule import plan_steps
from medqa.train.together import is_shared_lack

__all__ = ["TimedRun"]

log = logging.getLogger(__name__)

# Adapter, loss curve, records and reports.
SAVE_S = 3.0
# Measuring takes this share of the time at most, and on the CPU passes of about so many tokens.
PROBE_SHARE, PROBE_TOKENS = 0.03, 600
NUM_PROBES = 4
SHORT_S, NUM_STEPS_IF_SHORT = 120.0, 64
NUM_COMPARED_PROMPTS = 64


class TimedRun:
    """The time that a run was given, and what fits into it."""

    def __init__(self, prepared: Prepared, end: float) -> None:
        """Read the questions to be measured on.

        Args:
            prepared: Everything that training needs.
            end: When everything must be done, on time.monotonic's clock.

        Raises:
            DataError: If there are none to be measured on.
        """
        self._prepared, self._end = prepared, end
        self._group = current_group()
        config = prepared.config
        self._questions: QuestionSet = evaluation_set(config.data, config.train.seed)
        refuse_trained_on(self._questions, prepared.data.record["files"])
        self._items = make_items(prepared.renderer, self._questions.examples, "medqa")
        self._costs, self._speeds = self._all_costs(), Speeds(1.0, 1.0, SAVE_S)

    def _all_costs(self) -> Costs:
        rows, data = self._prepared.rows, self._prepared.data
        held = make_items(self._prepared.renderer, [*data.calibration, *data.selection], "medqa")
        own_tokens = _num_tokens(self._items)
        lm_eval_tokens = 0
        if self._prepared.config.evaluate.lm_eval:  # as long as our own, times what some of them show
            some = sample(self._questions.examples, NUM_COMPARED_PROMPTS, 0)
            own, theirs = (make_items(self._prepared.renderer, some, kind) for kind in ("medqa", "lm_eval"))
            lm_eval_tokens = round(own_tokens * _num_tokens(theirs) / _num_tokens(own))
        short = sum(len(row.without_explanation()) for row in rows)
        return Costs(
            short_tokens=short,
            explanation_tokens=sum(map(len, rows)) - short,
            num_rows=len(rows),
            own_tokens=own_tokens,
            lm_eval_tokens=lm_eval_tokens,
            num_questions=len(self._items),
            num_held_back=len(data.calibration),
            held_back_tokens=_num_tokens(held),
            ordered_tokens=self._ordered_tokens(held),
        )

    def _ordered_tokens(self, held: Sequence[Item]) -> int:
        """Tokens of the held-back questions in the most orders that calibration is wanted for."""
        most = max(usual_orders(self._prepared.config))
        return sum(len(item.prefix) * count_askings([item.example], most) for item in held)

    @property
    def _seconds_left(self) -> float:
        return self._end - time.monotonic()

    def plan(self, model: Any, engine: Engine, notice: Callable[[str], None]) -> tuple[TimePlan, Pace]:
        """Measure this machine and decide what to do with the time that is left.

        Raises:
            ConfigError: If the time is too short for anything.
        """
        limit = PROBE_SHARE * self._seconds_left
        train_rate = self._train_rate(model, engine, limit)
        self._speeds = Speeds(train_rate, self._score_rate(model, engine), SAVE_S)
        batch_size = self._prepared.config.train.batch_size
        orders = usual_orders(self._prepared.config)
        plan = self._group.decide(
            lambda: plan_time(self._seconds_left, self._costs, self._speeds, batch_size, orders)
        )
        for reason in plan.reasons:
            log.info("Plan: %s", reason)
        asked = self._prepared.config.train
        if (asked.epochs, asked.explanation_share) not in ((1, 1), (plan.epochs, plan.explanation_share)):
            notice("The time decides train.epochs and train.explanation_share: the recipe's are not used")
        if self._costs.lm_eval_tokens and not plan.lm_eval:
            notice("lm-eval's prompt is not scored: there is no time for it")
        return plan, Pace(time.monotonic() + plan.training_s, train_rate)

    def _train_rate(self, model: Any, engine: Engine, limit: float) -> float:
        """Time passes whose gradients are thrown away; tokens per second."""
        prepared = self._prepared
        config, device = prepared.config.train.model_copy(update={"epochs": 1}), prepared.device
        rows = prepared.rows
        passes = plan_passes(rows, config, device, model.config, engine)
        size = -self._group.most(-passes.rows)[0]
        recompute = bool(self._group.most(int(passes.checkpointing))[0])
        if recompute:
            engine.recompute()
        steps = [
            [rows[index] for index in step]
            for step in plan_steps([len(row) for row in rows], config, balanced=engine.balanced)
        ]
        if device.is_cpu:
            steps = [_about(step, PROBE_TOKENS) for step in steps]
        if self._seconds_left < SHORT_S:
            steps = steps[:NUM_STEPS_IF_SHORT]  # so few that nothing is compiled for them
        engine.expect(steps, size)
        start, rates = time.monotonic(), []
        for number in range(NUM_PROBES):
            began = time.monotonic()
            try:
                result = engine.gradients(steps[number % len(steps)], size)
            except RuntimeError as exc:
                if not is_shared_lack(exc, self._group) or (size == 1 and recompute):
                    raise
                if size == 1:
                    recompute = True
                    engine.recompute()
                size = max(1, size // 2)  # the loop finds its own size and says so
                engine.discard()
                engine.expect(steps, size)
                continue
            rates.append(result.num_tokens / (time.monotonic() - began))
            if self._group.agree(len(rates) > 1 and time.monotonic() - start > limit):
                break
        engine.discard()
        later = rates[1:] or rates
        if not later:
            return 1.0  # nothing ran in so many tries: the pace finds out
        return sorted(later)[len(later) // 2]

    def _score_rate(self, model: Any, engine: Engine) -> float:
        """Time the scoring of some questions; tokens per second."""
        prepared = self._prepared
        budget = PROBE_TOKENS if prepared.device.is_cpu else default_batch_tokens(prepared.device)
        some, filled = [], 0
        for item in self._items:
            if filled > budget:
                break
            some.append(item)
            filled += len(item.prefix)
        rate = 0.0
        for _ in range(1 if prepared.device.is_cpu else 2):
            began = time.monotonic()
            score_items(
                model,
                some,
                prepared.device,
                max_length_tokens=prepared.base.max_length_tokens,
                batch_tokens=default_batch_tokens(prepared.device),
                decoder=engine.decoder,
            )
            rate = filled / (time.monotonic() - began)
        return rate if self._group.sharded else rate * self._group.size

    def evaluation(self) -> tuple[QuestionSet, EvaluateConfig]:
        """Choose what to be measured on in the time that is left after training."""
        prepared = self._prepared
        seconds = 0.9 * (self._seconds_left - SAVE_S)
        num_questions, lm_eval, needed = self._group.agree(
            plan_evaluation(max(0.0, seconds), self._costs, self._speeds)
        )
        config = prepared.config
        log.info(
            "Measuring on %s questions: about %.0f of %.0f s left",
            f"{num_questions:,}",
            needed,
            self._seconds_left,
        )
        data = config.data
        if num_questions < self._costs.num_questions:
            data = data.model_copy(update={"max_eval_rows": num_questions})
        questions = self._questions if data is config.data else evaluation_set(data, config.train.seed)
        scores_only = {
            "lm_eval": lm_eval and config.evaluate.lm_eval,
            "orders": 1,
            "explanations": 0,
            "traps": 0,
        }
        return questions, config.evaluate.model_copy(update=scores_only)


def _num_tokens(items: Sequence[Item]) -> int:
    return sum(len(item.prefix) for item in items)


def _about(rows: list[TokenisedRow], num_tokens: int) -> list[TokenisedRow]:
    """Take rows until they hold some number of tokens."""
    taken, filled = [], 0
    for row in rows:
        taken.append(row)
        filled += len(row)
        if filled >= num_tokens:
            break
    return taken
