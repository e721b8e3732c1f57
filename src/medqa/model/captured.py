"""Read a few questions at a time with captured passes: launching the kernels takes longer than running them.

A pass is captured for each of a few numbers of tokens; what a batch leaves free is filled with rows that
nobody looks at. Where a batch fits none of them, or the device has no graphs, the decoder's own pass runs.

Shape legend: N tokens, M positions that are looked at, D width of the hidden state.
"""

from collections.abc import Callable, Sequence

import torch

from medqa.hardware.device import Device
from medqa.hardware.graphs import capture, has_graphs
from medqa.model.decoder import PackedDecoder
from medqa.model.packed import PackedRows, Slots, pack_spans

__all__ = ["CapturedReader"]

# From one question to sixty-four; a batch takes the next larger, so that a third at most is filler.
NUM_TOKENS = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 7168, 8192)
NUM_ROWS = 64
LONGEST = 1024


class CapturedReader:
    """Reads rows with the decoder, in captured passes where they fit.

    Attributes:
        decoder: The decoder.
    """

    def __init__(self, decoder: PackedDecoder, device: Device) -> None:
        """Capture all passes, which takes some seconds; nothing where the device has no graphs."""
        self.decoder, self._device = decoder, device
        self._passes: dict[int, tuple[Slots, PackedRows, torch.Tensor, Callable[[], None]]] = {}
        # The other kernels of attention go by numbers on the host, which a capture would hold for ever.
        if has_graphs(device) and decoder.kernel == "varlen":
            for num_tokens in reversed(NUM_TOKENS):  # the largest first: the others fit into its memory
                self._passes[num_tokens] = self._capture(num_tokens)

    @property
    def num_captured(self) -> int:
        """How many passes are captured."""
        return len(self._passes)

    def read(
        self, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], *, adapted: bool = True
    ) -> torch.Tensor:
        """Return the last hidden state (M, D) at spans of the rows; see `PackedDecoder.read`."""
        num_tokens, num_places = sum(map(len, rows)), sum(stop - start for start, stop in spans)
        fitting = [size for size in sorted(self._passes) if size >= num_tokens]
        longest = min(LONGEST, fitting[0]) if fitting else 0
        if not adapted or num_places > NUM_ROWS or len(rows) > NUM_ROWS or max(map(len, rows)) > longest:
            return self.decoder.read(rows, spans, adapted=adapted)
        slots, static, hidden_MD, replay = self._passes[fitting[0]]
        pack_spans(rows, spans, slots).copy_into(static)
        replay()
        return hidden_MD[:num_places]

    def _capture(self, num_tokens: int) -> tuple[Slots, PackedRows, torch.Tensor, Callable[[], None]]:
        longest = min(LONGEST, num_tokens)
        slots = Slots(num_tokens, NUM_ROWS, NUM_ROWS + -(-num_tokens // longest), longest)
        static = pack_spans([[0]], [(0, 1)], slots).to(self._device.torch_device)
        hidden_MD = torch.zeros(
            NUM_ROWS,
            self.decoder.weight.shape[1],
            dtype=self.decoder.weight.dtype,
            device=self._device.torch_device,
        )

        def work() -> None:
            with torch.no_grad():
                hidden_MD.copy_(self.decoder.hidden(static))

        return slots, static, hidden_MD, capture(self._device, work)
