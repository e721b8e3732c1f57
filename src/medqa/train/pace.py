"""Keep training within a time: how many steps fit is found out again as they are done. Torch-free."""

import bisect
import logging
import time
from collections.abc import Callable, Sequence

__all__ = ["Pace", "Replay"]

log = logging.getLogger(__name__)

# The first steps hold what later ones don't: kernels are loaded, memory is taken, a graph is captured.
NUM_FIRST_STEPS = 1
RECENT_STEPS = 20
# What was expected counts as so many steps at first, and no more once that many recent ones are measured.
EXPECTED_STEPS = 4
# Fewer steps follow at once; more only early on, while the learning rate can still take them in.
MIN_GAIN, EARLY_SHARE = 1.03, 0.5


class Pace:
    """Says after each step how many steps there will be in all.

    Attributes:
        changes: What was changed, and when, for the record.
        steps: Steps done, and how many there were to be in all from there on: with these it can be repeated.
        tell: Told how many steps there will be.
    """

    def __init__(
        self,
        end: float,
        tokens_per_s: float,
        tell: Callable[[int], None] = lambda num_steps: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the time.

        Args:
            end: When the last step must be done, on the clock.
            tokens_per_s: What to expect until steps have been measured.
            tell: Told how many steps there will be, at first and when that changes.
            clock: Seconds that only rise.
        """
        self.end, self._expected, self._clock, self.tell = end, tokens_per_s, clock, tell
        self.changes: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self._num_tokens: Sequence[int] = ()
        self._times: list[tuple[int, float]] = []

    def begin(self, step: int, num_tokens: Sequence[int]) -> int:
        """Begin the steps.

        Args:
            step: Steps done.
            num_tokens: Tokens of the first 0, 1, 2, ... steps that there could be.

        Returns:
            How many steps there will be in all.
        """
        self._num_tokens = num_tokens
        self._times = [(step, self._clock())]
        # At least one step: a run without any would be none.
        num_steps = max(min(step + 1, len(num_tokens) - 1), self._fitting(step, self._expected))
        self.steps.append((step, num_steps))
        self.tell(num_steps)
        return num_steps

    def review(self, step: int, num_steps: int) -> int:
        """Take note that a step is done.

        Args:
            step: Steps done.
            num_steps: How many there were to be.

        Returns:
            How many steps there will be in all; at once `step` if not even one more fits.
        """
        self._times.append((step, self._clock()))
        if step < num_steps and self._times[-1][1] >= self.end:
            return self._changed(step, num_steps, self._rate())
        if len(self._times) <= NUM_FIRST_STEPS + 1 or step >= num_steps:
            return num_steps
        rate = self._rate()
        fitting = self._fitting(step, rate)
        early = step < EARLY_SHARE * fitting
        if fitting < num_steps or (early and fitting > MIN_GAIN * num_steps):
            return self._changed(max(step, fitting), num_steps, rate)
        return num_steps

    def _rate(self) -> float:
        """Tokens per second of the recent steps but the very first, and what was expected, as a few more."""
        first = max(len(self._times) - 1 - RECENT_STEPS, min(NUM_FIRST_STEPS, len(self._times) - 2))
        (step, then), (now_step, now) = self._times[first], self._times[-1]
        num_tokens = self._num_tokens[now_step] - self._num_tokens[step]
        believed = (
            num_tokens / (now_step - step) * EXPECTED_STEPS * max(0, 1 - (now_step - step) / RECENT_STEPS)
        )
        return (num_tokens + believed) / max(1e-9, now - then + believed / self._expected)

    def _fitting(self, step: int, rate: float) -> int:
        affordable = self._num_tokens[step] + max(0.0, self.end - self._clock()) * rate + 1e-6
        return bisect.bisect_right(self._num_tokens, affordable) - 1

    def _changed(self, fitting: int, num_steps: int, rate: float) -> int:
        text = (
            f"step {self._times[-1][0]}: {rate:,.0f} tokens/s, so {fitting:,} steps instead of {num_steps:,}"
        )
        log.info("New plan, %s", text)
        self.changes.append(text)
        self.steps.append((self._times[-1][0], fitting))
        self.tell(fitting)
        return fitting


class Replay(Pace):
    """Changes the number of steps where an earlier run did, whatever the time."""

    def __init__(self, steps: Sequence[tuple[int, int]]) -> None:
        """Take the `steps` of that run's pace."""
        super().__init__(end=float("inf"), tokens_per_s=1.0)
        self.steps = [(step, num_steps) for step, num_steps in steps]

    def begin(self, step: int, num_tokens: Sequence[int]) -> int:
        """Begin the steps; see `Pace.begin`."""
        return [num_steps for place, num_steps in self.steps if place <= step][-1]

    def review(self, step: int, num_steps: int) -> int:
        """Take note that a step is done; see `Pace.review`."""
        return dict(self.steps).get(step, num_steps)
