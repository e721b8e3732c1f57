"""What the speed benchmarks share: clocks, memory, the rate of a large matmul, versions. No command."""

import importlib.metadata
import platform
import resource
import statistics
import time
from pathlib import Path

import torch

PACKAGES = (
    "medqa",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "datasets",
    "unsloth",
    "unsloth-zoo",
    "llamafactory",
    "flash-attn",
    "liger-kernel",
    "triton",
)


def on_gpu():
    return torch.cuda.is_available()


def pick_device(wanted):
    return ("cuda" if on_gpu() else "cpu") if wanted == "auto" else wanted


def sync(device):
    """Wait for queued work, so that the clock counts it."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_rss_gib():
    """Greatest memory of this process alone. `ru_maxrss` also holds what the parent had when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak(device):
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def peak_memory_gib(device):
    """Greatest memory of tensors on the device since `forget_peak`; on a CPU, of the process ever."""
    return peak_rss_gib() if device == "cpu" else torch.cuda.max_memory_allocated() / 2**30


def matmul_rate(device):
    """Measure FLOP/s of a large square product of random numbers, bf16 on a GPU and fp32 on a CPU."""
    size, dtype, repeats = (2048, torch.float32, 5) if device == "cpu" else (8192, torch.bfloat16, 20)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        sync(device)
        start = time.perf_counter()
        torch.mm(a, b)
        sync(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[3:])


def describe_device(device):
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def versions():
    installed = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    found = {name: installed[name] for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}
