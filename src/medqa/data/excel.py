"""Read the rows of an Excel file: the first sheet that has any.

What a cell shows and what it holds can differ in a spreadsheet. Cells where that would go unseen (errors,
formulas never computed, percentages) are handed on as `BadCell`, and dates as dates.
"""

import dataclasses
import importlib
import logging
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medqa.errors import DataError, DependencyError

__all__ = ["BadCell", "RowRead", "check_header", "excel_rows", "sheet_name"]

log = logging.getLogger(__name__)

RowRead = tuple[str, dict[str, Any] | None, str]
"""A row's place, the row, and "" or, without a row, the reason."""

# What openpyxl raises on damaged, protected or foreign files.
_EXCEL_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True, slots=True)
class BadCell:
    """A cell that holds no usable value, and why; it breaks its row only if its column is used."""

    reason: str


def check_header(file: Path, names: Sequence[str]) -> list[str]:
    """Return the column names, stripped.

    Raises:
        DataError: If one is empty or occurs twice.
    """
    header = [name.strip() for name in names]
    if unnamed := [str(number) for number, name in enumerate(header, 1) if not name]:
        raise DataError(
            f"{file.name}: no name in the header for column {', '.join(unnamed)}",
            "name every column in the first row, or delete the empty ones",
        )
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(
            f"{file.name}: the header names {', '.join(map(repr, twice))} more than once",
            "give each column a name of its own",
        )
    return header


def excel_rows(file: Path) -> Iterator[RowRead]:
    """Yield the rows of the first sheet that has any, as `tables.read_rows` does.

    Raises:
        DataError: If it is no readable Excel file.
        DependencyError: If openpyxl is not installed.
    """
    with file.open("rb") as first, file.open("rb") as second:
        # Two views: what a formula gave when it was saved, and which cells are formulas.
        books = [_workbook(file, first, data_only=True), _workbook(file, second, data_only=False)]
        try:
            names = _filled_sheets(books[0])
            rows = _sheet_cells(*(book[names[0]] for book in books)) if names else []
        except _EXCEL_ERRORS as exc:
            raise _excel_error(file, exc) from exc
        finally:
            for book in books:
                book.close()
    if names:
        log.info("%s: sheet %r is read", file.name, names[0])
    if names[1:]:
        log.warning("%s: only the sheet %r is read, not %s", file.name, names[0], names[1:])
    yield from _named_rows(file, rows)


def sheet_name(file: Path) -> str:
    """Return the name of the sheet that is read from an Excel file; "" if none has rows."""
    with file.open("rb") as stream:
        book = _workbook(file, stream, data_only=True)
        try:
            return next(iter(_filled_sheets(book)), "")
        except _EXCEL_ERRORS as exc:
            raise _excel_error(file, exc) from exc
        finally:
            book.close()


def _workbook(file: Path, stream: Any, *, data_only: bool) -> Any:
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as exc:
        raise DependencyError(
            f"{file.name}: Excel files need openpyxl", "pip install openpyxl, or save the sheet as CSV UTF-8"
        ) from exc
    try:
        with warnings.catch_warnings():  # about styles and validations, which are not read
            warnings.simplefilter("ignore")
            return openpyxl.load_workbook(stream, read_only=True, data_only=data_only)
    except _EXCEL_ERRORS as exc:
        raise _excel_error(file, exc) from exc


def _excel_error(file: Path, exc: Exception) -> DataError:
    return DataError(
        f"{file.name}: not a readable Excel file ({type(exc).__name__})",
        "save it as .xlsx without a password, or as CSV UTF-8",
    )


def _filled_sheets(book: Any) -> list[str]:
    names = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # some programs write wrong ones, and rows would be cut
            if any(cell.value is not None for row in sheet.iter_rows() for cell in row):
                names.append(str(sheet.title))
    return names


def _named_rows(file: Path, rows: list[list[Any]]) -> Iterator[RowRead]:
    header: list[str] = []
    for number, cells in enumerate(rows, 1):
        if not cells:
            continue
        if not header:
            header = check_header(file, [str(cell) if isinstance(cell, str | int) else "" for cell in cells])
        elif len(cells) > len(header):
            yield f"{file.name}:{number}", None, f"has {len(cells)} cells, the header has {len(header)}"
        else:
            cells += [None] * (len(header) - len(cells))
            yield f"{file.name}:{number}", dict(zip(header, cells, strict=True)), ""


def _sheet_cells(values: Any, formulas: Any) -> list[list[Any]]:
    """Return the rows of a sheet, empty cells at their ends left out."""
    for sheet in (values, formulas):
        sheet.reset_dimensions()
    rows = []
    with warnings.catch_warnings():  # openpyxl's would repeat the cell
        warnings.simplefilter("ignore")
        for shown, written in zip(values.iter_rows(), formulas.iter_rows(), strict=True):
            cells = [_excel_value(a, b) for a, b in zip(shown, written, strict=True)]
            while cells and (cells[-1] is None or cells[-1] == ""):
                cells.pop()
            rows.append(cells)
    return rows


def _excel_value(shown: Any, written: Any) -> Any:
    if shown.data_type == "e":
        return BadCell("holds an Excel error, such as #REF!")
    if shown.value is None and written.data_type == "f" and shown.data_type == "n":
        return BadCell("is a formula without a stored value; open and save the file in Excel")
    if isinstance(shown.value, int | float) and "%" in shown.number_format:
        return BadCell("is a number shown as a percentage; make it a text")
    return shown.value
