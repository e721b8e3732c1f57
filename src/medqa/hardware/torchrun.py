"""Which accelerator belongs to this process: torchrun starts several on one machine."""

import os

import torch

from medqa.errors import DeviceError

__all__ = ["own_accelerator"]


def own_accelerator() -> tuple[int, str]:
    """Choose an accelerator of this machine; torchrun's own for this process is made the current one.

    Returns:
        Its number, and why it is that.

    Raises:
        DeviceError: If torchrun started more processes than there are accelerators.
    """
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return 0, "the accelerator that torch sees"
    count = torch.accelerator.device_count()
    if not rank.isdecimal() or int(rank) >= count:
        raise DeviceError(
            f"LOCAL_RANK is {rank!r}, and torch sees {count} accelerator{'s' * (count != 1)}, from 0 on",
            f"torchrun --nproc-per-node {count}, or --set model.device=cpu",
        )
    # Captured graphs and streams belong to the current one, wherever the tensors are.
    torch.accelerator.set_device_index(int(rank))
    return int(rank), f"accelerator {rank}, by torchrun's LOCAL_RANK"
