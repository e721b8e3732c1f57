"""A real server on loopback, in a thread of the test's own process."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest

from medqa.serve.answerer import Answerer


@contextlib.contextmanager
def running(app):
    """Serve an application on a free port; give its address."""
    import uvicorn

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([sock],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sock.close()


def whole_application(desk, **access):
    """Build what `medqa serve` serves: API and page behind the gate."""
    from medqa.serve.run import Access, build_app

    async def build():
        return build_app(desk, Access(**access))

    return asyncio.run(build())  # outside of a loop gradio makes loops of its own, and leaves them open


@pytest.fixture(scope="session")
def answerer(calibrated_run):
    """The tiny calibrated model, the fastest way."""
    return Answerer.load(calibrated_run, fast=True)
