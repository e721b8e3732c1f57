"""Write answered rows as JSONL, CSV, TSV or parquet: the file's own columns, then the answer's.

Chunks are written each to a file of its own, in the format of the whole, and joined without being read again.
"""

import base64
import csv
import dataclasses
import datetime
import json
import math
import shutil
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medqa.data.excel import BadCell
from medqa.errors import DataError
from medqa.records import LETTERS, Answer
from medqa.serve.bulk_read import BulkRow

__all__ = ["Columns", "RowWriter", "check_ending", "make_writer"]

Record = dict[str, Any]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}

# Rows that a row group of parquet holds at least: small ones read slowly, large ones take memory.
_GROUP_ROWS = 20_000

_KINDS: dict[Any, str] = {
    str: "text",
    int: "int",
    float: "float",
    bool: "bool",
    tuple[str, ...]: "texts",
    dict[str, float]: "letters",
}


def _answer_kinds() -> dict[str, str]:
    """Name the kind of each column of an answer."""
    kinds = {"row": "int", "line": "int"}
    for name, hint in typing.get_type_hints(Answer).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds[name] = _KINDS.get(next(option for option in options if option is not types.NoneType), "json")
    del kinds["question"]  # the file has it
    return kinds | {"error": "text"}


_ANSWER_KINDS = _answer_kinds()


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of the written file.

    Attributes:
        kinds: Kind of each, by name and in order; see `Survey`, and "letters" of a number per letter.
        carried: What each of the file's own columns is called; one that bears the name of an answer's column
            becomes `input_NAME`.
    """

    kinds: dict[str, str]
    carried: dict[str, str]

    @classmethod
    def plan(cls, own: Mapping[str, str]) -> "Columns":
        """Plan the columns for a file with these of its own."""
        carried: dict[str, str] = {}
        for name in own:
            new = name
            while new in _ANSWER_KINDS or (new != name and new in own):
                new = f"input_{new}"
            carried[name] = new
        kinds = {carried[name]: kind for name, kind in own.items()}
        return cls(({} if "id" in kinds else {"id": "text"}) | kinds | _ANSWER_KINDS, carried)

    @property
    def renamed(self) -> dict[str, str]:
        """The file's own columns that got another name."""
        return {name: new for name, new in self.carried.items() if name != new}

    def record(self, row: BulkRow, answer: Answer | None, error: str) -> Record:
        """Join a row and its answer, or what kept it from one."""
        cells = {self.carried[name]: value for name, value in (row.cells or {}).items()}
        own_id = row.id if row.id is None or isinstance(row.id, str) else _cell(row.id)
        record: Record = {"id": own_id, **cells, **dict.fromkeys(_ANSWER_KINDS)}
        if answer is not None:
            # Not `asdict`, which would copy the question too.
            record.update((name, getattr(answer, name)) for name in _ANSWER_KINDS if hasattr(answer, name))
        return record | {"row": row.row, "line": row.line, "error": error or None}


class RowWriter(Protocol):
    """Writes rows in one format."""

    def write_part(self, path: Path, records: Sequence[Record]) -> None:
        """Write the rows of a chunk."""

    def join(self, parts: Iterable[Path], path: Path) -> None:
        """Write the file that the parts make up."""


def check_ending(target: Path) -> None:
    """Refuse a file whose ending names no format that is written.

    Raises:
        DataError: If it does not.
    """
    if target.suffix.lower() not in (".jsonl", ".parquet", *_SEPARATORS):
        raise DataError(
            f"{target.name}: files ending in {target.suffix!r} are not written",
            "let OUT end in .jsonl, .csv, .tsv or .parquet",
        )


def make_writer(target: Path, columns: Columns, source: Path) -> RowWriter:
    """Choose the writer by the target's ending; a source that has types gives them to its own columns."""
    suffix = target.suffix.lower()
    if suffix in _SEPARATORS:
        return _Separated(list(columns.kinds), _SEPARATORS[suffix])
    return _Parquet(_arrow_types(columns, source)) if suffix == ".parquet" else _JsonLines()


