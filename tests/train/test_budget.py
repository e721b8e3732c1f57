"""Minutes become a plan: new text before repeated text, rows before explanations, time left to measure."""

import dataclasses

import pytest

from medqa.errors import ConfigError
from medqa.train.budget import (
    EVALUATION_SHARE,
    MAX_EPOCHS,
    MIN_EXPLANATION_SHARE,
    Costs,
    Speeds,
    explained_rows,
    plan_calibration,
    plan_evaluation,
    plan_time,
)

# The whole of MedMCQA: 93 tokens a row with its letter only, as many again with the explanation.
COSTS = Costs(
    short_tokens=6_000_000,
    explanation_tokens=6_000_000,
    num_rows=64_000,
    own_tokens=200_000,
    lm_eval_tokens=180_000,
    num_questions=2_000,
)
SPEEDS = Speeds(train_tokens_per_s=50_000, score_tokens_per_s=150_000, save_s=3)


def tokens_of(plan, costs=COSTS):
    share = plan.num_rows / costs.num_rows
    return share * (costs.short_tokens + plan.explanation_share * costs.explanation_tokens)


@pytest.mark.parametrize("seconds", [60, 120, 170, 250, 290, 800, 5000])
@pytest.mark.parametrize("speed", [300, 5_000, 50_000])
def test_what_is_planned_fits_and_the_time_is_used(seconds, speed):
    speeds = dataclasses.replace(SPEEDS, train_tokens_per_s=speed, score_tokens_per_s=3 * speed)
    plan = plan_time(seconds, COSTS, speeds, batch_size=8)
    assert plan.training_s + plan.evaluation_s + speeds.save_s < seconds
    affordable = plan.training_s * speed
    assert tokens_of(plan) * plan.epochs >= min(0.99 * affordable, 0.99 * MAX_EPOCHS * 12_000_000)
    if plan.epochs == 1:
        assert tokens_of(plan) <= affordable
    assert plan.evaluation_s <= EVALUATION_SHARE * seconds


def test_rows_come_before_explanations_and_both_before_repeats():
    plans = [plan_time(seconds, COSTS, SPEEDS, 32) for seconds in (60, 180, 230, 280, 400, 900)]
    assert [plan.num_rows for plan in plans] == sorted(plan.num_rows for plan in plans)
    assert [plan.explanation_share for plan in plans] == sorted(plan.explanation_share for plan in plans)
    assert plans[0].num_rows < COSTS.num_rows
    assert plans[0].explanation_share == MIN_EXPLANATION_SHARE
    for plan in plans:
        assert plan.explanation_share == MIN_EXPLANATION_SHARE or plan.num_rows == COSTS.num_rows
        assert plan.epochs == 1 or plan.explanation_share == 1
    assert plans[-1].epochs == MAX_EPOCHS


def test_the_plan_says_why():
    reasons = " ".join(plan_time(100, COSTS, SPEEDS, 32).reasons)
    for said in (
        "100 s are left",
        "50,000 tokens/s measured here",
        "not all 64,000 rows fit",
        "2,000 questions",
    ):
        assert said in reasons


def test_evaluation_gives_up_the_other_prompt_first_then_questions():
    assert plan_evaluation(10, COSTS, SPEEDS) == (2000, True, pytest.approx(2 * 380 / 150))
    assert plan_evaluation(4, COSTS, SPEEDS) == (2000, False, pytest.approx(2 * 200 / 150))
    num_questions, lm_eval, seconds = plan_evaluation(1, COSTS, SPEEDS)
    assert (num_questions, lm_eval) == (750, False)
    assert seconds == pytest.approx(1)
    assert plan_evaluation(0, COSTS, SPEEDS)[0] == 10
    own_only = dataclasses.replace(COSTS, lm_eval_tokens=0)
    assert plan_evaluation(10, own_only, SPEEDS)[1] is False


# 3,000 questions held back, and 1,000 to choose by: 4 times as much in 4 orders, the order given among them.
HELD = dataclasses.replace(COSTS, num_held_back=3000, held_back_tokens=400_000, ordered_tokens=1_600_000)


def test_calibration_gives_up_the_other_orders_first_then_questions_then_all():
    slow = dataclasses.replace(SPEEDS, score_tokens_per_s=100_000)
    assert plan_calibration(16, HELD, slow, (1, 4)) == (3000, (1, 4), pytest.approx(16))
    assert plan_calibration(15.9, HELD, slow, (1, 4)) == (3000, (1,), pytest.approx(4))
    assert plan_calibration(1, HELD, slow, (1, 4)) == (750, (1,), pytest.approx(1))
    assert plan_calibration(0.07, HELD, slow, (1, 4)) == (52, (1,), pytest.approx(0.07, rel=0.02))
    assert plan_calibration(0.06, HELD, slow, (1, 4)) == (0, (), 0)  # 45 are too few
    assert plan_calibration(99, HELD, slow, (1,)) == (3000, (1,), pytest.approx(4))
    assert plan_calibration(99, COSTS, slow, (1, 4)) == (0, (), 0)  # nothing was held back


def test_a_plan_holds_its_calibration_within_the_time():
    plan = plan_time(300, HELD, SPEEDS, 32, orders=(1, 4))
    assert (plan.num_calibration, plan.calibration_orders) == (3000, (1, 4))
    assert plan.calibration_s == pytest.approx(1_600_000 / 150_000)
    assert plan.training_s + plan.evaluation_s + plan.calibration_s + SPEEDS.save_s < 300
    assert "calibrated on 3,000 of 3,000 questions held back" in plan.reasons
    short = plan_time(60, HELD, SPEEDS, 32, orders=(1, 4))
    assert (short.num_calibration, short.calibration_orders) == (3000, (1,))
    none = plan_time(60, COSTS, SPEEDS, 32, orders=(1, 4))
    assert (none.num_calibration, none.calibration_orders, none.calibration_s) == (0, (), 0)
    assert none.reasons[-1].startswith("not calibrated")


def test_too_little_time_is_an_error_that_says_how_much_more():
    with pytest.raises(ConfigError, match="don't fit into the 6 s that are left") as caught:
        plan_time(6, COSTS, dataclasses.replace(SPEEDS, train_tokens_per_s=300), 32)
    assert "minutes more" in caught.value.hint


def test_few_rows_need_no_more_than_there_are():
    few = Costs(500, 500, 5, 2_000, 0, 20)
    plan = plan_time(30, few, SPEEDS, 8)
    assert (plan.num_rows, plan.epochs, plan.explanation_share) == (5, MAX_EPOCHS, 1.0)


def test_a_larger_share_explains_the_same_rows_and_more():
    order = [f"{(7 * i) % 100:02}" for i in range(100)]
    some, more = explained_rows(order, 0.2), explained_rows(order, 0.5)
    assert (len(some), len(more)) == (20, 50)
    assert some < more
    assert len(explained_rows(order, 1.0)) == 100
