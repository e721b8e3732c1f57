"""Answer a file of questions: millions of rows in little memory, on one process or on several.

The file is taken in chunks. Each is kept as soon as it is answered, so that a job that was killed goes on
there; at the end they are joined. Chunks are dealt out by their number, and which process answered one is
not seen in the result.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medqa import __version__
from medqa.errors import DataError, MedQAError
from medqa.files import file_sha256
from medqa.progress import Task, track
from medqa.records import Answer, Example
from medqa.serve.bulk_parts import Parts, claimed, this_process
from medqa.serve.bulk_read import BulkRow, read_chunks, survey
from medqa.serve.bulk_write import Columns, check_ending, make_writer

__all__ = ["AnswerMany", "answer_file"]

log = logging.getLogger(__name__)

AnswerMany = Callable[[Sequence[Example]], list[Answer | MedQAError]]
"""One entry a question, in order; an error where that question can't be answered."""

JOB_VERSION = 1
NUM_LINES_SHOWN = 3
MAX_ERROR_KINDS = 50

# What differs between errors of one kind: quoted parts, which may be a patient's words, and numbers.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)""", re.DOTALL)
_NUMBER = re.compile(r"\d+")


def answer_file(
    source: Path,
    target: Path,
    load: Callable[[], AnswerMany],
    *,
    chunk_rows: Callable[[], int],
    settings: Mapping[str, Any],
    mapping: Mapping[str, str] | None = None,
    rank: int = 0,
    world_size: int = 1,
    launch: str = "",
) -> dict[str, Any]:
    """Answer every row of a file into another; one that can't be answered keeps its place, with the reason.

    Args:
        source: File of questions, in any layout that is read.
        target: File to make, ending in .jsonl, .csv, .tsv or .parquet.
        load: Loads what answers; called only if there is something to do.
        chunk_rows: Says how many rows to answer, and keep, at once; called only when a job begins.
        settings: All that decides the answers, as plain values: a job is gone on with only under the same.
        mapping: Names of the file's own columns, by our fields.
        rank: Which of the processes this is, from 0.
        world_size: How many there are.
        launch: What names the launch, the same in all its processes; the process if not given.

    Returns:
        What was done: `finished` is whether the target is made, which is the work of the last process.

    Raises:
        DataError: If the source can't be read or changes meanwhile, or the target's ending is not known.
        RunError: If the target is there, is being made, or was begun with another source or settings.
    """
    mapping = dict(mapping or {})
    if not source.is_file():
        raise DataError(f"no file {str(source)!r}", "check the path")
    check_ending(target)
    if os.path.lexists(target) and not Parts(target).folder.exists():
        return _made(Parts(target), rank)
    unread = _state(source)
    wanted = {
        "version": JOB_VERSION,
        "medqa": __version__,
        "input": {"bytes": source.stat().st_size, "sha256": file_sha256(source)},
        "map": mapping,
        "settings": dict(settings),
    }
    with claimed(target, launch or this_process()) as parts:
        with parts.turn():
            try:
                if os.path.lexists(target):
                    return _made(parts, rank)
                job = parts.job(wanted, lambda: _begin(source, mapping, chunk_rows))
            finally:
                if not parts.is_begun:
                    parts.clear()
        _refuse_changed(source, unread)
        work = _Work(source, mapping, job, parts, unread)
        work.answer(load, rank, world_size)
        return work.finish(rank)


def _made(parts: Parts, rank: int) -> dict[str, Any]:
    """Say what is to be said where the target is there already, or refuse.

    Raises:
        RunError: If it may be anything.
    """
    if parts.is_joined:  # killed between naming it and clearing up
        summary = parts.summary()
        parts.clear()
        return summary
    if rank and not parts.is_begun:
        log.info("%s was made by the other processes: nothing is left for process %d", parts.target, rank)
        return {"target": str(parts.target), "finished": False}
    raise parts.taken()


def _begin(source: Path, mapping: dict[str, str], chunk_rows: Callable[[], int]) -> dict[str, Any]:
    found = survey(source, mapping)
    return {
        "source": str(source.resolve()),
        "chunk_rows": chunk_rows(),
        "num_rows": found.num_rows,
        "layout": found.layout,
        "columns": found.columns,
    }


def _state(source: Path) -> tuple[int, int]:
    found = source.stat()
    return found.st_size, found.st_mtime_ns


def _refuse_changed(source: Path, before: tuple[int, int]) -> None:
    if _state(source) != before:
        raise DataError(f"{source} was changed while it was read", "leave it alone, or answer a copy of it")


