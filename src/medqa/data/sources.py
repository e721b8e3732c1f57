"""Read questions from a Hub id, a folder, a file, or the built-in set.

Every source ends up as local files, read by one path, so that a broken row can be named by file and
line wherever it came from. `scan` reads rows, `read_keys` decides how their keys are read, `usable`
makes questions of them; `read_split` is all three, and refuses what is too broken.
"""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from medqa.config import SourceConfig
from medqa.data.columns import check_map, renamed
from medqa.data.excel import RowRead
from medqa.data.formats import FIELDS, Format, recognise
from medqa.data.keys import KeyRow, KeyStyle, read_key, resolve_keys
from medqa.data.places import STARTER, find_root, split_files
from medqa.data.tables import read_rows
from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["STARTER", "RawRow", "Scan", "Split", "read_keys", "read_split", "scan", "usable"]

log = logging.getLogger(__name__)

MAX_BROKEN_SHARE = 0.01
NUM_BROKEN_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Split:
    """The questions of one split.

    Attributes:
        examples: The good rows, in file order.
        broken: "file:line: reason" of each row that can't be used.
        files: What was read.
        no_key: "file:line" of each good row without a key.
        keys: How the keys are read, and why.
    """

    examples: list[Example]
    broken: list[str]
    files: list[str]
    no_key: list[str]
    keys: KeyStyle


@dataclasses.dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its layout understands it: `fields` of an Example, or None and the reason."""

    where: str
    fields: dict[str, Any] | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Scan:
    """The rows of a split before their keys are read.

    Attributes:
        files: The files that were read.
        layout: Their column layout; None if no row could be read.
        rows: All rows, in file order.
        key_column: The file's name of the key column.
        source, licence: What the examples carry.
    """

    files: list[Path]
    layout: Format | None
    rows: list[RawRow]
    key_column: str
    source: str
    licence: str

    @property
    def names(self) -> str:
        """The names of the files, for messages."""
        return ", ".join(file.name for file in self.files)


def read_split(config: SourceConfig, split: str, *, allow_repeated_options: bool = False) -> Split:
    """Read one split of the configured source.

    Args:
        config: Says where, and how columns and keys are read.
        split: Name of the split, such as "train" or "validation".
        allow_repeated_options: Keep questions that give an option twice. Published benchmarks hold
            a few and count them; where rows are cleaned, a rule leaves them out and counts them.

    Raises:
        DataError: If there is no such split, a file is empty or has other columns, it is unclear how
            the keys are to be read, or more than 1 % of the rows are broken.
        HubError: If the source is neither on disk nor to be had from the Hub.
    """
    rows = scan(config, split)
    keys = read_keys(rows, config)
    examples: list[Example] = []
    broken: list[str] = []
    no_key: list[str] = []
    for where, example, reason in usable(rows, keys, allow_repeated_options=allow_repeated_options):
        if example is None:
            broken.append(f"{where}: {reason}")
        else:
            examples.append(example)
            no_key += [where] if example.answer is None else []
    _judge(len(examples), broken, rows.names)
    level = logging.DEBUG if keys.style == "0-based" else logging.INFO  # as published sets have them
    log.log(level, "%s: keys: %s (%s)", rows.names, keys.style, keys.evidence)
    return Split(examples, broken, [str(file) for file in rows.files], no_key, keys)


def scan(config: SourceConfig, split: str) -> Scan:
    """Read the rows of a split and recognise their layout.

    Raises:
        DataError: If a file can't be read, or its columns fit no layout.
        HubError: If the source is neither on disk nor to be had from the Hub.
    """
    root = find_root(config)
    files = split_files(root, split, config.subset)
    layout: Format | None = None
    rows: list[RawRow] = []
    for file in files:
        table = list(read_rows(file))
        columns: set[str] = set()
        for _, row, _ in table:
            if row is not None and row.keys() != columns:
                columns |= row.keys()
        if columns:
            check_map(config.map, columns, FIELDS, str(file))
            found = recognise(set(renamed(dict.fromkeys(columns), config.map)), str(file), config.format)
            if layout is not None and found is not layout:
                raise DataError(
                    f"{file}: layout {found.name}, but {files[0].name} has {layout.name}",
                    "read files of one layout at a time: data.subset chooses by a word of their path",
                )
            layout = found
        rows.extend(_raw_row(layout, read, config.map) for read in table)
    key = (layout.key if layout else None) or "answer"
    return Scan(
        files=files,
        layout=layout,
        rows=rows,
        key_column=config.map.get(key, key),
        source="starter" if config.name == STARTER else config.name,
        licence=_licence(config, root, layout),
    )


def _raw_row(layout: Format | None, read: RowRead, mapping: dict[str, str]) -> RawRow:
    where, row, reason = read
    if row is None or layout is None:
        return RawRow(where, None, reason or "has no columns")
    try:
        return RawRow(where, layout.read(renamed(row, mapping)))
    except DataError as exc:
        return RawRow(where, None, exc.message)


def read_keys(rows: Scan, config: SourceConfig) -> KeyStyle:
    """Decide how the keys of a split are read, over all its rows.

    Raises:
        DataError: If that is unclear.
    """
    layout = rows.layout
    if layout is not None and layout.key is None:
        if config.keys not in ("auto", layout.own_style):
            hint = f"its keys are always read as {layout.own_style}: leave data.keys at auto"
            raise DataError(f"{rows.names}: data.keys={config.keys} does not go with {layout.name}", hint)
        return KeyStyle(layout.own_style, f"the {layout.name} layout says so")
    seen = [
        KeyRow(row.where, row.fields["answer"], row.fields["options"], row.fields.get("explanation"))
        for row in rows.rows
        if row.fields is not None
    ]
    return resolve_keys(seen, config.keys, column=rows.key_column, name=rows.names)


def usable(
    rows: Scan, keys: KeyStyle, *, allow_repeated_options: bool = False
) -> Iterator[tuple[str, Example | None, str]]:
    """Yield (where, example, "") for each row, or (where, None, reason) for one that can't be used."""
    raw = rows.layout is not None and rows.layout.key is not None
    for row in rows.rows:
        example, reason = None, row.reason
        if row.fields is not None:
            try:
                answer, key_reason = _answer(row.fields, keys, rows.key_column) if raw else ({}, "")
                example = Example(**{**row.fields, **answer}, source=rows.source, licence=rows.licence)
                reason = ("" if allow_repeated_options else _repeated(example)) or key_reason
            except DataError as exc:
                reason = exc.message
        yield (row.where, None, reason) if reason else (row.where, example, "")