class _JsonLines:
    """One object a line; a row that could not be read has no columns of its own."""

    def write_part(self, path: Path, records: Sequence[Record]) -> None:
        with path.open("wb") as file:
            for record in records:
                file.write(_utf8(_json(record) + "\n"))

    def join(self, parts: Iterable[Path], path: Path) -> None:
        _concatenate(parts, path, b"")


class _Separated:
    """Cells with a separator; lists and objects are JSON texts, what is missing is empty."""

    def __init__(self, names: list[str], separator: str) -> None:
        self._names, self._separator = names, separator

    def write_part(self, path: Path, records: Sequence[Record]) -> None:
        path.write_bytes(self._lines([_cell(r.get(name)) for name in self._names] for r in records))

    def join(self, parts: Iterable[Path], path: Path) -> None:
        _concatenate(parts, path, self._lines([self._names]))

    def _lines(self, rows: Iterable[list[str]]) -> bytes:
        lines: list[str] = []
        # Python before 3.13 quotes a lone carriage return only if it is in the line's end.
        writer = csv.writer(_Sink(lines), delimiter=self._separator, lineterminator="\r\n")
        writer.writerows(rows)
        return _utf8("".join(line[:-2] + "\n" for line in lines))


class _Sink:
    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


class _Parquet:
    """Typed columns; those of a parquet file keep their types."""

    def __init__(self, arrow_types: dict[str, Any]) -> None:
        import pyarrow

        self._schema = pyarrow.schema(list(arrow_types.items()))

    def write_part(self, path: Path, records: Sequence[Record]) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = []
        for field in self._schema:
            values = [record.get(field.name) for record in records]
            try:
                columns.append(_arrow_array(values, field.type))
            except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as exc:
                raise DataError(
                    f"column {field.name!r} can't be written as parquet's {field.type}",
                    "let OUT end in .jsonl, or leave the column out of the file",
                ) from exc
        pyarrow.parquet.write_table(pyarrow.table(columns, schema=self._schema), path)

    def join(self, parts: Iterable[Path], path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        with pyarrow.parquet.ParquetWriter(path, self._schema) as writer:
            tables: list[Any] = []
            for part in parts:
                tables.append(pyarrow.parquet.read_table(part, schema=self._schema))
                if sum(table.num_rows for table in tables) >= _GROUP_ROWS:
                    writer.write_table(pyarrow.concat_tables(tables))
                    tables = []
            if tables:
                writer.write_table(pyarrow.concat_tables(tables))


def _arrow_types(columns: Columns, source: Path) -> dict[str, Any]:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.string()
    by_kind = {
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "texts": pyarrow.list_(texts),
        "letters": pyarrow.struct([(letter, pyarrow.float64()) for letter in LETTERS]),
    }
    found = {name: by_kind.get(kind, texts) for name, kind in columns.kinds.items()}
    if source.suffix.lower() == ".parquet":
        for field in pyarrow.parquet.read_schema(source):
            kept = getattr(field.type, "storage_type", field.type)
            found[columns.carried[field.name]] = kept
    return found


def _arrow_array(values: list[Any], arrow_type: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_string(arrow_type):
        values = [value if value is None else _cell(value) for value in values]
    try:
        return pyarrow.array(values, arrow_type)
    except UnicodeEncodeError:  # half a character
        return pyarrow.array([_whole_characters(value) for value in values], arrow_type)


def _whole_characters(value: Any) -> Any:
    if isinstance(value, str):
        return _utf8(value).decode()
    return [_whole_characters(item) for item in value] if isinstance(value, list | tuple) else value


def _concatenate(parts: Iterable[Path], path: Path, head: bytes) -> None:
    with path.open("wb") as file:
        file.write(head)
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, file, 1 << 20)


def _utf8(text: str) -> bytes:
    r"""Encode a text; half a character (a lone surrogate) becomes \udXXX, which in JSON is what it was."""
    return text.encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    """Write a value as the text of a cell."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value) if math.isfinite(value) else ""
    if isinstance(value, list | tuple | dict):
        return _json(value)
    return _cell(_foreign(value))


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_foreign)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_foreign)


def _finite(value: Any) -> Any:
    """Put null for numbers that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _foreign(value: Any) -> str | None:
    """Write as a text, or leave out, what JSON has no type for."""
    if isinstance(value, BadCell):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
