"""Choose device and precision, each with the reason.

The only place that asks torch about devices. CUDA and ROCm both appear as torch's "cuda"; Intel as
"xpu", Apple as "mps".
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch

from medqa.config import ModelConfig
from medqa.errors import DeviceError, ModelError
from medqa.hardware.torchrun import own_accelerator
from medqa.launch import place

__all__ = [
    "Device",
    "be_deterministic",
    "choose_device",
    "is_out_of_memory",
    "torch_build",
]

Precision = Literal["bf16", "fp16", "fp32"]
COMPUTE: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclasses.dataclass(frozen=True)
class Device:
    """Where and how the arithmetic runs.

    Attributes:
        torch_device: The torch device.
        name: What the card or processor calls itself.
        reason: Why this device.
        precision: Precision of the matrix products.
        precision_reason: Why this precision.
        attention: Which attention path runs, and why.
        memory_gib: Memory of the device, in GiB, or None if not known.
    """

    torch_device: torch.device
    name: str
    reason: str
    precision: Precision
    precision_reason: str
    attention: str
    memory_gib: float | None

    @property
    def is_cpu(self) -> bool:
        """Whether the arithmetic runs on the processor."""
        return str(self.torch_device.type) == "cpu"

    def make_current(self) -> None:
        """Make it the current accelerator of this thread, if there are several: each thread has its own."""
        if self.torch_device.index:
            torch.accelerator.set_device_index(self.torch_device.index)

    @property
    def weight_dtype(self) -> torch.dtype:
        """Type of the frozen weights: fp16's range is too small for weights that gradients pass through."""
        return torch.float32 if self.precision == "fp16" else COMPUTE[self.precision]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Run matrix products in the chosen precision while the adapter stays fp32."""
        context: contextlib.AbstractContextManager[Any] = torch.autocast(
            self.torch_device.type, dtype=COMPUTE[self.precision], enabled=self.precision != "fp32"
        )
        return context

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, which does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self.torch_device.type, enabled=self.precision == "fp16")

    def synchronize(self) -> None:
        """Wait for all queued work."""
        if not self.is_cpu:
            torch.accelerator.synchronize(self.torch_device)

    def free_memory_gib(self) -> float | None:
        """Memory that can still be taken, in GiB; None if the device doesn't say."""
        if self.torch_device.type in ("cpu", "mps"):
            return self.memory_gib
        free, _ = torch.get_device_module(self.torch_device).mem_get_info(self.torch_device)
        return float(free) / 2**30

    def peak_memory_gib(self) -> float | None:
        """Greatest memory that tensors took on the device so far, in GiB; None if it doesn't say."""
        if self.torch_device.type in ("cpu", "mps"):
            return None
        return float(torch.accelerator.max_memory_allocated(self.torch_device)) / 2**30

    @contextlib.contextmanager
    def out_of_memory_is(self, doing: str) -> Iterator[None]:
        """Turn a lack of memory into an error that says what it was for."""
        try:
            yield
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            raise DeviceError(
                f"{self.name} has too little memory to {doing}",
                "close other programs on it, choose a smaller model, or --set model.device=cpu",
            ) from exc

    def release_memory(self) -> None:
        """Give cached, unused memory back to the device."""
        if not self.is_cpu:
            torch.accelerator.empty_cache()

    def record(self) -> dict[str, Any]:
        """Return the choice with its reasons, for run.json."""
        return {
            "device": str(self.torch_device),
            "name": self.name,
            "reason": self.reason,
            "precision": self.precision,
            "precision_reason": self.precision_reason,
            "attention": self.attention,
            "memory_gib": self.memory_gib and round(self.memory_gib, 1),
        }


def torch_build() -> str:
    """Say which accelerator the installed torch was built for: "cuda", "hip", "xpu", "mps" or "cpu"."""
    for kind in ("hip", "cuda", "xpu"):
        if getattr(torch.version, kind, None):
            return kind
    return "mps" if torch.backends.mps.is_built() else "cpu"


def be_deterministic() -> None:
    """Make every sum on the accelerator in one order from here on; to be called before anything is computed.

    Raises:
        DeviceError: If cuBLAS's variable is set to something that is not deterministic.
    """
    sizes = (":4096:8", ":16:8")
    if os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", sizes[0]) not in sizes:
        raise DeviceError(
            f"CUBLAS_WORKSPACE_CONFIG={os.environ['CUBLAS_WORKSPACE_CONFIG']} is not deterministic",
            f"unset it, or export CUBLAS_WORKSPACE_CONFIG={sizes[0]}",
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def choose_device(config: ModelConfig) -> Device:
    """Choose device and precision for the settings.

    Raises:
        DeviceError: If there is no accelerator for this process of torchrun's.
        ModelError: If the asked-for device isn't there.
    """
    device, reason = _torch_device(config.device)
    precision, precision_reason = _precision(device, config.dtype)
    name, memory_gib = _describe(device)
    return Device(device, name, reason, precision, precision_reason, _attention(device), memory_gib)


def _torch_device(wanted: str) -> tuple[torch.device, str]:
    if wanted == "auto":
        if torch.accelerator.is_available():
            found = torch.accelerator.current_accelerator()
            assert found is not None
            index, reason = own_accelerator()
            return torch.device(found.type, index), reason
        return torch.device("cpu"), "torch sees no accelerator"
    try:
        device = torch.device(wanted)
        if device.index is None and device.type != "cpu" and place()[1] > 1:
            device = torch.device(device.type, own_accelerator()[0])  # each process its own
        torch.empty(1, device=device).cpu()  # "meta" has no values
    except Exception as exc:
        raise ModelError(
            f"model.device {wanted!r} can't be used: {str(exc).splitlines()[0]}",
            "--set model.device=auto takes what is there; `medqa doctor` lists it",
        ) from exc
    return device, "set by model.device"


def _precision(device: torch.device, wanted: str) -> tuple[Precision, str]:
    if wanted != "auto":
        return cast(Precision, wanted), "set by model.dtype"
    if device.type == "cpu":
        return "fp32", "CPUs run bf16 slower than fp32"
    if _has_bf16(device):
        return "bf16", "the device computes bf16 natively"
    return "fp16", "the device has no native bf16: fp32 weights, fp16 products, scaled loss"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        one = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool((one @ one).sum().item() == 8)
    except (RuntimeError, TypeError):
        return False


def _attention(device: torch.device) -> str:
    slow = device.type == "cuda" and torch.version.hip and not _aotriton_ready(device)
    if slow:
        return "sdpa, slow math path: TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 is not set on this RDNA card"
    return "sdpa: torch's own, causal without a mask, its fastest path"


def _aotriton_ready(device: torch.device) -> bool:
    arch = str(getattr(torch.cuda.get_device_properties(device), "gcnArchName", ""))
    return arch.startswith("gfx9") or os.environ.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") == "1"


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
