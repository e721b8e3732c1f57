"""Training ends in time, whatever the machine does."""

import itertools

import pytest

from medqa.train.pace import Pace

TOKENS_A_STEP = 100


class Machine:
    """A clock that steps take time on."""

    def __init__(self, end, expected, speeds, num_possible=1000):
        self.now = 0.0
        self.pace = Pace(end, expected, clock=lambda: self.now)
        self.speeds = iter(speeds)
        self.num_possible = num_possible

    def run(self):
        """Train; return the steps done."""
        step, totals = 0, []
        num_steps = self.pace.begin(0, [TOKENS_A_STEP * i for i in range(self.num_possible + 1)])
        while step < num_steps:
            self.now += TOKENS_A_STEP / next(self.speeds)
            step += 1
            num_steps = self.pace.review(step, num_steps)
            totals.append(num_steps)
        return step, totals


def test_a_steady_machine_does_what_was_planned():
    machine = Machine(100, 50.0, itertools.repeat(50.0))
    assert machine.run()[0] == 50
    assert machine.now == pytest.approx(100)
    assert not machine.pace.changes


@pytest.mark.parametrize("speed", [25.0, 40.0, 49.0])
def test_a_slower_machine_does_less_and_ends_in_time(speed):
    machine = Machine(100, 50.0, itertools.repeat(speed))
    steps, totals = machine.run()
    assert steps == pytest.approx(speed, abs=1)
    assert machine.now < 100.01
    assert totals == sorted(totals, reverse=True)
    assert "steps instead of 50" in machine.pace.changes[0]


def test_a_faster_machine_does_more():
    machine = Machine(100, 50.0, itertools.repeat(80.0))
    assert machine.run()[0] == pytest.approx(80, abs=2)
    assert 95 < machine.now <= 100


def test_no_more_steps_than_there_are():
    machine = Machine(100, 50.0, itertools.repeat(80.0), num_possible=60)
    assert machine.run()[0] == 60


def test_a_machine_that_slows_down_halfway_ends_in_time():
    machine = Machine(100, 50.0, itertools.chain([50.0] * 25, itertools.repeat(10.0)))
    steps, _ = machine.run()
    assert 25 < steps < 40
    assert machine.now <= 100 + TOKENS_A_STEP / 10


def test_a_slow_first_step_is_no_measure():
    machine = Machine(100, 50.0, itertools.chain([10.0], itertools.repeat(50.0)))
    steps, _ = machine.run()
    assert steps == pytest.approx(46, abs=1)


def test_a_standstill_ends_at_once():
    machine = Machine(10, 50.0, itertools.chain([50.0] * 2, [0.5], itertools.repeat(50.0)))
    assert machine.run()[0] == 3
