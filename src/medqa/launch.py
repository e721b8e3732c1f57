"""Is this process one of several that torchrun or accelerate started? Read before torch is. Torch-free."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

__all__ = ["builds_for_host", "launch_id", "place", "wants_shards"]


def place() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) for one that is alone.

    Other launchers set some of these variables too, so all that a group needs must be there.
    """
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = [os.environ.get(name, "") for name in needed]
    if not all(found) or not (found[0].isdecimal() and found[1].isdecimal()) or int(found[1]) < 2:
        return 0, 1
    return int(found[0]), int(found[1])


def builds_for_host() -> bool:
    """Tell whether this is the process of several that makes what its machine keeps for itself."""
    return place()[1] == 1 or os.environ.get("LOCAL_RANK", str(place()[0])) == "0"


def launch_id() -> str | None:
    """Name torchrun's launch that started this process, the same when it starts it anew; None if none did."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if place()[1] == 1 or run is None:
        return None
    started, launcher = "", os.getppid()
    with contextlib.suppress(OSError, IndexError):  # since the machine started: no clock's matter
        started = Path(f"/proc/{launcher}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    text = f"{platform.node()} {run} {launcher} {started}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def wants_shards() -> bool:
    """Tell whether accelerate was told to spread the weights: `accelerate launch --use_fsdp`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
