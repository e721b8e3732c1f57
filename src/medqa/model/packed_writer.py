"""Write many texts at once with the packed decoder: keys and values in slots, a step advances all of them.

Where the device has graphs, a step is one captured graph over all slots, used or not; elsewhere it takes the
used ones only, since a row more costs there.

Shape legend: S slots, A of them that are used, N tokens of all prompts, M tokens written, G key and value
heads, R query heads that one of them serves, E width of a head, T places that a step looks at, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from medqa.hardware.device import Device
from medqa.hardware.graphs import capture, has_graphs
from medqa.model.attention import attend
from medqa.model.decoder import PackedDecoder
from medqa.model.packed import pack_spans
from medqa.model.writer import Writing
from medqa.prompts import PromptRenderer

__all__ = ["PackedWriter", "choose_writer"]

log = logging.getLogger(__name__)

# A prompt with its text may be as long as this; a longer one is written the plain way.
MAX_LENGTH = 2048
# The shortest view of a slot; then powers of two, each a graph of its own.
FIRST_VIEW = 256
# Share of an accelerator's memory for keys and values, and how many texts at once are worth it.
MEMORY_SHARE = 0.1
MAX_SLOTS = 64
SLOTS_ON_CPU = 8
# Tokens of each text that show that the packed writer is right, and within how many nats, as for scoring.
NUM_COMPARED = 6
MAX_ERROR = {"fp32": 1e-3, "bf16": 0.15}


class PackedWriter:
    """The packed decoder with a cache of fixed slots.

    Attributes:
        length: Places in a slot: prompt and text together.
    """

    def __init__(
        self, decoder: PackedDecoder, device: Device, max_length_tokens: int, num_slots: int | None = None
    ) -> None:
        """Take memory for the slots: a tenth of an accelerator's, if their number is not given."""
        self._decoder, self._device = decoder, device
        self.length = min(max_length_tokens, MAX_LENGTH)
        blocks, G, E = decoder.cache_shape
        weight = decoder.weight
        if num_slots is None:
            num_slots = _fitting_slots(device, 2 * blocks * G * E * self.length * weight.element_size())
        where = {"device": weight.device, "dtype": weight.dtype}
        self._keys = [torch.zeros(num_slots, G, self.length, E, **where) for _ in range(blocks)]
        self._values = [torch.zeros(num_slots, G, self.length, E, **where) for _ in range(blocks)]
        self._num_slots, self._graphs = num_slots, has_graphs(device)
        # What a captured step reads and writes, always in the same place, and for as long as it is there.
        self._slot_S = torch.arange(num_slots, device=weight.device)
        self._token_S, self._place_S, self._next_S = (
            torch.zeros(num_slots, dtype=torch.int64, device=weight.device) for _ in range(3)
        )
        self._free = list(range(num_slots))
        self._active: dict[Writing, int] = {}
        self._steps: dict[int, Callable[[], None]] = {}

    @property
    def num_free(self) -> int:
        """How many more texts can be begun."""
        return len(self._free)

    def fits(self, writing: Writing) -> bool:
        """Tell whether a slot has room for prompt and text."""
        return len(writing.prompt) + writing.max_new_tokens <= self.length

    def start(self, writings: Sequence[Writing]) -> None:
        """Read the prompts in one pass, and write the first token of each; all are begun, or none is."""
        begun = [writing for writing in writings if writing.finished is None]
        if not begun:
            return
        try:
            for writing in begun:
                self._active[writing] = self._free.pop()
            for writing, token in zip(begun, self._read(begun), strict=True):
                self._add(writing, token)
        except BaseException:
            for writing in begun:
                self.stop(writing)
            raise

    def _read(self, begun: Sequence[Writing]) -> list[int]:
        """Run the prompts through, keep their keys and values, and return the first tokens."""
        slots = [self._active[writing] for writing in begun]
        lengths = [len(writing.prompt) for writing in begun]
        batch = pack_spans([w.prompt for w in begun], [(n - 1, n) for n in lengths])
        batch = batch.to(self._device.torch_device)
        slot_N = torch.tensor(slots).repeat_interleave(torch.tensor(lengths)).to(batch.token_N.device)

        def attention(block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._keys[block][slot_N, :, batch.place_N] = k
            self._values[block][slot_N, :, batch.place_N] = v
            return attend(q, k, v, batch, self._decoder.kernel)

        with torch.no_grad():
            hidden_SD = self._decoder.run(batch.token_N, batch.place_N, batch.position_M, attention)
            tokens: list[int] = self._decoder.logits(hidden_SD).argmax(-1).tolist()
            return tokens

    def step(self) -> None:
        """Write the next token of every text."""
        if not self._active:
            return
        going = list(self._active.items())
        # The slots of a graph are all of them: those that are not used write to their first place.
        last = dict.fromkeys(range(self._num_slots), (0, 0)) if self._graphs else {}
        last |= {slot: (w.ids[-1], len(w.prompt) + len(w.ids) - 1) for w, slot in going}
        slots = sorted(last)
        token_A, place_A = torch.tensor([last[slot] for slot in slots]).T
        view = self._view(int(place_A.max()) + 1)
        if self._graphs:
            self._token_S.copy_(token_A)
            self._place_S.copy_(place_A)
            self._captured(view)()
            found = self._next_S.tolist()
        else:
            where = self._decoder.weight.device
            slot_A, token_A, place_A = (x.to(where) for x in (torch.tensor(slots), token_A, place_A))
            found = self._next(slot_A, token_A, place_A, view).tolist()
        by_slot = dict(zip(slots, found, strict=True))
        for writing, slot in going:
            self._add(writing, by_slot[slot])

    def stop(self, writing: Writing) -> None:
        """Leave a text as it is, and give its slot back."""
        slot = self._active.pop(writing, None)
        if slot is not None:
            self._free.append(slot)

    def _add(self, writing: Writing, token: int) -> None:
        writing.add(token)
        if writing.finished is not None:
            self.stop(writing)

    def _view(self, needed: int) -> int:
        """Look at enough places, by powers of two where each view is a graph: more cost more."""
        if not self._graphs:
            return needed
        view = FIRST_VIEW
        while view < needed:
            view *= 2
        return min(view, self.length)

    def _captured(self, view: int) -> Callable[[], None]:
        if view not in self._steps:

            def work() -> None:
                self._next_S.copy_(self._next(self._slot_S, self._token_S, self._place_S, view))

            # Runs before the capture write to the very places that the step itself writes to.
            self._steps[view] = capture(self._device, work)
        return self._steps[view]

    def _next(
        self, slot_A: torch.Tensor, token_A: torch.Tensor, place_A: torch.Tensor, view: int
    ) -> torch.Tensor:
        """Run one token of each slot, and return the next (A,)."""
        later_AT = torch.arange(view, device=place_A.device) > place_A[:, None]
        scale = self._decoder.cache_shape[2] ** -0.5

        def attention(block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._keys[block], self._values[block]
            keys[slot_A, :, place_A] = k
            values[slot_A, :, place_A] = v
            if len(slot_A) < len(keys):
                keys, values = keys[slot_A], values[slot_A]
            q_AGRE = q.unflatten(1, (k.shape[1], -1))
            scores_AGRT = (q_AGRE * scale) @ keys[:, :, :view].transpose(-1, -2)
            scores_AGRT = scores_AGRT.float().masked_fill_(later_AT[:, None, None], -torch.inf)
            return (scores_AGRT.softmax(-1).to(v.dtype) @ values[:, :, :view]).flatten(1, 2)

        all_A = torch.arange(len(slot_A), device=slot_A.device)
        with torch.no_grad():
            hidden_AD = self._decoder.run(token_A, place_A, all_A, attention)
            return self._decoder.logits(hidden_AD).argmax(-1)


def choose_writer(
    decoder: PackedDecoder | None,
    device: Device,
    renderer: PromptRenderer,
    prompts: Sequence[Sequence[int]],
    max_length_tokens: int,
) -> PackedWriter | None:
    """Take the packed writer where there is a decoder, and it writes a few tokens as reading says it should.

    Args:
        decoder: The packed way through the model, found to equal the plain one.
        device: Where it is.
        renderer: Its prompt.
        prompts: Some to try it with.
        max_length_tokens: Longest input the model takes.
    """
    if decoder is None:
        return None
    try:
        writer = PackedWriter(decoder, device, max_length_tokens)
        tried = [Writing(renderer, prompt, NUM_COMPARED) for prompt in prompts]
        writer.start(tried)
        while any(writing.finished is None for writing in tried):
            writer.step()
        error = _gap(decoder, device, [writing for writing in tried if writing.ids])
    except RuntimeError as exc:
        log.warning("Writing the plain way, slower: the fast one does not run: %s", str(exc).splitlines()[0])
        return None
    if not error < MAX_ERROR[device.precision]:
        log.warning("Writing the plain way, slower: the fast one is off by %.2g nats here", error)
        return None
    return writer


def _gap(decoder: PackedDecoder, device: Device, writings: Sequence[Writing]) -> float:
    """Read texts in one pass each, and say how far the tokens that were written are from the likeliest.

    Returns:
        The largest difference of log-likelihood, in nats: 0 where every token is the likeliest.
    """
    rows = [w.prompt + w.ids for w in writings]
    spans = [(len(w.prompt) - 1, len(row) - 1) for w, row in zip(writings, rows, strict=True)]
    with torch.no_grad():
        hidden_MD = decoder.hidden(pack_spans(rows, spans).to(device.torch_device))
        logs_MV = decoder.logits(hidden_MD).float()
    token_M1 = torch.tensor([token for w in writings for token in w.ids], device=logs_MV.device)[:, None]
    return float((logs_MV.amax(-1) - logs_MV.gather(1, token_M1)[:, 0]).max())


def _fitting_slots(device: Device, slot_bytes: int) -> int:
    if device.is_cpu or not device.memory_gib:
        return SLOTS_ON_CPU
    return int(min(MAX_SLOTS, max(SLOTS_ON_CPU, MEMORY_SHARE * device.memory_gib * 2**30 / slot_bytes)))
