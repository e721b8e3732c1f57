"""Which rows a step takes, and at what rate."""

import random

import pytest

from medqa.config import TrainConfig
from medqa.train.schedule import deal, learning_rate, plan_epoch, plan_steps

LENGTHS = [(7 * i) % 100 + 1 for i in range(1003)]


@pytest.mark.parametrize("balanced", [True, False])
def test_an_epoch_takes_every_row_once_and_the_seed_and_epoch_choose_the_order(balanced):
    batches = plan_epoch(LENGTHS, 16, seed=0, epoch=0, balanced=balanced)
    assert sorted(row for b in batches for row in b) == list(range(1003))
    assert max(map(len, batches)) == 16
    assert batches == plan_epoch(LENGTHS, 16, seed=0, epoch=0, balanced=balanced)
    others = [
        plan_epoch(LENGTHS, 16, seed=seed, epoch=epoch, balanced=balanced) for seed, epoch in ((0, 1), (1, 1))
    ]
    assert batches != others[0] != others[1]


def test_batches_of_like_length_need_little_padding():
    batches = plan_epoch(LENGTHS, 16, seed=0, epoch=0, balanced=False)
    assert sum(len(b) < 16 for b in batches) == 1
    padded = sum(max(LENGTHS[r] for r in b) * len(b) for b in batches)
    assert padded < 1.05 * sum(LENGTHS)


@pytest.mark.parametrize(("batch_size", "spread"), [(8, 1.1), (16, 1.03), (32, 1.01)])
def test_balanced_batches_all_fit_into_one_shape(batch_size, spread):
    rng = random.Random(0)
    lengths = [min(512, 60 + int(rng.lognormvariate(4.5, 0.6))) for _ in range(4000)]
    batches = plan_epoch(lengths, batch_size, seed=0, epoch=0, balanced=True)
    totals = [sum(lengths[row] for row in batch) for batch in batches]
    assert max(totals) < spread * sum(totals) / len(totals)
    assert {len(b) for b in batches} <= {batch_size, batch_size - 1}


@pytest.mark.parametrize(("num_rows", "num_parts"), [(1, 1), (5, 2), (6, 6), (7, 3), (33, 4)])
def test_dealing_keeps_every_row_and_fills_no_part_beyond_its_share(num_rows, num_parts):
    parts = deal([3 * (row % 5) + 1 for row in range(num_rows)], num_parts)
    assert sorted(row for part in parts for row in part) == list(range(num_rows))
    assert len(parts) == num_parts
    assert max(map(len, parts)) == -(-num_rows // num_parts)


def test_epochs_follow_each_other():
    config = TrainConfig(epochs=2, batch_size=10)
    steps = plan_steps(LENGTHS, config, balanced=True)
    assert len(steps) == 2 * 101
    assert sorted(row for step in steps[:101] for row in step) == list(range(1003))


def test_the_learning_rate_rises_then_falls_to_zero():
    config = TrainConfig(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.001
