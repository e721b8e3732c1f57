"""Choose device and precision, each with the reason. The only place that asks torch about devices.

CUDA and ROCm both appear as torch's "cuda"; Intel as "xpu", Apple as "mps".
"""

import contextlib
import dataclasses
import os
from typing import Any

import torch

from medqa.config import ModelConfig
from medqa.errors import ModelError

__all__ = ["Device", "choose_device", "is_out_of_memory"]

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Device:
    """Where and how the arithmetic runs.

    Attributes:
        torch_device: The torch device.
        name: What the card or processor calls itself.
        reason: Why this device.
        dtype: Precision of frozen weights and arithmetic.
        dtype_reason: Why this precision.
        memory_gib: Memory of the device, in GiB, or None if not known.
    """

    torch_device: torch.device
    name: str
    reason: str
    dtype: torch.dtype
    dtype_reason: str
    memory_gib: float | None

    @property
    def dtype_name(self) -> str:
        """Name of the precision as settings write it."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Run matrix products in the chosen precision while the adapter stays fp32."""
        enabled = self.dtype != torch.float32
        context: contextlib.AbstractContextManager[Any] = torch.autocast(
            self.torch_device.type, dtype=self.dtype, enabled=enabled
        )
        return context

    def synchronize(self) -> None:
        """Wait for all queued work."""
        if self.torch_device.type != "cpu":
            torch.accelerator.synchronize(self.torch_device)

    def peak_memory_gib(self) -> float | None:
        """Greatest memory that tensors took on the device so far, in GiB; None on the CPU."""
        if self.torch_device.type in ("cpu", "mps"):
            return None
        return float(torch.accelerator.max_memory_allocated(self.torch_device)) / 2**30

    def release_memory(self) -> None:
        """Give cached, unused memory back to the device."""
        if self.torch_device.type != "cpu":
            torch.accelerator.empty_cache()

    def record(self) -> dict[str, Any]:
        """Return the choice with its reasons, for run.json."""
        return {
            "device": str(self.torch_device),
            "name": self.name,
            "reason": self.reason,
            "dtype": self.dtype_name,
            "dtype_reason": self.dtype_reason,
            "memory_gib": self.memory_gib and round(self.memory_gib, 1),
        }


def choose_device(config: ModelConfig) -> Device:
    """Choose device and precision for the settings.

    Raises:
        ModelError: If the asked-for device isn't there.
    """
    device, reason = _torch_device(config.device)
    dtype, dtype_reason = _dtype(device, config.dtype)
    name, memory_gib = _describe(device)
    return Device(device, name, reason, dtype, dtype_reason, memory_gib)


def _torch_device(wanted: str) -> tuple[torch.device, str]:
    if wanted == "auto":
        if torch.accelerator.is_available():
            found = torch.accelerator.current_accelerator()
            assert found is not None
            return torch.device(found.type, 0), "the accelerator that torch sees"
        return torch.device("cpu"), "torch sees no accelerator"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except Exception as exc:
        raise ModelError(
            f"model.device {wanted!r} can't be used: {str(exc).splitlines()[0]}",
            "--set model.device=auto takes what is there; `medqa doctor` lists it",
        ) from exc
    return device, "set by model.device"


def _dtype(device: torch.device, wanted: str) -> tuple[torch.dtype, str]:
    if wanted != "auto":
        return DTYPES[wanted], "set by model.dtype"
    if device.type == "cpu":
        return torch.float32, "CPUs run bf16 slower than fp32"
    if _has_bf16(device):
        return torch.bfloat16, "the device computes bf16 natively"
    return torch.float32, "the device has no native bf16"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        one = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool((one @ one).sum().item() == 8)
    except (RuntimeError, TypeError):
        return False


def _describe(device: torch.device) -> tuple[str, float | None]:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads", _host_memory_gib()
    if device.type == "mps":
        return "Apple GPU", _host_memory_gib()
    properties = torch.get_device_module(device).get_device_properties(device)
    return str(properties.name), properties.total_memory / 2**30


def _host_memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def is_out_of_memory(exc: BaseException) -> bool:
    """Tell whether an exception means that memory ran out, on any back end."""
    if isinstance(exc, torch.OutOfMemoryError):
        return True
    text = str(exc).lower()
    return isinstance(exc, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
