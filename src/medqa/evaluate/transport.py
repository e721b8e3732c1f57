"""Requests that any thread may make, and any thread may end.

Nothing wakes a thread that listens to a silent server. So an event loop in a thread of its own does the
listening: what runs there can be cancelled at any moment, and then hangs up. Letters and streams have
connections of their own: no stream ever holds what a letter needs.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medqa.errors import DependencyError, EngineError

if TYPE_CHECKING:
    import httpx

__all__ = ["Stop", "Stream", "Transport", "say_why"]

_T = TypeVar("_T")

CONNECT_TIMEOUT_S = 10.0
# As many as `medqa serve` has threads for explanations.
NUM_STREAMS = 64
# How long closing waits for connections to be closed in an orderly way.
CLOSE_S = 5.0


class Stop:
    """Ends a piece of work, from any thread: what is under way is hung up, and nothing is tried again."""

    def __init__(self) -> None:
        self._event = threading.Event()
        # Reentrant: a stream that nobody holds any more is ended wherever its thread happens to be.
        self._lock = threading.RLock()
        self._calls: set[Callable[[], object]] = set()

    def is_set(self) -> bool:
        """Tell whether the work is to end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the work is to end."""
        self._event.wait(seconds)

    def set(self) -> None:
        """End the work; once more does nothing."""
        with self._lock:
            self._event.set()
            calls, self._calls = self._calls, set()
        for call in calls:
            call()

    def add(self, call: Callable[[], object]) -> None:
        """Have something called at the end; at once if that has come."""
        with self._lock:
            if not self.is_set():
                self._calls.add(call)
                return
        call()

    @contextlib.contextmanager
    def calling(self, call: Callable[[], object]) -> Iterator[None]:
        """Have something called if the end comes within a block."""
        self.add(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.discard(call)


class Stream(Generic[_T]):
    """What comes from a server, as it comes: an iterator for one thread, which any other thread may close."""

    def __init__(self, parts: Iterator[_T], stop: Stop) -> None:
        """Take what gives the parts, and what ends that."""
        self._parts, self._stop, self._closed = parts, stop, False

    def __iter__(self) -> "Stream[_T]":
        return self

    def __next__(self) -> _T:
        if self._closed:
            raise StopIteration
        try:
            return next(self._parts)
        except EngineError:
            if self._closed:  # it ended because it was told to
                raise StopIteration from None
            raise

    def close(self) -> None:
        """Hang up, now, from any thread and at any time; once more does nothing.

        A thread that waits for the next part gets StopIteration at once, and so does whoever asks later.
        """
        self._closed = True
        self._stop.set()


class Transport:
    """The connections to one server, and the thread that listens to them."""

    def __init__(self, url: str, key: str | None, concurrency: int, timeout_s: float) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: What paths are below.
            key: What the server asks for, if it does.
            concurrency: Requests at once, streams not counted in: those have their own number.
            timeout_s: Longest silence of the server.

        Raises:
            DependencyError: If httpx is not installed.
        """
        try:
            import httpx
        except ImportError as exc:
            raise DependencyError("a remote engine needs httpx", "pip install 'medqa[serve]'") from exc
        self._url, self._lock = url, threading.Lock()
        self._make = functools.partial(
            httpx.AsyncClient,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            # Whoever waits for a connection waits for other requests, which have limits of their own.
            timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s), pool=None),
            # Without TLS nothing is verified: reading the system's certificates takes a while.
            verify=httpx.create_ssl_context() if url.startswith("https:") else False,
        )
        self._streams = self._make(limits=httpx.Limits(max_connections=NUM_STREAMS))
        # For letters a client has one connection: in a pool, each request takes a look at all of them, and
        # that is most of its time.
        self._one = httpx.Limits(max_connections=1)
        self._room, self._free = asyncio.Semaphore(concurrency), list["httpx.AsyncClient"]()
        self._clients = [self._streams]
        self._loop = asyncio.new_event_loop()
        # A daemon: a server that says nothing must not keep this process from ending.
        self._thread = threading.Thread(target=_listen, args=(self._loop,), name="medqa-engine", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._loop, self._clients)

    def close(self) -> None:
        """Hang up everything; whoever waits gets an EngineError. Once more does nothing."""
        with self._lock:
            self._end()
        self._thread.join(CLOSE_S)

    def send(
        self, method: str, path: str, body: Any, stop: Stop, *, stream: bool = False
    ) -> "httpx.Response":
        """Send a request, and receive the answer: whole, or if it is a good stream up to its headers.

        Args:
            method: GET or POST.
            path: Below the URL.
            body: What to send as JSON; None for nothing.
            stop: Hangs up, now and while `chunks` reads on.
            stream: Whether to leave the body to `chunks`.

        Raises:
            EngineError: If it was ended.
            httpx.HTTPError: If there is no answer.
            httpx.InvalidURL: If there can be none.
        """
        request = self._streams.build_request(method, f"{self._url}/{path}", json=body)

        async def work() -> "httpx.Response":
            if not stream:
                return await self._whole(request)
            response = await self._streams.send(request, stream=True)
            if response.status_code == 200:
                stop.add(functools.partial(self._hang_up, response))
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
            return response

        return self._run(work, stop)

    async def _whole(self, request: "httpx.Request") -> "httpx.Response":
        async with self._room:
            if not self._free:
                self._free.append(self._make(limits=self._one))
                self._clients.append(self._free[-1])
            client = self._free.pop()
            try:
                return await client.send(request)
            finally:
                self._free.append(client)

    def chunks(self, response: "httpx.Response", stop: Stop) -> Iterator[bytes]:
        """Give the body of a stream as it comes.

        Raises:
            EngineError: If it was ended.
            httpx.HTTPError: If the connection breaks.
        """
        found = response.aiter_bytes()

        async def work() -> bytes | None:
            return await anext(found, None)

        while (chunk := self._run(work, stop)) is not None:
            yield chunk

    def _hang_up(self, response: "httpx.Response") -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the connection with it
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(response.aclose()))

    def _run(self, work: Callable[[], Awaitable[_T]], stop: Stop) -> _T:
        """Have the loop do something, and wait for it."""

        # An error comes as a value: one that nobody waits for any more is none to log.
        async def outcome() -> tuple[list[_T], Exception | None]:
            try:
                return [await work()], None
            except Exception as exc:  # noqa: BLE001 - raised where it was asked for
                return [], exc

        with self._lock:  # nothing begins after the end, of all or of this piece of work
            if not self._end.alive or stop.is_set():
                raise self._ended()
            future = asyncio.run_coroutine_threadsafe(outcome(), self._loop)
        with stop.calling(future.cancel):
            try:
                results, error = future.result()
            except concurrent.futures.CancelledError as exc:
                raise self._ended() from exc
            finally:
                future.cancel()
        if error is not None:
            raise error
        return results[0]

    def _ended(self) -> EngineError:
        return EngineError(f"the connection to {self._url} was closed on this side", "connect again")


def say_why(exc: Exception, timeout_s: float) -> str:
    """Say in a few words why there is no answer."""
    import httpx

    if isinstance(exc, httpx.ConnectTimeout):
        return "no connection in time"
    if isinstance(exc, httpx.TimeoutException):
        return f"silent for {timeout_s:g} s"
    words = str(_first_cause(exc) if isinstance(exc, httpx.ConnectError) else exc)
    return f"{type(exc).__name__}: {words}" if words else type(exc).__name__


def _first_cause(exc: BaseException) -> BaseException:
    """Find what failed first: all that comes after it says no more than that something did."""
    several = getattr(exc, "exceptions", None)  # one for each of a host's addresses
    cause = several[0] if several else exc.__cause__ or exc.__context__
    return exc if cause is None else _first_cause(cause)


def _listen(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, clients: "Sequence[httpx.AsyncClient]") -> None:
    loop.call_soon_threadsafe(lambda: loop.create_task(_hang_up_all(loop, clients)))


async def _hang_up_all(loop: asyncio.AbstractEventLoop, clients: "Sequence[httpx.AsyncClient]") -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for client in clients:
        await client.aclose()
    loop.stop()
