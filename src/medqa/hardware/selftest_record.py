"""Where the newest self-test of each device is kept, so that a run can name it."""

import re
from pathlib import Path
from typing import Any

import torch

from medqa.errors import RunError
from medqa.files import read_json, write_json
from medqa.hardware.device import Device
from medqa.runs import home

__all__ = ["keep_selftest", "last_selftest"]


def _file(device: Device) -> Path:
    words = f"{device.name} {device.precision} torch {torch.__version__}"
    return home() / "selftest" / (re.sub(r"[^a-zA-Z0-9.]+", "-", words) + ".json")


def keep_selftest(device: Device, result: dict[str, Any]) -> Path:
    """Keep the result for this device, precision and torch."""
    file = _file(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)
    return file


def last_selftest(device: Device) -> dict[str, Any] | None:
    """Return the newest result for this device, precision and torch, or None if there is none."""
    try:
        return read_json(_file(device))
    except RunError:
        return None
