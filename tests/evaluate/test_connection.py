"""Requests that are refused, and requests that end: by another thread, by closing, with the process."""

import concurrent.futures
import contextlib
import json
import math
import signal
import subprocess
import sys
import threading
import time

import pytest
from fake_server import fake_server

from medqa.errors import EngineError, RefusedByEngineError
from medqa.evaluate import connection as connection_module
from medqa.evaluate.connection import Connection
from medqa.evaluate.protocol import Address, read_lines
from medqa.evaluate.remote import RemoteEngine
from medqa.evaluate.score import Item, make_items
from medqa.prompts import PromptRenderer
from medqa.runs import RunFolder
from medqa.testing import make_examples

# Longer than anything here takes, shorter than a server's silence: what waits for that fails.
LIMIT_S = 30


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return PromptRenderer(tokenizer)


@pytest.fixture(scope="module")
def items(renderer):
    return make_items(renderer, make_examples(12), "medqa")


@pytest.fixture
def server(tokenizer):
    def likelihoods(prompt):
        return [-1.0 - sum(prompt) % 7 - token / 100 - 50 * (token < 256) for token in range(len(tokenizer))]

    with fake_server(tokenizer, likelihoods) as server:
        yield server


@pytest.fixture
def connect(server, renderer, tmp_path):
    """Make engines on the server, which are closed at the end."""
    with contextlib.ExitStack() as closing:

        def connect(**settings):
            settings = {"backoff_s": 0.001, "num_tries": 3, **settings}
            connection = Connection(server.url, **settings)
            closing.callback(connection.close)
            run = RunFolder(tmp_path / "run", {"base_model": {"max_length_tokens": 4000}})
            return RemoteEngine(run, renderer, Address(server.url), connection)

        yield connect


@pytest.fixture
def aside():
    """Run something in a thread of its own; a daemon, so that one which hangs fails its test only."""

    def aside(work, *args):
        future = concurrent.futures.Future()

        def run():
            try:
                future.set_result(work(*args))
            except BaseException as exc:  # noqa: BLE001 - raised by the future
                future.set_exception(exc)

        threading.Thread(target=run, daemon=True).start()
        return future

    return aside


class Silent:
    """An answer that never comes, or stops after some pieces; counts the clients that came and left."""

    def __init__(self, pieces=None):
        self.pieces, self.came, self.left = pieces, threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, handler):
        if self.pieces is not None:
            handler.stream(self.pieces, end="")
        self.came.release()
        if handler.left():
            self.left.release()

    def wait_for(self, semaphore, number):
        assert all(semaphore.acquire(timeout=LIMIT_S) for _ in range(number))


BAD = (400, {}, json.dumps({"error": {"message": "bad prompt"}}))


def refusing(items, *places, answer=BAD):
    prompts = [items[place].prefix for place in places]
    return lambda body: answer if body["prompt"] in prompts else None


# What is refused


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refused_question_is_named_and_keeps_no_other_from_being_asked(
    server, connect, items, concurrency, caplog
):
    engine = connect(concurrency=concurrency)
    expected = engine.score(items)
    server.asked.clear()
    server.refuse = refusing(items, 7, 2, 9)
    with pytest.raises(RefusedByEngineError) as error:
        engine.score(items)
    assert error.value.message == (
        f"question 'q2': the server at {server.url} refuses: 400, bad prompt (and 2 more of 12)"
    )
    assert len(server.asked) == len(items)
    assert caplog.text.count("the others are asked") == 1
    # One by one, over the same connection, each has its own outcome.
    for place, item in enumerate(items):
        if place in (2, 7, 9):
            with pytest.raises(RefusedByEngineError, match=f"question 'q{place}': .*400, bad prompt\n"):
                engine.score([item])
        else:
            assert engine.score([item]) == [expected[place]]
    assert engine.connection.num_retries == 0


@pytest.mark.slow
def test_a_refused_text_is_named_and_keeps_no_other_from_being_written(server, connect, items):
    engine, prompts = connect(), [item.prefix for item in items]
    server.refuse = refusing(items, 4)
    with pytest.raises(RefusedByEngineError, match=r"^text 5 of 12: the server at .*400, bad prompt\n"):
        engine.write(prompts, 5)
    assert len(server.asked) == len(items)
    with pytest.raises(RefusedByEngineError, match="400, bad prompt"):
        next(engine.stream(prompts[4], 5))
    server.text = "Done."
    assert [text.text for text in engine.write(prompts[:4], 5)] == ["Done."] * 4
    assert list(engine.stream(prompts[3], 5))[-1].text == "Done."


