"""Requests as they come in, before anything believes them: headers, body, and the refusal as an answer."""

import asyncio
import base64
import binascii
import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from medqa.errors import MedQAError

__all__ = [
    "App",
    "Incoming",
    "Message",
    "Receive",
    "RefusedError",
    "Scope",
    "Send",
    "header",
    "is_loopback",
    "is_same_site",
    "key_in",
    "too_long",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAIN_BYTES = 16 * 1024 * 1024
_DRAIN_S = 2.0


class RefusedError(MedQAError):
    """A request that gets no further.

    Args:
        status: HTTP status of the answer.
        kind: Its `type`, for programs.
        message: What is wrong.
        hint: What cures it.
        headers: Further headers of the answer.
    """

    def __init__(
        self, status: int, kind: str, message: str, hint: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.kind = kind
        self.headers = headers


class Incoming:
    """The body of one request, of which a refusal may leave a part unread."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        # Who waits for "100 Continue" sends nothing until then, and never if refused.
        self._at_end = any(name.lower() == b"expect" for name, _ in scope["headers"])

    async def body(self, max_bytes: int) -> bytes | None:
        """Return the whole body, or None if the client has gone.

        Raises:
            RefusedError: If it is longer than that, whatever length was announced.
        """
        body = bytearray()
        while True:
            message = await self._next()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > max_bytes:
                raise too_long(max_bytes)
            if self._at_end:
                return bytes(body)

    async def refuse(self, refused: RefusedError, send: Send) -> None:
        """Answer with a refusal, then take a little of what is still being sent.

        A connection that is closed while the client sends may lose the answer on the way: the client would
        see an error of the network instead of the sentence.
        """
        error = {"type": refused.kind, "message": refused.message, "hint": refused.hint}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *refused.headers,
        ]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drain(), _DRAIN_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Message:
        message = await self._receive()
        self._at_end = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def _drain(self) -> None:
        num_bytes = 0
        while not self._at_end and num_bytes < _DRAIN_BYTES:
            num_bytes += len((await self._next()).get("body", b""))


def too_long(max_bytes: int) -> RefusedError:
    """Return the refusal of a body that is longer than that."""
    return RefusedError(
        413,
        "too_large",
        f"the request is longer than {max_bytes} bytes",
        "shorten the question or its context, or ask fewer questions at once",
    )


def header(scope: Scope, name: bytes) -> bytes:
    """Return the value of a header, empty if there is none.

    Raises:
        RefusedError: If it is there twice: what stands before us may have believed the other one.
    """
    found: list[bytes] = [value for key, value in scope["headers"] if key.lower() == name]
    if len(found) > 1:
        text = name.decode("latin-1")
        raise RefusedError(400, "bad_request", f"the header {text} is given more than once", "give it once")
    return found[0] if found else b""


def key_in(authorization: bytes) -> bytes:
    """Return the bearer token, or the password of HTTP Basic; empty if there is neither."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        with contextlib.suppress(binascii.Error):
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
    return b""


def is_same_site(scope: Scope) -> bool:
    """Tell whether a request changes nothing, comes from this server's own page, or from no browser.

    A browser says itself whether another site is behind a request, and no script can change what it says.
    One that doesn't (it is old, or the address is neither https nor local) still names the origin.

    Source: the algorithm of CrossOriginProtection in Go's net/http.
    """
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return True
    if site := header(scope, b"sec-fetch-site"):
        return site in (b"same-origin", b"none")
    origin = header(scope, b"origin").lower()
    # A proxy may have put its own name for us into Host. Another site's page can't send this header unasked.
    names = [header(scope, name).lower() for name in (b"host", b"x-forwarded-host")]
    return not origin or origin in [scheme + name for scheme in (b"http://", b"https://") for name in names]


def is_loopback(host: str) -> bool:
    """Tell whether a name or address, with or without a port, is one of this machine for itself."""
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback and not getattr(address, "ipv4_mapped", None)
