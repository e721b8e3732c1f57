"""HTTP to a model server: a bounded number of requests at once, and of tries for each.

What may pass by itself (no connection, a time limit, too many requests, a server that starts) is tried again
after a wait, and said. Everything else is an EngineError at once, in the server's own words.
"""

import concurrent.futures
import contextlib
import datetime
import email.utils
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from medqa.errors import DependencyError, EngineError
from medqa.evaluate.protocol import read_error
from medqa.progress import Task

if TYPE_CHECKING:
    import httpx

__all__ = ["KEY_VARIABLE", "Connection", "RefusedError"]

log = logging.getLogger(__name__)

_In = TypeVar("_In")
_Out = TypeVar("_Out")

KEY_VARIABLE = "MEDQA_ENGINE_KEY"

CONCURRENCY = 32
NUM_TRIES = 5
TIMEOUT_S = 300.0
CONNECT_TIMEOUT_S = 10.0
BACKOFF_S = 0.5  # before the second try; twice as long before each further one
LONGEST_WAIT_S = 60.0

_PASSING = (429, 502, 503, 504)


class RefusedError(EngineError):
    """The server refuses a request, and would again."""


class Connection:
    """A model server, from any number of threads.

    Attributes:
        url: Up to and including /v1, as a rule.
        concurrency: How many requests are under way at once, at most.
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
            concurrency: How many requests are under way at once, at most.
            num_tries: How often a request is sent, at most.
            timeout_s: Longest silence of the server, a text that is written without streaming counted in.
            backoff_s: Wait before the second try.

        Raises:
            DependencyError: If httpx is not installed.
            EngineError: If the key in the environment can't be one.
        """
        try:
            import httpx
        except ImportError as exc:
            raise DependencyError("a remote engine needs httpx", "pip install 'medqa[serve]'") from exc
        self.url, self.concurrency, self.num_retries = url, concurrency, 0
        self._num_tries, self._timeout_s, self._backoff_s = num_tries, timeout_s, backoff_s
        self._key = _key()
        self._counting = threading.Lock()
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
            # Whoever waits for a connection waits for other requests, which have limits of their own.
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            # Without TLS nothing is verified: reading the system's certificates takes a while.
            verify=url.startswith("https:"),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """GET, and read the JSON that comes back.

        Raises:
            EngineError: If the server can't be reached, refuses, or answers with something else.
        """
        return _json(self._tried("GET", path, None, None))

    def post(self, path: str, body: dict[str, Any], stop: threading.Event | None = None) -> Any:
        """POST JSON, and read the JSON that comes back.

        Args:
            path: Below the URL.
            body: What to send.
            stop: Once set, it is not tried again.

        Raises:
            EngineError: If the server can't be reached, refuses, or answers with something else.
        """
        return _json(self._tried("POST", path, body, stop))

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[str]]:
        """POST JSON, and give the lines that come back as they come; leaving the block hangs up.

        Raises:
            EngineError: As `post` does, and if the connection breaks on the way.
        """
        import httpx

        response = self._tried("POST", path, body, None, stream=True)
        try:
            yield response.iter_lines()
        except httpx.HTTPError as exc:
            raise EngineError(
                f"the connection to {self.url} broke: {_reason(exc, self._timeout_s)}", _TRY_CURL
            ) from exc
        finally:
            response.close()

    def each(
        self, ask: Callable[[_In, threading.Event], _Out], arguments: Sequence[_In], task: Task | None = None
    ) -> list[_Out]:
        """Ask many things at once, and return the answers in order; the first error ends it all.

        Args:
            ask: Called with each argument, from several threads, and with what to give `post` as `stop`.
            arguments: What to ask.
            task: Told of each answer.
        """
        stop, patient = threading.Event(), True
        pool = concurrent.futures.ThreadPoolExecutor(min(self.concurrency, len(arguments)) or 1)
        try:
            places = {pool.submit(ask, one, stop): place for place, one in enumerate(arguments)}
            found: dict[int, _Out] = {}
            for future in concurrent.futures.as_completed(places):
                found[places[future]] = future.result()
                if task:
                    task.advance()
        except KeyboardInterrupt:
            patient = False
            raise
        finally:
            stop.set()
            pool.shutdown(wait=patient, cancel_futures=True)
        return [found[place] for place in range(len(arguments))]

    def _tried(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        stop: threading.Event | None,
        *,
        stream: bool = False,
    ) -> "httpx.Response":
        import httpx

        stop = stop or threading.Event()
        for number in range(1, self._num_tries + 1):
            asked_s = None
            try:
                request = self._client.build_request(method, f"{self.url}/{path}", json=body)
                response = self._client.send(request, stream=stream)
                if response.status_code not in _PASSING:
                    return self._accepted(response)
                reason, asked_s = self._said(response), _retry_after_s(response)
            except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError) as exc:
                reason = _reason(exc, self._timeout_s)
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise EngineError(
                    f"{self.url} can't be asked: {_reason(exc, self._timeout_s)}", _TRY_CURL
                ) from exc
            if number == self._num_tries or stop.is_set():
                break
            self._wait(reason, number, asked_s, stop)
        times = f"after {number} tries" if number > 1 else "at the first try"
        raise EngineError(f"the server at {self.url} doesn't answer, {times}: {reason}", _TRY_CURL)

    def _wait(self, reason: str, number: int, asked_s: float | None, stop: threading.Event) -> None:
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
        kind = RefusedError if 400 <= code < 500 else EngineError
        raise kind(
            f"the server at {self.url} refuses: {self._said(response)}",
            hints.get(code, "the message is the server's own; its log may say more"),
        )

    def _said(self, response: "httpx.Response") -> str:
        """Say how the server answered, never with the key in it."""
        try:
            text = response.read().decode(errors="replace")
        finally:
            response.close()
        words = f"{response.status_code}, {read_error(text)}"
        return words.replace(self._key, "***") if self._key else words


_TRY_CURL = "does it run there, and is it ready? `curl URL/models` asks without this program"


def _key() -> str | None:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EngineError(f"{KEY_VARIABLE} holds characters that no key has", "copy the key again")
    return key or None


def _json(response: "httpx.Response") -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError) as exc:
        start = " ".join(response.text[:80].split())
        raise EngineError(
            f"the server answers with something else than JSON: {start!r}", "does the URL end in /v1?"
        ) from exc


def _reason(exc: Exception, timeout_s: float) -> str:
    import httpx

    if isinstance(exc, httpx.ConnectTimeout):
        return "no connection in time"
    if isinstance(exc, httpx.TimeoutException):
        return f"silent for {timeout_s:g} s"
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


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
