"""Rows laid end to end: no padding between them, and one shape for many batches where a graph wants it.

Shape legend: S rows, N tokens of all rows, M labelled tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from medqa.model.batch import TokenisedRow

__all__ = ["PackedBatch", "PackedRows", "Slots", "pack", "pack_spans", "slots_for"]

# Matrix products like sizes that are multiples of it; at 2,700 tokens it costs 1 %.
MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class Slots:
    """Room in a batch of fixed shape.

    Attributes:
        num_tokens: Tokens, labelled or not.
        num_labels: Labelled tokens.
        num_rows: Rows, those that fill what is left over counted in.
        longest: Tokens of the longest row.
    """

    num_tokens: int
    num_labels: int
    num_rows: int
    longest: int


Self = TypeVar("Self", bound="PackedRows")


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows end to end, and the positions that are looked at.

    Shapes:
        token_N: (N,) token ids.
        place_N: (N,) place of each token in its row, from 0.
        bound_S: (S + 1,) int32; row s takes tokens bound_S[s] to bound_S[s + 1].
        position_M: (M,) index of each token that is looked at.

    Attributes:
        longest: Tokens of the longest row, at most.
        bounds: bound_S, on the host.
    """

    token_N: torch.Tensor
    place_N: torch.Tensor
    bound_S: torch.Tensor
    position_M: torch.Tensor
    longest: int
    bounds: tuple[int, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, always in the same order."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def to(self: Self, device: torch.device) -> Self:
        """Copy the tensors to a device, without waiting if they are staged."""
        copies = {n: t.to(device, non_blocking=t.is_pinned()) for n, t in self.tensors().items()}
        return dataclasses.replace(self, **copies)

    def staged(self: Self, device: torch.device) -> Self:
        """Put the tensors into pinned memory, which a copy needs in order not to hold up the host."""
        if device.type in ("cpu", "mps"):
            return self
        return dataclasses.replace(self, **{n: t.pin_memory() for n, t in self.tensors().items()})

    def copy_into(self: Self, static: Self) -> None:
        """Overwrite the tensors of a batch of the same shape, which a captured graph reads."""
        targets = static.tensors()
        for name, source in self.tensors().items():
            targets[name].copy_(source, non_blocking=source.is_pinned())


@dataclasses.dataclass(frozen=True)
class PackedBatch(PackedRows):
    """Rows to train on: the positions looked at are those before labels.

    Shapes:
        label_M: (M,) token to be predicted there.
        weight_M: (M,) share of the label in its row's loss; each row adds up to 1, what fills up to 0.
        answer_M: (M,) 1 where the label belongs to the letter, else 0.
    """

    label_M: torch.Tensor
    weight_M: torch.Tensor
    answer_M: torch.Tensor


def _round_up(number: int, multiple: int = MULTIPLE) -> int:
    return -(-number // multiple) * multiple


def slots_for(batches: Sequence[Sequence[TokenisedRow]]) -> Slots:
    """Find the room that each of these batches fits into."""
    num_tokens = _round_up(max(sum(map(len, rows)) for rows in batches))
    num_labels = _round_up(max(sum(len(row) - row.num_prefix for row in rows) for rows in batches))
    longest = max(len(row) for rows in batches for row in rows)
    least = min(sum(map(len, rows)) for rows in batches)
    fillers = -(-(num_tokens - least) // longest)
    return Slots(num_tokens, num_labels, max(map(len, batches)) + fillers, longest)


def pack(rows: Sequence[TokenisedRow], answer_weight: float, slots: Slots | None = None) -> PackedBatch:
    """Lay training rows end to end, with their labels and loss weights.

    With slots, the room that is left is filled with rows of token 0, which have no label:
    every token belongs to some row, so that attention writes all of its output.

    Args:
        rows: The rows.
        answer_weight: Share of the loss on the letter.
        slots: Fixed shape, which the rows must fit into.
    """
    lengths = [len(row) for row in rows]
    starts = np.cumsum([0, *lengths])
    token, position, label, weight, answer = [], [], [], [], []
    for start, row in zip(starts.tolist(), rows, strict=False):
        ids = np.frombuffer(row.ids, dtype=np.int32)
        token.append(ids)
        position.append(start + np.arange(row.num_prefix - 1, len(row) - 1))
        label.append(ids[row.num_prefix :])
        weight.append(np.array(row.label_weights(answer_weight)))
        answer.append(np.arange(len(row) - row.num_prefix) < row.num_letter)
    parts = [np.concatenate(part) for part in (token, position, label, weight, answer)]
    if slots is not None:
        lengths, parts = _filled(lengths, parts, slots)
    token_N, position_M, label_M, weight_M, answer_M = parts
    packed = _packed(token_N, lengths, position_M, slots)
    return PackedBatch(
        **{field.name: getattr(packed, field.name) for field in dataclasses.fields(packed)},
        label_M=torch.from_numpy(label_M.astype(np.int64)),
        weight_M=torch.from_numpy(weight_M.astype(np.float32)),
        answer_M=torch.from_numpy(answer_M.astype(np.float32)),
    )


def pack_spans(
    rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], slots: Slots | None = None
) -> PackedRows:
    """Lay rows end to end, and look at a span (start, stop) of each.

    With slots, the room that is left is filled as by `pack`, and further positions are 0.
    """
    lengths = [len(row) for row in rows]
    starts = np.cumsum([0, *lengths])
    positions = [start + np.arange(*span) for start, span in zip(starts.tolist(), spans, strict=False)]
    parts: list[np.typing.NDArray[np.generic]] = [
        np.concatenate([np.array(row) for row in rows]),
        np.concatenate(positions),
    ]
    if slots is not None:
        lengths, parts = _filled(lengths, parts, slots)
    token_N, position_M = parts
    return _packed(token_N, lengths, position_M, slots)


def _filled(
    lengths: list[int], parts: list[np.typing.NDArray[np.generic]], slots: Slots
) -> tuple[list[int], list[np.typing.NDArray[np.generic]]]:
    """Fill up to a fixed shape: rows of token 0, and positions and labels of 0."""
    left = slots.num_tokens - sum(lengths)
    fillers = [min(slots.longest, left - used) for used in range(0, left, slots.longest)]
    empty = slots.num_rows - len(lengths) - len(fillers)
    missing = slots.num_labels - len(parts[1])
    if left < 0 or empty < 0 or missing < 0 or max(lengths) > slots.longest:
        raise ValueError(f"{len(lengths)} rows of {sum(lengths)} tokens do not fit into {slots}")
    widths = [left, *[missing] * (len(parts) - 1)]
    return (
        [*lengths, *fillers, *[0] * empty],
        [np.pad(part, (0, width)) for part, width in zip(parts, widths, strict=True)],
    )


def _packed(
    token_N: np.typing.NDArray[np.generic],
    lengths: Sequence[int],
    position_M: np.typing.NDArray[np.generic],
    slots: Slots | None,
) -> PackedRows:
    bounds = np.cumsum([0, *lengths])
    place_N = np.arange(len(token_N)) - np.repeat(bounds[:-1], lengths)
    return PackedRows(
        token_N=torch.from_numpy(token_N.astype(np.int64)),
        place_N=torch.from_numpy(place_N),
        bound_S=torch.from_numpy(bounds.astype(np.int32)),
        position_M=torch.from_numpy(position_M.astype(np.int64)),
        longest=slots.longest if slots else max(lengths),
        bounds=tuple(bounds.tolist()),
    )
