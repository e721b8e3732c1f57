import asyncio
import base64
import json
import logging

import pytest

from medqa.errors import ConfigError
from medqa.serve.access import Gate, check_binding, read_key

KEY = "0123456789abcdef-key"
BASIC = "Basic " + base64.b64encode(b"anyone:" + KEY.encode()).decode()


class App:
    """Notes what reaches it, and answers in two parts."""

    def __init__(self):
        self.bodies = []
        self.ids = []

    async def __call__(self, scope, receive, send):
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        self.ids.append(scope["state"]["request_id"])
        headers = [
            (b"access-control-allow-origin", b"*"),
            (b"Content-Security-Policy", b"default-src *"),
            (b"X-Request-Id", b"client's"),
            (b"x-own", b"kept"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two", "more_body": False})


class Reply:
    def __init__(self, sent):
        assert sent[0]["type"] == "http.response.start"
        assert not sent[-1]["more_body"]
        self.sent = sent
        self.status = sent[0]["status"]
        self.headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
        assert len(self.headers) == len(sent[0]["headers"]), "a header is there twice"
        self.body = b"".join(message["body"] for message in sent[1:])
        if self.status != 200:
            self.error = json.loads(self.body)["error"]
            assert set(self.error) == {"type", "message", "hint"}
            assert all(self.error.values())


def make(app=None, **settings):
    return Gate(app or App(), **{"host": "127.0.0.1", "wrong_key_wait_s": 0} | settings)


async def request(gate, method="GET", path="/v1/model", headers=None, parts=(b"",), hangs=False):
    """Send one request; a list of pairs as headers may hold one twice."""
    pairs = (
        headers if isinstance(headers, list) else list(({"Host": "localhost:7860"} | (headers or {})).items())
    )
    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    scope["headers"] = [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs]
    left, sent = list(parts), []

    async def receive():
        if left:
            part = left.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(left) or hangs}
        if hangs:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await gate(scope, receive, send)
    return Reply(sent) if sent else None


def ask(gate, *args, **kwargs):
    return asyncio.run(request(gate, *args, **kwargs))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_key(host):
    check_binding(host, None, False)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "",
        "192.168.1.5",
        "fe80::1",
        "::ffff:127.0.0.1",
        "127.1",
        "example.org",
        "localhost.evil",
    ],
)
def test_every_other_address_needs_a_key_or_the_flag(host):
    with pytest.raises(ConfigError, match="no API key") as error:
        check_binding(host, None, False)
    assert all(way in error.value.hint for way in ("MEDQA_API_KEY", "--host 127.0.0.1", "--no-api-key"))
    check_binding(host, None, True)
    check_binding(host, KEY, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    "key", ["", "short", "15-characters-x", "0123456789abcdef ", "0123456789abcdef\n", "é" * 20]
)
def test_weak_or_unfit_keys_are_refused_without_showing_them(host, key):
    with pytest.raises(ConfigError) as error:
        check_binding(host, key, False)
    assert not key or key not in str(error.value)


def test_a_key_and_no_key_contradict_each_other():
    with pytest.raises(ConfigError, match="and a key too"):
        check_binding("127.0.0.1", KEY, True)


def test_the_key_comes_from_the_option_or_the_environment_and_is_not_inherited(monkeypatch):
    import os

    assert read_key(None) is None
    monkeypatch.setenv("MEDQA_API_KEY", KEY)
    assert read_key(None) == KEY
    assert "MEDQA_API_KEY" not in os.environ
    monkeypatch.setenv("MEDQA_API_KEY", KEY)
    assert read_key("another one") == "another one"
    assert "MEDQA_API_KEY" not in os.environ


@pytest.mark.parametrize("credentials", [f"Bearer {KEY}", f"bearer  {KEY} ", BASIC])
def test_the_right_key_opens(credentials):
    assert ask(make(api_key=KEY), headers={"Authorization": credentials}).status == 200


