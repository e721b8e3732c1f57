"""The run folder: where every stage leaves its result, and how files get there whole.

    run.json           settings, resolved values with reasons, versions, hashes, times, state
    recipe.yaml        every setting, as a recipe that can be run again
    data.json          what was done to the questions, in numbers and ids
    metrics.jsonl      one line per optimizer step
    loss.png           the loss curve
    checkpoints/       the newest state that training can go on from
    adapter/           the result, in PEFT's own format, with the tokenizer and calibration.json
    report.json        what `medqa evaluate` measured, and report.html to read it
    predictions.jsonl  one line per model and question
    explanations.jsonl one line per explanation that was written and checked

A run that was published or exported is flat: what is in adapter/ lies beside run.json, where PEFT looks for
it in a repository of the Hub. `hub:ORG/NAME` opens such a one, to read.

Files are written as `medqa.files` does: whole or not there.
"""

import contextlib
import datetime
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from medqa.config import RunConfig
from medqa.errors import RunError
from medqa.files import file_sha256, read_json, sweep, write_folder, write_json, write_text, writes
from medqa.hub import HUB_MARK, fetch_run
from medqa.launch import launch_id, place
from medqa.locking import hold
from medqa.provenance import provenance
from medqa.recipe import dump
from medqa.secrets import mask_secrets

__all__ = ["RUN_VERSION", "RunFolder", "adapter_checksums", "home", "new_run_path"]

RUN_VERSION = 4  # the checksums of all of the adapter's files, where version 3 has that of its weights

# What lies in the adapter folder, or a flat run, and is written later or by others.
_LATER = ("calibration.json", "README.md", "NOTICE", "run.json", "recipe.yaml", "data.json", "report.json")


def home() -> Path:
    """Return the folder for converted models and kept corpora: MEDQA_HOME, else the user's cache folder."""
    return Path(os.environ.get("MEDQA_HOME") or platformdirs.user_cache_path("medqa")).expanduser()


def new_run_path(recipe: str, parent: str = "runs") -> Path:
    """Name a folder that doesn't exist yet: runs/RECIPE-1, -2, ..."""
    stem = Path(recipe).stem
    number = 1
    while (path := Path(parent) / f"{stem}-{number}").exists():
        number += 1
    return path


