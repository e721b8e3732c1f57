"""Explain everything about a file of questions, row by row, before it is used.

`medqa data --check FILE` shows it. It reads like training does, but names every problem where
`sources.read_split` stops. Places and counts only: nothing of the rows' texts.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from medqa.config import SourceConfig
from medqa.data.excel import sheet_name
from medqa.data.keys import KeyStyle, first_lines
from medqa.data.sources import MAX_BROKEN_SHARE, Scan, read_keys, scan, usable
from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["CheckResult", "check_file"]


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What `check_file` found.

    Attributes:
        files: The files that were read; of an Excel file with the sheet.
        layout: The recognised column layout; None if no row could be read.
        mapping: Our field name -> the file's column.
        num_rows: All rows.
        num_usable: Rows that make a question.
        num_with_explanation: Usable rows with an explanation.
        broken: "file:line: reason" of every row that can't be used.
        reasons: Number of rows by reason, the most frequent first.
        key_style: "0-based", "1-based", "letter", "text", or "none".
        key_evidence: What decided that.
        key_error: Why the keys can't be read; "" if they can.
        keys: Number of usable rows by letter of the key.
        no_key: "file:line" of usable rows without a key.
        num_options: Number of usable rows by number of options.
        duplicates: Places of rows that are the same question with the same options.
        contradictions: Those of them whose keys differ.
        licence: Licence that the questions would carry.
        advice: What to do, most pressing first; empty if all is well.
    """

    files: tuple[str, ...]
    layout: str | None
    mapping: dict[str, str]
    num_rows: int
    num_usable: int
    num_with_explanation: int
    broken: tuple[str, ...]
    reasons: dict[str, int]
    key_style: str
    key_evidence: str
    key_error: str
    keys: dict[str, int]
    no_key: tuple[str, ...]
    num_options: dict[int, int]
    duplicates: tuple[tuple[str, ...], ...]
    contradictions: tuple[tuple[str, ...], ...]
    licence: str
    advice: tuple[str, ...]

    @property
    def trainable(self) -> bool:
        """Whether training would take the file as it is."""
        few = len(self.broken) <= MAX_BROKEN_SHARE * self.num_rows
        return few and not self.key_error and self.num_usable > len(self.no_key)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self) | {"trainable": self.trainable}

    def lines(self, max_places: int | None = None) -> list[str]:
        """Return the result as lines for a terminal.

        Args:
            max_places: Show at most this many places of each kind; all if not given.
        """
        share = f" ({self.num_with_explanation / self.num_usable:.0%})" if self.num_usable else ""
        mapping = ", ".join(f"{field}={column}" for field, column in self.mapping.items())
        options = ", ".join(f"{count:,} with {number}" for number, count in self.num_options.items())
        lines = [
            f"files         {', '.join(self.files)}",
            f"layout        {self.layout or 'none'}{f' with {mapping}' if mapping else ''}",
            f"licence       {self.licence}",
            f"rows          {self.num_rows:,}, of which {self.num_usable:,} usable",
            f"options       {options or '-'}",
            f"explanations  {self.num_with_explanation:,}{share}",
            f"keys          {self.key_error or f'{self.key_style}: {self.key_evidence}'}",
            f"              {', '.join(f'{letter} {count:,}' for letter, count in self.keys.items()) or '-'}",
        ]
        doubles = [", ".join(places) for places in self.duplicates if places not in self.contradictions]
        sections = {
            "broken, by reason": [f"{count:,} x {reason}" for reason, count in self.reasons.items()],
            "broken rows": list(self.broken),
            "rows without a key": list(self.no_key),
            "the same question and options, with different keys": [", ".join(p) for p in self.contradictions],
            "the same question and options": doubles,
            "what to do": list(self.advice),
        }
        for title, items in sections.items():
            if not items:
                continue
            cut = None if title == "what to do" else max_places
            lines += ["", f"{title} ({len(items):,})", *(f"  {item}" for item in items[:cut])]
            if cut is not None and len(items) > cut:
                lines.append(f"  ... and {len(items) - cut:,} more")
        return lines


