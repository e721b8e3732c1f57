"""Put the page into an application: what gradio serves of it, and what of gradio nobody needs.

Gradio's own start page names pictures on other servers and cannot be read without scripts; it is tidied here
on its way out. Of gradio's many addresses only those that the page uses are open; what it refuses looks like
every other refusal here, and what breaks in it is a line in the log.
"""

import contextlib
import http
import logging

import fastapi
import gradio as gr
from fastapi.responses import JSONResponse
from starlette.routing import Match, Mount

from medqa.serve.incoming import App, Message, Receive, RefusedError, Scope, Send
from medqa.serve.page_incoming import OPEN, PageRequests
from medqa.serve.page_parts import start_page
from medqa.serve.wire import ErrorReply, Failure

__all__ = ["mount_page"]

_KINDS = {400: "bad_request", 404: "not_found", 405: "bad_method", 422: "bad_request", 500: "bug"}

log = logging.getLogger(__name__)

_SANS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Noto Sans",
    "Helvetica Neue",
    "Arial",
    "sans-serif",
)
_MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def mount_page(app: fastapi.FastAPI, blocks: gr.Blocks) -> None:
    """Mount the page, after everything else that the application serves.

    It takes its own addresses only: what is left over is the application's to refuse.

    Args:
        app: The application. Routes that are added later are never reached.
        blocks: What `build_page` gave.
    """
    theme = gr.themes.Base(font=_SANS, font_mono=_MONO)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=theme,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size=1,
        mcp_server=False,
    )
    _get_ready()
    route = app.router.routes[-1]
    if not isinstance(route, Mount):
        raise AssertionError("gradio mounts its application last")
    app.router.routes[-1] = _PageRoute("/", app=_Page(route.app, PageRequests(blocks)))


def _get_ready() -> None:
    """Load what gradio loads with its first event, or the first visitor would wait for it."""
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("agg")


class _PageRoute(Mount):
    """Leaves every address that is not the page's to other routes."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or not OPEN.fullmatch(_path(scope)):
            return Match.NONE, {}
        return super().matches(scope)


class _Page:
    """ASGI application around gradio's."""

    def __init__(self, app: App, requests: PageRequests) -> None:
        self._app, self._requests = app, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the page needs; tidy the page itself, and what is refused."""
        answer = _Told(send)
        try:
            path = _path(scope)
            scope, receive = await self._requests.read(path, scope, receive)
            if path == "/":
                # Gradio compresses where it may; what is to be changed has to come as it is.
                headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
                await self._app({**scope, "headers": headers}, receive, _tidied(answer))
            else:
                await self._app(scope, receive, answer)
        except RefusedError as refused:
            await _refusal(refused.status, refused.kind, refused.message, refused.hint)(scope, receive, send)
        except Exception as exc:
            # It is gradio's, and anybody may have brought it about: no traceback for each.
            log.error("the page failed at %s %s: %r", scope["method"], scope["path"], exc)
            log.debug("what gradio did:", exc_info=exc)
            if not answer.started:
                await _refusal(500, "bug", "something is wrong inside the server", "its log says what")(
                    scope, receive, send
                )


def _path(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"


def _refusal(status: int, kind: str, message: str, hint: str) -> JSONResponse:
    body = ErrorReply(error=Failure(type=kind, message=message, hint=hint))
    return JSONResponse(body.model_dump(), status)


class _Told:
    """Passes on what gradio answers; where it refuses, says so in the shape of all refusals here."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._refused = False
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._refused = message["status"] >= 400
            if self._refused:
                await self._refuse(message)
                return
        if not self._refused:
            await self._send(message)

    async def _refuse(self, start: Message) -> None:
        status = start["status"]
        kind, phrase = _KINDS.get(status, "refused"), http.HTTPStatus(status).phrase
        response = _refusal(status, kind, phrase, "its log says what" if status >= 500 else "")
        allowed = [(name, value) for name, value in start["headers"] if name.lower() == b"allow"]
        headers = [*response.raw_headers, *allowed]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": response.body})


def _tidied(send: Send) -> Send:
    start: Message = {}
    body = bytearray()

    async def tidied(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        body.extend(message.get("body", b""))
        if message.get("more_body"):
            return
        text = start_page(body.decode()).encode() if body else b""
        kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        length = str(len(text)).encode()
        await send(
            {**start, "headers": [*kept, (b"content-length", length), (b"cache-control", b"no-store")]}
        )
        await send({"type": "http.response.body", "body": text})

    return tidied
