"""Who may ask, and how much at a time: the gate before the API and the page.

`check_binding` refuses to listen where others could ask without a key. `Gate` stands around the whole
application; what it refuses never gets there:

* 400 a Host that is not this machine's, where only this machine is served (DNS rebinding)
* 401 no key or a wrong one; 429 if very many guess at once
* 403 a request that another web site made a browser send (cross-site request forgery)
* 404 what gradio brings along and the page does not need, such as uploads
* 408 a body that takes too long, 413 one that is too long, 431 too long an address or headers

Every response gets security headers and a request id. Nothing lets another site's scripts read it: CORS is
off, and an `Access-Control-` header of the application is taken away.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import uuid
from collections.abc import Iterable

from medqa.errors import ConfigError
from medqa.secrets import remember_secret
from medqa.serve.incoming import (
    App,
    Incoming,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    header,
    is_loopback,
    is_same_site,
    key_in,
    too_long,
)

__all__ = ["CONTENT_SECURITY_POLICY", "ENV_API_KEY", "MIN_KEY_LENGTH", "Gate", "check_binding", "read_key"]

ENV_API_KEY = "MEDQA_API_KEY"
MIN_KEY_LENGTH = 16

# gradio's page has inline scripts and styles; everything else comes from this server.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'self'; form-action 'self'"
)

_HEADERS = {
    b"content-security-policy": CONTENT_SECURITY_POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_MACHINES = ("/v1", "/metrics")
_OPEN = ("/health", "/ready")
# Of gradio's routes: files to and from the disk, requests to elsewhere, records of questions, its editor.
_CLOSED = (
    *("upload", "file", "proxy", "component_server", "stream", "process_recording"),
    *("runs", "run-history", "deep_link", "vibe", "undo-vibe", "profiling", "dev"),
)

_MAX_HEAD_BYTES = 32 * 1024
_MAX_WAITING = 100

_log = logging.getLogger(__name__)


def read_key(option: str | None) -> str | None:
    """Return the key of `--api-key`, else that of the environment's MEDQA_API_KEY, else None.

    Prefer the environment: arguments are shown to every user of the machine (`ps`), the environment only to
    the same user and root. The key is taken out of it here, so that no child process gets it.
    """
    from_environment = os.environ.pop(ENV_API_KEY, None)
    key = from_environment if option is None else option
    if key:
        remember_secret(key)
    return key


def check_binding(host: str, api_key: str | None, allow_open: bool) -> None:
    """Refuse to serve others than this machine's users without a key.

    Loopback is 127.0.0.0/8, ::1 and localhost. Every other address, 0.0.0.0 and :: included, can be reached
    from outside. On loopback any user of this machine can ask; a key keeps them out too.

    Args:
        host: Address to listen on.
        api_key: The key, from `read_key`; None for none.
        allow_open: Whether `--no-api-key` was given.

    Raises:
        ConfigError: If a key is needed and missing, so short that it can be guessed, or not fit for a header.
    """
    make = f"""export {ENV_API_KEY}="$(python3 -c 'import secrets; print(secrets.token_urlsafe(32))')\""""
    if api_key is None:
        if not allow_open and not is_loopback(host):
            raise ConfigError(
                f"{host!r} can be reached from other machines, and there is no API key",
                f"{make}; or --host 127.0.0.1; or --no-api-key to let everybody ask who reaches this port",
            )
        return
    if allow_open:
        raise ConfigError(
            "--no-api-key was given, and a key too", f"leave out one of them (--api-key, {ENV_API_KEY})"
        )
    # The value is a secret: it is not shown.
    if len(api_key) < MIN_KEY_LENGTH:
        raise ConfigError(
            f"the API key has {len(api_key)} characters, expected at least {MIN_KEY_LENGTH}", make
        )
    if not all("!" <= character <= "~" for character in api_key):
        raise ConfigError("the API key holds a blank, a control character or one that is not ASCII", make)


