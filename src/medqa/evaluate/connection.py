"""HTTP to a model server: a bounded number of requests at once, and of tries for each.

What may pass by itself (no connection, a time limit, too many requests, a server that starts) is tried again
after a wait, and said. Everything else is an EngineError at once, in the server's own words; it is a
RefusedByEngineError if it may be the prompt's fault alone.
"""

import concurrent.futures
import contextlib
import datetime
import email.utils
import logging
import os
import random
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from medqa.errors import EngineError, RefusedByEngineError
from medqa.evaluate.protocol import read_error, read_lines
from medqa.evaluate.transport import Stop, Transport, say_why
from medqa.progress import Task

if TYPE_CHECKING:
    import httpx

__all__ = ["KEY_VARIABLE", "Connection"]

log = logging.getLogger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")

KEY_VARIABLE = "MEDQA_ENGINE_KEY"

CONCURRENCY = 32
NUM_TRIES = 5
TIMEOUT_S = 300.0
BACKOFF_S = 0.5  # before the second try; twice as long before each further one
LONGEST_WAIT_S = 60.0

# So many refusals and not one answer: the server refuses everything.
MANY_REFUSED = 32

_PASSING = (429, 502, 503, 504)
# What a server says to one prompt. With 500 it may be broken altogether; or just this prompt breaks it.
_OF_THE_PROMPT = (400, 413, 422, 500)


