"""Put the parts together and serve them until told to stop."""

import dataclasses
import logging
import signal
import socket
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
from medqa.serve.page import build_page
from medqa.serve.page_mount import mount_page
from medqa.serve.service import CLOSE_S, Service

__all__ = ["Access", "build_app", "serve"]

log = logging.getLogger(__name__)


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
        if isinstance(answerer.engine, LocalEngine):
            answerer.engine.warm_up()
        service = Service(answerer)
        try:
            config = uvicorn.Config(
                build_app(Desk(service, audit), access),
                log_config=None,
                access_log=False,
                server_header=False,
                # A proxy's word on who asks is not taken: nothing goes by it.
                proxy_headers=False,
                timeout_graceful_shutdown=int(CLOSE_S),
            )
            host = f"[{access.host}]" if ":" in access.host else access.host
            started(f"http://{host}:{port}")
            # uvicorn ends at SIGTERM and Ctrl-C, and then sends the signal again: a second SIGTERM would end
            # the process before what follows here.
            signal.signal(signal.SIGTERM, lambda *_: None)
            uvicorn.Server(config).run(sockets)
        finally:
            service.close()
    finally:
        if audit is not None:
            audit.close()
        for one in sockets:
            one.close()


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded, so that a taken one costs no time."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as exc:
        raise RunError(
            f"can't listen on {host}, port {port}: {exc.strerror or exc}", "--port gives another port"
        ) from exc
    found.set_inheritable(True)
    return found
