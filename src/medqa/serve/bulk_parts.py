"""What a job of many rows keeps beside its result until that is whole: OUT.parts.

    lock           held by every process of the job that is at work, with the job's name in it
    turn           held by the one process that begins or ends the job
    job.json       what is asked for; a job that is asked for otherwise is refused
    NNNNNNNN.csv   the rows of a chunk, in the format of the result
    NNNNNNNN.json  that the chunk is done, its checksum and its counts
    joined         the result, until it bears its own name
    summary.json   what was done, from just before that

A chunk counts as done once its second file is there, which is written last and holds the checksum of the
first. The result gets its name by a hard link, which overwrites nothing; that `joined` is the same file as
OUT says whose it is.
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from medqa.errors import RunError
from medqa.files import file_sha256, read_json, synced, write_json

__all__ = ["Parts", "claimed", "this_process"]

log = logging.getLogger(__name__)

Record = dict[str, Any]


def this_process() -> str:
    """Name this process as no other is named: in two containers, both may have number 1."""
    return f"process {os.getpid()} of {platform.node() or 'this machine'} ({uuid.uuid4().hex[:12]})"


@contextlib.contextmanager
def claimed(target: Path, launch: str) -> Iterator["Parts"]:
    """Claim a target for one launch of the program, of one or of several processes.

    Args:
        target: File that is to be made.
        launch: Name of the launch, the same in all its processes.

    Raises:
        RunError: If another launch is at work on it, or its folder can't be made.
    """
    parts = Parts(target)
    try:
        parts.folder.mkdir(exist_ok=True)
        lock = (parts.folder / "lock").open("a+", encoding="utf-8")
    except OSError as exc:
        raise RunError(f"{parts.folder} can't be made: {exc}", "give OUT in a folder that is there") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # somebody is at work; its name is in the file
        except OSError as exc:
            raise RunError(f"{parts.folder} can't be locked: {exc}", "give OUT on another disk") from exc
        else:
            lock.truncate(0)
            lock.write(launch)
            lock.flush()
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits, at most, for another's name to be written
        lock.seek(0)
        owner = lock.read()
        if owner != launch:
            raise RunError(
                f"{target} is being made already, by {owner}",
                "wait for it or stop it; this command then goes on where it was",
            )
        yield parts


class Parts:
    """The folder with the parts of one target."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(f"{target.name}.parts")

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let one process at a time begin or end the job."""
        with self._locked_turn():
            yield

    def _locked_turn(self) -> TextIO:
        file = self.folder / "turn"
        while True:
            with contextlib.suppress(FileNotFoundError):
                self.folder.mkdir(exist_ok=True)
                lock = file.open("a", encoding="utf-8")
                fcntl.flock(lock, fcntl.LOCK_EX)
                # The process before may have cleared the folder away while this one waited.
                if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                    return lock
                lock.close()

    @property
    def is_begun(self) -> bool:
        """Whether there is a job to go on with."""
        return (self.folder / "job.json").exists() or (self.folder.is_dir() and bool(self.listed()))

    @property
    def is_joined(self) -> bool:
        """Whether the target is there and was made of these parts."""
        try:
            return (self.folder / "joined").samefile(self.target)
        except FileNotFoundError:
            return False

    def job(self, wanted: Record, make: Callable[[], Record]) -> Record:
        """Return the job that the folder is for; begin it if there is none.

        Args:
            wanted: What must be the same whenever the job is gone on with.
            make: Makes the rest of its record, when it begins.

        Raises:
            RunError: If the folder is for another job.
        """
        file = self.folder / "job.json"
        asked = json.loads(json.dumps(wanted))
        found = read_json(file) if file.exists() else {}
        if found.get("wanted") == asked:
            return found
        if self.listed():
            raise self._another(_flat(found.get("wanted")), _flat(asked))
        write_json(file, {"wanted": asked, **make()})  # nothing was done yet, so nothing is lost
        return read_json(file)

    def _another(self, found: Record, asked: Record) -> RunError:
        names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
        differences = "; ".join(f"{name}: {_short(found, name)}, now {_short(asked, name)}" for name in names)
        return RunError(
            f"{self.folder} holds the rows of another job ({differences})",
            f"give the command as it was, or another OUT, or begin anew: rm -r {self.folder}",
        )

    def done(self) -> dict[int, Record]:
        """Return the records of the chunks that are done and whole."""
        found = {number: self._whole(number) for number in self.listed()}
        return {number: record for number, record in found.items() if record is not None}

    def _whole(self, number: int) -> Record | None:
        """Return a chunk's record; None if it is damaged, or somebody tidied up: it will be done again."""
        try:
            record = read_json(self._record(number))
            if record.get("sha256") == file_sha256(self.part(number)):
                return record
        except FileNotFoundError:
            return None
        except RunError:
            if not self._record(number).exists():
                return None
        log.warning("%s is not what was written: its rows are answered once more", self.part(number))
        return None

    def listed(self) -> list[int]:
        """Return the numbers of the chunks that are done, after a quick look."""
        names = (entry.name for entry in os.scandir(self.folder))
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def save(self, number: int, write: Callable[[Path], None], record: Record) -> None:
        """Keep a chunk: whole or not at all."""
        beside = self.folder / f"{number:08d}.{uuid.uuid4().hex}.part"
        write(beside)
        synced(beside)
        sha256 = file_sha256(beside)
        beside.replace(self.part(number))
        write_json(self._record(number), {**record, "sha256": sha256})

    def publish(self, join: Callable[[Path], None], summary: Record) -> None:
        """Make the target of the parts, and clear them away.

        Raises:
            RunError: If something bears its name by now.
        """
        joined = self.folder / "joined"
        join(joined)
        synced(joined)
        write_json(self.folder / "summary.json", summary)
        try:
            os.link(joined, self.target)
        except FileExistsError as exc:
            raise self.taken() from exc
        except OSError:  # a file system without hard links
            if os.path.lexists(self.target):
                raise self.taken() from None
            joined.replace(self.target)
        self.clear()

    def summary(self) -> Record:
        """Return what was done when the target was made."""
        return read_json(self.folder / "summary.json")

    def clear(self) -> None:
        """Remove the folder; what says that the target is whole goes last."""
        for file in list(self.folder.iterdir()) if self.folder.is_dir() else ():
            if file.name not in ("joined", "summary.json", "lock", "turn"):
                file.unlink(missing_ok=True)
        for name in ("joined", "summary.json"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def taken(self) -> RunError:
        """Return the refusal to overwrite the target."""
        begun = (self.folder / "job.json").exists()
        return RunError(
            f"{self.target} is there already, and is never overwritten",
            "move it away and give this command again: what was done is kept"
            if begun
            else "give another OUT",
        )

    def part(self, number: int) -> Path:
        """Return the file with the rows of a chunk."""
        return self.folder / f"{number:08d}{self.target.suffix.lower()}"

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:08d}.json"


def _flat(tree: Any, prefix: str = "") -> Record:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    inner = (_flat(value, f"{prefix}{name}.") for name, value in tree.items())
    return dict(itertools.chain.from_iterable(part.items() for part in inner))


def _short(tree: Record, name: str) -> str:
    text = json.dumps(tree.get(name), ensure_ascii=False)
    return text if len(text) <= 20 else f"{text[:12]}..."