class Connection:
    """A model server, from any number of threads.

    Attributes:
        url: Up to and including /v1, as a rule.
        concurrency: How many requests are under way at once, at most; streams are not counted in.
        num_retries: How many requests were sent again so far.
    """

    def __init__(
        self,
        url: str,
        *,
        concurrency: int = CONCURRENCY,
        num_tries: int = NUM_TRIES,
        timeout_s: float = TIMEOUT_S,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Up to and including /v1, as a rule.
            concurrency: How many requests are under way at once, at most; streams are not counted in.
            num_tries: How often a request is sent, at most.
            timeout_s: Longest silence of the server, a text that is written without streaming counted in.
            backoff_s: Wait before the second try.

        Raises:
            DependencyError: If httpx is not installed.
            EngineError: If the key in the environment can't be one.
        """
        self.url, self.concurrency, self.num_retries = url, concurrency, 0
        self._num_tries, self._timeout_s, self._backoff_s = num_tries, timeout_s, backoff_s
        self._key = _key()
        self._counting, self._closing = threading.Lock(), Stop()
        self._transport = Transport(url, self._key, concurrency, timeout_s)

    def close(self) -> None:
        """Hang up everything that is under way, from any thread; once more does nothing.

        Whoever waits for an answer gets an EngineError at once, and so does whoever asks later.
        """
        self._closing.set()
        self._transport.close()

    def get(self, path: str) -> Any:
        """GET, and read the JSON that comes back.

        Raises:
            EngineError: If the server can't be reached, refuses, or answers with something else.
        """
        return _json(self._tried("GET", path, None, Stop()))

    def post(self, path: str, body: dict[str, Any], stop: Stop | None = None) -> Any:
        """POST JSON, and read the JSON that comes back.

        Args:
            path: Below the URL.
            body: What to send.
            stop: Hangs up.

        Raises:
            EngineError: If the server can't be reached, answers with something else, or it was ended.
            RefusedByEngineError: If the server refuses this.
        """
        return _json(self._tried("POST", path, body, stop or Stop()))

    def stream(self, path: str, body: dict[str, Any], stop: Stop) -> Generator[str, None, None]:
        """POST JSON, and give the lines that come back as they come.

        Args:
            path: Below the URL.
            body: What to send.
            stop: Hangs up, as closing the generator does.

        Raises:
            EngineError: As `post` does, and if the connection breaks on the way.
        """
        import httpx

        try:
            response = self._tried("POST", path, body, stop, stream=True)
            yield from read_lines(self._transport.chunks(response, stop))
        except httpx.HTTPError as exc:
            raise EngineError(
                f"the connection to {self.url} broke: {say_why(exc, self._timeout_s)}", _TRY_CURL
            ) from exc
        finally:
            stop.set()

    def each(
        self, ask: Callable[[_In, Stop], _Out], arguments: Sequence[_In], task: Task | None = None
    ) -> list[_Out]:
        """Ask many things at once, and return the answers in order.

        What is refused keeps nothing else from being asked, unless that is refused as well; then the first
        refusal, in the order of the arguments, is raised. Any other error ends it all at once.

        Args:
            ask: Called with each argument, from several threads, and with what to give `post` as `stop`.
            arguments: What to ask.
            task: Told of each answer.
        """
        stop, refused = Stop(), dict[int, RefusedByEngineError]()
        pool = concurrent.futures.ThreadPoolExecutor(min(self.concurrency, len(arguments)) or 1)
        try:
            places = {pool.submit(ask, one, stop): place for place, one in enumerate(arguments)}
            found: dict[int, _Out] = {}
            for future in concurrent.futures.as_completed(places):
                try:
                    found[places[future]] = future.result()
                except RefusedByEngineError as exc:
                    if not refused and len(arguments) > 1:
                        log.warning("%s; the others are asked", exc.message)
                    refused[places[future]] = exc
                if len(refused) >= MANY_REFUSED and not found:
                    break
                if task:
                    task.advance()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        if refused:
            raise _first_of(refused, len(arguments))
        return [found[place] for place in range(len(arguments))]

    def _tried(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        stop: Stop,
        *,
        stream: bool = False,
    ) -> "httpx.Response":
        with self._closing.calling(stop.set):
            return self._tries(method, path, body, stop, stream)

    def _tries(
        self, method: str, path: str, body: dict[str, Any] | None, stop: Stop, stream: bool
    ) -> "httpx.Response":
        import httpx

        for number in range(1, self._num_tries + 1):
            asked_s = None
            try:
                response = self._transport.send(method, path, body, stop, stream=stream)
                if response.status_code not in _PASSING:
                    return self._accepted(response)
                reason, asked_s = self._said(response), _retry_after_s(response)
            except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as exc:
                reason = say_why(exc, self._timeout_s)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise EngineError(
                    f"{self.url} can't be asked: {say_why(exc, self._timeout_s)}", _TRY_CURL
                ) from exc
            if number == self._num_tries or stop.is_set():
                break
            self._wait(reason, number, asked_s, stop)
        times = f"after {number} tries" if number > 1 else "at the first try"
        raise EngineError(f"the server at {self.url} doesn't answer, {times}: {reason}", _TRY_CURL)

    def _wait(self, reason: str, number: int, asked_s: float | None, stop: Stop) -> None:
        """Wait before another try: longer each time, and never all at the same moment."""
        seconds = self._backoff_s * 2 ** (number - 1) * random.uniform(0.5, 1.5)
        if asked_s is not None:
            if asked_s > LONGEST_WAIT_S:
                raise EngineError(
                    f"the server at {self.url} asks to wait {asked_s:.0f} s: {reason}", "ask again later"
                )
            seconds = max(seconds, asked_s)
        with self._counting:
            self.num_retries += 1
        log.warning("%s: %s; try %d of %d in %.1f s", self.url, reason, number + 1, self._num_tries, seconds)
        stop.wait(seconds)

    def _accepted(self, response: "httpx.Response") -> "httpx.Response":
        code = response.status_code
        if code == 200:
            return response
        hints = {
            401: f"give the server's key in the environment variable {KEY_VARIABLE}",
            403: f"give the server's key in the environment variable {KEY_VARIABLE}",
            404: "the URL should end in /v1, and the name after # be one that the server offers",
        }
        kind = RefusedByEngineError if code in _OF_THE_PROMPT else EngineError
        raise kind(
            f"the server at {self.url} refuses: {self._said(response)}",
            hints.get(code, "the message is the server's own; its log may say more"),
        )

    def _said(self, response: "httpx.Response") -> str:
        """Say how the server answered, never with the key in it."""
        words = f"{response.status_code}, {read_error(response.content.decode(errors='replace'))}"
        return words.replace(self._key, "***") if self._key else words


_TRY_CURL = "does it run there, and is it ready? `curl URL/models` asks without this program"


def _key() -> str | None:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EngineError(f"{KEY_VARIABLE} holds characters that no key has", "copy the key again")
    return key or None


def _first_of(refused: dict[int, RefusedByEngineError], num_asked: int) -> RefusedByEngineError:
    first = refused[min(refused)]
    if len(refused) == 1:
        return first
    return RefusedByEngineError(f"{first.message} (and {len(refused) - 1} more of {num_asked})", first.hint)


def _json(response: "httpx.Response") -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as exc:
        start = " ".join(response.text[:80].split())
        raise EngineError(
            f"the server answers with something else than JSON: {start!r}", "does the URL end in /v1?"
        ) from exc


def _retry_after_s(response: "httpx.Response") -> float | None:
    """Read how long the server asks to wait: seconds, or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if not value:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, float(value))
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, (date - datetime.datetime.now(datetime.timezone.utc)).total_seconds())
