"""Keep transformers' own progress bars out of ours."""

import contextlib
from collections.abc import Iterator

__all__ = ["no_library_bars"]


@contextlib.contextmanager
def no_library_bars() -> Iterator[None]:
    """Switch transformers' progress bars off around a call, and back on after it."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
