"""The application under what a stranger may send: refusals have one shape, and no traceback comes of it."""

import http.client
import json
import re
import time
from urllib.parse import urlsplit

import pytest

from medqa.serve.audit import AuditLog
from medqa.serve.desk import Desk
from medqa.serve.service import Service

from .conftest import running, whole_application

# Gradio 6 uses what pandas 3 has retired.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*no_silent_downcasting", "ignore:The copy keyword is deprecated"
)

JOIN, CANCEL, RESET = (f"/gradio_api/{name}" for name in ("queue/join", "cancel", "reset"))
ADD, ASK, STOPS = 5, 16, 18  # events of the page
ASKED = ["What comes after 6?", None, True, 0.1, 0, None, None, "116", "7", *[""] * 8]
GOOD = {"fn_index": ASK, "session_hash": "abc123", "trigger_id": 72, "event_data": None, "data": ASKED}


@pytest.fixture(scope="module")
def address(answerer, tmp_path_factory):
    service = Service(answerer)
    with AuditLog(tmp_path_factory.mktemp("audit") / "audit.jsonl") as audit:
        with running(whole_application(Desk(service, audit))) as url:
            yield urlsplit(url).netloc
        service.close()


@pytest.fixture(autouse=True)
def quiet(caplog, capfd):
    """Nothing that these tests send may leave a traceback."""
    yield
    told = capfd.readouterr()
    assert "Traceback" not in told.err + told.out
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def send(address, method, path, body=None, headers=None):
    """Send a request exactly as it is given; return status, headers and text."""
    connection = http.client.HTTPConnection(address, timeout=20)
    if isinstance(body, dict):
        body, headers = json.dumps(body), {"content-type": "application/json", **(headers or {})}
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


def refused(address, status, method, path, body=None, headers=None):
    """Check that a request is refused as everything is refused here."""
    found, fields, text = send(address, method, path, body, headers)
    assert found == status, text
    assert "json" in fields["content-type"]
    if method != "HEAD":
        error = json.loads(text)["error"]
        assert set(error) == {"type", "message", "hint"}
        assert error["message"]
        assert not re.search(r"/tmp/|/home/|site-packages|pydantic|gradio|\.py\b", text)
        return fields, error
    return fields, None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *((method, "/v1/nothing", 404) for method in ("GET", "POST", "PUT", "OPTIONS")),
        *(("GET", path, 404) for path in ("/v1", "/v1/", "/v1/answer/x", "/ready/x", "/metrics/")),
        *(("GET", path, 405) for path in ("/v1/answer", "/v1/answers", "/v1/chat/completions")),
        *((method, "/v1/answer", 405) for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")),
        *(("POST", path, 405) for path in ("/v1/models", "/health", "/ready", "/metrics")),
        *(("GET", path, 404) for path in ("/nothing", "/config", "/gradio_api/info", "/gradio_api/queue")),
        *(("GET", path, 405) for path in (JOIN, CANCEL, RESET)),
        *((method, "/", 405) for method in ("POST", "PUT")),
        ("POST", "/theme.css", 405),
    ],
)
def test_addresses_and_methods_that_are_none(address, method, path, status):
    headers, error = refused(address, status, method, path)
    assert status != 405 or headers["allow"]
    if error is not None:
        assert error["type"] == {404: "not_found", 405: "bad_method"}[status]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../etc/passwd",
        "/static/..%2f..%2fetc/passwd",
        "/assets//etc/passwd",
        "/assets/%2e%2e/%2e%2e/index.html",
        "/assets/%00",
        "/assets/a%5c..%5cb",
        "/assets",
        "/assets/",
        "/assets/nothing.js",
        "/static-offline-docs/%00",
        "/static-offline-docs/../x",
        "/static-offline-docs/" + "x" * 5000,
        "/gradio_api/heartbeat/" + "x" * 65,
        "/gradio_api/heartbeat/%0a",
    ],
)
def test_no_file_but_the_page_s_own(address, path):
    refused(address, 404, "GET", path)


def test_a_folder_is_no_file(address):
    refused(address, 403, "GET", "/static/img")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fn_index": 999}, "there is no event 999"),
        ({"fn_index": -1}, "fn_index"),
        ({"fn_index": True}, "fn_index"),
        ({"fn_index": "16"}, "fn_index"),
        ({"fn_index": None}, "fn_index"),
        ({"fn_index": 10**30}, "fn_index"),
        ({"fn_index": STOPS}, "there is no event"),
        ({"trigger_id": float("inf")}, "trigger_id"),
        ({"trigger_id": 1.5}, "trigger_id"),
        ({"session_hash": None}, "session_hash"),
        ({"session_hash": "../x"}, "session_hash"),
        ({"session_hash": "x" * 65}, "session_hash"),
        ({"session_hash": "x\n"}, "session_hash"),
        ({"data": None}, "data"),
        ({"data": {}}, "data"),
        ({"data": ASKED[1:]}, "16 values"),
        ({"data": ["x"] * 100}, "data"),
        ({"data": [{"path": "/etc/passwd"}, *ASKED[1:]]}, "data.0"),
        ({"data": [7, *ASKED[1:]]}, "data.0"),
        ({"data": [*ASKED[:2], "yes", *ASKED[3:]]}, "data.2"),
        ({"data": [*ASKED[:3], 0.3, *ASKED[4:]]}, "data.3"),
        ({"data": [*ASKED[:3], float("nan"), *ASKED[4:]]}, "data.3"),
        ({"data": [*ASKED[:4], False, *ASKED[5:]]}, "data.4"),
    ],
)
def test_what_no_page_asks_never_gets_to_gradio(address, change, told):
    body = json.dumps({**GOOD, **change}).replace("Infinity", "1e400")
    _, error = refused(address, 422, "POST", JOIN, body, {"content-type": "application/json"})
    assert told in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"data": ["\\ud800"]}', b"9" * 5000])