@pytest.mark.parametrize(
    "credentials",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        "Bearer \xe9\xff" + "x" * 5000,
        KEY,
        f"Token {KEY}",
        "Basic ???",
        "Basic " + base64.b64encode(KEY.encode()).decode(),
        "Basic " + base64.b64encode(KEY.encode() + b":x").decode(),
    ],
)
def test_any_other_key_does_not(credentials):
    app = App()
    headers = {} if credentials is None else {"Authorization": credentials}
    for path, challenge in [
        ("/v1/answer", "Bearer"),
        ("/metrics", "Bearer"),
        ("/", "Basic "),
        ("/health/", "Basic "),
    ]:
        reply = ask(make(app, api_key=KEY), "POST", path, headers, [b"question"])
        assert (reply.status, reply.error["type"]) == (401, "unauthorized")
        assert reply.headers["www-authenticate"].startswith(challenge)
        assert KEY not in reply.body.decode()
    assert not app.bodies


def test_two_keys_are_refused():
    pairs = [("Host", "localhost"), ("Authorization", "Bearer x"), ("Authorization", f"Bearer {KEY}")]
    assert ask(make(api_key=KEY), headers=pairs).status == 400


def test_health_and_readiness_are_open():
    gate = make(api_key=KEY)
    assert ask(gate, path="/health").status == ask(gate, path="/ready").status == 200


def test_guessing_is_held_back_and_others_are_served_meanwhile(caplog):
    async def scene():
        gate = make(api_key=KEY, wrong_key_wait_s=60)
        wrong = {"Authorization": "Bearer guess"}
        waiting = [asyncio.ensure_future(request(gate, headers=wrong)) for _ in range(100)]
        await asyncio.sleep(0)
        refused = await request(gate, headers=wrong)
        served = await request(gate, headers={"Authorization": f"Bearer {KEY}"})
        asked = await request(gate)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return [refused.status, served.status, asked.status], refused.headers["retry-after"]

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(scene()) == ([429, 200, 401], "1")
    assert [record.args[0] for record in caplog.records] == [1, 2, 4, 8, 16, 32, 64]
    assert "guess" not in caplog.text


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:7860", "[::1]:7860", "[::1]"])
def test_names_of_this_machine_are_served(host):
    assert ask(make(), headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.example",
        "",
        "127.0.0.1.evil",
        "[::2]",
        "0.0.0.0",
        "\xe9",
    ],
)
def test_other_names_are_refused_on_loopback_only(host):
    for path in ("/", "/v1/answer", "/health"):
        reply = ask(make(), path=path, headers={"Host": host})
        assert (reply.status, reply.error["type"]) == (400, "bad_host")
    assert ask(make(host="0.0.0.0"), headers={"Host": host}).status == 200


