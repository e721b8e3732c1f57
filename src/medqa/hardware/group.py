"""Processes that train or measure one model together, each with its own copy of it.

Every process does the same in the same order and holds the same results; only the first one writes files and
speaks. What a process alone would do is the case of a group of one, in which nothing is sent.
"""

import contextlib
import datetime
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from medqa.errors import DeviceError, MedQAError, TrainingError
from medqa.files import write_nothing
from medqa.launch import place

__all__ = ["Group", "current_group", "join_group", "loss_of_process"]

T = TypeVar("T")

_BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
# The first one may have to build the corpus and download the model while the others wait.
_PATIENCE = datetime.timedelta(hours=1)
_MEETING, _RETRY_S, _ANSWER_S = "medqa-meeting", 0.2, 5
# What gloo, NCCL and torch's stores say when somebody is gone.
_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|timed? ?out|remote process|socket", re.I
)


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

    def decide(self, work: Callable[[], T]) -> T:
        """Do something in the first process only; return what came of it, or raise its error, in each."""
        done: tuple[Any, MedQAError | None] = (None, None)
        if self.is_first:
            try:
                done = work(), None
            except MedQAError as exc:
                done = None, exc
        value, error = self.agree(done)
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def require_same(self, **held: object) -> None:
        """Compare what all processes hold.

        Raises:
            TrainingError: If something differs; in each of them.
        """
        first, *others = self.gather(held)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise TrainingError(
                        f"process {rank} has another {name.replace('_', ' ')} than process 0: "
                        f"{other[name]!r}, not {value!r}",
                        "give all hosts the same data, models and programs",
                    )

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
        DeviceError: If the others can't be reached.
    """
    global _current, _store
    rank, size = place()
    if size == 1 or _current.size == size:
        return _current
    backend = _BACKENDS.get(device.type, "gloo")
    try:
        _store = _meet(rank)
        dist.init_process_group(backend, store=_store, rank=rank, world_size=size, timeout=_PATIENCE)
        # Before a plan gives the memory away that this takes, too.
        dist.all_reduce(torch.zeros(1, device=device))
    except RuntimeError as exc:
        raise DeviceError(
            f"the {size} processes can't reach each other: {str(exc).splitlines()[0][:300]}",
            "one process a device; the hosts must reach each other; NCCL_DEBUG=INFO says more",
        ) from exc
    _current = Group(rank, size)
    if rank:
        write_nothing()
    return _current


_store: dist.Store | None = None  # the first process's is where all meet: it lives as long as that


def _meet(rank: int) -> dist.Store:
    """Find the store that the processes of this start have in common.

    torchrun's own outlives a restart, with the addresses of those that are gone, and its count of restarts
    differs between hosts. So the first process opens another, and leaves word of it there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    opens = rank == 0 and not has_agent
    known = dist.TCPStore(host, port, is_master=opens, timeout=_PATIENCE, wait_for_workers=False)
    if not has_agent:
        return known
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, timeout=_PATIENCE, wait_for_workers=False)
        own.set(_MEETING, word := secrets.token_hex(8))
        known.set(_MEETING, f"{own.port} {word}")
        return own
    while True:
        port_there, word = known.get(_MEETING).decode().split()
        with contextlib.suppress(RuntimeError):  # of an earlier start: closed by now
            answer = datetime.timedelta(seconds=_ANSWER_S)
            found = dist.TCPStore(host, int(port_there), timeout=answer, wait_for_workers=False)
            if found.get(_MEETING).decode() == word:
                found.set_timeout(_PATIENCE)
                return found
        time.sleep(_RETRY_S)


def loss_of_process(exc: BaseException) -> TrainingError | None:
    """Say what an error means that comes of a process being gone; None if it comes of something else."""
    text, size = str(exc), _current.size
    if size == 1 or not isinstance(exc, RuntimeError) or not _GONE.search(text):
        return None
    return TrainingError(
        f"another of the {size} processes is lost: {text.splitlines()[0][:300]}",
        "its own message says why; then the same command, or for a training `medqa train --resume RUN`, "
        "launched as before, which goes on from the last checkpoint",
    )


@contextlib.contextmanager
def _told(size: int) -> Iterator[None]:
    """Say what the loss of another process means."""
    try:
        yield
    except RuntimeError as exc:
        if lost := loss_of_process(exc):
            raise lost from exc
        raise TrainingError(
            f"the {size} processes can't exchange what they hold: {str(exc).splitlines()[0][:300]}",
            "NCCL_DEBUG=INFO says more",
        ) from exc
