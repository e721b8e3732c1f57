"""Questions that several processes need: one of each machine makes them, the others take what it made."""

from medqa.config import DataConfig
from medqa.data.prepared import Pending, TrainingData, begin_corpus
from medqa.hardware.group import Group
from medqa.launch import builds_for_host

__all__ = ["InTurn"]


class InTurn:
    """A corpus that one process of each machine prepares; the others take it from the cache."""

    def __init__(self, config: DataConfig, seed: int, group: Group) -> None:
        """Begin, if this is the one; as `begin_corpus`.

        Args:
            config: Which questions, and how to treat them.
            seed: Of what is held back and drawn.
            group: The processes.
        """
        self._config, self._seed, self._group = config, seed, group
        self._pending: Pending | None = begin_corpus(config, seed) if builds_for_host() else None

    @property
    def is_done(self) -> bool:
        """Whether `result` would not have to wait."""
        return self._pending is not None and self._pending.is_done

    def result(self) -> TrainingData:
        """Wait for the corpus; as `Pending.result`."""
        if self._pending is not None:
            data = self._pending.result()
            self._group.wait()
            return data
        self._group.wait()
        self._pending = begin_corpus(self._config, self._seed)
        return self._pending.result()

    def cancel(self) -> None:
        """End what is being prepared."""
        if self._pending is not None:
            self._pending.cancel()