def test_host_must_be_there_once():
    assert ask(make(), headers=[]).status == 400
    assert ask(make(), headers=[("Host", "localhost"), ("Host", "evil.example")]).status == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:7860"}, 200),
        ({"Origin": "https://LOCALHOST:7860"}, 200),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        (
            {"Origin": "https://medqa.example", "Sec-Fetch-Site": "same-origin"},
            200,
        ),  # behind a proxy with TLS
        (
            {"Origin": "https://medqa.example", "X-Forwarded-Host": "medqa.example"},
            200,
        ),  # the same, an old browser
        ({"Origin": "https://evil.example", "X-Forwarded-Host": "medqa.example"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://localhost:7860", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_other_sites_cannot_make_a_browser_ask(headers, status):
    assert ask(make(), "POST", headers=headers).status == status
    assert ask(make(), "DELETE", headers=headers).status == status
    assert ask(make(), "GET", headers=headers).status == 200


@pytest.mark.parametrize("parts", [[b"x" * 101], [b"x"] * 101, [b"x" * 60] * 2])
@pytest.mark.parametrize("announced", [True, False])
def test_long_bodies_are_refused_however_they_come(parts, announced):
    app = App()
    headers = {"Content-Length": str(sum(map(len, parts)))} if announced else {}
    reply = ask(make(app, max_body_bytes=100), "POST", headers=headers, parts=parts)
    assert (reply.status, reply.error["type"]) == (413, "too_large")
    assert not app.bodies


def test_a_body_up_to_the_limit_arrives_in_one_piece():
    app = App()
    assert ask(make(app, max_body_bytes=100), "POST", parts=[b"a" * 50, b"b" * 50]).status == 200
    assert app.bodies == [b"a" * 50 + b"b" * 50]


def test_an_announced_length_is_believed_before_anything_is_read():
    for length in ("1000000000", "9" * 6000):
        reply = ask(make(), "POST", headers={"Content-Length": length, "Expect": "100-continue"}, hangs=True)
        assert reply.status == 413


def test_a_slow_body_is_given_up(monkeypatch):
    monkeypatch.setattr("medqa.serve.incoming._DRAIN_S", 0.01)
    app = App()
    reply = ask(make(app, body_timeout_s=0.01), "POST", parts=[b"abc"], hangs=True)
    assert (reply.status, reply.error["type"], reply.headers["connection"]) == (408, "timeout", "close")
    assert not app.bodies


def test_what_is_still_being_sent_is_taken_before_the_connection_closes():
    left = [b"x" * 60] * 5

    async def scene():
        sent, taken_before_end = [], None

        async def receive():
            return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

        async def send(message):
            nonlocal taken_before_end
            sent.append(message)
            if not message.get("more_body", True):
                taken_before_end = not left

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
        await make(max_body_bytes=100)(scope, receive, send)
        return sent[0]["status"], taken_before_end

    assert asyncio.run(scene()) == (413, True)


def test_a_client_that_goes_away_gets_nothing_and_the_application_is_not_asked():
    app = App()
    assert ask(make(app), "POST", parts=[]) is None
    assert not app.bodies


def test_long_addresses_and_headers_are_refused():
    assert ask(make(), path="/" + "a" * 40_000).status == 431
    assert ask(make(), headers={"Cookie": "a" * 40_000}).status == 431


@pytest.mark.parametrize(
    "path", ["upload", "file=/etc/passwd", "proxy=http://x", "vibe-edit", "run-history/connect"]
)
def test_what_the_page_does_not_need_is_closed(path):
    assert ask(make(), path=f"/gradio_api/{path}").status == 404
    assert ask(make(), path=f"/page/gradio_api/{path}").status == 404
    assert ask(make(), path="/gradio_api/queue/join").status == 200


def test_every_response_has_the_headers_and_none_opens_it_to_others():
    app = App()
    gate = make(app, api_key=KEY)
    passed = ask(gate, headers={"Authorization": BASIC, "X-Request-Id": "mine"})
    refused = ask(gate)
    for reply in (passed, refused):
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert "*" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["cache-control"] == "no-store"
        assert "permissions-policy" in reply.headers
        assert not any(name.startswith("access-control-") for name in reply.headers)
        assert len(reply.headers["x-request-id"]) == 32
    assert passed.headers["x-own"] == "kept"
    assert passed.headers["x-request-id"] == app.ids[0] != refused.headers["x-request-id"]
    assert "cache-control" not in ask(gate, path="/", headers={"Authorization": BASIC}).headers


def test_streams_pass_part_by_part_and_the_end_of_a_client_is_heard():
    async def scene():
        heard, arrived = [], []

        async def app(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(3):
                await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
                assert arrived[-1] == b"%d" % number, "a part is held back"
            heard.append((await receive())["type"])
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def receive():
            return (
                {"type": "http.request", "body": b"", "more_body": False}
                if not arrived
                else {"type": "http.disconnect"}
            )

        async def send(message):
            arrived.append(message.get("body"))

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
        await make(app)(scope, receive, send)
        return heard

    assert asyncio.run(scene()) == ["http.disconnect"]


def test_startup_passes_and_websockets_are_refused():
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    async def send(message):
        sent.append(message["type"])

    asyncio.run(make(app)({"type": "lifespan"}, None, send))
    asyncio.run(make(app)({"type": "websocket", "path": "/"}, None, send))
    assert (seen, sent) == (["lifespan"], ["websocket.close"])
