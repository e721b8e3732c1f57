"""Is this process one of several that torchrun or accelerate started? Read before torch is. Torch-free."""

import os

__all__ = ["num_restarts", "place", "wants_shards"]


def place() -> tuple[int, int]:
    """Return this process's number and how many there are; (0, 1) for one that is alone.

    Other launchers set some of these variables too, so all that a group needs must be there.
    """
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = [os.environ.get(name, "") for name in needed]
    if not all(found) or not (found[0].isdecimal() and found[1].isdecimal()) or int(found[1]) < 2:
        return 0, 1
    return int(found[0]), int(found[1])


def num_restarts() -> int:
    """Return how often torchrun started this anew because a process was lost (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def wants_shards() -> bool:
    """Tell whether accelerate was told to spread the weights: `accelerate launch --use_fsdp`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
