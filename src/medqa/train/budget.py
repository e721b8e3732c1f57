"""Turn minutes into a plan: rows, epochs, explanations, questions to measure on. Torch-free.

What is known of quality for time, from runs on a 1.5B model: distinct rows seen matter more than
anything else, and a token of explanation brings about as much accuracy as one of further questions.
So new text comes before text seen already, and where not all fits, rows come before explanations,
but for a share without which the model would not learn to explain.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from medqa.errors import ConfigError
from medqa.trust.fitting import MIN_ROWS
from medqa.trust.permutation import NumOrders

__all__ = [
    "Costs",
    "Speeds",
    "TimePlan",
    "explained_rows",
    "plan_calibration",
    "plan_evaluation",
    "plan_time",
]

MAX_EPOCHS = 2
MIN_EXPLANATION_SHARE = 0.25
# Of the time that is left once everything is loaded, evaluation takes at most this.
EVALUATION_SHARE = 0.2
CALIBRATION_SHARE = 0.1
# Kept for what isn't foreseen: of the time that is left, and seconds.
MARGIN_SHARE, MARGIN_S = 0.03, 2.0
MIN_QUESTIONS, MIN_STEPS = 10, 4


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What this machine was measured to do.

    Attributes:
        train_tokens_per_s: Training, padding apart.
        score_tokens_per_s: Scoring questions.
        save_s: Seconds for writing the adapter and all that ends a run.
    """

    train_tokens_per_s: float
    score_tokens_per_s: float
    save_s: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """What there is to do, in tokens.

    Attributes:
        short_tokens: Tokens of all rows without explanation.
        explanation_tokens: Tokens that all explanations add.
        num_rows: Rows.
        own_tokens: Tokens of all evaluation questions under our own prompt.
        lm_eval_tokens: Under lm-eval's; 0 if it isn't wanted.
        num_questions: Evaluation questions.
        num_held_back: Questions held back for calibration.
        held_back_tokens: Tokens of these, and of those that calibration is chosen by.
        ordered_tokens: The same in all the option orders that calibration is wanted for.
    """

    short_tokens: int
    explanation_tokens: int
    num_rows: int
    own_tokens: int
    lm_eval_tokens: int
    num_questions: int
    num_held_back: int = 0
    held_back_tokens: int = 0
    ordered_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class TimePlan:
    """What fits into the time.

    Attributes:
        num_rows: Rows to train on, of all subjects their share.
        epochs: Passes over them.
        explanation_share: Share of them trained with their explanation.
        training_s: Seconds for the steps.
        num_questions: Questions to measure on.
        lm_eval: Whether lm-eval's prompt is scored too.
        evaluation_s: Seconds for that.
        num_calibration: Held-back questions to calibrate on; 0 if there is no time for it.
        calibration_orders: Numbers of option orders to calibrate for.
        calibration_s: Seconds for that.
        reasons: Why, a sentence each.
    """

    num_rows: int
    epochs: int
    explanation_share: float
    training_s: float
    num_questions: int
    lm_eval: bool
    evaluation_s: float
    num_calibration: int
    calibration_orders: tuple[NumOrders, ...]
    calibration_s: float
    reasons: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return the plan for run.json."""
        return {**dataclasses.asdict(self), "reasons": list(self.reasons)}


def plan_evaluation(seconds: float, costs: Costs, speeds: Speeds) -> tuple[int, bool, float]:
    """Choose what to measure in some seconds: both prompts, our own, or our own on a part of the questions.

    Base and tuned model are both scored.

    Returns:
        Number of questions, whether lm-eval's prompt is scored too, seconds that it takes.
    """
    for lm_eval in (True, False):
        tokens = costs.own_tokens + lm_eval * costs.lm_eval_tokens
        needed = 2 * tokens / speeds.score_tokens_per_s
        if needed <= seconds and (costs.lm_eval_tokens or not lm_eval):
            return costs.num_questions, lm_eval, needed
    share = seconds / needed
    num_questions = min(costs.num_questions, max(MIN_QUESTIONS, int(share * costs.num_questions)))
    return num_questions, False, needed * num_questions / costs.num_questions


def plan_calibration(
    seconds: float, costs: Costs, speeds: Speeds, orders: tuple[NumOrders, ...]
) -> tuple[int, tuple[NumOrders, ...], float]:
    """Choose what to calibrate in some seconds: several option orders, the one given, or that on a part.

    Returns:
        Number of held-back questions, numbers of option orders, seconds that it takes.
    """
    one = costs.held_back_tokens / speeds.score_tokens_per_s
    if not costs.num_held_back or not one:
        return 0, (), 0.0
    everything = costs.ordered_tokens / speeds.score_tokens_per_s
    if len(orders) > 1 and everything <= seconds:
        return costs.num_held_back, orders, everything
    num_rows = min(costs.num_held_back, int(costs.num_held_back * seconds / one))
    return (num_rows, (1,), one * num_rows / costs.num_held_back) if num_rows >= MIN_ROWS else (0, (), 0.0)


def plan_time(
    seconds: float,
    costs: Costs,
    speeds: Speeds,
    batch_size: int,
    orders: tuple[NumOrders, ...] = (1,),
) -> TimePlan:
    """Divide the time that is left.

    Args:
        seconds: Time until everything must be done.
        costs: What there is to do.
        speeds: How fast it goes.
        batch_size: Rows per optimizer step.
        orders: Numbers of option orders to calibrate for, if that fits.

    Raises:
        ConfigError: If not even a few steps fit.
    """
    usable = seconds * (1 - MARGIN_SHARE) - MARGIN_S - speeds.save_s
    num_questions, lm_eval, evaluation_s = plan_evaluation(max(0.0, usable) * EVALUATION_SHARE, costs, speeds)
    num_calibration, orders, calibration_s = plan_calibration(
        max(0.0, usable) * CALIBRATION_SHARE, costs, speeds, orders
    )
    training_s = usable - evaluation_s - calibration_s
    tokens = training_s * speeds.train_tokens_per_s
    least = MIN_STEPS * batch_size * costs.short_tokens / costs.num_rows
    if tokens < min(least, costs.short_tokens):
        missing = (min(least, costs.short_tokens) - tokens) / speeds.train_tokens_per_s
        missing /= (1 - MARGIN_SHARE) * (1 - EVALUATION_SHARE - CALIBRATION_SHARE)
        raise ConfigError(
            f"--minutes: {MIN_STEPS} steps of {batch_size} rows and {num_questions} questions to measure on "
            f"don't fit into the {max(0.0, seconds):.0f} s that are left after loading",
            f"give {math.ceil(missing / 6) / 10:.1f} minutes more, or a smaller train.batch_size",
        )
    num_rows, epochs, share, reason = _spend(tokens, costs)
    measured = "both prompts" if lm_eval else "our own prompt"
    return TimePlan(
        num_rows,
        epochs,
        share,
        training_s,
        num_questions,
        lm_eval,
        evaluation_s,
        num_calibration,
        orders,
        calibration_s,
        (
            f"{seconds:.0f} s are left: {training_s:.0f} s to train, {evaluation_s:.0f} s to measure, the "
            "rest to save and to spare",
            f"{speeds.train_tokens_per_s:,.0f} tokens/s measured here: {tokens:,.0f} tokens; {reason}",
            f"measured on {num_questions:,} of {costs.num_questions:,} questions under {measured}, at most "
            f"{EVALUATION_SHARE:.0%} of the time",
            f"calibrated on {num_calibration:,} of {costs.num_held_back:,} questions held back"
            if num_calibration
            else "not calibrated: there is no time for it, or too few questions were held back",
        ),
    )


def _spend(tokens: float, costs: Costs) -> tuple[int, int, float, str]:
    """Say what to train on: rows, epochs, share with explanation, and why."""
    explained, short = costs.explanation_tokens, costs.short_tokens
    least = short + MIN_EXPLANATION_SHARE * explained
    if tokens < least:
        num_rows = max(1, int(costs.num_rows * tokens / least))
        return (
            num_rows,
            1,
            MIN_EXPLANATION_SHARE,
            f"not all {costs.num_rows:,} rows fit, so {num_rows:,} of them, of every subject its share, and "
            f"only {MIN_EXPLANATION_SHARE:.0%} with explanation, which costs as much as another row",
        )
    if tokens < short + explained:
        share = (tokens - short) / explained
        return (
            costs.num_rows,
            1,
            share,
            f"all {costs.num_rows:,} rows once, {share:.0%} with their explanation",
        )
    epochs = min(MAX_EPOCHS, -(-int(tokens) // (short + explained)))
    passes = min(MAX_EPOCHS, tokens / (short + explained))
    return costs.num_rows, epochs, 1.0, f"all {costs.num_rows:,} rows with explanation, {passes:.1f} times"


def explained_rows(order: Sequence[str], share: float) -> set[int]:
    """Choose the rows that keep their explanation: those with the least hashes.

    Args:
        order: A hash of each row.
        share: Share of the rows.
    """
    ranked = sorted(range(len(order)), key=lambda row: order[row])
    return set(ranked[: round(share * len(order))])
