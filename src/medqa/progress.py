"""Progress of long work, on stderr: a live bar on a terminal, plain lines elsewhere.

Library functions call `track`; nothing is printed to stdout, where results go.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from medqa.launch import place

__all__ = ["Task", "track"]

PLAIN_LINE_EVERY_S = 15.0


class Task(Protocol):
    """A running piece of work."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done and show a note, such as the rate."""

    def resize(self, total: int) -> None:
        """Change how many steps there will be."""


class _BarTask:
    def __init__(self, progress: Progress, task_id: int) -> None:
        self._progress, self._id = progress, task_id

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._id, advance=steps, note=note)  # type: ignore[arg-type]

    def resize(self, total: int) -> None:
        self._progress.update(self._id, total=total)  # type: ignore[arg-type]


class _LineTask:
    def __init__(self, what: str, total: int, done: int) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._note = note
        if time.monotonic() - self._last > PLAIN_LINE_EVERY_S and self._done < self._total:
            self.line()

    def resize(self, total: int) -> None:
        self._total = total

    def line(self) -> None:
        now = self._last = time.monotonic()
        if place()[0]:
            return
        elapsed = now - self._start
        left = elapsed / max(1, self._done - self._first) * (self._total - self._done)
        note = f", {self._note}" if self._note else ""
        print(  # noqa: T201 - stderr is where progress goes
            f"{self._what}: {self._done}/{self._total}{note}, {elapsed:.0f} s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def track(what: str, total: int, done: int = 0) -> Iterator[Task]:
    """Show the progress of `total` steps, of which `done` were done before."""
    console = Console(stderr=True, quiet=bool(place()[0]))  # of several processes one shows it
    if not console.is_terminal:
        task = _LineTask(what, total, done)
        yield task
        task.line()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _BarTask(progress, progress.add_task(what, total=total, completed=done, note=""))