def check_file(
    config: SourceConfig, split: str = "train", *, allow_repeated_options: bool = False
) -> CheckResult:
    """Read a file or a split as training would, and explain every problem.

    Args:
        config: `name` is the file, folder or Hub id; `map`, `keys` and `format` count as in training.
        split: Which split of a folder; a single file is read whatever its name.
        allow_repeated_options: Count rows that give an option twice as usable, as evaluation does.

    Raises:
        DataError: If the file as a whole can't be read: encoding, quoting, header, columns, no rows.
        HubError: If the source is neither on disk nor to be had from the Hub.
    """
    rows = scan(config, split)
    if not rows.rows:
        raise DataError(f"{rows.names}: no rows", "the file is empty; give one with questions")
    key_error, key_hint, keys = "", "", KeyStyle("none", "")
    try:
        keys = read_keys(rows, config)
    except DataError as exc:
        key_error, key_hint = exc.message, exc.hint
        rows = _without_keys(rows)
    judged = list(usable(rows, keys, allow_repeated_options=allow_repeated_options))
    good = [(where, example) for where, example, _ in judged if example is not None]
    bad = [(where, reason) for where, example, reason in judged if example is None]
    answers = Counter(example.answer for _, example in good if example.answer is not None)
    duplicates, contradictions = _duplicates(good)
    result = CheckResult(
        files=tuple(_with_sheet(file) for file in rows.files),
        layout=rows.layout.name if rows.layout else None,
        mapping=dict(config.map),
        num_rows=len(judged),
        num_usable=len(good),
        num_with_explanation=sum(example.explanation is not None for _, example in good),
        broken=tuple(f"{where}: {reason}" for where, reason in bad),
        reasons=dict(Counter(reason for _, reason in bad).most_common()),
        key_style=keys.style,
        key_evidence=keys.evidence,
        key_error=key_error,
        keys={LETTERS[index]: answers[index] for index in sorted(answers)},
        no_key=() if key_error else tuple(where for where, example in good if example.answer is None),
        num_options=dict(sorted(Counter(len(example.options) for _, example in good).items())),
        duplicates=duplicates,
        contradictions=contradictions,
        licence=rows.licence,
        advice=(),
    )
    return dataclasses.replace(result, advice=_advice(result, key_hint))


def _without_keys(rows: Scan) -> Scan:
    """Take the keys away, so that all else about the rows can be told."""
    return dataclasses.replace(
        rows,
        rows=[
            dataclasses.replace(row, fields={**row.fields, "answer": None}) if row.fields else row
            for row in rows.rows
        ],
    )


def _with_sheet(file: Path) -> str:
    return f"{file}, sheet {sheet_name(file)!r}" if file.suffix.lower() == ".xlsx" else str(file)


def _duplicates(
    good: list[tuple[str, Example]],
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Group rows of the same question, context and options, in whatever order, case and spacing."""
    groups: dict[tuple[str, ...], list[tuple[str, str | None]]] = {}
    for where, example in good:
        options = [_normal(option) for option in example.options]
        same = (_normal(example.question), _normal(example.context or ""), *sorted(options))
        key = None if example.answer is None else options[example.answer]
        groups.setdefault(same, []).append((where, key))
    repeated = [group for group in groups.values() if len(group) > 1]
    contradicting = [group for group in repeated if len({key for _, key in group if key is not None}) > 1]
    duplicates, contradictions = (
        tuple(tuple(where for where, _ in group) for group in kind) for kind in (repeated, contradicting)
    )
    return duplicates, contradictions


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


def _advice(result: CheckResult, key_hint: str) -> tuple[str, ...]:
    advice = []
    if result.key_error:
        advice.append(f"keys: {key_hint}")
    if len(result.broken) > MAX_BROKEN_SHARE * result.num_rows:
        share = len(result.broken) / result.num_rows
        advice.append(f"mend the broken rows: they are {share:.1%}, and up to 1 % would be left out")
    elif result.broken:
        advice.append("mend the broken rows; as they are, they would be left out")
    if result.contradictions:
        lines = first_lines([", ".join(places) for places in result.contradictions])
        advice.append(f"decide which key is right where the same question has two: {lines}")
    if result.no_key and len(result.no_key) == result.num_usable:
        advice.append("no row has a key: it can be asked, but not trained on or measured with")
    elif result.no_key:
        advice.append("fill in the missing keys; without one, a row is not trained on or measured with")
    if len(result.duplicates) > len(result.contradictions):
        advice.append("delete questions that are given again; each counts as often as it is there")
    if result.num_usable and not result.num_with_explanation:
        advice.append("without explanations the model learns to answer but not to explain")
    if result.licence == "unknown":
        advice.append("say under which licence the questions are: --set data.licence=...")
    return tuple(advice)
