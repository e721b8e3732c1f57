"""One process at a time writes into a folder."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from medqa.errors import RunError

__all__ = ["hold"]


@contextlib.contextmanager
def hold(path: Path, *inner: Path) -> Iterator[None]:
    """Let no other process write into a folder within the block.

    Args:
        path: The folder; the lock is a file in it, `.lock`, and gone with a process that is killed.
        inner: Folders in it that will be written into too, if they are there.

    Raises:
        RunError: If another process holds it, or nothing can be written there.
    """
    # Whoever may write into the folder may hold it.
    mode = path.stat().st_mode & 0o666 | 0o600
    lock = FileLock(path / ".lock", blocking=False, mode=mode)
    try:
        for folder in (path, *inner):
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        lock.acquire()
    except Timeout as exc:
        raise RunError(f"another process writes into {path}", "wait until it has ended, or end it") from exc
    except OSError as exc:
        if exc.errno == errno.ENOLCK:
            raise RunError(
                f"{path} is on a file system without locks", "copy the run to a disk of this machine"
            ) from exc
        raise RunError(
            f"{path} can't be written to: {exc.strerror or exc}",
            f"chmod -R u+w {path}, or copy it to where you may write",
        ) from exc
    try:
        yield
    finally:
        lock.release()
