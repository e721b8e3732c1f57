"""huggingface_hub itself, unmodified, against a small local server that speaks the download calls."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from medqa.testing import make_examples, write_medmcqa

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves one data set, ORG/set, from a folder."""

    def __init__(self, *args, folder, **kwargs):
        self.folder = folder
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.reply(with_body=False)

    def do_GET(self):
        self.reply(with_body=True)

    def reply(self, with_body):
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/datasets/ORG/set"):
            files = [str(f.relative_to(self.folder)) for f in self.folder.rglob("*") if f.is_file()]
            if "/tree/" in path:
                body = [{"type": "file", "path": f, "size": 1, "oid": "0"} for f in files]
            else:
                body = {"id": "ORG/set", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            status, data = 200, json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith("/datasets/ORG/set/resolve/"):
            file = self.folder / path.split("/", 6)[6]
            status, data = 200, file.read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        elif "gated" in path:
            status, data = 403, b""
            headers["X-Error-Code"] = "GatedRepo"
        else:
            status, data = 404, b""
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@pytest.fixture
def endpoint(tmp_path):
    folder = tmp_path / "repo"
    write_medmcqa(folder / "data" / "train-00000-of-00001.jsonl", make_examples(8))
    (folder / "notes.txt").write_text("not downloaded")
    handler = functools.partial(Hub, folder=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(endpoint, name, home):
    code = (
        "from medqa.config import DataConfig; from medqa.data.sources import read_split\n"
        "from medqa.errors import HubError\n"
        f"try: print(len(read_split(DataConfig(name={name!r}), 'train').examples))\n"
        "except HubError as exc: print(exc.message, '|', exc.hint)"
    )
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_data_set_is_downloaded_once_and_read(endpoint, tmp_path):
    assert fetch(endpoint, "ORG/set", tmp_path / "home") == "8"
    # The copy serves when the Hub is gone.
    assert fetch("http://127.0.0.1:9", "ORG/set", tmp_path / "home") == "8"
    assert not list((tmp_path / "home").rglob("notes.txt"))


@pytest.mark.parametrize(
    ("name", "message"), [("ORG/none", "the Hub has no dataset 'ORG/none'"), ("ORG/gated", "is gated")]
)
def test_what_the_hub_refuses(endpoint, tmp_path, name, message):
    assert message in fetch(endpoint, name, tmp_path / "home")


def test_an_unreachable_hub_is_one_line_with_the_way_out(tmp_path):
    text = fetch("http://127.0.0.1:9", "ORG/set", tmp_path / "home")
    assert text.startswith("the Hub can't be reached for dataset 'ORG/set'")
    assert "data.name=FOLDER" in text
