"""Which program on which machine: what every record that is kept says of itself."""

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from medqa import __version__
from medqa.secrets import mask_secrets

__all__ = ["provenance", "versions"]

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "huggingface_hub",
)


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, or None if it is installed elsewhere."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}


def versions() -> dict[str, str]:
    """Say which versions of this program and of what it stands on are here."""
    found = {"medqa": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def provenance() -> dict[str, Any]:
    """Say which program on which machine writes this: versions, git state, platform."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "git": _git_state(),
        "command": mask_secrets(" ".join(sys.argv)),
    }
