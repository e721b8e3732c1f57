"""Where the files of a source are: a folder, a file, the Hub or the built-in questions."""

import importlib.resources
import re
from pathlib import Path

from medqa.config import SourceConfig
from medqa.data.tables import SUFFIXES
from medqa.errors import DataError
from medqa.hub import locate

__all__ = ["STARTER", "find_root", "split_files"]

STARTER = "builtin:starter"

_SPLIT_NAMES = {"validation": {"valid", "val", "dev"}}


def find_root(config: SourceConfig) -> Path:
    """Find the folder or file of a source, downloading it if it is on the Hub.

    Raises:
        DataError: If there are no such built-in questions.
        HubError: If it is neither on disk nor to be had from the Hub.
    """
    if config.name == STARTER:
        return Path(str(importlib.resources.files("medqa.data") / "starter"))
    if config.name.startswith("builtin:"):
        raise DataError(f"data.name {config.name!r} is unknown", f"the built-in questions are {STARTER}")
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    return locate(config.name, "dataset", revision=config.revision, patterns=patterns)


def split_files(root: Path, split: str, subset: str | None) -> list[Path]:
    """Find the files of a split by the words of their path, as in data/train-00000-of-00001.parquet.

    Raises:
        DataError: If there is none, or what looks like one file under two endings.
    """
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{root}: {root.suffix!r} files are not read",
                f"give one of {', '.join(SUFFIXES)}; a program that opens it can save it as one",
            )
        return [root]
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    files = [f for f in files if not f.name.startswith(("~$", "."))]  # locks of Excel, leftovers of macOS
    words = {f: set(re.split(r"[^a-z0-9_]+|_(?=\d)", str(f.relative_to(root)).lower())) for f in files}
    if subset is not None:
        files = [f for f in files if subset.lower() in words[f]]
    # The very name first: a folder with "validation" and "dev" holds two splits.
    found = [f for f in files if split in words[f]]
    found = found or [f for f in files if _SPLIT_NAMES.get(split, set()) & words[f]]
    if not found:
        there = ", ".join(str(f.relative_to(root)) for f in files[:10]) or "no such file at all"
        kinds = "/".join(suffix[1:] for suffix in SUFFIXES)
        hint = f"files are told apart by a word in their name, such as {split}.jsonl; there: {there}"
        raise DataError(f"{root} has no {kinds} file for split {split!r}", hint)
    _refuse_copies(found)
    return found


def _refuse_copies(files: list[Path]) -> None:
    by_stem: dict[Path, Path] = {}
    for file in files:
        other = by_stem.setdefault(file.with_suffix(""), file)
        if other != file:
            raise DataError(
                f"{other} and {file.name} look like the same questions twice",
                f"move one away, or choose by its ending: --set data.subset={file.suffix[1:].lower()}",
            )
