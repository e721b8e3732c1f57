"""The whole application under requests that nobody should send, and the API under OpenAI's own client."""

import asyncio
import collections
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from medqa.records import NOTICE
from medqa.serve.audit import AuditLog
from medqa.serve.desk import Desk
from medqa.serve.service import Service

from .conftest import running, whole_application
from .storm import CHAT, QUESTION, Storm, good_bodies

pytestmark = [
    pytest.mark.slow,
    # Gradio 6 uses what pandas 3 has retired.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting", "ignore:The copy keyword is deprecated"),
]

KEY = "a-key-of-sixteen-and-more"


@pytest.fixture
def served(answerer, tmp_path):
    """A server, its service and its audit log; slow bodies are given up on soon."""
    file = tmp_path / "audit.jsonl"
    service = Service(answerer)
    with AuditLog(file) as audit:
        app = whole_application(Desk(service, audit))
        app._body_timeout_s = 2
        with running(app) as url:
            yield url, service, file
        service.close()


# What can't hold here: the description can't say all that makes a question one that can be answered (its
# options differ, it fits into the model, the run is calibrated for its alpha), so a body that fits it can
# still get 422.
CAN_NOT_HOLD = "positive_data_acceptance"
# Too long a body is refused before it is looked at; schemathesis knows of the other statuses by itself.
REFUSED = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]


def test_the_api_is_as_it_describes_itself(served, tmp_path):
    pytest.importorskip("schemathesis")
    url, service, _ = served
    config = f"[checks.negative_data_rejection]\nexpected-statuses = {REFUSED}\n"
    (tmp_path / "schemathesis.toml").write_text(config)
    command = ["run", f"{url}/openapi.json", "--checks=all", f"--exclude-checks={CAN_NOT_HOLD}"]
    command += ["--max-time=100", "--max-failures=20", "--continue-on-failure", "--request-timeout=30"]
    command += ["--suppress-health-check=all", "--generation-database=none", "--no-color", "--seed=1"]
    found = subprocess.run(
        [Path(sys.executable).with_name("st"), *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    told = "\n".join(line[:300] for line in found.stdout.splitlines())  # some bodies are megabytes
    assert found.returncode == 0, told + found.stderr
    assert service.num_waiting == service.num_writing == 0


def memory_mib():
    """Return what this process has in memory."""
    status = Path("/proc/self/status")
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else 0.0


def wait_until_idle(service):
    for _ in range(1_000):
        if not service.num_writing and not service.num_waiting:
            break
        time.sleep(0.01)
    assert (service.num_writing, service.num_waiting) == (0, 0)


# Connections that were cut are not all closed by the time the loop of their requests ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ten_thousand_wrong_requests_change_nothing_for_the_right_ones(served, caplog, capfd):
    url, service, file = served
    service.defaults = service.defaults.model_copy(update={"max_explanation_tokens": 8})
    with httpx.Client(base_url=url, timeout=60) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        expected = client.post("/v1/answer", json={**QUESTION, "explain": True}).json()
    storm = Storm(url, good_bodies(model), expected)
    asyncio.run(storm.run(2_000))  # what is kept for good is there after this
    wait_until_idle(service)
    before = memory_mib()
    asyncio.run(storm.run(8_000))
    wait_until_idle(service)
    assert memory_mib() - before < 64
    assert storm.num_good == 1_000
    # Every kind of refusal came about, and so did answers.
    assert {200, 400, 404, 405, 408, 413, 415, 422} <= set(storm.statuses), storm.statuses
    written = collections.Counter(
        (line["id"], line["event"]) for line in map(json.loads, file.read_text().splitlines())
    )
    assert set(storm.events.values()) == {1}
    assert {key: written[key] for key in storm.events} == dict(storm.events)
    assert not [key for key, number in written.items() if number != 1]  # no line twice, whoever had left
    told = capfd.readouterr()
    assert "Traceback" not in told.out + told.err
    assert not [record.getMessage() for record in caplog.records if record.exc_info]


@pytest.fixture
def openai_client(answerer):
    openai = pytest.importorskip("openai")
    service = Service(answerer)
    app = whole_application(Desk(service), api_key=KEY)
    with running(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client
    service.close()


def test_the_openai_client_asks_and_streams(openai_client):
    [model] = openai_client.models.list()
    asked = {"model": model.id, "messages": [{"role": "user", "content": CHAT}]}
    whole = openai_client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text.endswith(NOTICE)
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    answer = whole.model_extra["medqa"]["answer"]
    assert text.startswith(f"{answer['letter']}. {answer['option']} (confidence")
    usage = {"include_usage": True}
    *chunks, last = openai_client.chat.completions.create(**asked, stream=True, stream_options=usage)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)
    limited = openai_client.chat.completions.create(**asked, max_completion_tokens=1)
    assert limited.usage.completion_tokens < whole.usage.completion_tokens


def test_the_openai_client_raises_its_own_errors_with_our_words(openai_client):
    import openai

    [model] = openai_client.models.list()
    ask = openai_client.chat.completions.create
    for more, words in (
        ({"messages": [{"role": "user", "content": "Hello!"}]}, "options"),
        ({"model": "gpt-4"}, "there is no model 'gpt-4'"),
        ({"n": 2}, "n: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "'tools' is not known here"),
        ({"stream": True, "messages": [{"role": "user", "content": "Hello!"}]}, "options"),
    ):
        asked = {"model": model.id, "messages": [{"role": "user", "content": CHAT}], **more}
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            ask(**asked)
        assert words in caught.value.body["message"]
        assert caught.value.type in ("bad_question", "bad_request", "bad_setting")
    with pytest.raises(openai.NotFoundError):
        openai_client.embeddings.create(model=model.id, input="x")
    with pytest.raises(openai.AuthenticationError, match="API key is wrong"):
        openai_client.with_options(api_key="another-key-of-many-signs").models.list()
