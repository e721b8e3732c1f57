"""How serving begins and ends: what may listen, what is ended, and what is still told."""

import asyncio
import json
import socket

import pytest
from prometheus_client import generate_latest

from medqa.errors import RunError, TimeLimitError
from medqa.serve import run as run_module
from medqa.serve.audit import AuditLog
from medqa.serve.desk import Desk
from medqa.serve.run import CLOSE_S, _Closing, _listen
from medqa.testing import make_examples


def test_two_that_start_at_once_do_not_share_a_port():
    with _listen("127.0.0.1", 0) as one, pytest.raises(RunError, match="can't listen"):
        _listen("127.0.0.1", one.getsockname()[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _listen("127.0.0.1", port).close()


def test_open_pages_are_ended_and_answers_are_not():
    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.2 if "/v1" in scope["path"] else 1000)
        await send({"type": "http.response.body", "body": b"done", "more_body": False})

    async def close_meanwhile():
        closing, told = _Closing(endless), {}

        async def ask(path):
            async def send(message):
                told.setdefault(path, []).append(message)

            await closing({"type": "http", "path": path}, None, send)

        asked = [asyncio.ensure_future(ask(path)) for path in ("/gradio_api/heartbeat/abc", "/v1/answer")]
        await asyncio.sleep(0.05)
        assert closing.left_s() == CLOSE_S
        closing.begin()
        await asyncio.gather(*asked)
        return told, closing.left_s()

    told, left_s = asyncio.run(asyncio.wait_for(close_meanwhile(), 20))
    last = {path: messages[-1]["body"] for path, messages in told.items()}
    assert last == {"/gradio_api/heartbeat/abc": b"", "/v1/answer": b"done"}
    assert not any(messages[-1]["more_body"] for messages in told.values())
    assert 1 <= left_s < CLOSE_S


def test_both_phases_of_closing_share_one_time(monkeypatch):
    closing = _Closing(None)
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    closing.begin()
    now[0] += CLOSE_S - 4
    closing.begin()  # a second signal changes nothing
    assert closing.left_s() == 4
    now[0] += 100
    assert closing.left_s() == 1


def test_what_was_seen_of_an_explanation_that_failed_is_recorded(answerer, tmp_path):
    example = make_examples(1)[0]

    class Breaks:
        """A service that fails in the middle of an explanation."""

        num_waiting = num_writing = 0

        def __init__(self):
            self.answerer, self.defaults, self.calibrated = answerer, answerer.defaults, True

        async def stream(self, *args, **kwargs):
            yield answerer.answer(example, explain=False)
            yield "The pancreas "
            raise error

    async def read(desk):
        return [part async for part in desk.stream(example, id="7")]

    for error, told in ((TimeLimitError("too long", ""), (504, "timeout")), (KeyError("x"), (500, "bug"))):
        file = tmp_path / f"{told[1]}.jsonl"
        with AuditLog(file, with_text=True) as audit:
            desk = Desk(Breaks(), audit)
            with pytest.raises(type(error)):
                asyncio.run(read(desk))
            counted = generate_latest(desk.registry).decode()
        letter, rest = map(json.loads, file.read_text().splitlines())
        assert letter["explanation"] is None
        assert (rest["event"], rest["explanation"]) == ("explanation", "The pancreas ")
        assert (rest["status"], rest["error"]) == told
        assert rest["latency_ms"] > 0
        assert f'outcome="{told[1]}"' in counted
