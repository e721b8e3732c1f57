"""Read a file of questions row by row, to be answered: their keys are not looked at.

Every layout that `medqa data` reads is taken, with or without its key. A row that is no usable question keeps
its place, with the reason.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medqa.data.columns import check_map, renamed
from medqa.data.formats import FIELDS, FORMATS, Format, recognise
from medqa.data.tables import SUFFIXES, read_rows
from medqa.errors import DataError
from medqa.records import Example

__all__ = ["BulkRow", "Survey", "read_chunks", "survey"]

log = logging.getLogger(__name__)

# Never looked at: keys and explanations, whose faults are no hindrance to an answer.
_UNREAD = frozenset({"answer", "answer_idx", "cop", "exp", "explanation", "final_decision", "long_answer"})
_INT64 = 1 << 63


@dataclasses.dataclass(frozen=True, slots=True)
class BulkRow:
    """A row of the file.

    Attributes:
        row: Its number, from 1.
        line: The line it begins on, in a text file; else its number too.
        cells: The file's own columns; None if the row can't be read.
        id: The file's own id of it, as the file has it.
        example: The question; None if there is none.
        error: Why not.
    """

    row: int
    line: int
    cells: dict[str, Any] | None
    id: Any
    example: Example | None
    error: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of a file once it was read through.

    Attributes:
        layout: Name of its column layout.
        num_rows: Its rows, unreadable ones too.
        columns: The kind of each column, in the order of the file: int, float, bool, text, texts (a list of
            them) or json (anything else).
    """

    layout: str
    num_rows: int
    columns: dict[str, str]


def survey(source: Path, mapping: Mapping[str, str]) -> Survey:
    """Read through a file, so that its faults come to light before hours are spent on it.

    Raises:
        DataError: If there is no such file, it can't be read, has no rows, or its columns fit no layout.
    """
    if not source.is_file():
        raise DataError(f"no file {str(source)!r}", "check the path")
    if source.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{source.name}: files ending in {source.suffix!r} are not read",
            f"give one of {', '.join(SUFFIXES)}",
        )
    log.info("Reading through %s (%.1f MB)", source.name, source.stat().st_size / 1e6)
    columns: dict[str, str] = {}
    num_rows, first_fault = 0, ""
    for where, cells, reason in read_rows(source):
        num_rows += 1
        if cells is None:
            first_fault = first_fault or f"{where}: {reason}"
            continue
        for name, value in cells.items():
            if columns.get(name) != "json":
                columns[name] = _merged(columns.get(name, ""), _kind(value))
    if not num_rows:
        raise DataError(f"{source.name}: no rows", "the file is empty; give one with questions")
    if not columns:
        raise DataError(
            f"{source.name}: none of {num_rows:,} rows can be read: {first_fault}", "mend the file"
        )
    check_map(mapping, columns, FIELDS, str(source))
    layout = _layout(set(renamed(dict.fromkeys(columns), mapping)), str(source))
    log.info("%s: %s rows in the columns of %s", source.name, f"{num_rows:,}", layout.name)
    return Survey(layout.name, num_rows, {name: kind or "text" for name, kind in columns.items()})


def _kind(value: Any) -> str:
    """Name the kind of a value; "" of none at all."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_INT64 <= value < _INT64 else "json"
    if isinstance(value, float):
        return "float"
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return "texts" if is_texts else "json"


def _merged(kind: str, other: str) -> str:
    if not kind or not other or kind == other:
        return kind or other
    return "float" if {kind, other} == {"int", "float"} else "json"


def read_chunks(
    source: Path,
    layout: str,
    mapping: Mapping[str, str],
    chunk_rows: int,
    wanted: Callable[[int], bool],
) -> Iterator[tuple[int, list[BulkRow]]]:
    """Yield the wanted chunks of so many rows, each with its number, from 0.

    Raises:
        DataError: If the file can't be read.
    """
    rows = enumerate(read_rows(source), 1)
    for number in itertools.count():
        chunk = list(itertools.islice(rows, chunk_rows))
        if not chunk:
            return
        if wanted(number):
            yield number, [_bulk_row(row, *read, FORMATS[layout], mapping) for row, read in chunk]


def _bulk_row(
    row: int,
    where: str,
    cells: dict[str, Any] | None,
    reason: str,
    layout: Format,
    mapping: Mapping[str, str],
) -> BulkRow:
    line = int(where.rpartition(":")[2].removeprefix("row "))
    if cells is None:
        return BulkRow(row, line, None, None, None, reason)
    ours = renamed(cells, mapping)
    own_id = ours.get("id", ours.get("pubid"))
    try:
        return BulkRow(row, line, cells, own_id, _example(layout, ours), "")
    except DataError as exc:
        return BulkRow(row, line, cells, own_id, None, exc.message)


def _layout(columns: set[str], where: str) -> Format:
    """Find the layout; a file that lacks only the key is read like one that has it."""
    if any(layout.fits(columns) for layout in FORMATS.values()):
        return recognise(columns, where)
    if FORMATS["mmlu"].fits(columns | {"answer"}):
        return FORMATS["mmlu"]
    # Its options, yes, no and maybe, are in no column: question and context alone don't tell that it is one.
    if columns & {"pubid", "long_answer"} and FORMATS["pubmedqa"].fits(columns | {"final_decision"}):
        return FORMATS["pubmedqa"]
    return recognise(columns, where)  # says what is missing


def _example(layout: Format, cells: Mapping[str, Any]) -> Example:
    row = {name: value for name, value in cells.items() if name not in _UNREAD}
    for name in ("options", "choices"):
        if isinstance(row.get(name), str):
            row[name] = _from_json(row[name], name)
    if layout.name in ("medqa", "table") and "options" in row:
        layout = FORMATS["medqa" if _is_lettered(row["options"]) else "table"]
    if layout.name == "pubmedqa":
        row["final_decision"] = "yes"  # any key will do: it is left out again
    return Example(**{**layout.read(row), "answer": None}).require_distinct_options()


def _from_json(text: str, column: str) -> Any:
    """Read a cell of a CSV file that holds several options."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataError(f'{column} is no JSON list, such as ["...", "..."]', "write it as JSON") from exc


def _is_lettered(options: Any) -> bool:
    """Tell whether options are MedQA's letters with texts."""
    if isinstance(options, list) and options:
        return all(isinstance(option, Mapping) for option in options)
    return isinstance(options, Mapping)
