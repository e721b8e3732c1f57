"""Column layouts of the known question sets: one function per layout, row -> Example fields.

A layout is recognised by its columns. To add one: write a function, add it to FORMATS.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["FORMATS", "Format", "recognise"]

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Format:
    """A column layout.

    Attributes:
        name: What `data.format` calls it.
        columns: Columns that must be there.
        licence: Licence of the published set with this layout, used where the source names none.
        parse: Turns a row into the fields of an Example.
    """

    name: str
    columns: frozenset[str]
    licence: str
    parse: Callable[[Row], dict[str, Any]]

    def example(self, row: Row, source: str = "") -> Example:
        """Turn a row into an Example.

        Raises:
            DataError: If the row does not fit the layout, or is no usable question.
        """
        try:
            return Example(**self.parse(row), source=source, licence=self.licence)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise DataError(f"does not fit the {self.name} layout: {exc!r}", "mend the row") from exc


def _text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value) if str(value).strip() else None


def _index(value: Any, what: str) -> int | None:
    """Read a 0-based key; -1 and empty mean that no key is known."""
    if _text(value) is None:
        return None
    try:
        number = int(str(value).strip().removesuffix(".0"))
    except ValueError as exc:
        raise DataError(f"{what} {value!r} is not a number", f"{what} counts options from 0") from exc
    return None if number == -1 else number


def _medmcqa(row: Row) -> dict[str, Any]:
    names = [f"op{letter.lower()}" for letter in LETTERS if f"op{letter.lower()}" in row]
    options = [_text(row[name]) or "" for name in names]
    while len(options) > 2 and not options[-1]:  # files with mixed numbers of options
        options.pop()
    return {
        "id": _text(row.get("id")) or "",
        "question": _text(row["question"]) or "",
        "options": tuple(options),
        "answer": _index(row.get("cop"), "cop"),
        "explanation": _text(row.get("exp")),
        "subject": _text(row.get("subject_name")),
        "topic": _text(row.get("topic_name")),
    }


def _texts(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise DataError(f"{what} is a {type(values).__name__}, expected a list", "give each option by itself")
    return tuple(_text(value) or "" for value in values)


def _medqa(row: Row) -> dict[str, Any]:
    options = row["options"]
    if isinstance(options, Mapping):
        pairs = sorted((str(key), value) for key, value in options.items() if value is not None)
    elif isinstance(options, list | tuple) and all(isinstance(option, Mapping) for option in options):
        pairs = [(str(option["key"]), option["value"]) for option in options]
    else:
        raise DataError("options are not letters with texts", 'MedQA has {"A": "...", "B": "..."}')
    letter, letters = (_text(row["answer_idx"]) or "").strip(), [key for key, _ in pairs]
    if letter and letter not in letters:
        raise DataError(f"answer_idx {letter!r} is none of {', '.join(letters)}", "MedQA keys are letters")
    return {
        "question": _text(row["question"]) or "",
        "options": _texts([value for _, value in pairs], "options"),
        "answer": letters.index(letter) if letter else None,
        "subject": _text(row.get("meta_info")),
    }


def _mmlu(row: Row) -> dict[str, Any]:
    return {
        "question": _text(row["question"]) or "",
        "options": _texts(row["choices"], "choices"),
        "answer": _index(row["answer"], "answer"),
        "subject": _text(row.get("subject")),
    }


def _pubmedqa(row: Row) -> dict[str, Any]:
    options = ("yes", "no", "maybe")
    decision = str(row["final_decision"]).strip().lower()
    if decision not in options:
        raise DataError(f"final_decision {decision!r} is not yes, no or maybe", "use the labelled part")
    context = row["context"]
    passages = context.get("contexts") if isinstance(context, Mapping) else context
    passages = [passages] if isinstance(passages, str) else passages
    return {
        "id": _text(row.get("pubid")) or "",
        "question": _text(row["question"]) or "",
        "options": options,
        "answer": options.index(decision),
        "context": " ".join(_texts(passages, "context")),
        "explanation": _text(row.get("long_answer")),
    }


FORMATS = {
    "medmcqa": Format("medmcqa", frozenset({"question", "opa", "opb"}), "apache-2.0", _medmcqa),
    "medqa": Format("medqa", frozenset({"question", "options", "answer_idx"}), "mit", _medqa),
    "mmlu": Format("mmlu", frozenset({"question", "choices", "answer"}), "mit", _mmlu),
    "pubmedqa": Format("pubmedqa", frozenset({"question", "context", "final_decision"}), "mit", _pubmedqa),
}


def recognise(columns: set[str], where: str, wanted: str = "auto") -> Format:
    """Find the layout of a file by its columns.

    Raises:
        DataError: If no layout fits, or the wanted one lacks columns.
    """
    candidates = list(FORMATS.values()) if wanted == "auto" else [FORMATS[wanted]]
    for candidate in candidates:
        if candidate.columns <= columns:
            return candidate
    expected = "; ".join(f"{c.name}: {', '.join(sorted(c.columns))}" for c in candidates)
    raise DataError(
        f"{where}: columns {', '.join(sorted(columns)) or '(none)'} fit no known layout",
        f"expected {expected}",
    )
