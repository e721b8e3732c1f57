"""The file's column names and ours: check a map, apply it, suggest one."""

import difflib
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from medqa.errors import DataError

__all__ = ["check_map", "renamed", "shown", "suggested_map"]

MAX_COLUMNS_SHOWN = 30

# Other words for our fields, to suggest a --map; never applied by themselves.
_WORDS = {
    "question": "question stem vignette prompt item text",
    "option_": "option choice answer op distractor",
    "answer": "answer key correct solution label cop correctanswer answerkey correctoption",
    "explanation": "explanation rationale exp comment reason",
}


def check_map(
    mapping: Mapping[str, str], columns: Collection[str], known: Collection[str], where: str
) -> None:
    """Check that a map names our fields and the file's columns.

    Raises:
        DataError: If it does not.
    """
    for field, column in mapping.items():
        if field not in known:
            raise DataError(
                f"map: unknown field {field!r} in {field}={column}",
                f"it is --map FIELD=COLUMN, with FIELD one of {', '.join(sorted(known))}",
            )
        if column not in columns:
            close = difflib.get_close_matches(column, columns, 3)
            raise DataError(
                f"{where} has no column {column!r}, wanted for {field}; it has {shown(columns)}",
                f"did you mean {' or '.join(map(repr, close))}?" if close else "check the header",
            )
    if len(set(mapping.values())) < len(mapping):
        raise DataError("map: two fields take the same column", "give each field a column of its own")


def renamed(row: dict[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    """Give a row our names of its columns; a column of the file that had such a name is left out."""
    if not mapping:
        return row
    taken = {*mapping, *mapping.values()}
    return {k: v for k, v in row.items() if k not in taken} | {
        field: row[column] for field, column in mapping.items() if column in row
    }


def shown(columns: Collection[str]) -> str:
    """List a file's columns for a message; long lists and long names are cut."""
    names = [name[:40] for name in sorted(columns)]
    rest = f" and {len(names) - MAX_COLUMNS_SHOWN} more" if len(names) > MAX_COLUMNS_SHOWN else ""
    return (", ".join(names[:MAX_COLUMNS_SHOWN]) or "(none)") + rest


def suggested_map(columns: Collection[str]) -> str:
    """Return --map flags made of the file's columns, COLUMN where none resembles the field."""
    left = {re.sub(r"[^a-z0-9]", "", name.casefold()): name for name in sorted(columns)}
    parts = []
    fields = ["question", *(f"option_{letter}" for letter in "abcd"), "answer", "explanation"]
    for field in fields:
        letter = field[-1] if field.startswith("option_") else ""
        words = [word + letter for word in _WORDS[field.removesuffix(letter) if letter else field].split()]
        if letter:
            number = "abcd".index(letter) + 1
            words += [letter, *(f"{word[:-1]}{number}" for word in words)]
        match = next((word for word in words if word in left), None)
        if match is None and not letter:
            match = next((m for w in words for m in difflib.get_close_matches(w, left, 1, 0.8)), None)
        column = left.pop(match) if match is not None else "COLUMN"
        if match is not None or field in ("question", "option_a", "option_b"):
            parts.append(f"--map {shlex.quote(f'{field}={column}')}")
    return " ".join(parts)
