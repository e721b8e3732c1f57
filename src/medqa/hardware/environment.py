"""Set up the driver variables before torch is imported: the three on AMD, none elsewhere.

HIP reads its variables when it is loaded, so this has to run first. What the user set is never
changed: where it is proved wrong, training stops with the reason and the line that mends it.
"""

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any

from medqa.errors import DeviceError
from medqa.hardware.probe import Machine, probe
from medqa.hardware.rules import AOTRITON, CUDA, HIP, HSA, ROCR, check

__all__ = ["prepare_environment"]

log = logging.getLogger(__name__)

VARIABLES = (ROCR, HIP, CUDA, HSA, AOTRITON)


def prepare_environment(
    device: str = "auto",
    *,
    machine: Machine | None = None,
    environment: MutableMapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Check the driver variables and set the ones that the cards need.

    Args:
        device: The `model.device` setting; for "cpu" nothing is checked and nothing set.
        machine: What was probed; this machine if not given.
        environment: Variables to check and to set.

    Returns:
        For run.json: variables with their values, which of them were set here and why, and warnings.

    Raises:
        DeviceError: If a variable or a missing right would keep training off the card.
    """
    findings = [] if device == "cpu" else check(machine or probe(), environment)
    for finding in findings:
        if finding.level == "error":
            cure = finding.command or "`medqa doctor` says more"
            raise DeviceError(finding.message, f"{cure}; or train on the CPU: --set model.device=cpu")
        if finding.level == "warning":
            log.warning("%s%s", finding.message, f" ({finding.command})" if finding.command else "")
        elif finding.value is not None:
            if "torch" in sys.modules:
                log.warning(
                    "torch was imported before %s could be set: %s", finding.variable, finding.message
                )
                continue
            environment[finding.variable] = finding.value
            log.info("Set %s=%s: %s", finding.variable, finding.value, finding.message)
    return {
        "variables": {name: environment[name] for name in VARIABLES if name in environment},
        "set_here": {f.variable: f.message for f in findings if f.level == "set"},
        "warnings": [f.message for f in findings if f.level == "warning"],
    }
