"""A small Hugging Face Hub on loopback, for the unmodified huggingface_hub: what it gets, it keeps.

It speaks the calls for whoami, creating a repository, cards, uploads of both kinds (git and LFS, in one or in
many parts), commits, and downloads. It can be told to fail as the Hub and the ways to it do.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import socket
import struct
import threading
from pathlib import Path
from urllib.parse import unquote

import yaml

__all__ = ["TOKEN", "HubStandIn", "Repo", "files_of"]

TOKEN = "hf_" + "standInTokenThatNobodyMayEverSee"
KINDS = ("models", "datasets", "spaces")


@dataclasses.dataclass
class Repo:
    """One repository: a list of commits, each with all its files."""

    private: bool = False
    commits: list = dataclasses.field(default_factory=list)
    files: dict = dataclasses.field(default_factory=dict)
    lfs: set = dataclasses.field(default_factory=set)
    asked_for: dict = dataclasses.field(default_factory=dict)  # what create was asked for

    @property
    def sha(self):
        return hashlib.sha1(repr(self.commits).encode()).hexdigest()

    def put(self, files, title="initial commit"):
        self.files = {**self.files, **files}
        self.commits.append({"title": title, "operations": [("put", path) for path in files]})


class HubStandIn:
    """The Hub: its state, and what it was told to do wrong.

    Attributes:
        token: The one that is right.
        repos: By kind ("models", "datasets", "spaces") and id.
        blobs: LFS files that arrived whole, by SHA-256.
        requests: Method and path of every request.
        received: Bytes of LFS uploads that came in, whole or not.
        taken: Names that nobody may see or create.
        read_only: Organisations that the token's owner may not write to.
        part_bytes: If given, LFS files come in parts of this size.
        cuts: By SHA-256, how many more uploads of a file are cut in the middle.
        faults: [times left, status, pattern of "METHOD path"] that are answered with an error.
    """

    def __init__(self):
        self.token, self.user, self.orgs = TOKEN, "tester", ("ORG",)
        self.repos, self.blobs, self.parts = {}, {}, {}
        self.requests, self.received = [], 0
        self.taken, self.read_only, self.gated = set(), set(), set()
        self.part_bytes, self.cuts, self.faults = None, {}, []
        self.lock = threading.Lock()

    @contextlib.contextmanager
    def running(self):
        """Serve on a free port of this machine; gives itself."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def environment(self, home):
        """Return the variables by which another process finds this Hub, and no other."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": self.token,
        }

    def patch(self, monkeypatch, home):
        """Point this process at it; the library reads its environment only when it is imported."""
        import huggingface_hub
        from huggingface_hub import constants, file_download

        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
                monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name, value in {
            "ENDPOINT": self.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", self.token)
        huggingface_hub.close_session()  # it was made for another state of HF_HUB_OFFLINE

    def repo(self, name, kind="models"):
        return self.repos[kind, name]

    def fail(self, times, status, pattern):
        self.faults.append([times, status, pattern])

    def asked(self, pattern):
        return [one for one in self.requests if re.search(pattern, one)]


class _Answer(Exception):  # noqa: N818
    def __init__(self, status, body=b"", **headers):
        super().__init__(status)
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if not isinstance(body, bytes):
            self.headers["Content-Type"] = "application/json"


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubStandIn

    def log_message(self, *args):
        pass

    def _reply(self):
        path = unquote(self.path.partition("?")[0])
        try:
            with self.hub.lock:
                self.hub.requests.append(f"{self.command} {path}")
                fault = next(
                    (f for f in self.hub.faults if f[0] and re.search(f[2], f"{self.command} {path}")), None
                )
                if fault:
                    fault[0] -= 1
            body = self._body(self.command == "PUT" and self._must_cut(path))
            if fault:
                raise _Answer(fault[1], {"error": f"told to answer {fault[1]}"})
            with self.hub.lock:
                self._route(path, body)
            raise _Answer(404, X_Error_Code="EntryNotFound")
        except _Answer as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
        except ConnectionError:
            pass

    do_GET = do_HEAD = do_POST = do_PUT = _reply

    def _must_cut(self, path):
        with self.hub.lock:
            oid = path.split("/")[3]
            self.hub.cuts[oid] = self.hub.cuts.get(oid, 0) - 1
            return self.hub.cuts[oid] >= 0

    def _body(self, cut):
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length // 2 if cut else length)
        if self.command == "PUT":
            self.hub.received += len(body)
        if cut:
            # Gone at once, as when a cable is pulled: the client sees a reset, not an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            raise ConnectionError("cut, as told")
        return body

    def _route(self, path, body):
        for method, pattern, function in _ROUTES:
            if method in (self.command, self.command.replace("HEAD", "GET")) and (
                found := re.fullmatch(pattern, path)
            ):
                getattr(self, function)(body, **found.groupdict())

    def _known(self):
        sent = self.headers.get("Authorization")
        if sent is not None and sent != f"Bearer {self.hub.token}":
            message = "Invalid credentials in Authorization header"
            raise _Answer(401, {"error": message}, X_Error_Message=message)
        return sent is not None

    def _writer(self, name):
        if not self._known():
            raise _Answer(401, {"error": "Unauthorized"})
        owner = name.partition("/")[0]
        if owner in self.hub.read_only or owner not in (self.hub.user, *self.hub.orgs):
            message = f"You don't have the rights to write in the namespace {owner}"
            raise _Answer(403, {"error": message}, X_Error_Message=message)

    def _found(self, kind, name):
        if name in self.hub.gated:
            raise _Answer(403, X_Error_Code="GatedRepo")
        known, repo = self._known(), self.hub.repos.get((kind or "models", name))
        if repo is None or name in self.hub.taken or (repo.private and not known):
            raise _Answer(404 if known else 401, X_Error_Code="RepoNotFound")
        return repo

    def whoami(self, body):
        if not self._known():
            raise _Answer(401, {"error": "Unauthorized"})
        raise _Answer(
            200, {"type": "user", "name": self.hub.user, "orgs": [{"name": org} for org in self.hub.orgs]}
        )

    def create(self, body):
        asked = json.loads(body)
        owner, kind = asked.get("organization") or self.hub.user, asked.get("type") or "model"
        name = f"{owner}/{asked['name']}"
        if name in self.hub.taken or (f"{kind}s", name) in self.hub.repos:
            raise _Answer(409, {"error": f"You already created this {kind} repo"})
        self._writer(name)
        private = asked.get("private", asked.get("visibility") == "private")
        repo = self.hub.repos[f"{kind}s", name] = Repo(private=private, asked_for=asked)
        repo.put({".gitattributes": b"*.safetensors filter=lfs\n"})
        if kind == "space":
            repo.files["README.md"] = b"---\nsdk: gradio\n---\nCheck out the configuration reference\n"
        place = name if kind == "model" else f"{kind}s/{name}"
        raise _Answer(200, {"url": f"{self.hub.url}/{place}", "name": name, "id": name})

    def card(self, body):
        asked, errors = json.loads(body), []
        front = re.match(r"---\n(.*?\n)---\n", asked["content"], re.DOTALL)
        try:
            if front and not isinstance(yaml.safe_load(front[1]), dict):
                errors.append({"message": "metadata is no mapping"})
        except yaml.YAMLError as exc:
            errors.append({"message": f"metadata is no YAML: {exc}"})
        raise _Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body, kind, name):
        repo = self._found(kind, name)
        self._writer(name)
        files = []
        for asked in json.loads(body)["files"]:
            path, old = asked["path"], repo.files.get(asked["path"])
            lfs = b"\0" in base64.b64decode(asked["sample"]) or asked["size"] > 10_000_000
            one = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if old is not None:
                one["oid"] = _oid(old, path in repo.lfs)
            files.append(one)
        raise _Answer(200, {"files": files})

    def batch(self, body, kind, name):
        self._found(kind, name)
        self._writer(name)
        objects = []
        for one in json.loads(body)["objects"]:
            oid, size = one["oid"], one["size"]
            objects.append({"oid": oid, "size": size})
            if oid in self.hub.blobs:
                continue
            upload = {"href": f"{self.hub.url}/lfs/whole/{oid}"}
            if self.hub.part_bytes:
                count = -(-size // self.hub.part_bytes)
                urls = {f"{n + 1:05}": f"{self.hub.url}/lfs/part/{oid}/{n + 1}" for n in range(count)}
                upload = {
                    "href": f"{self.hub.url}/lfs/complete/{oid}",
                    "header": {"chunk_size": str(self.hub.part_bytes), **urls},
                }
            verify = {"href": f"{self.hub.url}/lfs/verify"}
            objects[-1]["actions"] = {"upload": upload, "verify": verify}
        raise _Answer(200, {"transfer": "multipart" if self.hub.part_bytes else "basic", "objects": objects})

    def whole(self, body, oid):
        self._keep(oid, body)

    def part(self, body, oid, number):
        self.hub.parts[oid, int(number)] = body
        raise _Answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def complete(self, body, oid):
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        self._keep(oid, b"".join(self.hub.parts[oid, number] for number in numbers))

    def _keep(self, oid, data):
        if hashlib.sha256(data).hexdigest() != oid:
            raise _Answer(400, {"error": "what came is not what was announced"})
        self.hub.blobs[oid] = data
        raise _Answer(200, {})

    def verify(self, body):
        asked = json.loads(body)
        fits = len(self.hub.blobs.get(asked["oid"], b"")) == asked["size"]
        raise _Answer(200 if fits else 404, {})

    def commit(self, body, kind, name):
        repo = self._found(kind, name)
        self._writer(name)
        header, *lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != repo.sha:
            raise _Answer(412, {"error": "A commit has happened since"})
        files, lfs, done = dict(repo.files), set(repo.lfs), []
        for line in lines:
            key, value = line["key"], line["value"]
            path = value["path"]
            done.append((key, path))
            if key == "file":
                files[path] = base64.b64decode(value["content"])
                lfs.discard(path)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise _Answer(400, {"error": f"LFS file {path} never arrived"})
                files[path] = self.hub.blobs[value["oid"]]
                lfs.add(path)
            elif files.pop(path, None) is None:
                raise _Answer(
                    404, {"error": "A file with this name doesn't exist"}, X_Error_Code="EntryNotFound"
                )
        repo.files, repo.lfs = files, lfs
        repo.commits.append({"title": header["value"]["summary"], "operations": done})
        url = f"{self.hub.url}/{name}/commit/{repo.sha}"
        raise _Answer(200, {"success": True, "commitUrl": url, "commitOid": repo.sha, "hookOutput": ""})

    def info(self, body, kind, name, revision=None):
        repo = self._found(kind, name)
        self._check_revision(repo, revision)
        files = [{"rfilename": path} for path in sorted(repo.files)]
        raise _Answer(200, {"id": name, "sha": repo.sha, "private": repo.private, "siblings": files})

    def tree(self, body, kind, name, revision):
        repo = self._found(kind, name)
        self._check_revision(repo, revision)
        found = []
        for path, data in sorted(repo.files.items()):
            found.append({"type": "file", "path": path, "size": len(data), "oid": _oid(data, lfs=False)})
            if path in repo.lfs:
                found[-1]["lfs"] = {"oid": _oid(data, lfs=True), "size": len(data), "pointerSize": 130}
        raise _Answer(200, found)

    def resolve(self, body, kind, name, revision, path):
        repo = self._found(kind, name)
        self._check_revision(repo, revision)
        if path not in repo.files:
            raise _Answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.sha)
        data = repo.files[path]
        raise _Answer(200, data, ETag=f'"{_oid(data, path in repo.lfs)}"', X_Repo_Commit=repo.sha)

    def _check_revision(self, repo, revision):
        if revision not in (None, "main", repo.sha):
            raise _Answer(404, X_Error_Code="RevisionNotFound")


def _oid(data, lfs):
    if lfs:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
_PLACE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+?)"
_ROUTES = (
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "card"),
    ("POST", _REPO + "/preupload/main", "preupload"),
    ("POST", _REPO + "/commit/main", "commit"),
    ("GET", _REPO, "info"),
    ("GET", _REPO + "/revision/(?P<revision>.+)", "info"),
    ("GET", _REPO + "/tree/(?P<revision>[^/]+).*", "tree"),
    ("POST", _PLACE + r"\.git/info/lfs/objects/batch", "batch"),
    ("POST", "/lfs/verify", "verify"),
    ("PUT", "/lfs/whole/(?P<oid>[0-9a-f]{64})", "whole"),
    ("PUT", "/lfs/part/(?P<oid>[0-9a-f]{64})/(?P<number>[0-9]+)", "part"),
    ("POST", "/lfs/complete/(?P<oid>[0-9a-f]{64})", "complete"),
    ("GET", _PLACE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


def files_of(folder: Path):
    """Return the files of a folder with their content, by their names in a repository."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
