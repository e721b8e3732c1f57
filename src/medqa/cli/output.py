"""How results look on a terminal."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medqa.launch import place
from medqa.runs import RunFolder
from medqa.secrets import MaskSecrets

__all__ = [
    "print_fields",
    "print_json",
    "print_rows",
    "print_trained",
    "set_up_logging",
]


def set_up_logging() -> None:
    """Send the package's notices to stderr, without secrets; other libraries speak only in errors.

    Of several processes, only the first one gives notice of what is no error.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(MaskSecrets())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger("medqa").setLevel(logging.ERROR if place()[0] else logging.INFO)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with what they are for."""
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def print_fields(fields: Sequence[tuple[str, Any, str]]) -> None:
    """Print every setting: key, default, meaning."""
    table = Table("setting", "default", "meaning", box=None, pad_edge=False)
    for key, value, text in fields:
        table.add_row(key, escape(str(value)), escape(text))
    Console(emoji=False).print(table)


def print_trained(run: RunFolder) -> None:
    """Print what training did and what to do next."""
    training = run.record["training"]
    seconds = training["seconds"]
    print(
        f"Trained on {training['num_rows']:,} rows "
        f"in {seconds['train']:.0f} s ({training['tokens_per_second']:,.0f} tokens/s)"
    )
    print(f"Adapter   {run.path}/adapter")
    print(f"Curve     {run.path}/loss.png")
    print(f"Trust     {_calibrated(run)}")
    if "report" in run.record:  # scored already, within its time
        print(f"Next      medqa ask {run.path}")
        return
    print(f"Next      medqa evaluate {run.path}")
    print(f"          medqa ask {run.path}")


def _calibrated(run: RunFolder) -> str:
    """Say in a line what calibration did."""
    if (found := run.record.get("calibration")) is None:
        return f"not calibrated: confidence is the model's own; medqa calibrate {run.path}"
    one = found["orders"]["1"]
    return (
        f"calibrated on {found['data']['calibration']:,} questions held back ({one['method']}): confidence "
        f"{one['before']['mean_confidence']:.1%} -> {one['after']['mean_confidence']:.1%}, "
        f"{one['after']['accuracy']:.1%} right"
    )
