"""Corpora that were built, kept for the next time: folders under MEDQA_HOME/corpora, each named by a key.

The key is made of everything that the corpus depends on: settings, seed, the files of its sources and this
program. An entry is a folder as `medqa data` writes it, without the page, and entry.json beside it.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from medqa import __version__, records
from medqa.config import DataConfig
from medqa.data.corpus import Corpus, TrainingData
from medqa.data.folder import read_corpus, write_questions
from medqa.data.places import find_root, split_files
from medqa.errors import DataError, RunError
from medqa.files import file_sha256, read_json, write_folder, write_json
from medqa.runs import home

__all__ = ["NUM_ENTRIES", "Notice", "entry_path", "is_there", "load", "source_files", "store", "tell"]

log = logging.getLogger(__name__)

NUM_ENTRIES = 4
"""Corpora that are kept; the least recently used go."""

Notice = tuple[str, int, str]
"""What was logged: logger, level, text."""

_ENTRY = "entry.json"
_LEFT_OVER_S = 3600.0


def source_files(config: DataConfig) -> list[Path]:
    """List the files that a corpus is made of, downloading what is on the Hub.

    Raises:
        DataError: If there is none for a split to train on.
        HubError: If a source is neither on disk nor to be had from the Hub.
    """
    root = find_root(config)
    files = split_files(root, config.train_split, config.subset)
    with contextlib.suppress(DataError):  # without it no leaks are looked for, which building says
        files = files + split_files(root, config.eval_split, config.subset)
    roots = [root]
    for part in config.mix:
        roots.append(find_root(part))
        files = files + split_files(roots[-1], part.split, part.subset)
    about = [root / "README.md" for root in roots]  # may say the licence
    return list(dict.fromkeys([*files, *(file for file in about if file.is_file())]))


def entry_path(config: DataConfig, seed: int, files: Sequence[Path]) -> Path:
    """Say where a corpus is kept, or would be."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    parts = [config.model_dump(mode="json"), seed, stats, _program()]
    return home() / "corpora" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@functools.cache
def _program() -> list[str]:
    """Identify the code that makes a corpus, and the libraries that have a say in it."""
    code = [*sorted(Path(__file__).parent.glob("*.py")), Path(records.__file__)]
    libraries = [importlib.metadata.version(name) for name in ("datasketch", "pyspellchecker", "pyarrow")]
    return [__version__, platform.python_version(), *libraries, *map(file_sha256, code)]


def load(path: Path) -> TrainingData | None:
    """Read an entry and repeat what was logged when it was made; None if it is damaged, which is said."""
    try:
        entry = read_json(path / _ENTRY)
        for name, sha256 in entry["sha256"].items():
            if file_sha256(path / name) != sha256:
                raise DataError(f"{name} is not what was written")
        data = read_corpus(path)
        notices: list[Notice] = [(name, level, text) for name, level, text in entry["notices"]]
    except (DataError, RunError, OSError, KeyError, TypeError, ValueError, AttributeError) as exc:
        log.warning("The kept questions in %s are damaged (%s); they are made again", path, exc)
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read is as good
        os.utime(path / _ENTRY)  # used now
    tell(notices)
    return data


def tell(notices: Sequence[Notice]) -> None:
    """Log what was logged in another process, or when an entry was made."""
    for name, level, text in notices:
        logging.getLogger(name).log(level, "%s", text)


def is_there(path: Path) -> bool:
    """Say whether there is an entry; it may be damaged all the same."""
    return (path / _ENTRY).is_file()


def store(corpus: Corpus, notices: Sequence[Notice], path: Path) -> None:
    """Write an entry, and let the least recently used ones go.

    Raises:
        DataError: If it can't be written.
    """
    try:
        with write_folder(path) as beside:
            write_questions(corpus, beside)
            sha256 = {file.name: file_sha256(file) for file in sorted(beside.iterdir())}
            write_json(beside / _ENTRY, {"sha256": sha256, "notices": list(notices)})
        _clear_up(path.parent)
    except OSError as exc:
        if is_there(path):  # another run was faster with the same
            return
        raise DataError(f"{path} can't be written: {exc}", "MEDQA_HOME names another folder") from exc


def _clear_up(folder: Path) -> None:
    entries = [path for path in folder.iterdir() if is_there(path) and not path.name.startswith(".")]
    entries.sort(key=lambda path: (path / _ENTRY).stat().st_mtime_ns, reverse=True)
    # What a process that was ended left half written.
    parts = [path for path in folder.glob(".*.part") if time.time() - path.stat().st_mtime > _LEFT_OVER_S]
    for path in (*entries[NUM_ENTRIES:], *parts):
        shutil.rmtree(path, ignore_errors=True)