def _answer(fields: dict[str, Any], keys: KeyStyle, column: str) -> tuple[dict[str, int | None], str]:
    """Return the answer and "", or none and the reason: another fault of the row is told first."""
    try:
        return {"answer": read_key(keys.style, fields["answer"], fields["options"], column)}, ""
    except DataError as exc:
        return {"answer": None}, exc.message


def _repeated(example: Example) -> str:
    first: dict[str, str] = {}
    for letter, option in zip(LETTERS, example.options, strict=False):
        earlier = first.setdefault(option.strip(), letter)
        if earlier != letter:
            return f"option {letter} repeats option {earlier}"
    return ""


def _licence(config: SourceConfig, root: Path, layout: Format | None) -> str:
    """Say what the questions' licence is; that of a published set only if it came from there."""
    published = layout.licence if layout is not None else "unknown"
    if config.licence is not None or config.name == STARTER:
        return config.licence or published
    if root != Path(config.name).expanduser():
        return published
    try:
        lines = (root / "README.md").read_text(encoding="utf-8").splitlines()
        end = lines.index("---", 1)
        front = yaml.safe_load("\n".join(lines[1:end])) if lines[0] == "---" else None
    except (OSError, ValueError, yaml.YAMLError):
        return "unknown"
    licence = front.get("license") if isinstance(front, dict) else None
    return licence.strip() if isinstance(licence, str) and licence.strip() else "unknown"


def _judge(num_good: int, broken: list[str], names: str) -> None:
    total = num_good + len(broken)
    if not total:
        raise DataError(f"{names}: no rows", "the file is empty; give one with questions")
    shown = "\n  ".join(broken[:NUM_BROKEN_SHOWN])
    rows = f"{len(broken)} of {total} row{'s' * (total > 1)} {'is' if len(broken) == 1 else 'are'} broken"
    if len(broken) > MAX_BROKEN_SHARE * total:
        raise DataError(
            f"{names}: {rows}; up to 1 % would be left out. The first:\n  {shown}",
            "mend the file; `medqa data --check FILE` names every such row",
        )
    if broken:
        log.warning("%s: %s and left out:\n  %s", names, rows, shown)
