"""Build the corpus of a run beside the parent, which can import torch and load a model meanwhile.

The child is `python -m medqa.data.prepared`: it reads a request as one line of JSON, puts the corpus into
the cache and answers with one JSON object. It ends when its input does, so it never outlives its parent.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from medqa import errors
from medqa.config import DataConfig
from medqa.data.build import build_corpus
from medqa.data.cache import Notice, entry_path, is_there, load, source_files, store, tell
from medqa.data.corpus import TrainingData
from medqa.errors import DataError, MedQAError, machine_fault
from medqa.hub import is_on_disk
from medqa.secrets import mask_secrets

__all__ = ["Pending", "TrainingData", "begin_corpus", "corpus_of"]

log = logging.getLogger(__name__)

SMALL_BYTES = 2_000_000
"""Sources smaller than this together are built at once, without a process and without the cache."""

_MENDABLE = 2
"""Exit code of a child that met a MedQAError."""


def begin_corpus(config: DataConfig, seed: int) -> "Pending":
    """Begin to build the corpus that a recipe describes, and return at once.

    It is taken from the cache if it was built before, by this program, of the same files.

    Args:
        config: The sources and what to do with them.
        seed: As `build_corpus` takes it.

    Raises:
        MedQAError: As `build_corpus` does, if it shows at once; else `Pending.result` raises it.
    """
    names = [config.name, *(part.name for part in config.mix)]
    if not all(name.startswith("builtin:") or is_on_disk(name) for name in names):
        return Pending(config, seed, None)  # the child looks for it: the Hub may have to be asked
    files = source_files(config)
    if sum(file.stat().st_size for file in files) < SMALL_BYTES:
        corpus = build_corpus(config, seed)
        data = TrainingData(corpus.train, corpus.calibration, corpus.selection, corpus.record)
        return Pending(config, seed, data)
    path = entry_path(config, seed, files)
    return Pending(config, seed, _kept(path) if is_there(path) else None)


def corpus_of(config: DataConfig, seed: int) -> TrainingData:
    """Build the corpus that a recipe describes, or take it from the cache, and wait for it.

    Args:
        config: As `begin_corpus` takes it.
        seed: As `begin_corpus` takes it.

    Raises:
        MedQAError: As `build_corpus` does.
    """
    pending = begin_corpus(config, seed)
    try:
        return pending.result()
    finally:
        pending.cancel()


def _kept(path: Path) -> TrainingData | None:
    data = load(path)
    if data is not None:
        log.info("Questions as they were prepared before, from %s", path)
    return data


class Pending:
    """A corpus that is there, or is being built by a child process.

    Args:
        config: The sources and what to do with them.
        seed: As `build_corpus` takes it.
        data: The corpus if it is there; a child is started if it is not.
    """

    def __init__(self, config: DataConfig, seed: int, data: TrainingData | None) -> None:
        self._request = {"config": config.model_dump(mode="json"), "seed": seed}
        self._data = data
        self._child = _Child(self._request) if data is None else None

    @property
    def is_done(self) -> bool:
        """Whether `result` would not have to wait."""
        return self._data is not None or (self._child is not None and self._child.is_over)

    def result(self) -> TrainingData:
        """Wait for the corpus.

        Raises:
            MedQAError: What the child met, as if it had been met here.
            DataError: If the child broke down or was cancelled.
        """
        if self._data is None:
            self._data = self._wait() or self._again()
        return self._data

    def cancel(self) -> None:
        """End the child, if there is one. It can be called at any time, and again."""
        if self._child is not None:
            self._child.end()

    def _again(self) -> TrainingData:
        """Build what the child found in the cache, but damaged."""
        self._child = _Child({**self._request, "rebuild": True})
        if (data := self._wait()) is None:
            raise DataError("the questions can't be read back after they were written", "check the disk")
        return data

    def _wait(self) -> TrainingData | None:
        assert self._child is not None
        answer = self._child.answer()
        path = Path(answer["folder"])
        return _kept(path) if answer["found"] else load(path)


def _kill_group(leader: int) -> None:
    """End a process and those that it started; 0 is this one. Windows has no groups, and forks no workers."""
    if sys.platform != "win32":
        os.killpg(leader, signal.SIGKILL)
    elif leader:
        os.kill(leader, signal.SIGTERM)  # ends it at once there
    else:
        os._exit(1)


class _Child:
    """A process that builds a corpus into the cache."""

    def __init__(self, request: dict[str, Any]) -> None:
        # A file, not a pipe: of a pipe, workers of a child that was killed would hold the other end.
        self._answer: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the child
        shadowed = {} if {"", str(Path.cwd())} & {*sys.path} else {"PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "medqa.data.prepared"],
            stdin=subprocess.PIPE,
            stdout=self._answer,
            env={**os.environ, **shadowed},
            start_new_session=True,  # so that its workers can be ended with it
        )
        self._ended = False
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it broke down at once: its exit code says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()  # and not closed: that would end the child

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def answer(self) -> dict[str, Any]:
        if self._ended:
            raise DataError("the questions were not prepared: that was cancelled", "begin again")
        try:
            code = self._process.wait()
            self._answer.seek(0)
            said = self._answer.read()
        finally:
            self.end()  # on Ctrl-C, and workers of a child that was killed
        if code not in (0, _MENDABLE):
            hint = "its own message stands above; this is a bug, please report it"
            if code < 0:
                hint = "it was ended from outside, as happens where memory runs out"
            raise DataError(
                f"the questions were not prepared: the process for it ended with exit code {code}", hint
            )
        answer: dict[str, Any] = json.loads(said)
        if code == _MENDABLE:
            tell([(name, level, text) for name, level, text in answer["notices"]])
            raise getattr(errors, answer["class"])(answer["message"], answer["hint"])
        return answer

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            _kill_group(self._process.pid)
        self._process.wait()
        self._answer.close()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()


class _Collector(logging.Handler):
    """Keeps what is logged, for the parent to say."""

    def __init__(self) -> None:
        super().__init__()
        self.notices: list[Notice] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notices.append((record.name, record.levelno, record.getMessage()))


def _read_request() -> dict[str, Any]:
    # Unbuffered: workers are forked beside the thread that waits here, and close their own sys.stdin.
    line = b""
    while not line.endswith(b"\n"):
        if not (more := os.read(0, 1 << 16)):
            sys.exit("the request was cut off")
        line += more
    request: dict[str, Any] = json.loads(line)
    return request


def _end_with_the_parent() -> None:
    while os.read(0, 1 << 16):
        pass
    _kill_group(0)


def _prepare(request: dict[str, Any], notices: list[Notice]) -> dict[str, Any]:
    config, seed = DataConfig.model_validate(request["config"]), request["seed"]
    path = entry_path(config, seed, source_files(config))
    found = is_there(path) and not request.get("rebuild")
    if not found:
        store(build_corpus(config, seed), notices, path)
    return {"folder": str(path), "found": found}


def main() -> None:
    """Be the child."""
    request = _read_request()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    collector = _Collector()
    logger = logging.getLogger("medqa")
    logger.setLevel(logging.INFO)
    logger.addHandler(collector)
    sys.excepthook = lambda *exc: sys.stderr.write(mask_secrets("".join(traceback.format_exception(*exc))))
    code = 0
    try:
        answer = _prepare(request, collector.notices)
    except Exception as exc:
        told = exc if isinstance(exc, MedQAError) else machine_fault(exc)
        if told is None:
            raise
        answer = {"class": type(told).__name__, "message": told.message, "hint": told.hint}
        answer["notices"] = collector.notices
        code = _MENDABLE
    print(json.dumps(answer))  # noqa: T201 - stdout is where the parent looks
    sys.exit(code)


if __name__ == "__main__":
    main()