class Gate:
    """ASGI application around another; it holds back no part of a streamed response.

    Put it outermost, `Gate(app, ...)` rather than `app.add_middleware(Gate, ...)`: only then do the responses
    to bugs, which starlette sends from outside its middleware, have the headers too. The id of a request is
    in `scope["state"]["request_id"]`: `request.state.request_id` in FastAPI.

    Args:
        app: The application to guard.
        host: Address that the server listens on; on loopback only names of this machine are served.
        api_key: Key that every path but /health and /ready asks for, as a bearer token or as the password of
            HTTP Basic, with any user; None asks for none.
        max_body_bytes: Longest request body.
        body_timeout_s: Longest time from a request's head to the end of its body.
        wrong_key_wait_s: How long the answer to a wrong key is held back.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str,
        api_key: str | None = None,
        max_body_bytes: int = 256 * 1024,
        body_timeout_s: float = 20.0,
        wrong_key_wait_s: float = 0.5,
    ) -> None:
        self._app = app
        self._local = is_loopback(host)
        # Digests have one length, so that comparing takes as long for any guess.
        self._key = hashlib.sha256(api_key.encode()).digest() if api_key is not None else None
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._wrong_key_wait_s = wrong_key_wait_s
        self._num_wrong = 0
        self._num_waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        send = _dressed(send, scope["path"], request_id)
        incoming = Incoming(scope, receive)
        try:
            self._check_head(scope)
            await self._check_key(scope)
            body = await self._read(scope, incoming)
        except RefusedError as refused:
            await incoming.refuse(refused, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    def _check_head(self, scope: Scope) -> None:
        size = len(scope["path"]) + len(scope.get("query_string", b""))
        if size + sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEAD_BYTES:
            raise RefusedError(
                431,
                "too_large",
                f"the address and headers take more than {_MAX_HEAD_BYTES} bytes",
                "send the question in the body",
            )
        if self._local and not is_loopback(header(scope, b"host").decode("latin-1")):
            raise RefusedError(
                400,
                "bad_host",
                "this server is for its own machine, and was asked for under another name",
                "use http://localhost or http://127.0.0.1 with its port; a proxy has to send such a Host",
            )
        if not is_same_site(scope):
            raise RefusedError(
                403,
                "cross_site",
                "another web site made the browser send this request",
                "open this server's own page; programs should send no Origin",
            )
        _, found, rest = scope["path"].partition("/gradio_api/")
        if (found and rest.startswith(_CLOSED)) or "/monitoring" in scope["path"]:
            raise RefusedError(404, "not_found", "this address is closed", "the page does not need it")

    async def _check_key(self, scope: Scope) -> None:
        if self._key is None or scope["path"] in _OPEN:
            return
        credentials = header(scope, b"authorization")
        if secrets.compare_digest(hashlib.sha256(key_in(credentials)).digest(), self._key):
            return
        if credentials:
            await self._hold_back(scope)
        machine = scope["path"].startswith(_MACHINES)
        raise RefusedError(
            401,
            "unauthorized",
            "the API key is wrong" if credentials else "this server asks for an API key",
            "send the header `Authorization: Bearer KEY`, or log in with any user and the key as password",
            ((b"www-authenticate", b"Bearer" if machine else b'Basic realm="MedQA", charset="UTF-8"'),),
        )

    async def _hold_back(self, scope: Scope) -> None:
        """Count a wrong key and wait; the event loop goes on meanwhile."""
        self._num_wrong += 1
        if self._num_wrong.bit_count() == 1:  # 1, 2, 4, 8, ...: guessing must not fill the log
            client = (scope.get("client") or ("an unknown address",))[0]
            _log.warning(
                "%d request(s) with a wrong API key so far, the last from %s", self._num_wrong, client
            )
        if self._num_waiting >= _MAX_WAITING:
            raise RefusedError(
                429, "too_many", "too many wrong keys at once", "wait a second", ((b"retry-after", b"1"),)
            )
        self._num_waiting += 1
        try:
            await asyncio.sleep(self._wrong_key_wait_s)
        finally:
            self._num_waiting -= 1

    async def _read(self, scope: Scope, incoming: Incoming) -> bytes | None:
        """Return the whole body, or None if the client has gone."""
        length = header(scope, b"content-length")
        # The length of a length is looked at first: int() refuses one of thousands of digits.
        if length.isdigit() and (len(length) > 15 or int(length) > self._max_body_bytes):
            raise too_long(self._max_body_bytes)
        try:
            return await asyncio.wait_for(incoming.body(self._max_body_bytes), self._body_timeout_s)
        except asyncio.TimeoutError as exc:
            raise RefusedError(
                408,
                "timeout",
                f"the request was not complete after {self._body_timeout_s:g} s",
                "send it in one go",
            ) from exc


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read already, then what follows: that the client has gone."""
    left = [body]

    async def replay() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replay


def _dressed(send: Send, path: str, request_id: str) -> Send:
    """Put our headers on the response, in place of any that the application gave."""
    ours = {**_HEADERS, b"x-request-id": request_id.encode()}
    if path.startswith("/v1") or "/gradio_api/" in path:
        ours[b"cache-control"] = b"no-store"

    def kept(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        return [
            (name, value)
            for name, value in headers
            if name.lower() not in ours and not name.lower().startswith(b"access-control-")
        ]

    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*kept(message.get("headers", ())), *ours.items()]}
        await send(message)

    return dressed