@pytest.mark.parametrize("path", [JOIN, CANCEL, RESET])
def test_bodies_that_are_no_json(address, path, body):
    status, _, text = send(address, "POST", path, body, {"content-type": "application/json"})
    assert status in (400, 422)
    assert set(json.loads(text)["error"]) == {"type", "message", "hint"}
    refused(address, 415, "POST", path, body, {"content-type": "text/plain"})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CANCEL, {}),
        (CANCEL, {"session_hash": "a", "fn_index": "1", "event_id": "b"}),
        (CANCEL, {"session_hash": "a", "fn_index": 1, "event_id": None}),
        (RESET, {"event_id": ["a"]}),
    ],
)
def test_what_is_cancelled_is_named(address, path, body):
    refused(address, 422, "POST", path, body)


def test_a_visit_that_is_none_is_not_listened_to(address):
    for query in ("", "?session_hash=", "?session_hash=a&session_hash=b", "?session_hash=%00"):
        refused(address, 422, "GET", f"/gradio_api/queue/data{query}")
    refused(address, 404, "GET", "/gradio_api/queue/data?session_hash=nobody")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-host": "[", "x-forwarded-proto": "https, x"},
        {"x-gradio-server": "http://["},
        {"x-gradio-server": "http://evil.example", "x-forwarded-host": "a b"},
        {"range": "bytes=9-1", "if-range": "x", "cookie": "access-token=\xff", "origin": "null"},
        {"accept-encoding": "identity;q=x", "accept-language": "\xff", "authorization": "Basic x"},
    ],
)
def test_headers_change_nothing(address, headers):
    for path in ("/", "/theme.css"):
        status, _, text = send(address, "GET", f"{path}?__theme=%00&a=%5B", headers=headers)
        assert status == 200
        assert "evil.example" not in text


def test_a_host_that_is_none_is_refused(address):
    for host in ("localhost:abc", "localhost:99999", "localhost:65536", "localhost:"):
        refused(address, 400, "GET", "/", headers={"host": host})
    for port in (1, 9999, 10000, 59999, 60000, 65535):
        assert send(address, "GET", "/", headers={"host": f"localhost:{port}"})[0] == 200


def test_a_proxy_names_the_address(address):
    headers = {"x-forwarded-host": "medqa.example", "x-forwarded-proto": "https"}
    assert "https://medqa.example" in send(address, "GET", "/", headers=headers)[2]


def listen(address, session):
    """Return the messages of a visit, up to its end."""
    text = send(address, "GET", f"/gradio_api/queue/data?session_hash={session}")[2]
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def test_the_page_s_own_requests_are_answered(address):
    assert send(address, "POST", JOIN, GOOD)[0] == 200
    messages = listen(address, "abc123")
    assert [one["msg"] for one in messages][-2:] == ["process_completed", "close_stream"]
    assert all(one["success"] for one in messages if "success" in one)
    assert "Not medical advice" in json.dumps(messages)
    assert send(address, "POST", JOIN, {**GOOD, "fn_index": ADD, "data": [None]})[0] == 200
    assert listen(address, "abc123")[-1]["msg"] == "close_stream"
    id = {"event_id": messages[0]["event_id"]}
    for path, body in ((CANCEL, {**id, "session_hash": "abc123", "fn_index": ASK}), (RESET, id)):
        assert send(address, "POST", path, body)[0] == 200


def test_what_is_wrong_with_a_question_is_told_on_the_page(address):
    sign = ["a\u202eb", *ASKED[1:]]
    for data, told in ((sign, "control character U+202E"), (["", *ASKED[1:]], "no question yet")):
        assert send(address, "POST", JOIN, {**GOOD, "data": data})[0] == 200
        assert told in json.dumps(listen(address, "abc123"))


def test_two_that_listen_to_one_visit_and_leave(address, caplog):
    """Gradio fails at that; it is a line in the log, not a traceback."""
    assert send(address, "POST", JOIN, {**GOOD, "session_hash": "two"})[0] == 200
    both = [http.client.HTTPConnection(address, timeout=20) for _ in range(2)]
    for one in both:
        one.request("GET", "/gradio_api/queue/data?session_hash=two")
    for one in both:
        one.close()
    time.sleep(0.5)
    caplog.clear()
