"""The `data` verb: build a corpus, or explain what is wrong with a file."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from medqa.cli.output import print_json
from medqa.config import DataConfig, RunConfig
from medqa.data.build import build_corpus
from medqa.data.check import check_file
from medqa.data.folder import write_corpus
from medqa.errors import ConfigError, DataError
from medqa.runs import new_run_path

__all__ = ["build_data", "check_data", "source_settings"]

_NUM_PLACES = 20


def source_settings(mapping: Sequence[str], check: Path | None) -> list[str]:
    """Turn `--map FIELD=COLUMN` and `--check FILE` into settings.

    Raises:
        ConfigError: If a mapping has no `=`.
    """
    settings = [f"data.name={json.dumps(str(check))}"] if check else []
    for item in mapping:
        field, equals, column = item.partition("=")
        if not equals or not field.strip() or not column:
            raise ConfigError(
                f"--map {item!r} is not of the form FIELD=COLUMN", "such as --map question=stem"
            )
        settings.append(f"data.map.{field.strip()}={json.dumps(column)}")  # a column may be called 1 or yes
    return settings


def build_data(
    config: RunConfig, recipe: str, settings: Sequence[str], out: Path | None, *, as_json: bool
) -> None:
    """Build the corpus of a recipe into a folder and print what was done.

    Args:
        config: The recipe with the settings applied.
        recipe: Its name.
        settings: The settings, for the command that goes on.
        out: Folder to make; data/RECIPE-N if None.
        as_json: Print the record instead.
    """
    path = out or new_run_path(recipe, "data")
    if path.exists():
        raise DataError(f"{path} is there already", "--out gives another name")
    corpus = build_corpus(config.data, config.train.seed)
    write_corpus(corpus, config.data, path)
    record = corpus.record
    if as_json:
        print_json({"folder": str(path), **record})
        return
    changed = [(rule["num_changed"], rule["num_dropped"], name) for name, rule in record["rules"].items()]
    width = max(len(name) for *_, name in changed)
    print(f"{'rule':<{width}}  {'changed':>8}  {'left out':>8}")
    for num_changed, num_dropped, name in changed:
        print(f"{name:<{width}}  {num_changed:>8,}  {num_dropped:>8,}")
    print(f"{'duplicates':<{width}}  {'':>8}  {record['duplicates']['num_left_out']:>8,}")
    print(f"{'conflicts':<{width}}  {'':>8}  {record['conflicts']['num_rows']:>8,}")
    leaks = record["leaks"]
    if leaks["looked_for"]:
        print(f"{'leaks':<{width}}  {'':>8}  {leaks['num_train_rows_left_out']:>8,}")
        counts = ", ".join(f"{count:,} {kind}" for kind, count in leaks["counts"].items() if count)
        print(
            f"\n{leaks['num_flagged']:,} of {leaks['num_questions']:,} evaluation questions are flagged"
            + (f": {counts}" if counts else "")
        )
    else:
        print(f"\nLeaks were not looked for: {leaks['reason']}")
    splits = record["splits"]
    print(
        f"\nTrain     {splits['train']['num_used']:,} questions, {record['num_with_explanation']:,} explained"
    )
    print(f"Held back {splits['calibration']['num_used']:,} for calibration, ", end="")
    print(f"{splits['selection']['num_used']:,} to choose by")
    print(f"Licences  {', '.join(record['licences'])}")
    print(f"Page      {path}/data_report.html")
    # Training builds the same questions by itself: a corpus is not copied from place to place.
    print(f"Next      medqa train {recipe}" + "".join(f" --set {shlex.quote(s)}" for s in settings))


def check_data(config: DataConfig, file: Path, *, as_json: bool) -> bool:
    """Explain every problem of a file; say whether training would take it."""
    if not file.exists():
        raise DataError(f"no file {str(file)!r}", "check the path")
    result = check_file(config, allow_repeated_options=True)  # a rule leaves them out, no row is broken
    if as_json:
        print_json(result.to_json())
    else:
        print("\n".join(result.lines(None if not sys.stdout.isatty() else _NUM_PLACES)))
        print(f"\n{'Training would take it.' if result.trainable else 'Training would refuse it.'}")
    return result.trainable