class _Work:
    """The work of one process on a job."""

    def __init__(
        self,
        source: Path,
        mapping: dict[str, str],
        job: dict[str, Any],
        parts: Parts,
        unread: tuple[int, int],
    ) -> None:
        self._source, self._mapping, self._job = source, mapping, job
        self._parts, self._unread = parts, unread
        self._columns = Columns.plan(job["columns"])
        self._writer = make_writer(parts.target, self._columns, source)
        self._num_rows, self._chunk_rows = job["num_rows"], job["chunk_rows"]
        self._num_chunks = -(-self._num_rows // self._chunk_rows)
        self._seconds, self._num_before, self._num_new = 0.0, 0, 0

    def answer(self, load: Callable[[], AnswerMany], rank: int, world_size: int) -> None:
        """Answer this process's chunks, those that aren't done."""
        done = self._parts.done().keys()
        self._num_before = self._count(done)
        if done:
            log.info("Going on: %s of %s rows are done", f"{self._num_before:,}", f"{self._num_rows:,}")
        own = {n for n in range(rank, self._num_chunks, world_size) if n not in done}
        try:
            if own:
                self._answer(own, load(), rank)
        finally:
            if own:  # something went wrong, or somebody stopped it
                self._say_what_is_kept(world_size)

    def _say_what_is_kept(self, world_size: int) -> None:
        num_kept, folder = self._count(self._parts.listed()), self._parts.folder
        if num_kept:
            of_all = f"{num_kept:,} of {self._num_rows:,} rows"
            log.warning("%s are kept in %s: the same command goes on there", of_all, folder)
        elif world_size == 1:  # else the others may still be at work
            self._parts.clear()

    def _answer(self, own: set[int], answer_many: AnswerMany, rank: int) -> None:
        """Answer chunks, and take them off the set of those to do."""
        start = time.monotonic()
        chunks = read_chunks(
            self._source, self._job["layout"], self._mapping, self._chunk_rows, own.__contains__
        )
        with (
            contextlib.nullcontext()
            if rank
            else track(f"Answering {self._source.name}", self._num_rows, self._num_before)
        ) as task:
            for number, rows in chunks:
                self._keep(number, rows, answer_many)
                own.discard(number)
                self._show(task, time.monotonic() - start)
                if not own:
                    return
        raise DataError(f"{self._source} has fewer rows than it had", "leave it alone while it is read")

    def _show(self, task: Task | None, seconds: float) -> None:
        """Show what all processes have done."""
        num_new = self._count(self._parts.listed()) - self._num_before
        self._seconds = seconds
        if task is not None:
            task.advance(num_new - self._num_new, f"{self._rate(num_new):,} rows/s")
        self._num_new = num_new

    def _rate(self, num_rows: int) -> float:
        """Return the rows per second, to a sensible digit: slow ones are of minutes a row."""
        rate = num_rows / max(self._seconds, 1e-9)
        return round(rate, 1 if rate >= 1 else 4)

    def _count(self, numbers: Any) -> int:
        last = self._num_rows - (self._num_chunks - 1) * self._chunk_rows
        return sum(last if n == self._num_chunks - 1 else self._chunk_rows for n in numbers)

    def _keep(self, number: int, rows: list[BulkRow], answer_many: AnswerMany) -> None:
        """Answer a chunk and keep it."""
        asked = {row.row: row.example for row in rows if row.example is not None}
        answers = answer_many(list(asked.values())) if asked else []
        found = dict(zip(asked, answers, strict=True))
        tally = _Tally()
        records = []
        for row in rows:
            outcome, error = found.get(row.row), row.error
            if isinstance(outcome, MedQAError):
                error, outcome = outcome.message, None
            tally.count(row.line, outcome, error)
            records.append(self._columns.record(row, outcome, error))
        _refuse_changed(self._source, self._unread)
        self._parts.save(number, lambda path: self._writer.write_part(path, records), tally.to_json())

    def finish(self, rank: int) -> dict[str, Any]:
        """Join the chunks if all are done, by whatever process."""
        summary: dict[str, Any] = {
            "source": str(self._source),
            "target": str(self._parts.target),
            "finished": False,
            "layout": self._job["layout"],
            "renamed_columns": self._columns.renamed,
        }
        with self._parts.turn():
            if not self._parts.is_begun:  # another process was last, and has cleared up
                self._parts.clear()
                return summary
            done = self._parts.done()
            if len(done) < self._num_chunks:
                log.info("Process %d has done its share; the last one to finish makes OUT", rank)
                return summary
            totals = _Tally()
            for _, record in sorted(done.items()):
                totals.add(record)
            seconds = round(self._seconds, 1)
            rate = self._rate(self._num_new) if self._num_new else None
            now = {"answered_now": self._num_new, "seconds": seconds, "rows_per_second": rate}
            summary |= {**totals.to_json(), **now, "finished": True}
            parts = [self._parts.part(number) for number in range(self._num_chunks)]
            self._parts.publish(lambda path: self._writer.join(parts, path), summary)
        return summary


class _Tally:
    """Counts of what became of rows; errors by kind, each with its first sentence and lines."""

    def __init__(self) -> None:
        self._counts = {"rows": 0, "answered": 0, "abstained": 0}
        self._errors: dict[str, dict[str, Any]] = {}

    def count(self, line: int, answer: Answer | None, error: str) -> None:
        """Count a row."""
        self._counts["rows"] += 1
        if answer is None:
            self._add_error({"reason": _QUOTED.sub("'...'", error), "count": 1, "lines": [line]})
        else:
            self._counts["answered"] += 1
            self._counts["abstained"] += answer.abstain

    def add(self, record: Mapping[str, Any]) -> None:
        """Add counts that were kept."""
        for name in self._counts:
            self._counts[name] += record[name]
        for error in record["errors"]:
            self._add_error(error)

    def _add_error(self, error: Mapping[str, Any]) -> None:
        kind = _NUMBER.sub("N", error["reason"])
        if kind not in self._errors and len(self._errors) >= MAX_ERROR_KINDS:
            error, kind = {**error, "reason": "other reasons"}, "other reasons"
        found = self._errors.setdefault(kind, {"reason": error["reason"], "count": 0, "lines": []})
        found["count"] += error["count"]
        found["lines"] = [*found["lines"], *error["lines"]][:NUM_LINES_SHOWN]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {**self._counts, "errors": list(self._errors.values())}
