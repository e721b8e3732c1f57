"""Serve a run in a Hugging Face Space: page and API on a Space's port, open to whoever may see it.

Who that is the Hub says; there is no key. The port is taken at once: until the model is loaded
it says so, and if that fails it says why.

On ZeroGPU a graphics card is lent for the time of a call. `spaces` has to be imported before torch, calls run
in a process of their own, and nothing can be captured ahead; so the model goes the plain way there, each call
through a function that `spaces.GPU` decorated. Calls come from the model's own threads, which belong to no
visitor: they count against the Space, not against who asks. Loading was tried with `spaces` 0.51 itself,
answering with a stand-in for it; nothing ran on ZeroGPU hardware.
"""

import asyncio
import contextlib
import dataclasses
import html
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medqa.errors import MedQAError

__all__ = ["SpaceApp", "main"]

log = logging.getLogger(__name__)

PORT = 7860

# The Hub shows a Space inside of a page of its own.
_FRAMED_BY = b"frame-ancestors 'self' https://huggingface.co https://*.hf.space"

_WAITING = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MedQA</title>{more}
<meta name="viewport" content="width=device-width"></head>
<body style="font-family:system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem">
<h1>MedQA</h1><p style="white-space:pre-wrap">{text}</p></body></html>"""


def main(run: str) -> None:
    """Serve a run until the Space is stopped.

    The environment says where: GRADIO_SERVER_NAME (0.0.0.0 if not set), PORT or GRADIO_SERVER_PORT (7860).

    Args:
        run: The run, such as hub:ORG/NAME; MEDQA_RUN names another, or a local folder.
    """
    spaces = _zero_gpu()
    # Before gradio is imported: it would ask home for news.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import uvicorn

    logging.basicConfig(level=logging.WARNING, force=True)
    logging.getLogger("medqa").setLevel(logging.INFO)
    path = Path(os.environ.get("MEDQA_RUN") or run)
    host = os.environ.get("GRADIO_SERVER_NAME") or "0.0.0.0"  # a Space's own proxy stands before it
    port = int(os.environ.get("PORT") or os.environ.get("GRADIO_SERVER_PORT") or PORT)
    log.info("Serving %s on %s, port %d", path, host, port)
    uvicorn.run(
        SpaceApp(lambda: _load(path, spaces), host),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )


def _zero_gpu() -> Any:
    """Import `spaces` where cards are lent; None elsewhere."""
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):
        return None
    if "torch" in sys.modules:
        raise AssertionError("spaces has to be imported before torch")
    return importlib.import_module("spaces")  # which a Space brings along, and nobody else has


def _load(path: Path, spaces: Any) -> Any:
    """Load the model: the fastest way, or through calls that a card is lent for."""
    from medqa.evaluate.engine import LocalEngine
    from medqa.hardware.environment import prepare_environment
    from medqa.model.tuned import load_tuned
    from medqa.serve.answerer import Answerer

    if spaces is None:
        prepare_environment()
        answerer = Answerer.load(path, fast=True)
        answerer.prepare(None, answerer.defaults)
        if isinstance(answerer.engine, LocalEngine):
            answerer.engine.warm_up()
        return answerer
    from medqa.serve.lent import LentEngine

    tuned = load_tuned(path, dtype=(lent := _lent_device(path)).precision, device="cpu")
    # Nothing can be read from a file to a card that isn't there yet; what lies in memory goes with a call.
    tuned = dataclasses.replace(tuned, model=tuned.model.to(lent.torch_device), device=lent)
    engine = LentEngine(LocalEngine(tuned), spaces.GPU)
    # Gradio's launch() would do this, but the page is mounted in an application.
    spaces.zero.startup()
    return Answerer(engine, tuned.run)


def _lent_device(path: Path) -> Any:
    from medqa.hardware.device import choose_device
    from medqa.runs import RunFolder

    return choose_device(RunFolder.open(path).config.model.model_copy(update={"trust_remote_code": None}))


class SpaceApp:
    """ASGI application that is there at once, and becomes the real one when the model is loaded.

    Args:
        load: Gives the `Answerer`; called once, in a thread of its own.
        host: Address that is listened on.
    """

    def __init__(self, load: Callable[[], Any], host: str) -> None:
        self._load, self._host = load, host
        self._app: Any = None
        self._service: Any = None
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._state = "The model is being loaded. This page looks again by itself."
        self._failed = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, with a waiting page if there is no model yet."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, _framed(send))
        elif scope["type"] == "http":
            await self._wait(scope["path"], send)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        begun = asyncio.ensure_future(self._begin())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        begun.cancel()
        if self._service is not None:
            await asyncio.to_thread(self._service.close)
        with contextlib.suppress(asyncio.CancelledError):
            await begun
        await send({"type": "lifespan.shutdown.complete"})

    async def _begin(self) -> None:
        """Load, then run the real application for as long as this lives."""
        try:
            answerer = await _in_thread(self._load)
            from medqa.serve.desk import Desk
            from medqa.serve.run import Access, build_app
            from medqa.serve.service import Service

            self._service = Service(answerer)
            app = build_app(Desk(self._service, None), Access(self._host, allow_open=True))
        except Exception as exc:  # whoever opens the page must hear of it
            self._failed = True
            if isinstance(exc, MedQAError):
                self._state = f"The model can't be served.\n\n{exc}"
                log.error("%s", exc)
            else:
                self._state = "The model can't be served: a bug, which the Space's log shows."
                log.exception("The model can't be served")
            return

        async def started(message: dict[str, Any]) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._app = app
                log.info("Questions are taken")

        await self._to_app.put({"type": "lifespan.startup"})
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, self._to_app.get, started)

    async def _wait(self, path: str, send: Any) -> None:
        again = "" if self._failed else '<meta http-equiv="refresh" content="3">'
        body = _WAITING.format(more=again, text=html.escape(self._state)).encode()
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        headers.append((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"))
        # The Hub shows a page that is there; programs must not take it for an answer.
        status = 200 if path == "/" else 503
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _in_thread(load: Callable[[], Any]) -> Any:
    """Run in a thread that holds nobody up who wants to stop the server."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Any] = loop.create_future()

    def tell(what: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the server has stopped meanwhile
            loop.call_soon_threadsafe(lambda: None if found.done() else what(value))

    def work() -> None:
        try:
            tell(found.set_result, load())
        except Exception as exc:  # noqa: BLE001 - it goes to who waits for it
            tell(found.set_exception, exc)

    threading.Thread(target=work, name="medqa-load", daemon=True).start()
    return await found


def _framed(send: Any) -> Any:
    """Let the Hub's own page show this one; every other site is kept out as before."""

    async def framed(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {
                **message,
                "headers": [
                    (name, value.replace(b"frame-ancestors 'none'", _FRAMED_BY))
                    for name, value in message.get("headers", ())
                    if name.lower() != b"x-frame-options"
                ],
            }
        await send(message)

    return framed
