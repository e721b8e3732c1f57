"""Column layouts of the known question sets: one function per layout, row -> Example fields.

A layout is recognised by its columns. To add one: write a function, add it to FORMATS. Reasons name
columns and never repeat what a cell holds: it may be a patient's.
"""

import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping
from typing import Any

from medqa.data.columns import shown, suggested_map
from medqa.data.excel import BadCell
from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["FIELDS", "FORMATS", "Format", "recognise"]

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
    """A column layout.

    Attributes:
        name: What `data.format` calls it.
        columns: Columns that must be there.
        optional: Columns that are read if they are there.
        licence: Licence of the published set with this layout; "unknown" if there is none.
        parse: Turns a row into the fields of an Example.
        key: Column of the key, whose style is decided over all rows; `parse` hands it on as it is.
            None where `parse` reads the key itself.
        own_style: The key style of a layout that reads the key itself.
        otherwise: Another set of columns that will do, if any.
    """

    name: str
    columns: frozenset[str]
    optional: tuple[str, ...]
    licence: str
    parse: Callable[[Row], dict[str, Any]]
    key: str | None = None
    own_style: str = "letter"
    otherwise: frozenset[str] | None = None

    @property
    def fields(self) -> frozenset[str]:
        """All columns that the layout knows."""
        return self.columns.union(self.optional, self.otherwise or ())

    def fits(self, columns: Collection[str]) -> bool:
        """Tell whether the columns that must be there are."""
        there = set(columns)
        return self.columns <= there or (self.otherwise is not None and self.otherwise <= there)

    def read(self, row: Row) -> dict[str, Any]:
        """Turn a row into the fields of an Example; its "answer" is the raw key if `key` is set.

        Raises:
            DataError: If the row does not fit the layout.
        """
        try:
            return self.parse(row)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            # Not its text: that holds what the cell does.
            raise DataError(
                f"does not fit the {self.name} layout ({type(exc).__name__})", "mend the row"
            ) from exc

    def example(self, row: Row, source: str = "") -> Example:
        """Turn a single row into an Example to be asked; a key is read only where it can be no other.

        Raises:
            DataError: If the row does not fit the layout, or is no usable question.
        """
        fields = self.read(row)
        if self.key is not None:
            fields["answer"] = None
        return Example(**fields, source=source, licence="unknown")

    def describe(self) -> str:
        """Return one line about the columns."""
        needs = ", ".join(sorted(self.columns))
        if self.otherwise is not None:
            needs += f" (or {', '.join(sorted(self.otherwise))})"
        return f"{self.name}: {needs}; and if there: {', '.join(self.optional)}"


def _cell(row: Row, column: str) -> Any:
    value = row.get(column)
    if isinstance(value, BadCell):
        raise DataError(f"{column} {value.reason}", "mend the cell")
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        raise DataError(
            f"{column} is a date or time, as Excel makes of 1-2 or 3/4", "format the column as text"
        )
    return value


def _text(row: Row, column: str) -> str | None:
    value = _cell(row, column)
    return None if value is None else _as_text(value, column)


def _as_text(value: Any, column: str) -> str | None:
    if isinstance(value, str):
        return value if value.strip() else None
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, int | float):
        return str(value)
    raise DataError(f"{column} is a {type(value).__name__}, expected a text", "give one text")


def _lettered(row: Row, prefix: str) -> tuple[str, ...]:
    """Read options from one column each, such as opa, opb, ..."""
    options = [
        _text(row, name) or "" for name in (f"{prefix}{letter}" for letter in LETTERS.lower()) if name in row
    ]
    while len(options) > 2 and not options[-1]:  # files with mixed numbers of options
        options.pop()
    return tuple(options)


def _medmcqa(row: Row) -> dict[str, Any]:
    return {
        "id": _text(row, "id") or "",
        "question": _text(row, "question") or "",
        "options": _lettered(row, "op"),
        "answer": _cell(row, "cop"),
        "explanation": _text(row, "exp"),
        "subject": _text(row, "subject_name"),
        "topic": _text(row, "topic_name"),
    }


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise DataError(f"{what} is a {type(values).__name__}, expected a list", "give each option by itself")
    return tuple(_as_text(value, what) or "" for value in values)


