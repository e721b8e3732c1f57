"""Read the rows of a file (parquet, JSONL, JSON, CSV, TSV, Excel), each with its place.

A row that can't be read is handed on with the reason, so that it can be named; what makes the whole
file unreadable raises. Reasons name columns and never repeat a cell: it may be a patient's.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medqa.data.excel import RowRead, check_header, excel_rows
from medqa.errors import DataError, machine_fault

__all__ = ["SUFFIXES", "read_rows"]

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".xlsx")
SAVE_AS_UTF8 = "save as UTF-8 (in Excel: the type 'CSV UTF-8')"

_BATCH_ROWS = 1024
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_rows(file: Path) -> Iterator[RowRead]:
    """Yield (file:line, row, "") for each row, or (file:line, None, reason) for an unreadable one.

    Raises:
        DataError: If the file as a whole can't be read: encoding, quoting, header.
        DependencyError: If it is an Excel file and openpyxl is not installed.
    """
    readers: dict[str, Callable[[Path], Iterator[RowRead]]] = {
        ".parquet": _parquet_rows,
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".xlsx": excel_rows,
    }
    try:
        yield from readers[file.suffix.lower()](file)
    except OSError as exc:
        raise DataError(f"{file} can't be read: {exc}", "check the file and its rights") from exc


def _parquet_rows(file: Path) -> Iterator[RowRead]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        source = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        check_header(file, source.schema_arrow.names)
        # Whole row groups, as they come otherwise, can be larger than memory.
        for batch in source.iter_batches(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name}:row {number}", row, ""
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{file.name}: text that is not UTF-8 after row {number}", "write the file again"
        ) from exc
    except pyarrow.ArrowException as exc:
        if fault := machine_fault(exc):
            raise fault from exc
        raise DataError(f"{file}: not a readable parquet file: {exc}", "download it again") from exc
    except (ValueError, OverflowError, KeyError) as exc:  # dates, time zones and names that Python has not
        raise DataError(
            f"{file.name}: a value after row {number} can't be read: {exc}",
            "write the file again, with columns of text and whole numbers",
        ) from exc


def _jsonl_rows(file: Path) -> Iterator[RowRead]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file.name}:{number}"
        try:
            row = json.loads(line.rstrip(), object_pairs_hook=_object)
        except json.JSONDecodeError as exc:
            yield where, None, f"not JSON at column {exc.colno}"
        except RecursionError:
            yield where, None, "nested too deeply"
        except ValueError as exc:
            yield where, None, str(exc)
        else:
            yield _object_row(where, row)


def _json_rows(file: Path) -> Iterator[RowRead]:
    text = "".join(_lines(file))
    if re.match(r"\s*\{[^\n]*\}\s*(\n|$)", text):  # JSON lines under another name
        yield from _jsonl_rows(file)
        return
    try:
        rows = json.loads(text, object_pairs_hook=_object) if text.strip() else []
    except json.JSONDecodeError as exc:
        raise DataError(f"{file.name}:{exc.lineno}: not JSON at column {exc.colno}", "mend it there") from exc
    except RecursionError as exc:
        raise DataError(f"{file.name}: nested too deeply", "give a list of objects") from exc
    except ValueError as exc:
        raise DataError(f"{file.name}: an object {exc}", "name each field once") from exc
    if not isinstance(rows, list):
        raise DataError(
            f"{file.name} holds a {type(rows).__name__}, expected a list",
            "give a list of questions, [{...}, {...}], or one object a line",
        )
    for number, row in enumerate(rows, 1):
        yield _object_row(f"{file.name}:row {number}", row)


def _object_row(where: str, row: Any) -> RowRead:
    if isinstance(row, dict):
        return where, row, ""
    return where, None, f"holds a {type(row).__name__}, expected an object"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("names a field twice")
    return row


def _csv_rows(file: Path) -> Iterator[RowRead]:
    lines = _lines(file)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    separator = _separator(file, head[-1] if head else "")
    reader = csv.reader(itertools.chain(head, lines), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        line_number = reader.line_num + 1  # where the row begins; a quoted cell can hold further lines
        try:
            cells = next(reader, None)
        except csv.Error as exc:
            raise _quoting_error(file, line_number, reader.line_num, exc) from exc
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = check_header(file, cells)
        elif len(cells) != len(header):
            counts = f"has {len(cells)} cells, the header has {len(header)}"
            yield f"{file.name}:{line_number}", None, counts
        else:
            yield f"{file.name}:{line_number}", dict(zip(header, cells, strict=True)), ""


def _quoting_error(file: Path, first: int, last: int, exc: csv.Error) -> DataError:
    if "unexpected end" in str(exc):
        return DataError(
            f"{file.name}:{first}: a quote that opens in this row is never closed", "mend the quoting there"
        )
    seen = "" if first == last else f" (the row goes on to line {last})"
    return DataError(
        f"{file.name}:{first}: the row can't be told into cells: {exc}{seen}",
        'mend the quoting there: a quote inside a quoted cell is written twice, ""',
    )


def _separator(file: Path, header: str) -> str:
    """Find the separator that the header line holds most often, outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    counts = sorted(((bare.count(separator), separator) for separator in _SEPARATORS), reverse=True)
    (most, separator), (second, other) = counts[:2]
    if most and most == second:
        raise DataError(
            f"{file.name}: the header holds as many {_SEPARATORS[separator]}s as {_SEPARATORS[other]}s",
            "put column names that hold a separator in quotes",
        )
    return separator if most else ","


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, or say which line is not UTF-8."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{file.name}: UTF-16, expected UTF-8", SAVE_AS_UTF8)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if b"\0" in line:
                raise DataError(f"{file.name}:{number}: zero bytes, so no UTF-8 text", SAVE_AS_UTF8)
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as exc:
                guess = "; it looks like Windows-1252 (cp1252)" if _is_cp1252(line) else ""
                raise DataError(f"{file.name}:{number}: not UTF-8{guess}", SAVE_AS_UTF8) from exc


def _is_cp1252(line: bytes) -> bool:
    try:
        line.decode("cp1252")
    except UnicodeDecodeError:
        return False
    return True
