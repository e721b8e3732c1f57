"""Read questions from a Hub id, a folder, a file, or the built-in set.

Every source ends up as local parquet, JSONL or CSV files, read by one path, so that a broken row
can be named by file and line wherever it came from.
"""

import csv
import dataclasses
import importlib.resources
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medqa.config import DataConfig
from medqa.data.formats import recognise
from medqa.errors import DataError
from medqa.hub import locate
from medqa.records import Example

__all__ = ["STARTER", "read_split"]

log = logging.getLogger(__name__)

STARTER = "builtin:starter"
SUFFIXES = (".parquet", ".jsonl", ".csv")
MAX_BROKEN_SHARE = 0.01
NUM_BROKEN_SHOWN = 5

_SPLIT_NAMES = {"validation": {"valid", "val", "dev"}}


@dataclasses.dataclass(frozen=True)
class Split:
    """The questions of one split.

    Attributes:
        examples: The good rows, in file order.
        broken: "file:line: reason" of each row that can't be used.
        files: The files that were read.
    """

    examples: list[Example]
    broken: list[str]
    files: list[str]


def read_split(config: DataConfig, split: str, *, allow_repeated_options: bool = False) -> Split:
    """Read one split of the configured source.

    Args:
        config: Says where.
        split: Name of the split, such as "train" or "validation".
        allow_repeated_options: Keep questions that give an option twice. Published benchmarks hold
            a few and count them; for training they are broken rows.

    Raises:
        DataError: If there is no such split, a file is empty or has other columns, or more than
            1 % of the rows are broken.
        HubError: If the source is neither on disk nor to be had from the Hub.
    """
    files = _split_files(_root(config), split, config.subset)
    examples: list[Example] = []
    broken: list[str] = []
    for file in files:
        layout = None
        for where, row, error in _rows(file):
            if row is None:
                broken.append(f"{where}: {error}")
                continue
            layout = layout or recognise(set(row), str(file), config.format)
            try:
                example = layout.example(row, "starter" if config.name == STARTER else config.name)
                if not allow_repeated_options:
                    example.require_distinct_options()
                examples.append(example)
            except DataError as exc:
                broken.append(f"{where}: {exc.message}")
    _judge(examples, broken, files)
    return Split(examples, broken, [str(file) for file in files])


def _root(config: DataConfig) -> Path:
    if config.name == STARTER:
        return Path(str(importlib.resources.files("medqa.data") / "starter"))
    if config.name.startswith("builtin:"):
        raise DataError(f"data.name {config.name!r} is unknown", f"the built-in questions are {STARTER}")
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    return locate(config.name, "dataset", revision=config.revision, patterns=patterns)


def _split_files(root: Path, split: str, subset: str | None) -> list[Path]:
    """Find the files of a split by the words of their path, as in data/train-00000-of-00001.parquet."""
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise DataError(
                f"{root}: {root.suffix!r} files are not read", f"give one of {', '.join(SUFFIXES)}"
            )
        return [root]
    files = sorted(f for f in root.rglob("*") if f.suffix in SUFFIXES and f.is_file())
    words = {f: set(re.split(r"[^a-z0-9_]+|_(?=\d)", str(f.relative_to(root)).lower())) for f in files}
    if subset is not None:
        files = [f for f in files if subset.lower() in words[f]]
    # The very name first: a folder with "validation" and "dev" holds two splits.
    found = [f for f in files if split in words[f]]
    found = found or [f for f in files if _SPLIT_NAMES.get(split, set()) & words[f]]
    if not found:
        there = ", ".join(str(f.relative_to(root)) for f in files[:10]) or "no such file at all"
        raise DataError(
            f"{root} has no {'/'.join(s[1:] for s in SUFFIXES)} file for split {split!r}",
            f"files are told apart by a word in their name, such as {split}.jsonl; there: {there}",
        )
    return found


def _judge(examples: list[Example], broken: list[str], files: list[Path]) -> None:
    names = ", ".join(file.name for file in files)
    total = len(examples) + len(broken)
    if not total:
        raise DataError(f"{names}: no rows", "the file is empty; give one with questions")
    shown = "\n  ".join(broken[:NUM_BROKEN_SHOWN])
    if len(broken) > MAX_BROKEN_SHARE * total:
        raise DataError(
            f"{names}: {len(broken)} of {total} rows are broken, more than 1 %. The first:\n  {shown}",
            "mend the file; keys count from 0 (0 = A)",
        )
    if broken:
        log.warning("%s: %d of %d rows are broken and left out:\n  %s", names, len(broken), total, shown)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """Yield (file:line, row, "") for each row, or (file:line, None, reason) for an unreadable one."""
    readers = {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
    try:
        yield from readers[file.suffix](file)
    except UnicodeDecodeError as exc:
        raise DataError(f"{file}: not UTF-8 (byte {exc.start})", "save it as UTF-8") from exc
    except OSError as exc:
        raise DataError(f"{file} can't be read: {exc}", "check the file and its rights") from exc


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name}:row {number}", row, ""
    except pyarrow.ArrowException as exc:
        raise DataError(f"{file}: not a readable parquet file: {exc}", "download it again") from exc


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file.name}:{number}"
            try:
                row = json.loads(line)
            except ValueError as exc:
                yield where, None, f"not JSON: {exc}"
                continue
            if isinstance(row, dict):
                yield where, row, ""
            else:
                yield where, None, f"holds a {type(row).__name__}, expected an object"


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                where = f"{file.name}:{reader.line_num}"
                if None in row:
                    yield where, None, "has more fields than the header"
                else:
                    yield where, row, ""
        except csv.Error as exc:
            raise DataError(f"{file.name}:{reader.reader.line_num}: {exc}", "mend the quoting there") from exc
