"""The API under requests that nobody should send, and under OpenAI's own client."""

import asyncio
import collections
import contextlib
import json
import os
import random
import re
import string
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from medqa.records import NOTICE
from medqa.serve.access import Gate
from medqa.serve.api import build_api
from medqa.serve.audit import AuditLog
from medqa.serve.desk import Desk
from medqa.serve.service import Service

from .conftest import running

pytestmark = pytest.mark.slow

QUESTION = {"question": "What comes after 6?", "options": ["116", "7", "126", "136"]}
CHAT = "What comes after 6?\nA. 116\nB. 7\nC. 126\nD. 136"
KEY = "a-key-of-sixteen-and-more"


@pytest.fixture
def served(answerer, tmp_path):
    """A server, its service and its audit log; slow bodies are given up on soon."""
    file = tmp_path / "audit.jsonl"
    service = Service(answerer)
    with AuditLog(file) as audit:
        with running(Gate(build_api(Desk(service, audit)), host="127.0.0.1", body_timeout_s=2)) as url:
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
    command += [f"--max-time={os.environ.get('ST_S', 100)}", "--max-failures=20", "--continue-on-failure", "--request-timeout=30"]
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
