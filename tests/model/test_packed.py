"""Packed rows hold what padded ones hold."""

import pytest
import torch

from medqa.model.batch import collate
from medqa.model.packed import Slots, pack, pack_spans, slots_for
from medqa.testing import row_of

ROWS = [row_of([5, 6, 7, 8], 2), row_of([9, 10, 11, 12, 13, 14], 3, 2), row_of([1, 2, 3], 2)]


def test_labels_and_weights_are_those_of_padded_rows():
    packed, padded = pack(ROWS, 0.4), collate(ROWS, 0.4)
    width = padded.input_ids_BT.shape[1]
    rows, places = padded.position_N // width, padded.position_N % width
    assert packed.token_N.tolist() == [token for row in ROWS for token in row.ids]
    assert packed.place_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert packed.bounds == (0, 4, 10, 13)
    assert packed.bound_S.dtype == torch.int32
    assert packed.position_M.tolist() == [packed.bounds[r] + p for r, p in zip(rows, places, strict=True)]
    assert packed.label_M.tolist() == padded.label_N.tolist()
    torch.testing.assert_close(packed.weight_M, padded.weight_N)
    assert packed.answer_M.bool().tolist() == padded.is_answer_N.tolist()
    assert packed.longest == 6


def test_slots_are_filled_so_that_every_token_belongs_to_a_row():
    slots = Slots(num_tokens=32, num_labels=10, num_rows=8, longest=6)
    packed, exact = pack(ROWS, 0.4, slots), pack(ROWS, 0.4)
    assert packed.bounds == (0, 4, 10, 13, 19, 25, 31, 32, 32)
    assert len(packed.token_N) == len(packed.place_N) == 32
    assert packed.place_N.max() < slots.longest
    num = len(exact.label_M)
    torch.testing.assert_close(packed.weight_M[:num], exact.weight_M)
    assert not packed.weight_M[num:].any()
    assert not packed.answer_M[num:].any()
    assert {len(t) for t in packed.tensors().values()} == {32, 9, 10}


def test_slots_fit_each_of_the_batches():
    batches = [ROWS, ROWS[:1], ROWS[1:]]
    slots = slots_for(batches)
    assert slots.num_tokens % 64 == slots.num_labels % 64 == 0
    shapes = {tuple(t.shape for t in pack(rows, 0.5, slots).tensors().values()) for rows in batches}
    assert len(shapes) == 1
    long = [row_of([1] * (slots.longest + 1), 2)]
    for rows in (ROWS * 20, long):  # a longer row would be attended to in part
        with pytest.raises(ValueError, match="do not fit"):
            pack(rows, 0.5, slots)


def test_spans_give_their_places():
    packed = pack_spans([[5, 6, 7], [8, 9], [1]], [(2, 3), (0, 2), (0, 1)])
    assert packed.position_M.tolist() == [2, 3, 4, 5]
    assert packed.token_N.tolist() == [5, 6, 7, 8, 9, 1]


def test_a_copy_into_a_static_batch_changes_its_values_only():
    slots = Slots(num_tokens=64, num_labels=64, num_rows=20, longest=6)
    static = pack(ROWS, 0.5, slots)
    addresses = [t.data_ptr() for t in static.tensors().values()]
    pack(ROWS[1:], 0.5, slots).copy_into(static)
    assert [t.data_ptr() for t in static.tensors().values()] == addresses
    for ours, expected in zip(
        static.tensors().values(), pack(ROWS[1:], 0.5, slots).tensors().values(), strict=True
    ):
        assert torch.equal(ours, expected)
