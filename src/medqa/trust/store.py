"""calibration.json: what is known of an adapter's confidence, beside it and never taken for another's."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from medqa.errors import CalibrationError, DataError, RunError
from medqa.files import read_json, seal, unsealed, write_json
from medqa.records import Example
from medqa.trust.calibration import Calibration
from medqa.trust.permutation import NUM_ORDERS

__all__ = ["FILE_NAME", "CalibrationFile", "Canary", "Identity", "read_values", "write_values"]

FILE_NAME = "calibration.json"
VERSION = 2  # with a checksum of its content, which the first version has not

_TOLD = ("accuracy", "mean_confidence", "ece", "nll")
_AGAIN = "`medqa calibrate RUN` makes a new one"


def read_values(folder: Path) -> dict[str, Any]:
    """Read calibration.json as plain values, as they were written.

    Raises:
        CalibrationError: If it is damaged, or of a version that is not read.
    """
    file = folder / FILE_NAME
    try:
        values = read_json(file)
        version = values.pop("version", None)
        if version == VERSION:
            return unsealed(values)
    except RunError as exc:
        raise CalibrationError(exc.message, _AGAIN) from exc
    except (ValueError, RecursionError) as exc:
        raise CalibrationError(f"{file} is damaged: {exc}", _AGAIN) from exc
    if version != 1:
        raise CalibrationError(f"{file} has version {version!r}; 1 and {VERSION} are read", _AGAIN)
    return values


def write_values(folder: Path, values: dict[str, Any]) -> None:
    """Write calibration.json."""
    write_json(folder / FILE_NAME, {"version": VERSION, **seal(values)})


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a calibration holds for: other weights or another prompt give other log-likelihoods.

    Attributes:
        adapter_sha256: Checksum of the adapter's weights.
        base_model: Fingerprint of the base model's weights.
        prompt_sha256: Checksum of the prompt around a question.
    """

    adapter_sha256: str
    base_model: str
    prompt_sha256: str


_NAMES = {"adapter_sha256": "adapter", "base_model": "base model", "prompt_sha256": "prompt"}


@dataclasses.dataclass(frozen=True)
class Canary:
    """A question and what the model made of it: another model, behind a server, would give something else.

    Attributes:
        example: The question.
        log_likelihoods: Of its options' letters.
        base_log_likelihoods: The same of the base model, without the adapter.
    """

    example: Example
    log_likelihoods: tuple[float, ...]
    base_log_likelihoods: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {
            "question": self.example.question,
            "options": list(self.example.options),
            "log_likelihoods": list(self.log_likelihoods),
            "base_log_likelihoods": list(self.base_log_likelihoods),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Canary":
        """Read what `to_json` gave.

        Raises:
            ValueError: Or KeyError or TypeError, if it is damaged.
        """
        try:
            example = Example(values["question"], tuple(values["options"]))
        except DataError as exc:
            raise ValueError(exc.message) from exc
        tuned, base = (
            tuple(float(value) for value in values[name])
            for name in ("log_likelihoods", "base_log_likelihoods")
        )
        if not len(tuned) == len(base) == len(example.options) or not all(map(math.isfinite, tuned + base)):
            raise ValueError(f"log_likelihoods of {example.id} are {tuned!r} and {base!r}")
        return cls(example, tuned, base)


@dataclasses.dataclass(frozen=True)
class CalibrationFile:
    """The calibrations of one adapter.

    Attributes:
        identity: What they hold for.
        by_orders: A calibration for each number of option orders that was fitted.
        record: Data, counts and provenance, for people to read.
        canaries: Known questions, to find out whether a server has this model; none in older files.
    """

    identity: Identity
    by_orders: dict[int, Calibration]
    record: dict[str, Any]
    canaries: tuple[Canary, ...] = ()

    @property
    def label(self) -> str:
        """Say in short which calibration this is, for an answer's record."""
        return f"{self.by_orders[min(self.by_orders)].calibrator.method}, {self.identity.adapter_sha256[:12]}"

    def summary(self) -> dict[str, Any]:
        """Say in a few numbers what was found, for each number of option orders."""
        return {
            "data": self.record["data"]["num_used"],
            "orders": {
                str(number): {
                    "method": found.calibrator.method,
                    "parameters": found.calibrator.to_json(),
                    **{
                        when: {key: found.account[when][key] for key in _TOLD} for when in ("before", "after")
                    },
                }
                for number, found in sorted(self.by_orders.items())
            },
        }

    def for_orders(self, num_orders: int) -> Calibration:
        """Return the calibration for answers averaged over so many orders.

        Raises:
            CalibrationError: If that was not fitted.
        """
        if num_orders not in self.by_orders:
            raise CalibrationError(
                f"not calibrated for answers over {num_orders} option orders",
                f"`medqa calibrate RUN --orders {num_orders}`",
            )
        return self.by_orders[num_orders]

    def write(self, folder: Path) -> None:
        """Write calibration.json."""
        write_values(
            folder,
            {
                "identity": dataclasses.asdict(self.identity),
                "orders": {str(number): found.to_json() for number, found in sorted(self.by_orders.items())},
                "canaries": [canary.to_json() for canary in self.canaries],
                **self.record,
            },
        )

    @classmethod
    def read(cls, folder: Path, identity: Identity) -> "CalibrationFile | None":
        """Read calibration.json; None if there is none.

        Args:
            folder: The adapter folder.
            identity: What it must hold for.

        Raises:
            CalibrationError: If it is damaged, or belongs to another adapter, base model or prompt.
        """
        file = folder / FILE_NAME
        if not file.exists():
            return None
        try:
            values = read_values(folder)
            found = Identity(**values["identity"])
            calibrations = {int(number): Calibration.from_json(c) for number, c in values["orders"].items()}
            if not calibrations or not set(calibrations) <= {*NUM_ORDERS}:
                raise CalibrationError(f"{file} holds no calibration for 1, 4 or 24 orders", _AGAIN)
            if not isinstance(values["data"]["num_used"], dict):
                raise TypeError("no data")
            canaries = tuple(Canary.from_json(canary) for canary in values.get("canaries", []))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as exc:
            raise CalibrationError(f"{file} is damaged: {exc!r}", _AGAIN) from exc
        for field, name in _NAMES.items():
            if getattr(found, field) != getattr(identity, field):
                raise CalibrationError(f"{file} belongs to another {name} and holds for that only", _AGAIN)
        own = ("identity", "orders", "canaries")
        record = {key: value for key, value in values.items() if key not in own}
        return cls(identity, calibrations, record, canaries)