def _medqa(row: Row) -> dict[str, Any]:
    options = row.get("options")
    if isinstance(options, Mapping):
        pairs = sorted((str(key), value) for key, value in options.items() if value is not None)
    elif isinstance(options, list | tuple) and all(isinstance(option, Mapping) for option in options):
        pairs = [(str(option["key"]), option["value"]) for option in options]
    else:
        raise DataError("options are not letters with texts", 'MedQA has {"A": "...", "B": "..."}')
    letter, letters = (_text(row, "answer_idx") or "").strip(), [key for key, _ in pairs]
    if letter and letter not in letters:
        raise DataError("answer_idx is none of the options' letters", "MedQA keys are letters")
    return {
        "question": _text(row, "question") or "",
        "options": _texts([value for _, value in pairs], "options"),
        "answer": letters.index(letter) if letter else None,
        "subject": _text(row, "meta_info"),
    }


def _mmlu(row: Row) -> dict[str, Any]:
    return {
        "question": _text(row, "question") or "",
        "options": _texts(row.get("choices"), "choices"),
        "answer": _cell(row, "answer"),
        "subject": _text(row, "subject"),
    }


def _pubmedqa(row: Row) -> dict[str, Any]:
    options = ("yes", "no", "maybe")
    decision = (_text(row, "final_decision") or "").strip().lower()
    if decision not in options:
        raise DataError("final_decision is not yes, no or maybe", "use the labelled part")
    context = row.get("context")
    passages = context.get("contexts") if isinstance(context, Mapping) else context
    passages = [passages] if isinstance(passages, str) else passages
    return {
        "id": _text(row, "pubid") or "",
        "question": _text(row, "question") or "",
        "options": options,
        "answer": options.index(decision),
        "context": " ".join(_texts(passages, "context")),
        "explanation": _text(row, "long_answer"),
    }


def _table(row: Row) -> dict[str, Any]:
    options = _texts(row["options"], "options") if "options" in row else _lettered(row, "option_")
    return {
        "question": _text(row, "question") or "",
        "options": options,
        "answer": _cell(row, "answer"),
        **{name: _text(row, name) for name in ("explanation", "subject", "topic", "context")},
        "id": _text(row, "id") or "",
    }


FORMATS = {
    layout.name: layout
    for layout in (
        Format(
            "medmcqa",
            frozenset({"question", "opa", "opb"}),
            (
                *(f"op{letter}" for letter in LETTERS.lower()[2:]),
                *["cop", "exp", "subject_name", "topic_name", "id"],
            ),
            "apache-2.0",
            _medmcqa,
            key="cop",
        ),
        Format("medqa", frozenset({"question", "options", "answer_idx"}), ("meta_info",), "mit", _medqa),
        Format(
            "mmlu", frozenset({"question", "choices", "answer"}), ("subject",), "mit", _mmlu, key="answer"
        ),
        Format(
            "pubmedqa",
            frozenset({"question", "context", "final_decision"}),
            ("long_answer", "pubid"),
            "mit",
            _pubmedqa,
            own_style="text",
        ),
        Format(
            "table",
            frozenset({"question", "option_a", "option_b"}),
            (
                *(f"option_{letter}" for letter in LETTERS.lower()[2:]),
                *("answer", "explanation", "subject", "topic", "id", "context"),
            ),
            "unknown",
            _table,
            key="answer",
            otherwise=frozenset({"question", "options"}),
        ),
    )
}

FIELDS = frozenset().union(*(layout.fields for layout in FORMATS.values()))


def recognise(columns: set[str], where: str, wanted: str = "auto") -> Format:
    """Find the layout of a file by its columns.

    Raises:
        DataError: If no layout fits, or the wanted one lacks columns.
    """
    candidates = list(FORMATS.values()) if wanted == "auto" else [FORMATS[wanted]]
    for candidate in candidates:
        if candidate.fits(columns):
            return candidate
    known = "\n  ".join(candidate.describe() for candidate in candidates)
    raise DataError(
        f"{where}: columns {shown(columns)} fit no known layout",
        f"say which column is which: {suggested_map(columns)}\nexpected one of:\n  {known}",
    )