def completion(**choice):
    return 200, {}, json.dumps({"choices": [{"index": 0, "text": "", **choice}]})


def missing(server, item):
    return completion(finish_reason="length", logprobs={"top_logprobs": [{"token_id:1": -1.0}]})


def endless(server, item):
    top = {f"token_id:{letter[0]}": -math.inf for letter in item.letters}
    return completion(finish_reason="length", logprobs={"top_logprobs": [top]})


def filtered(server, item):
    return completion(finish_reason="content_filter", logprobs=None)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (missing, "A of question 'q3' is not among"),
        (endless, "question 'q3': the server gives a log-probability that is no finite number"),
        (filtered, "question 'q3': the server's content filter"),
        *((lambda server, item, code=code: (code, {}, ""), f"'q3': .*{code}") for code in (413, 422, 500)),
    ],
)
def test_what_may_be_one_prompt_s_fault_is_refused(server, connect, items, answer, words):
    server.refuse = refusing(items, 3, answer=answer(server, items[3]))
    with pytest.raises(RefusedByEngineError, match=words):
        connect().score(items)
    assert {tuple(body["prompt"]) for body in server.asked} == {tuple(item.prefix) for item in items}


def test_a_filtered_text_is_refused(server, connect):
    engine, server.reason = connect(), "content_filter"
    with pytest.raises(RefusedByEngineError, match=r"text 1 of 2: .*content_filter"):
        engine.write([[1], [2]], 5)
    with pytest.raises(RefusedByEngineError, match="content_filter"):
        list(engine.stream([1], 5))


@pytest.mark.parametrize("code", [401, 403, 404, 307])
def test_what_no_prompt_can_mend_ends_it_at_once(server, connect, items, aside, code):
    silent = Silent()
    engine = connect(concurrency=4)
    server.planned = [silent] * 3
    scored = aside(engine.score, items)
    silent.wait_for(silent.came, 3)
    server.refuse = lambda body: (code, {}, "")
    with pytest.raises(EngineError, match=f"refuses: {code}") as error:
        scored.result(LIMIT_S)
    assert type(error.value) is EngineError
    assert len(server.asked) < len(items)
    silent.wait_for(silent.left, 3)  # the others were hung up


def test_a_server_that_is_gone_is_no_refusal(server, connect, items):
    engine = connect(num_tries=1)
    server.planned = [lambda handler: handler.hang_up()] * 20
    with pytest.raises(EngineError, match="doesn't answer") as error:
        engine.score(items)
    assert type(error.value) is EngineError


def test_a_server_that_refuses_everything_is_not_asked_on(server, connect, items, monkeypatch):
    monkeypatch.setattr(connection_module, "MANY_REFUSED", 5)
    server.refuse = lambda body: BAD
    many = [Item(items[0].example, [1, n], items[0].letters) for n in range(300)]
    with pytest.raises(RefusedByEngineError, match=r"400, bad prompt \(and 4 more of 300\)"):
        connect(concurrency=2).score(many)
    assert len(server.asked) < 100


# What is ended


def test_silent_streams_hold_nothing_that_letters_need(server, connect, items, aside):
    silent, engine = Silent(), connect(concurrency=2)
    server.planned = [silent] * 5
    streams = [engine.stream([1, n], 40) for n in range(5)]
    waiting = [aside(list, stream) for stream in streams]
    silent.wait_for(silent.came, 5)
    assert len(aside(engine.score, items).result(LIMIT_S)) == len(items)
    for stream in streams:
        stream.close()
    assert [future.result(LIMIT_S) for future in waiting] == [[]] * 5
    silent.wait_for(silent.left, 5)


@pytest.mark.parametrize("pieces", [None, [], [("Since", None)]], ids=["no headers", "no piece", "a piece"])
def test_a_silent_stream_is_hung_up_by_another_thread(server, connect, aside, pieces):
    silent, engine = Silent(pieces), connect()
    server.planned = [silent]
    stream, parts = engine.stream([1, 2], 40), []
    reading = aside(lambda: parts.extend(stream))
    silent.wait_for(silent.came, 1)
    time.sleep(0.05)  # it listens by now
    stream.close()
    stream.close()
    reading.result(LIMIT_S)
    silent.wait_for(silent.left, 1)
    assert next(stream, "the end") == "the end"
    assert list(engine.stream([1, 2], 40))  # and others go on


