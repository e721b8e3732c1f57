"""What waits in a service: questions for their scores, explanations for their tokens."""

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Awaitable
from typing import NamedTuple, TypeVar

from medqa.errors import TimeLimitError
from medqa.evaluate.orders import OrderedPrediction
from medqa.model.generate import Written
from medqa.model.writer import Writing
from medqa.records import Example
from medqa.trust.permutation import NumOrders

__all__ = ["Question", "Text", "within"]

T = TypeVar("T")


class Question(NamedTuple):
    """A question, the number of orders it is asked in, and where its scores go."""

    example: Example
    num_orders: NumOrders
    scored: concurrent.futures.Future[OrderedPrediction]


class Text:
    """An explanation on its way to its asker.

    Attributes:
        prompt: Token ids that it follows.
        max_new_tokens: Its longest length.
        parts: What its asker waits for.
        left: Whether nobody waits any more.
        writing: The text, once it is begun.
    """

    def __init__(self, prompt: list[int], max_new_tokens: int) -> None:
        """Take what it follows, and its longest length; to be made in the asker's event loop."""
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.loop = asyncio.get_running_loop()
        self.parts: asyncio.Queue[str | Written | BaseException] = asyncio.Queue()
        self.left = False
        self.writing: Writing | None = None

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
