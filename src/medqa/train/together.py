"""How several processes share a step, and stay alike."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch

from medqa.errors import TrainingError
from medqa.hardware.device import is_out_of_memory
from medqa.hardware.group import Group
from medqa.model.batch import TokenisedRow
from medqa.train.schedule import deal

__all__ = [
    "SharedMemoryError",
    "is_shared_lack",
    "own_passes",
    "refuse_different_adapters",
    "whole_in_all",
]


def own_passes(rows: Sequence[TokenisedRow], rows_a_pass: int, group: Group) -> list[list[TokenisedRow]]:
    """Deal a step's rows to the processes, alike in tokens, and this one's to its passes."""
    own = [rows[index] for index in deal([len(row) for row in rows], group.size)[group.rank]]
    if group.sharded:  # as many passes as the others make
        num_passes = -(-len(rows) // group.size // rows_a_pass)
        return [own[start::num_passes] for start in range(num_passes)]
    # One pass at least: fp16's scaler wants a gradient, if there are fewer rows than processes.
    return [own[start : start + rows_a_pass] for start in range(0, len(own), rows_a_pass)] or [[]]


@contextlib.contextmanager
def whole_in_all(group: Group) -> Iterator[None]:
    """Of several processes, put off a lack of memory until the others know of it: they wait for this one.

    That goes by the processors, which notice a process that is gone, and wait for no device.

    Raises:
        SharedMemoryError: If one of them ran out of memory; in each of them.
    """
    if group.size == 1 or group.sharded:
        yield
        return
    short = False
    try:
        yield
    except RuntimeError as exc:
        if not is_out_of_memory(exc):
            raise
        short = True
    if group.most(int(short))[0]:
        raise SharedMemoryError("out of memory in one of the processes")


class SharedMemoryError(RuntimeError):
    """A process of several ran out of memory in its passes, and all know."""


def is_shared_lack(exc: BaseException, group: Group) -> bool:
    """Tell whether an error is a lack of memory that all processes know of, so that all can mend it alike."""
    if group.size == 1:
        return is_out_of_memory(exc)
    return isinstance(exc, SharedMemoryError) and not group.sharded


def refuse_different_adapters(weights: dict[str, torch.Tensor], group: Group) -> None:
    """Raise TrainingError unless all processes hold the same adapter, to the bit."""
    digest = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    if len(set(group.gather(digest.hexdigest()))) > 1:
        raise TrainingError(
            f"the {group.size} processes hold different adapters: their sums were not the same",
            "please report it; one process trains meanwhile",
        )
