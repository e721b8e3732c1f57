"""Is this process one of several that torchrun or accelerate started? Read before torch is. Torch-free."""

import os
import platform

import psutil

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
    """Name the launch that started this process; the same when torchrun starts it anew. None if alone."""
    if place()[1] == 1:
        return None
    launcher = psutil.Process().parent()
    if launcher is None:
        return None
    return f"{platform.node()}, process {launcher.pid} of {launcher.create_time():.2f}"


def wants_shards() -> bool:
    """Tell whether accelerate was told to spread the weights: `accelerate launch --use_fsdp`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
