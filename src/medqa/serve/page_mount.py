"""Put the page into an application: what gradio serves of it, and what of gradio nobody needs.

Gradio's own start page names pictures on other servers and cannot be read without scripts; it is tidied here
on its way out. Of gradio's many addresses only those that the page uses are open.
"""

import contextlib
import re

import fastapi
import gradio as gr
from starlette.routing import Mount

from medqa.serve.incoming import App, Message, Receive, Scope, Send
from medqa.serve.page_parts import start_page

__all__ = ["mount_page"]

_OPEN = re.compile(
    r"/(?:(?:assets|static)/.+|theme\.css|gradio_api/(?:heartbeat/\w+|queue/(?:join|data)|cancel|reset)/?)?"
)
"""The page itself, its scripts and styles, and the events."""

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
    """Mount the page at /, after everything else that the application serves.

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
    route.app = _Page(route.app)


def _get_ready() -> None:
    """Load what gradio loads with its first event, or the first visitor would wait for it."""
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("agg")


class _Page:
    """ASGI application around gradio's."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the page needs; tidy the page itself."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        if not _OPEN.fullmatch(path or "/"):
            await fastapi.responses.PlainTextResponse("Not found", 404)(scope, receive, send)
        elif path in ("", "/"):
            # Gradio compresses where it may; what is to be changed has to come as it is.
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            await self._app({**scope, "headers": headers, "query_string": b""}, receive, _tidied(send))
        else:
            await self._app(scope, receive, send)


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
