"""Processes that train or measure one model together, each with its own copy of it.

Every process does the same in the same order and holds the same results; only the first one writes files and
speaks. What a process alone would do is the case of a group of one, in which nothing is sent.
"""

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from medqa.errors import TrainingError
from medqa.files import write_nothing
from medqa.launch import num_restarts, place

__all__ = ["Group", "current_group", "join_group"]

T = TypeVar("T")

_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
# The first one may have to build the corpus and download the model while the others wait.
_PATIENCE = datetime.timedelta(hours=1)


class Group:
    """All processes of one launch.

    Attributes:
        rank: Number of this one.
        size: How many there are.
        sharded: Whether the frozen weights are spread over them: every pass is then made by all, in step.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size, self.sharded = rank, size, False

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> None:
        """Add up a tensor over all processes, in place; the sum is the same to the bit in each."""
        if self.size > 1:
            with _told(self.size):
                dist.all_reduce(tensor)

    def most(self, *numbers: int) -> list[int]:
        """Return the greatest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers)
        with _told(self.size):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return [int(value) for value in tensor.tolist()]

    def agree(self, value: T) -> T:
        """Return the first process's value, in each."""
        if self.size == 1:
            return value
        held: list[Any] = [value]
        with _told(self.size):
            dist.broadcast_object_list(held, device=torch.device("cpu"))
        return held[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, in each, by number."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _told(self.size):
            dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        self.most(0)

    def shard(self, model: Any, device: torch.device) -> None:
        """Spread the frozen weights of a model's blocks over all processes, on their devices.

        Embedding and head stay whole in each: they are used outside the blocks' own pass. An adapter that is
        attached afterwards stays whole too.

        Args:
            model: A transformers causal language model, on the CPU.
            device: Where this process computes.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        decoder = model.get_decoder()
        whole = {*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()}
        for block in decoder.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(decoder, mesh=mesh, ignored_params=whole)
        self.sharded = True

    def share(self, values: Sequence[T]) -> list[T]:
        """Take this process's share: every `size`-th value, or all that are sharded passes."""
        return list(values) if self.sharded else list(values[self.rank :: self.size])

    def in_order(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """Put what `share` took apart back into order."""
        if self.sharded:
            return list(shares[0])
        whole: list[Any] = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            whole[rank :: self.size] = share
        return whole


_current = Group()


def current_group() -> Group:
    """Return the group that this process joined; a group of one if none."""
    return _current


def join_group(device: torch.device) -> Group:
    """Join the processes that torchrun or accelerate started with this one; alone, do nothing.

    Of several, all but the first write no files from here on.

    Args:
        device: Where this process computes.

    Raises:
        TrainingError: If the others can't be reached.
    """
    global _current
    rank, size = place()
    if size == 1 or _current.size == size:
        return _current
    backend = _BACKENDS.get(device.type, "gloo")
    with _told(size):
        store, _, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
        store.set_timeout(_PATIENCE)
        # torchrun's store can outlive a restart, and with it the addresses of those that are gone.
        store = dist.PrefixStore(f"start-{num_restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    _current = Group(rank, size)
    if rank:
        write_nothing()
    return _current


@contextlib.contextmanager
def _told(size: int) -> Iterator[None]:
    """Say what the loss of another process means."""
    try:
        yield
    except RuntimeError as exc:
        raise TrainingError(
            f"another of the {size} processes is lost: {str(exc).splitlines()[0][:300]}",
            "its own message says why; `medqa train --resume RUN`, launched as before, goes on from the last "
            "checkpoint",
        ) from exc
