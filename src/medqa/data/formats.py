"""Column layouts of the known question sets: one function per layout, row -> Example fields.

A layout is recognised by its columns. To add one: write a function, add it to FORMATS.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from medqa.errors import DataError
from medqa.records import LETTERS

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


def _medqa(row: Row) -> dict[str, Any]:
    options = row["options"]
    if isinstance(options, Mapping):
        options = {key: value for key, value in options.items() if value is not None}
        texts = tuple(_text(options[key]) or "" for key in sorted(options))
    else:
        texts = tuple(_text(option["value"]) or "" for option in options)
    letter = str(row["answer_idx"]).strip()
    if letter not in LETTERS:
        raise DataError(f"answer_idx {letter!r} is not a letter", "MedQA keys are letters A to E")
    return {
        "question": _text(row["question"]) or "",
        "options": texts,
        "answer": LETTERS.index(letter),
        "subject": _text(row.get("meta_info")),
    }


def _mmlu(row: Row) -> dict[str, Any]:
    return {
        "question": _text(row["question"]) or "",
        "options": tuple(_text(choice) or "" for choice in row["choices"]),
        "answer": _index(row["answer"], "answer"),
        "subject": _text(row.get("subject")),
    }


def _pubmedqa(row: Row) -> dict[str, Any]:
    options = ("yes", "no", "maybe")
    decision = str(row["final_decision"]).strip().lower()
    if decision not in options:
        raise DataError(f"final_decision {decision!r} is not yes, no or maybe", "use the labelled part")
    context = row["context"]
    passages = context["contexts"] if isinstance(context, Mapping) else context
    return {
        "id": _text(row.get("pubid")) or "",
        "question": _text(row["question"]) or "",
        "options": options,
        "answer": options.index(decision),
        "context": " ".join([passages] if isinstance(passages, str) else passages),
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
