"""Errors that a user can mend.

Everything this package raises on purpose is one of these; anything else is a bug and keeps its
traceback. Only the command line catches them, prints message and hint, and exits with 2.

* MedQAError
    * BusyError        a server has more to do than it takes in
    * CalibrationError what is known of a model's confidence: missing, another model's, too few questions
    * ConfigError      a recipe, a key or a value in it
    * DataError        a question, a file of questions, a column
    * DeviceError      an accelerator, its driver or its variables
    * DependencyError  a package that a feature needs and that is not installed
    * EngineError      a model server can't be reached or answers wrongly
        * RefusedByEngineError  it refuses one prompt, and may take others
    * HubError         the model hub can't be reached or refuses
    * MachineError     the disk is full or can't be written to, memory is exhausted
    * ModelError       a base model, a tokenizer or an adapter
    * PublishError     an export that is not the tuned model, or a folder that must not be published
    * RunError         a run folder: missing, half written, already there
    * TimeLimitError   an answer took longer than a server gives it
    * TrainingError    training can't go on: non-finite loss, out of memory
"""

import errno
import re

__all__ = [
    "BusyError",
    "CalibrationError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "DeviceError",
    "EngineError",
    "HubError",
    "MachineError",
    "MedQAError",
    "ModelError",
    "PublishError",
    "RefusedByEngineError",
    "RunError",
    "TimeLimitError",
    "TrainingError",
    "machine_fault",
]


class MedQAError(Exception):
    """Something the user can mend.

    Args:
        message: What is wrong, where, and the value that was found.
        hint: The command or setting that cures it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message


class BusyError(MedQAError):
    """A server has more to do than it takes in.

    Args:
        message: What is wrong.
        hint: What cures it.
        retry_after_s: Seconds after which there may be room.
    """

    def __init__(self, message: str, hint: str = "", retry_after_s: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class CalibrationError(MedQAError):
    """A calibration is missing, belongs to another model, or can't be made from so few questions."""


class ConfigError(MedQAError):
    """A recipe, a key or a value in it is wrong."""


class DataError(MedQAError):
    """A question or a file of questions is wrong."""


class DependencyError(MedQAError):
    """A feature needs a package that is not installed."""


class DeviceError(MedQAError):
    """An accelerator can't be used as things are."""


class EngineError(MedQAError):
    """A model server can't be reached, or answers wrongly."""


class RefusedByEngineError(EngineError):
    """A model server does not answer this one prompt, however often it is asked; others it may."""


class HubError(MedQAError):
    """The model hub can't be reached, or refuses what was asked for."""


class MachineError(MedQAError):
    """The disk is full or can't be written to, or memory is exhausted."""


class ModelError(MedQAError):
    """A base model, tokenizer or adapter can't be used."""


class PublishError(MedQAError):
    """An export is not the model that was tuned, or a folder must not leave the machine as it is."""


class RunError(MedQAError):
    """A run folder is missing, half written, or would be overwritten."""


class TimeLimitError(MedQAError):
    """An answer took longer than a server gives it."""


class TrainingError(MedQAError):
    """Training can't go on."""


_MEMORY = "close other programs, or a smaller model or batch"
_FAULTS = {
    errno.ENOSPC: "make room, then the same command again: what was written whole stays",
    errno.EDQUOT: "make room within your quota, then the same command again",
    errno.EROFS: "give a place that can be written to",
    errno.EACCES: "give a place that you may read and write, or change its permissions",
    errno.EPERM: "give a place that you may read and write, or change its permissions",
    errno.EIO: "the disk or its connection fails; copy what is there elsewhere",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "close other programs: the machine has too many files open",
    errno.ENOMEM: _MEMORY,
    errno.EFBIG: "the file system takes no files of this size; give a place on another disk",
    errno.ESTALE: "the connection to the disk was lost; mount it again, then the same command again",
    errno.ENOTCONN: "the connection to the disk was lost; mount it again, then the same command again",
}


def machine_fault(exc: BaseException) -> MachineError | None:
    """Say what an error means that comes from the machine and not from a fault of the program.

    Libraries written in other languages hand on what the system said as text.
    """
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, MemoryError):
            return MachineError("memory is exhausted", _MEMORY)
        if isinstance(seen, RuntimeError) and re.search(r"out of memory|can't allocate memory", str(seen)):
            return MachineError(str(seen).splitlines()[0], _MEMORY)
        number = seen.errno if isinstance(seen, OSError) else None
        if number is None and (found := re.search(r"\(os error (\d+)\)", str(seen))):
            number = int(found[1])
        if number in _FAULTS:
            return MachineError(str(seen), _FAULTS[number])
        seen = seen.__cause__ or (seen.__context__ if _hands_on(seen) else None)
    return None


def _hands_on(exc: BaseException) -> bool:
    """Tell whether an error may be what another became on its way, and not a fault in handling that other."""
    return isinstance(exc, OSError | RuntimeError) and not exc.__suppress_context__
