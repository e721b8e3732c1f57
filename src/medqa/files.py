"""Write files and folders whole or not at all, and read them back with clear errors.

A file is written beside its place and renamed, so that a half-written one never bears its name. What a killed
writer leaves beside a folder, the next one takes away, or puts back if nothing else is left of it.
"""

import contextlib
import contextvars
import errno
import functools
import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from medqa.errors import RunError

__all__ = [
    "beside",
    "file_sha256",
    "json_text",
    "jsonl_text",
    "read_json",
    "read_sealed",
    "seal",
    "sweep",
    "synced",
    "unsealed",
    "write_anyway",
    "write_folder",
    "write_json",
    "write_nothing",
    "write_text",
    "write_texts",
    "writes",
]

log = logging.getLogger(__name__)

# As `beside` names them, and what is put aside while it is replaced.
_LEFT = re.compile(r"\.(?P<name>.+)\.(?P<host>\w+)-(?P<pid>\d+)-\w+\.(?P<kind>part|old)")

_writes = True
_anyway: contextvars.ContextVar[bool] = contextvars.ContextVar("_anyway", default=False)


def write_nothing() -> None:
    """Make all that follows leave the disk as it is: of several processes that do the same, one writes."""
    global _writes
    _writes = False


@contextlib.contextmanager
def write_anyway() -> Iterator[None]:
    """Write within the block, in this thread: what each machine keeps for itself, such as a cache."""
    token = _anyway.set(True)
    try:
        yield
    finally:
        _anyway.reset(token)


def writes() -> bool:
    """Tell whether this process is the one that writes."""
    return _writes or _anyway.get()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either whole or not there."""
    write_texts({path: text})


def write_texts(texts: dict[Path, str]) -> None:
    """Write files that belong together: each is whole or not there, and all are on the disk before one is."""
    if not writes():
        return
    parts = {path: beside(path) for path in texts}
    try:
        for path, part in parts.items():
            with part.open("w", encoding="utf-8") as f:
                f.write(texts[path])
                f.flush()
                os.fsync(f.fileno())
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)  # on a full disk it would take what little room there is


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either whole or not there."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return a JSON file's text."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def jsonl_text(rows: Iterable[dict[str, Any]]) -> str:
    """Return the text of a file with one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: If the file is missing, cut off or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise RunError(f"{path} can't be read: {exc}", "make it again, or give another run") from exc
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a {type(value).__name__}, expected an object", "make it again")
    return value


@contextlib.contextmanager
def write_folder(path: Path, *, new: bool = False) -> Iterator[Path]:
    """Fill a folder under another name; it gets its own name only once the block ends well.

    Args:
        path: The folder. What is there is replaced.
        new: Replace nothing.

    Raises:
        FileExistsError: If it must be new and isn't.
    """
    if not writes():
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    sweep(path.parent, path.name)
    if new and path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    part = beside(path)
    aside = part.with_suffix(".old")
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                synced(file)
        if path.exists() and not new:
            # Aside first: a folder that can't be deleted whole would be lost by halves.
            path.replace(aside)
        part.replace(path)
    finally:
        # An error may have come in between the two, or a signal.
        if aside.exists() and not path.exists():
            aside.replace(path)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def beside(path: Path) -> Path:
    """Name a file or folder beside its place, of this process, until it is whole."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def sweep(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Put right what killed writers left in a folder: half written things go, and a lone old one comes back.

    Args:
        folder: Where they wrote.
        name: Of the file or folder that was written; any if not given.
        alone: No other process writes there now; else what a process of this machine left that is gone.
    """
    for left in folder.glob(".*"):
        found = _LEFT.fullmatch(left.name)
        if not found or (name is not None and found["name"] != name):
            continue
        if not alone and (found["host"] != _host() or psutil.pid_exists(int(found["pid"]))):
            continue
        path = folder / found["name"]
        if found["kind"] == "old" and not path.exists():
            log.warning("%s was being replaced by a process that was killed: it is back as it was", path)
            left.replace(path)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@functools.cache
def _host() -> str:
    """Tell machines and containers apart that share a disk, but not their processes."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def synced(file: Path) -> int:
    """Have a file on the disk, whatever happens to the machine; its size in bytes."""
    with file.open("rb") as f:
        os.fsync(f.fileno())
        return os.fstat(f.fileno()).st_size


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """Add a checksum of all that an object holds, under "sha256"."""
    return {**value, "sha256": _checksum(value)}


def unsealed(value: dict[str, Any]) -> dict[str, Any]:
    """Take the checksum off again.

    Raises:
        ValueError: If it is not that of the rest.
    """
    rest = {key: part for key, part in value.items() if key != "sha256"}
    if value.get("sha256") != _checksum(rest):
        raise ValueError("its content is not what was written: the checksum differs")
    return rest


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what was written with a checksum, without it; what has none is of an earlier version.

    Raises:
        RunError: As `read_json`, or if its content is not what was written.
    """
    value = read_json(path)
    try:
        return unsealed(value) if "sha256" in value else value
    except ValueError as exc:
        raise RunError(f"{path} is damaged: {exc}", "make it again") from exc


def _checksum(value: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(value))  # keys are text there, tuples lists
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