def adapter_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that training wrote into the adapter folder, or a flat run."""
    return {
        file.name: file_sha256(file)
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith((".", "LICENSE")) and file.name not in _LATER
    }


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


class RunFolder:
    """One training run on disk.

    Attributes:
        path: The folder.
        record: The content of run.json.
        hub: Where on the Hub it comes from, ORG/NAME or ORG/NAME@REVISION; None if it is the user's own.
    """

    def __init__(self, path: Path, record: dict[str, Any], hub: str | None = None) -> None:
        self.path = path
        self.record = record
        self.hub = hub

    @classmethod
    def create(cls, path: Path, config: RunConfig, recipe: str) -> "RunFolder":
        """Make a new run folder.

        Raises:
            RunError: If the folder exists.
        """
        record = {
            "version": RUN_VERSION,
            "status": "running",
            "recipe": recipe,
            "created": _now(),
            "launch": launch_id(),
            "config": config.model_dump(mode="json"),
            "notices": [],
            **provenance(),
        }
        try:
            with write_folder(path, new=True) as folder:
                write_text(folder / "recipe.yaml", dump(config))
                write_json(folder / "run.json", record)
        except FileExistsError as exc:
            raise RunError(
                f"{path} is there already",
                f"`medqa train --resume {path}` goes on with it; --out gives another name",
            ) from exc
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RunError(f"{path} can't be made: {exc}", "--out gives another place") from exc
        return cls(path, record)

    @classmethod
    def open(cls, path: Path, *, finished: bool = True) -> "RunFolder":
        """Open an existing run.

        Args:
            path: The run folder, or hub:ORG/NAME or hub:ORG/NAME@REVISION, which is downloaded.
            finished: Whether training must have ended.

        Raises:
            RunError: If there is no run, it can't be read, or it isn't finished.
            HubError: If it can't be had from the Hub.
        """
        hub = None
        if path.as_posix().startswith(HUB_MARK) and not path.exists():
            hub = path.as_posix().removeprefix(HUB_MARK)
            path = fetch_run(hub)
        if not path.is_dir():
            runs = sorted(p.parent.name for p in Path("runs").glob("*/run.json"))
            known = f"; in runs/ there are {', '.join(runs)}" if runs else ""
            raise RunError(f"no run folder {str(path)!r}", f"`medqa train` makes one{known}")
        if not (path / "run.json").is_file() and hub is not None:
            raise RunError(
                f"{hub} on the Hub is no published run: it has no run.json",
                "give the ORG/NAME that `medqa publish` made",
            )
        if not (path / "run.json").is_file():
            raise RunError(
                f"{path} is no run folder: it has no run.json",
                "give the folder that `medqa train` made",
            )
        record = read_json(path / "run.json")
        if record.get("version") not in (3, RUN_VERSION):
            raise RunError(
                f"{path}/run.json has version {record.get('version')!r}, "
                f"this program reads 3 and {RUN_VERSION}",
                "use the medqa version that run.json names, or train again",
            )
        run = cls(path, record, hub)
        run._check_record()
        if finished and record.get("status") != "complete":
            raise RunError(
                f"{path} is half written: its training has not ended",
                f"`medqa train --resume {path}`",
            )
        return run

    @property
    def name(self) -> str:
        """What to call it where it is shown."""
        return self.hub or self.path.resolve().name

    @property
    def config(self) -> RunConfig:
        """The settings the run was made with, but for trust in a model's own code.

        A run folder may come from somebody else: whose code may run is said by who runs the command.
        """
        config = RunConfig.model_validate(self.record["config"])
        model = config.model.model_copy(update={"trust_remote_code": None})
        return config.model_copy(update={"model": model})

    def _check_record(self) -> None:
        """Refuse a run.json that another program wrote or that was edited into something else."""
        record = self.record
        try:
            _ = self.config
            whole = isinstance(record["status"], str) and isinstance(record["notices"], list)
            for part, key in (("data", "sha256"), ("base_model", "fingerprint"), ("device", "precision")):
                whole = whole and (part not in record or isinstance(record[part][key], str))
            if record["status"] == "complete":
                whole = whole and isinstance(record["base_model"]["name"], str)
                whole = whole and isinstance(record["adapter_sha256"], str)
                whole = whole and isinstance(record["data"]["files"], list)
                whole = whole and isinstance(record["prompt"], dict)
                files = record.get("adapter_files", {}) if record["version"] == 3 else record["adapter_files"]
                whole = whole and all(Path(name).name == name for name in files)
                whole = whole and all(isinstance(checksum, str) for checksum in files.values())
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise RunError(f"{self.path}/run.json is damaged: {exc!r}", "train again") from exc
        if not whole:
            raise RunError(f"{self.path}/run.json is damaged: a field is of the wrong type", "train again")

    @property
    def adapter(self) -> Path:
        """The adapter folder.

        Raises:
            RunError: If it is not whole, or not the one that training wrote.
        """
        folder = self.path / "adapter"
        if not folder.is_dir() and (self.path / "adapter_config.json").is_file():
            folder = self.path
        weights = {"adapter_model.safetensors": self.record["adapter_sha256"]}
        for name in ("adapter_config.json", *(files := self.record.get("adapter_files", {}) | weights)):
            if not (folder / name).is_file():
                raise RunError(f"{folder} has no {name}", "copy the run again, or train again")
        for name, checksum in files.items():
            if self._checksum(folder / name) != checksum:
                raise RunError(
                    f"{folder}/{name} is not what training wrote: its checksum differs",
                    "copy the run again, or train again",
                )
        return folder

    def _checksum(self, file: Path) -> str:
        try:
            return file_sha256(file)
        except OSError as exc:
            raise RunError(
                f"{file} can't be read: {exc.strerror or exc}",
                f"chmod -R a+rX {self.path}, if another user is to read it",
            ) from exc

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Write into the run, and let no other process do so meanwhile.

        Raises:
            RunError: If another one does, or nothing can be written there.
        """
        if not writes() or place()[0]:
            yield
            return
        with hold(self.path, self.path / "adapter"):
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Put right what writers that were killed left; nobody else writes here now."""
        for folder in (self.path, self.path / "adapter", self.path / "checkpoints"):
            sweep(folder, alone=True)

    def note(self, text: str) -> None:
        """Keep a notice in run.json, so that what the user was told stays with the run."""
        self.record["notices"].append(mask_secrets(text))
        self.save()

    def update(self, **fields: Any) -> None:
        """Set fields of run.json."""
        self.record.update(fields)
        self.save()

    def finish(self, **fields: Any) -> None:
        """Mark the run as complete."""
        self.update(status="complete", finished=_now(), **fields)

    def refuse_if_published(self, what: str) -> None:
        """Stop before something is written into a run that lies on the Hub.

        Args:
            what: The command that would do so.

        Raises:
            RunError: If it does: what is written into the download's cache would be lost.
        """
        if self.hub is not None:
            name, _, revision = self.hub.partition("@")
            folder = name.partition("/")[2]
            at = f" --revision {revision}" if revision else ""
            raise RunError(
                f"hub:{self.hub} can't be written to, as {what} does",
                f"hf download {name}{at} --local-dir {folder}, then: medqa {what} {folder}",
            )

    def save(self) -> None:
        """Write run.json.

        Raises:
            RunError: If it is a published one.
        """
        self.refuse_if_published("train --resume")
        write_json(self.path / "run.json", self.record)
