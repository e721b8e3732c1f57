"""Spread work on rows over the processors."""

import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

__all__ = ["collector_paused", "map_in_processes"]

T = TypeVar("T")

_MIN_ITEMS = 8
_MAX_PROCESSES = 16

# Set before the processes are forked: they share it, and nothing of it has to be sent.
_work: Callable[[Any], Any] | None = None


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Don't look for garbage in cycles: among millions of plain values that takes long and finds none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def map_in_processes(work: Callable[[int], T], items: Sequence[int]) -> Iterator[T]:
    """Call a function on each item, in forked processes if there are many items; results in order.

    Where processes can't be forked (Windows, macOS), one process does it all.
    """
    global _work
    num = min(_MAX_PROCESSES, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    if num == 1 or len(items) < _MIN_ITEMS:
        yield from map(work, items)
        return
    _work = work
    gc.freeze()  # what is there now stays shared
    try:
        with warnings.catch_warnings():
            # Python warns of forks beside threads. The children run pure Python and take no lock of others.
            warnings.simplefilter("ignore", DeprecationWarning)
            context = multiprocessing.get_context("fork")
            with concurrent.futures.ProcessPoolExecutor(num, mp_context=context) as pool:
                yield from pool.map(_call, items)
    finally:
        gc.unfreeze()
        _work = None


def _call(item: int) -> Any:
    assert _work is not None
    return _work(item)
