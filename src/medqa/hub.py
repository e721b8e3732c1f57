"""Find a model, data set or published run: a local folder, or a download from the Hugging Face Hub.

The Hub is touched only for names that are not on disk. Nothing is uploaded and nothing is counted.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medqa.errors import HubError, machine_fault

__all__ = ["HUB_MARK", "PUBLISHED_FILES", "fetch_run", "is_on_disk", "locate"]

HUB_MARK = "hub:"

# Of a published run, and nothing else: no code, and nothing that could run code when it is loaded.
PUBLISHED_FILES = (
    "README.md",
    "LICENSE",
    "NOTICE",
    "run.json",
    "recipe.yaml",
    "data.json",
    "calibration.json",
    "report.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def locate(
    name: str,
    kind: Literal["model", "dataset"],
    *,
    revision: str | None = None,
    patterns: Sequence[str],
) -> Path:
    """Return the local path of a model or data set, downloading it if `name` is a Hub id.

    Args:
        name: Existing path, or Hub id such as "Qwen/Qwen3-1.7B".
        kind: What it is.
        revision: Hub branch, tag or commit.
        patterns: Files to download.

    Raises:
        HubError: If it is neither on disk nor to be had from the Hub.
    """
    setting = "model.name" if kind == "model" else "data.name"
    try:
        path = Path(name).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as exc:
        raise HubError(
            f"{setting}: {name[:80]!r} is no path ({type(exc).__name__})", "check the path"
        ) from exc
    if not _may_be_hub_id(name):
        raise HubError(
            f"{setting}: no file or folder {name!r}",
            f"check the path, or give a Hub id such as ORG/NAME with --set {setting}=...",
        )
    return _download(name, kind, setting, revision, patterns)


@functools.cache  # one process reads one revision, however often it opens the run
def fetch_run(name: str) -> Path:
    """Download a published run: what belongs to one, and no code.

    Args:
        name: ORG/NAME or ORG/NAME@REVISION.

    Raises:
        HubError: If it is not to be had from the Hub.
    """
    repo, _, revision = name.partition("@")
    return _download(repo, "run", f"{HUB_MARK}{name}", revision or None, PUBLISHED_FILES)


def is_on_disk(name: str) -> bool:
    """Tell whether `locate` finds a name, or refuses it, without asking the Hub."""
    try:
        return Path(name).expanduser().exists() or not _may_be_hub_id(name)
    except (OSError, ValueError, RuntimeError):  # no path at all
        return True


def _may_be_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def _download(name: str, kind: str, setting: str, revision: str | None, patterns: Sequence[str]) -> Path:
    # huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    local = "with a local copy: " + ("give its folder" if kind == "run" else f"--set {setting}=FOLDER")
    on_hub = "dataset" if kind == "dataset" else "model"
    try:
        return Path(
            snapshot_download(name, repo_type=on_hub, revision=revision, allow_patterns=list(patterns))
        )
    except GatedRepoError as exc:
        hint = "accept its terms on the Hub, then set HF_TOKEN"
        raise HubError(f"{kind} {name!r} is gated", hint) from exc
    except RevisionNotFoundError as exc:
        raise HubError(f"{kind} {name!r} has no revision {revision!r}", "check the revision") from exc
    except RepositoryNotFoundError as exc:
        raise HubError(
            f"the Hub has no {kind} {name!r} that you may read",
            f"check the name and HF_TOKEN; or go on {local}",
        ) from exc
    except HFValidationError as exc:
        raise HubError(f"{setting}: {name!r} is neither a folder nor a Hub id", "check it") from exc
    except (
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        HfHubHTTPError,
        OSError,
    ) as exc:
        if fault := machine_fault(exc):
            raise fault from exc
        raise HubError(
            f"the Hub can't be reached for {kind} {name!r} ({type(exc).__name__})",
            f"check the network or HF_ENDPOINT; or go on {local}; "
            "or try `medqa quickstart`, which needs no network",
        ) from exc
