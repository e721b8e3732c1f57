"""What a folder must not hold when it leaves the machine: secrets, places, code, training questions."""

import json
import re
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from medqa.errors import PublishError
from medqa.publish.scrub import scrub_text
from medqa.secrets import find_secrets

__all__ = ["MODEL_FILES", "check_folder", "check_secrets"]

MODEL_FILES = frozenset(
    {
        *(
            "README.md",
            "NOTICE",
            "LICENSE-base-model",
            "run.json",
            "recipe.yaml",
            "report.json",
            "calibration.json",
        ),
        *("adapter_config.json", "adapter_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model"),
    }
)
"""All that a published run may hold."""

_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""Pieces of words by the ten thousand, some of which look like anything."""

_MIN_QUESTION_CHARACTERS = 30
_MIN_HOST_CHARACTERS = 6
_ROOT_PARTS = 2
_SHOWN = 8


def check_folder(
    folder: Path, *, allowed: Collection[str] = MODEL_FILES, questions: Collection[str] = ()
) -> None:
    """Raise PublishError if a folder holds what must not leave the machine; nothing of it is shown.

    Args:
        folder: What would be published.
        allowed: Names of the files that may be in it; there are no folders.
        questions: Of the training split: none of them may be there.
    """
    known = {_plain(text) for text in questions if len(text) >= _MIN_QUESTION_CHARACTERS}
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or path.is_dir() or name not in allowed:
            found.append(f"{name} is not part of a published run")
        elif path.suffix == ".safetensors":
            found += [f"{name} {what}" for what in _in_weights(path)]
        else:
            found += [f"{name} {what}" for what in _in_text(path, known)]
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise PublishError(
            f"this run must not be published: {'; '.join(found[:_SHOWN])}{more}",
            "take it out of the run folder or the environment, and publish again",
        )


def check_secrets(folder: Path) -> None:
    """Raise PublishError if a text in a folder holds a key or a secret of the environment."""
    found = [
        f"{path.relative_to(folder)} holds {what}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for what in find_secrets(path.read_text(encoding="utf-8", errors="replace"))
    ]
    if found:
        raise PublishError(
            f"this must not be published: {'; '.join(found[:_SHOWN])}", "take it out, and publish again"
        )


def _in_weights(path: Path) -> Iterator[str]:
    try:
        with safe_open(str(path), "np") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as exc:
        yield f"is no safetensors file ({exc})"
        return
    yield from _in_lines([*metadata, *metadata.values()])


def _in_text(path: Path, questions: set[str]) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        yield f"is no text ({type(exc).__name__})"
        return
    if path.name in _VOCABULARY:  # looks like keys, here and there
        yield from (f"holds {what}" for what in find_secrets(text) if what.startswith("the value"))
        return
    lines = text.splitlines()
    if path.suffix == ".json":
        try:
            strings = list(_strings(json.loads(text)))
        except ValueError as exc:
            yield f"is no JSON ({exc})"
            return
        lines = [line for one in strings for line in one.splitlines()]
    yield from _in_lines(lines)
    if num := sum(_holds_one(line, questions) for line in lines):
        yield f"holds {num} of the questions trained on"


def _in_lines(lines: list[str]) -> Iterator[str]:
    text = "\n".join(lines)
    yield from (f"holds {what}" for what in find_secrets(text))
    if any(scrub_text(line) != line for line in lines) or any(place.search(text) for place in _own_places()):
        yield "names a place on this machine"


def _own_places() -> Iterator[re.Pattern[str]]:
    """What names this machine for sure, however it stands in a text."""
    home, host = str(Path.home()), socket.gethostname()
    if len(Path(home).parts) > _ROOT_PARTS:
        yield re.compile(re.escape(home) + r"(?!\w)")
    if len(host) >= _MIN_HOST_CHARACTERS and host != "localhost":
        yield re.compile(rf"(?<![\w-]){re.escape(host)}(?![\w-])")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _holds_one(line: str, questions: set[str]) -> bool:
    """Look behind what may stand before a question in its line: a number, a mark of a list, its name."""
    words = _plain(line).split()
    return any(" ".join(words[start:]) in questions for start in range(min(4, len(words))))


def _plain(text: str) -> str:
    """Reduce a line to its words, so that neither spaces nor Markdown hide a question."""
    return " ".join(re.findall(r"\w+", text.lower()))
