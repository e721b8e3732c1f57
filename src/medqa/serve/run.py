"""Put the parts together and serve them until told to stop."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from medqa.errors import RunError
from medqa.evaluate.engine import LocalEngine
from medqa.serve.about import about
from medqa.serve.access import Gate, check_binding
from medqa.serve.answerer import Answerer
from medqa.serve.api import build_api
from medqa.serve.audit import AuditLog
from medqa.serve.desk import Desk
from medqa.serve.incoming import App, Receive, Scope, Send
from medqa.serve.page import build_page
from medqa.serve.page_mount import mount_page
from medqa.serve.service import CLOSE_S, Service

__all__ = ["Access", "build_app", "serve"]

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may ask, and what is kept.

    Attributes:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        api_key: What has to be sent along; None for nobody's.
        allow_open: Whether others may ask without a key.
        audit_log: File that answers are recorded in; None for none.
        audit_text: Whether questions and explanations are recorded as text too.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    api_key: str | None = None
    allow_open: bool = False
    audit_log: Path | None = None
    audit_text: bool = False


def build_app(desk: Desk, access: Access) -> Any:
    """Build the whole application: API and page behind the gate."""
    app = build_api(desk)
    page = build_page(desk, about(desk.service.answerer.run))
    mount_page(app, page)
    return Gate(app, host=access.host, api_key=access.api_key)


def serve(
    load: Callable[[], Answerer], access: Access, started: Callable[[str], None] = lambda url: None
) -> None:
    """Serve a model until a signal stops it; what is going on then is finished first.

    Args:
        load: Loads the model: only once it is known that it may be served, and where.
        access: Who may ask.
        started: Told of the address when questions are taken.

    Raises:
        ConfigError: If others could ask without a key.
        RunError: If the port is taken, or the audit log can't be written.
        MedQAError: Whatever `load` raises.
    """
    check_binding(access.host, access.api_key, access.allow_open)
    sockets = [_listen(access.host, access.port)]
    port = sockets[0].getsockname()[1]
    audit = AuditLog(access.audit_log, with_text=access.audit_text) if access.audit_log else None
    try:
        answerer = load()
        answerer.prepare(None, answerer.defaults)
        if isinstance(answerer.engine, LocalEngine):
            answerer.engine.warm_up()
        service = Service(answerer)
        closing = None
        try:
            closing = _Closing(build_app(Desk(service, audit), access))
            config = uvicorn.Config(
                closing,
                log_config=None,
                access_log=False,
                server_header=False,
                # A proxy's word on who asks is not taken: nothing goes by it.
                proxy_headers=False,
                timeout_graceful_shutdown=int(CLOSE_S),
            )
            server = _Server(config, closing)
            host = f"[{access.host}]" if ":" in access.host else access.host
            started(f"http://{host}:{port}")
            # uvicorn ends at SIGTERM and Ctrl-C, and then sends the signal again: a second SIGTERM would end
            # the process before what follows here.
            signal.signal(signal.SIGTERM, lambda *_: None)
            _get_steady()
            server.run(sockets)
        finally:
            finished = service.close(closing.left_s() if closing else CLOSE_S)
    finally:
        if audit is not None:
            audit.close()
        for one in sockets:
            one.close()
    if not finished:
        # The model is in the middle of a pass, which nothing ends: Python would abort on its way out.
        logging.shutdown()
        os._exit(1)


class _Closing:
    """ASGI application around another, which ends what would never end by itself when the server closes.

    An open page holds a request, its heartbeat, for as long as it is open.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._beats: set[asyncio.Task[None]] = set()
        self._since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if "/heartbeat/" not in scope.get("path", ""):
            await self._app(scope, receive, send)
            return
        beat = asyncio.ensure_future(self._app(scope, receive, send))
        self._beats.add(beat)
        try:
            await asyncio.wait((beat,))
        finally:
            self._beats.discard(beat)
            beat.cancel()
        if not beat.cancelled():
            beat.result()
        else:
            with contextlib.suppress(RuntimeError):  # a response that was not begun needs no end
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    def begin(self) -> None:
        """End the heartbeats, and count the time from here."""
        self._since = self._since or time.monotonic()
        for beat in self._beats:
            beat.cancel()

    def left_s(self) -> float:
        """How long closing may still take."""
        return max(1.0, CLOSE_S - (time.monotonic() - self._since)) if self._since else CLOSE_S


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it begins to close."""

    def __init__(self, config: uvicorn.Config, closing: _Closing) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close: take in no more, and wait for what is going on."""
        self._closing.begin()
        await super().shutdown(sockets)


def _get_steady() -> None:
    """Let nothing in Python hold up all askers at once."""
    # Else the garbage collector looks through all of torch and gradio again and again: half a second each.
    gc.collect()
    gc.freeze()
    # The model's thread gives way at every call into torch, and would wait 5 ms to go on each time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded, so that a taken one costs no time."""
    found = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()  # two that start at once would both be bound otherwise
    except OSError as exc:
        if found is not None:
            found.close()
        raise RunError(
            f"can't listen on {host}, port {port}: {exc.strerror or exc}", "--port gives another port"
        ) from exc
    found.set_inheritable(True)
    return found
