"""Write files and folders whole or not at all, and read them back with clear errors.

A file is written beside its place and renamed, so that a half-written one never bears its name.
"""

import contextlib
import contextvars
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medqa.errors import RunError

__all__ = [
    "file_sha256",
    "read_json",
    "write_anyway",
    "write_folder",
    "write_json",
    "write_jsonl",
    "write_nothing",
    "write_text",
    "writes",
]

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
    if not writes():
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    with beside.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either whole or not there."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, so that the file is either whole or not there."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in rows))


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
def write_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name; it gets its own name only once the block ends well."""
    if not writes():
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    aside = beside.with_suffix(".old")
    beside.mkdir(parents=True)
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                with file.open("rb") as f:
                    os.fsync(f.fileno())
        if path.exists():
            # Aside first: a folder that can't be deleted whole would be lost by halves.
            path.replace(aside)
        try:
            beside.replace(path)
        except BaseException:
            if aside.exists():
                aside.replace(path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Hash a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
