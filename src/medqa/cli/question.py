"""Take a question from flags, a JSON file, or typed in."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

from medqa.data.formats import recognise
from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["read_question"]


def read_question(question: str | None, options: list[str], file: Path | None) -> Example:
    """Build the question to be asked.

    Raises:
        DataError: If it is incomplete, or given in two ways at once.
    """
    if file is not None:
        if question or options:
            raise DataError("the question is given twice: --file and flags", "use one of the two")
        return _from_file(file).require_distinct_options()
    if question is None:
        if options:
            raise DataError("options without a question", 'add -q "..."')
        return _typed_in().require_distinct_options()
    return Example(question, tuple(options)).require_distinct_options()


def _from_file(file: Path) -> Example:
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(
            f"{file} can't be read: {exc}", 'write {"question": "...", "options": ["...", "..."]}'
        ) from exc
    if not isinstance(row, dict):
        raise DataError(f"{file} holds a {type(row).__name__}, expected one object", "one question a file")
    options = row.get("options")
    if isinstance(options, list) and all(isinstance(option, str) for option in options):
        return _plain(row, options, file)
    return recognise(set(row), str(file)).example(row)


def _plain(row: dict[str, Any], options: list[str], file: Path) -> Example:
    unknown = set(row) - {"question", "options", "context"}
    if unknown:
        raise DataError(f"{file}: unknown field {sorted(unknown)[0]!r}", "known: question, options, context")
    return Example(row.get("question", ""), tuple(options), context=row.get("context"))


def _typed_in() -> Example:
    if not sys.stdin.isatty():
        raise DataError("no question", 'give -q "..." -o "..." -o "...", or --file question.json')
    question = typer.prompt("Question", err=True)
    options: list[str] = []
    typer.echo("Options, one a line; an empty line ends them.", err=True)
    while len(options) < len(LETTERS):
        option = typer.prompt(LETTERS[len(options)], default="", show_default=False, err=True)
        if not option.strip():
            break
        options.append(option)
    return Example(question, tuple(options))
