"""The client: from a server the same as from the model itself, and every refusal in clear words."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medqa.errors import (
    BusyError,
    CalibrationError,
    ConfigError,
    DataError,
    DependencyError,
    EngineError,
    TimeLimitError,
)
from medqa.records import Answer, Example
from medqa.serve.access import Gate
from medqa.serve.api import build_api
from medqa.serve.client import ServerClient, request_fields
from medqa.serve.desk import Desk
from medqa.serve.service import Service

from .conftest import running

EXAMPLE = Example("What comes after 6?", ("116", "7", "126", "136"))
KEY = "a-key-of-sixteen-and-more"
DOCS = Path(__file__).resolve().parents[2] / "docs/serve.md"


@pytest.fixture(scope="module")
def server(answerer):
    """A server that asks for a key."""
    service = Service(answerer)
    app = Gate(build_api(Desk(service)), host="127.0.0.1", api_key=KEY, wrong_key_wait_s=0)
    with running(app) as url:
        yield url
    service.close()


@pytest.fixture
def client(server):
    return ServerClient(server, KEY)


@pytest.mark.parametrize("example", [EXAMPLE, Example("Which?", ("4", "9"), context="It is nine.")])
@pytest.mark.parametrize("sent", [{}, {"orders": 4, "alpha": 0.2, "max_risk": 0.05}])
def test_a_server_gives_what_the_model_gives(client, answerer, example, sent):
    settings = answerer.defaults.model_copy(update=sent)
    local = list(answerer.stream(example, settings=settings))
    remote = list(client.stream(example, settings=sent))
    for here, there in ((local[0], remote[0]), (local[-1], remote[-1])):
        assert there.confidence == pytest.approx(here.confidence, abs=1e-3)
        same = ("question", "letter", "option", "answer_set", "alpha", "abstain", "caveat", "num_orders")
        told = ("explanation", "explanation_finished", "explanation_check", "calibration", "model", "notice")
        for name in (*same, *told):
            assert getattr(there, name) == getattr(here, name), name
    assert "".join(remote[1:-1]) == "".join(local[1:-1])
    assert all(isinstance(part, str) for part in remote[1:-1])


def test_without_explanation_there_is_one_answer(client):
    [answer] = client.stream(EXAMPLE, explain=False)
    assert isinstance(answer, Answer)
    assert answer.explanation is None


def test_what_the_server_refuses_is_the_same_error_here(client, server):
    for sent, kind, words in (
        ({"alpha": 0.3}, CalibrationError, "no answer sets for alpha 0.3"),
        ({"orders": 24}, CalibrationError, "not calibrated for answers over 24"),
        ({"orders": 3}, DataError, "orders"),
    ):
        for explain in (True, False):
            with pytest.raises(kind, match=words):
                list(client.stream(EXAMPLE, explain=explain, settings=sent))
    with pytest.raises(DataError, match="tokens") as caught:
        list(client.stream(Example("long " * 5000, ("a", "b"))))
    assert caught.value.hint
    for key, words in (("wrong-key-of-many-signs", "key is wrong"), (None, "asks for an API key")):
        with pytest.raises(ConfigError, match=words) as caught:
            list(ServerClient(server, key).stream(EXAMPLE))
        assert "MEDQA_API_KEY" in caught.value.hint


def test_a_path_too_many_is_named(client, server):
    assert ServerClient(f" {server}/v1/ ").url == server
    with pytest.raises(EngineError, match="is not a MedQA server"):
        list(ServerClient(f"{server}/docs", KEY).stream(EXAMPLE))


def _event(name, data):
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


ODD = "one\u2028two\u2029three\x85four\x0bfive\x1csix"
ANSWER = Answer("q", "B", "7", 0.4, {"A": 0.2, "B": 0.4, "C": 0.2, "D": 0.2}, None, None, "m").to_json()
BUSY = {"error": {"type": "busy", "message": "9 are waiting already", "hint": "try again in a moment"}}
LATE = {"error": {"type": "timeout", "message": "it took longer than 60 s", "hint": "try again"}}
BUG = {"error": {"type": "bug", "message": "something is wrong inside the server", "hint": "its log says"}}
TOLD = {**ANSWER, "notice": "Not medical advice"}
STREAM, JSON = "text/event-stream; charset=utf-8", "application/json"
REPLIES = {
    "html": (200, "text/html", b"<html>hello</html>"),
    "page": (404, "text/html", b"<html>no</html>"),
    "moved": (307, "text/plain", b""),
    "other": (500, "text/plain", b"Internal Server Error"),
    "shape": (400, JSON, b'{"detail": "no"}'),
    "list": (400, JSON, b"[]"),
    "deep": (400, JSON, b"[" * 100_000),
    "busy": (429, JSON, json.dumps(BUSY).encode()),
    "late": (504, JSON, json.dumps(LATE).encode()),
    "bug": (500, JSON, json.dumps(BUG).encode()),
    "lines": (
        200,
        STREAM,
        b": hello\n\n"
        + _event("answer", ANSWER)
        + f"event: token\ndata: {json.dumps({'text': ODD}, ensure_ascii=False)}\n\n".encode()
        + _event("done", TOLD),
    ),
    "ends": (200, STREAM, _event("answer", ANSWER) + _event("token", {"text": "It"})),
    "fails": (200, STREAM, _event("answer", ANSWER) + _event("error", LATE)),
    "letter": (200, STREAM, _event("answer", {**ANSWER, "letter": "J"})),
    "share": (200, STREAM, _event("answer", {**ANSWER, "confidence": float("nan")})),
    "field": (200, STREAM, _event("answer", {"letter": "B"})),
    "type": (200, STREAM, _event("answer", {**ANSWER, "reason": ["no"]})),
    "torn": (200, STREAM, b"event: answer\ndata: {\n\n"),
    "hangs": (200, STREAM, _event("answer", ANSWER)),
    "drops": (200, STREAM, _event("answer", ANSWER)),
}
REPLIES["windows"] = (200, STREAM, REPLIES["lines"][2].replace(b"\n", b"\r\n"))


async def odd(scope, receive, send):
    """Answer as no good server would, by the first part of the path."""
    name = scope["path"].split("/")[1]
    status, kind, body = REPLIES[name]
    headers = [
        (b"content-type", kind.encode()),
        (b"retry-after", b"7"),
        (b"location", b"http://127.0.0.1:9/"),
    ]
    if name == "drops":
        headers.append((b"content-length", b"99999"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": name in ("hangs", "drops")})
    if name == "hangs":
        await asyncio.sleep(1)


@pytest.fixture(scope="module")
def odd_server():
    with running(odd) as url:
        yield url


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        *((name, EngineError, "is not a MedQA server") for name in ("html", "page", "moved", "other")),
        *((name, EngineError, "is not a MedQA server") for name in ("shape", "list", "deep", "torn")),
        ("busy", BusyError, "9 are waiting already\nHint: try again in 7 s"),
        ("late", TimeLimitError, "it took longer than 60 s\nHint: try again"),
        ("bug", EngineError, "something is wrong inside the server\nHint: its log says"),
        ("ends", EngineError, "stopped in the middle"),
        ("fails", TimeLimitError, "it took longer than 60 s"),
        *((name, EngineError, "does not fit") for name in ("letter", "share", "field", "type")),
        ("hangs", TimeLimitError, "said nothing for 0.2 s"),
        ("drops", EngineError, "broke off"),
    ],
)
def test_servers_that_are_none_or_fail(odd_server, name, kind, words):
    client = ServerClient(f"{odd_server}/{name}", KEY, timeout_s=0.2 if name == "hangs" else 10)
    with pytest.raises(kind) as caught:
        list(client.stream(EXAMPLE))
    assert words in str(caught.value)
    assert caught.value.hint
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", ["lines", "windows"])
def test_only_line_ends_end_a_line(odd_server, name):
    first, text, last = ServerClient(f"{odd_server}/{name}", KEY).stream(EXAMPLE)
    assert (first.letter, text, last.letter) == ("B", ODD, "B")


def test_nobody_there():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(EngineError, match="nothing answers at") as caught:
            list(ServerClient(f"http://127.0.0.1:{port}").stream(EXAMPLE))
    assert "medqa serve RUN" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    ["", "localhost:7860", "ftp://a", "http://", "http://a:x", "http://[::1", "http://a/?b", "http://a#b"],
)
def test_addresses_that_are_none(url):
    with pytest.raises(ConfigError, match="address") as caught:
        ServerClient(url)
    assert "http://127.0.0.1:7860" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "key"),
    [("http://u:secret@a", None), ("http://a", "secret\n"), ("http://a", "sécret"), ("http://a", "")],
)
def test_secrets_are_not_shown(url, key):
    with pytest.raises(ConfigError) as caught:
        ServerClient(url, key)
    assert "cret" not in str(caught.value)


def test_httpx_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(DependencyError, match="needs httpx"):
        ServerClient("http://a")


def test_settings_that_go_along_and_those_that_can_not():
    sent = request_fields(["serve.alpha=0.2", "serve.orders=4", "serve.max_risk=0.3"])
    assert sent == {"orders": 4, "alpha": 0.2, "max_risk": 0.3}
    assert request_fields([]) == {}
    for setting, words in (
        ("serve.max_explanation_tokens=5", "can't be sent along"),
        ("serve={}", "can't be sent along"),
        ("train.epochs=2", "can't be sent along"),
        ("serve.max_risk=null", "can't be sent along"),
        ("serve.alpha=2", "serve.alpha"),
        ("serve.orders=3", "serve.orders"),
        ("serve.alpha", "not of the form"),
    ):
        with pytest.raises(ConfigError, match=words):
            request_fields([setting])


def test_a_client_needs_no_torch():
    code = "import sys, medqa.serve.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def blocks(language):
    """Return the code blocks under the heading "Python client" of the page on serving."""
    if not DOCS.exists():
        pytest.skip(f"{DOCS.name} is not written yet")
    found = re.search(
        r"^(#+) Python client$(.*?)(?=^#{1,6} |\Z)", _outside_code(DOCS.read_text()), re.M | re.S
    )
    assert found, f"{DOCS.name} has no heading 'Python client'"
    return [block.replace("\0", "#") for block in re.findall(rf"```{language}\n(.*?)```", found[2], re.S)]


def _outside_code(text):
    """Mask the comment signs in code, which look like headings."""
    return re.sub(r"```.*?```", lambda block: block[0].replace("#", "\0"), text, flags=re.S)


def test_the_client_in_the_docs_takes_texts_as_they_are(odd_server):
    [code] = [code for code in blocks("python") if "httpx" in code]
    result = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:7860", f"{odd_server}/lines")],
        env={**os.environ, "MEDQA_API_KEY": KEY, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().split("\n") == ["B. 7 (40%)", f"{ODD}", "Not medical advice", ""]


@pytest.mark.slow
@pytest.mark.parametrize("language", ["python", "bash"])
def test_the_code_in_the_docs_works(server, language):
    codes = blocks(language)
    assert codes
    if language == "bash" and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    start = [sys.executable, "-c"] if language == "python" else ["bash", "-ec"]
    for code in codes:
        assert "http://127.0.0.1:7860" in code
        result = subprocess.run(
            [*start, code.replace("http://127.0.0.1:7860", server)],
            env={**os.environ, "MEDQA_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "Not medical advice" in result.stdout
        assert "error" not in result.stdout
