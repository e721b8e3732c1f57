"""A signal that asks to stop is held back to the end of a step, where a checkpoint is sound."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

__all__ = ["StopRequest", "StoppedError"]

log = logging.getLogger(__name__)


class StoppedError(KeyboardInterrupt):
    """Training was asked to stop, and did so with a checkpoint of its last step."""


class StopRequest:
    """Whether Ctrl-C or SIGTERM asked to stop.

    Attributes:
        asked: It did, here or in another process.
    """

    def __init__(self, num_processes: int) -> None:
        """Begin unasked.

        Args:
            num_processes: A launcher of several hands on signals that they got already, and kills those that
                take too long; of one, who asks twice means at once.
        """
        self.asked = False
        self._saving, self._alone = False, num_processes == 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hold signals back within the block."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            # A signal that is ignored stays so: a shell does that for jobs in the background.
            ours = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
            previous = {s: signal.signal(s, self._ask) for s in ours}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Let nothing stop what the block writes."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and self._alone and not self._saving:
            raise KeyboardInterrupt
        if not self.asked:
            log.warning("Stopping after this step (once more stops at once, without saving it)")
        self.asked = True