def test_a_stream_is_hung_up_while_nobody_reads_it(server, connect):
    silent, engine = Silent([("Since", None)]), connect()
    server.planned = [silent] * 2
    stream = engine.stream([1, 2], 40)
    assert next(stream) == "Since"
    stream.close()
    silent.wait_for(silent.left, 1)
    assert list(stream) == []
    stream = engine.stream([1, 2], 40)
    assert next(stream) == "Since"
    del stream  # forgotten
    silent.wait_for(silent.left, 1)
    stream = engine.stream([1, 2], 40)
    stream.close()
    assert list(stream) == []
    assert len(server.asked) == 2  # one that was closed before was never asked for


def test_a_stream_that_waits_for_another_try_is_ended(server, connect, aside):
    server.planned = [(503, {"Retry-After": "50"}, "busy")]
    engine = connect()
    stream = engine.stream([1, 2], 40)
    reading = aside(list, stream)
    deadline = time.monotonic() + LIMIT_S
    while not engine.connection.num_retries and time.monotonic() < deadline:
        time.sleep(0.01)
    stream.close()
    assert reading.result(LIMIT_S) == []
    assert len(server.asked) == 1


def test_closing_hangs_up_everything(server, connect, items, aside):
    silent, engine = Silent(), connect(concurrency=2)
    server.planned = [silent] * 4
    waits = (
        aside(engine.score, items[:3]),  # one of them waits for a connection
        aside(list, engine.stream([1], 40)),
        aside(list, engine.stream([2], 40)),
    )
    silent.wait_for(silent.came, 4)
    server.planned = [(429, {"Retry-After": "50"}, "busy")]
    late = aside(list, engine.stream([3], 40))
    aside(engine.close).result(LIMIT_S)
    engine.close()
    silent.wait_for(silent.left, 4)
    for future in (*waits, late):
        with pytest.raises(EngineError):
            future.result(LIMIT_S)
    for ask in (
        lambda: engine.score(items[:1]),
        lambda: engine.write([[1]], 5),
        lambda: next(engine.stream([1], 5)),
        lambda: engine.connection.get("models"),
    ):
        with pytest.raises(EngineError, match="was closed on this side"):
            ask()


def test_a_connection_that_is_forgotten_takes_its_thread_along(server):
    connection = Connection(server.url)
    connection.get("models")
    thread = connection._transport._thread
    del connection
    thread.join(LIMIT_S)
    assert not thread.is_alive()


SCRIPT = """
import sys, threading
from medqa.evaluate.connection import Connection

connection = Connection(sys.argv[1])
ask = lambda n, stop: connection.post("completions", {"prompt": [n]}, stop)
work = lambda: connection.each(ask, range(3))
if sys.argv[2] == "close":
    thread = threading.Thread(target=work)
    thread.start()
    sys.stdin.readline()
    connection.close()
else:
    work()
"""


@pytest.mark.parametrize("way", ["close", "interrupt"])
def test_a_silent_server_keeps_no_process_from_ending(server, way):
    silent = Silent()
    server.planned = [silent] * 3
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url, way],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        silent.wait_for(silent.came, 3)
        if way == "interrupt":
            process.send_signal(signal.SIGINT)
        _, said = process.communicate("\n", timeout=LIMIT_S)
    finally:
        process.kill()
        process.communicate()
    assert ("EngineError" if way == "close" else "KeyboardInterrupt") in said
    assert "destroyed" not in said
    silent.wait_for(silent.left, 3)


# How an event stream is read


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_lines_end_in_line_feeds_only(size):
    lines = ["data: one\u2028two\u2029\x85\x0b\x0c\x1c", "", "caf\u00e9 \r inside", "", "the last"]
    data = "\n".join(lines).replace("\n\n", "\r\n\r\n").encode()
    assert list(read_lines(data[at : at + size] for at in range(0, len(data), size))) == lines
    assert list(read_lines([])) == []
    assert list(read_lines([b"a\n", b"\xff\n"])) == ["a", "\ufffd"]
