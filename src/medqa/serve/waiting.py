"""What waits in a service: questions for their scores, explanations for their tokens."""

import asyncio
import bisect
import contextlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from medqa.errors import TimeLimitError
from medqa.evaluate.orders import OrderedPrediction
from medqa.model.generate import Written
from medqa.model.writer import Writing
from medqa.records import Example
from medqa.trust.permutation import NumOrders

__all__ = ["CHARACTERS_A_TOKEN", "Line", "Question", "Text", "tell", "within"]

T = TypeVar("T")

# Lengths are weighed in characters, which are there before a question is tokenised.
CHARACTERS_A_TOKEN = 4
# What the prompt adds to a question.
PROMPT_CHARACTERS = 200


class Question:
    """A question on its way to its scores.

    Attributes:
        example: The question.
        num_orders: Orders that it is asked in.
        scored: Where its scores go, in its asker's event loop.
        cost: Characters that the model has to read.
        since: When it came, by the monotonic clock.
    """

    def __init__(self, example: Example, num_orders: NumOrders) -> None:
        """Take a question; to be made in the asker's event loop."""
        self.example, self.num_orders = example, num_orders
        self.loop = asyncio.get_running_loop()
        self.scored: asyncio.Future[OrderedPrediction] = self.loop.create_future()
        self.cost = num_orders * (PROMPT_CHARACTERS + example.num_characters)
        self.since = time.monotonic()


def tell(questions: Sequence[Question], results: Sequence[OrderedPrediction | BaseException]) -> None:
    """Give questions their scores, or what went wrong; from any thread, which wakes each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Any]] = {}
    for question, result in zip(questions, results, strict=True):
        by_loop.setdefault(question.loop, []).append((question.scored, result))
    for loop, pairs in by_loop.items():
        # An asker's loop may be closed by now; then nobody waits for the scores.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_tell, pairs)


def _tell(pairs: Sequence[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, result in pairs:
        if not future.done():
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


class Line:
    """Questions that wait. One that takes ten seconds longer than another goes as if it had come ten later.

    So the short ones are not held up by the long, and the long ones have their turn all the same. Not safe
    for threads.
    """

    def __init__(self, max_number: int, max_cost: float) -> None:
        """Take how many questions go together at most, and how many characters, unless it is one alone."""
        self._max_number, self._max_cost = max_number, max_cost
        self._waiting: list[Question] = []
        self._cost = 0
        self._rate = 0.0  # characters a second, lately; 0 if nothing is known yet

    def __len__(self) -> int:
        """Count the questions."""
        return len(self._waiting)

    def wait_s(self, cost: int = 0) -> float:
        """Foretell how long it takes until all that wait are scored, and one of that cost."""
        return (self._cost + cost) / self._rate if self._rate else 0.0

    def add(self, question: Question) -> None:
        """Let a question wait."""
        bisect.insort(self._waiting, question, key=self._place)
        self._cost += question.cost

    def leave(self, question: Question) -> None:
        """Take out a question that nobody waits for any more, if it is still here."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(question)
            self._cost -= question.cost

    def take(self) -> list[Question]:
        """Take out the questions that are next."""
        cost, number = 0, 0
        for question in self._waiting[: self._max_number]:
            cost += question.cost
            if number and cost > self._max_cost:
                break
            number += 1
        taken, self._waiting = self._waiting[:number], self._waiting[number:]
        self._cost -= sum(question.cost for question in taken)
        return taken

    def took(self, questions: Sequence[Question], seconds: float) -> None:
        """Learn how fast questions are scored."""
        rate = sum(question.cost for question in questions) / max(seconds, 1e-6)
        self._rate = rate if not self._rate else 0.8 * self._rate + 0.2 * rate
        self._waiting.sort(key=self._place)

    def _place(self, question: Question) -> float:
        return question.since + (question.cost / self._rate if self._rate else 0.0)


class Text:
    """An explanation on its way to its asker.

    Attributes:
        prompt: Token ids that it follows.
        max_new_tokens: Its longest length.
        parts: What its asker waits for.
        left: Whether nobody waits any more.
        writing: The text, once it is begun by a writer.
        begun: When it was begun, by the monotonic clock.
    """

    def __init__(self, prompt: list[int], max_new_tokens: int) -> None:
        """Take what it follows, and its longest length; to be made in the asker's event loop."""
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.loop = asyncio.get_running_loop()
        self.parts: asyncio.Queue[str | Written | BaseException] = asyncio.Queue()
        self.left = False
        self.writing: Writing | None = None
        self.begun = 0.0

    def send(self, part: str | Written | BaseException) -> None:
        """Give the asker a piece, the whole text at its end, or what went wrong; from any thread."""
        # The asker's loop may be closed by now; then nobody waits for the text.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.parts.put_nowait, part)


async def within(waited: Awaitable[T], end: float, limit_s: float) -> T:
    """Wait until a time of the monotonic clock at most.

    Raises:
        TimeLimitError: If that is not enough; it names the limit.
    """
    try:
        return await asyncio.wait_for(waited, max(0.0, end - time.monotonic()))
    except (asyncio.TimeoutError, TimeoutError) as exc:
        raise TimeLimitError(
            f"the answer took longer than {limit_s:g} s", "try again, or ask without the explanation"
        ) from exc
