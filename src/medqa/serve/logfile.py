"""A file of lines that is on the disk when it says so, written by one process, renamed when it is full."""

import contextlib
import fcntl
import json
import logging
import os
import stat
from pathlib import Path

from medqa.errors import RunError

__all__ = ["LogFile"]

_log = logging.getLogger(__name__)


class LogFile:
    """An append-only file.

    Args:
        path: The file.
        max_bytes: Length at which it is renamed to FILE.1, the next to FILE.2, and so on.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor: int | None = None

    def append(self, lines: bytes) -> None:
        """Put lines on the disk, all of them or (with an OSError) none."""
        descriptor = self._current()
        size = os.fstat(descriptor).st_size
        if size and size + len(lines) > self._max_bytes:
            descriptor, size = self._rotate(), 0
        try:
            _write_and_sync(descriptor, lines)
        except OSError:
            # What came through of it is no whole batch. After a failed sync nobody knows what is on the disk,
            # so the file is opened and looked at anew.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
            self.close()
            raise

    def open(self) -> int:
        """Open the file for this process alone, and mend a torn last line."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._prepare(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return descriptor

    def close(self) -> None:
        """Let the file go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _prepare(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise RunError(f"the audit log {self._path} is not a regular file", "name a file on a disk")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RunError(
                f"another process writes the audit log {self._path}", "give each server a log of its own"
            ) from exc
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise PermissionError(None, "its folder can't be written to, where full logs are put aside")
        if found.st_mode & 0o077:
            _log.warning("%s can be read by others than its owner: `chmod 600 %s`", self._path, self._path)
        if torn := _after_last_newline(descriptor, found.st_size):
            # No answer is given before its line is whole, so this one never was.
            _log.warning("the last line of %s was torn, and its answer never given; kept as text", self._path)
            line = {"event": "torn", "text": torn.decode("latin-1")}
            os.ftruncate(descriptor, found.st_size - len(torn))
            _write_and_sync(descriptor, json.dumps(line).encode() + b"\n")
        os.fsync(descriptor)
        _sync_folder(self._path.parent)

    def _current(self) -> int:
        """Return the open file, opened anew if it isn't the one of that name any more."""
        if self._descriptor is not None and not self._is_there(self._descriptor):
            _log.warning("%s was moved or deleted; going on with a new file", self._path)
            self.close()
        return self.open() if self._descriptor is None else self._descriptor

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _rotate(self) -> int:
        """Put the full file aside and open a new one. One rename does it: no line is ever nowhere."""
        aside = self._path.with_name(f"{self._path.name}.{max(self._numbers(), default=0) + 1}")
        self._path.rename(aside)
        self.close()
        descriptor = self.open()
        _log.info("%s is full and now %s", self._path, aside.name)
        return descriptor

    def _numbers(self) -> list[int]:
        """Return the numbers of the files put aside, those compressed since included."""
        start = self._path.name + "."
        rests = [p.name[len(start) :] for p in self._path.parent.iterdir() if p.name.startswith(start)]
        return [int(first) for rest in rests if (first := rest.partition(".")[0]).isdigit()]


def _after_last_newline(descriptor: int, size: int) -> bytes:
    """Return what follows the last whole line: a power cut, or kill -9 amid a write, leaves such."""
    tail, start = b"", size
    while start and b"\n" not in tail:
        start, end = max(0, start - (1 << 16)), start
        tail = os.pread(descriptor, end - start, start) + tail
    return tail[tail.rfind(b"\n") + 1 :]


def _write_and_sync(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
