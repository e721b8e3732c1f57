"""A server with the page and a service that answers slowly without a model, for tests and pictures.

`cd tests && python -m serve.page_server PORT` serves it until it is stopped.
"""

import contextlib
import sys
import threading

import fastapi
import uvicorn

from medqa.serve.access import Gate
from medqa.serve.page import build_page
from medqa.serve.page_mount import mount_page
from serve.slow_service import ABOUT, SlowService


def make_app(service, about=ABOUT):
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    mount_page(app, build_page(service, about))
    return Gate(app, host="127.0.0.1")  # with the headers that visitors get


@contextlib.contextmanager
def serving(service, about=ABOUT, port=0):
    """Serve the page on a free port of this machine; gives its address."""
    config = uvicorn.Config(
        make_app(service, about), port=port, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    with serving(SlowService("uncalibrated" not in sys.argv), port=int(sys.argv[1])) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        threading.Event().wait()
