"""Captured passes read what the decoder's own pass reads."""

import dataclasses

import numpy as np
import pytest
import torch

from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import choose_device
from medqa.model import captured as captured_module
from medqa.model import decoder as decoder_module
from medqa.model.captured import LONGEST, NUM_ROWS, CapturedReader
from medqa.model.decoder import PackedDecoder
from medqa.model.load import find_base, load_model
from medqa.model.lora import attach_adapter, trainable_parameters


@pytest.fixture(scope="module")
def parts(tiny_model):
    config = ModelConfig(name=str(tiny_model), device="cpu", dtype="fp32")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    with torch.no_grad():
        for _, p in trainable_parameters(model):
            p.normal_(std=0.2)
    return PackedDecoder(model), device


@pytest.fixture
def reader(parts, monkeypatch):
    """A reader that takes its captured passes on the CPU: what they may look at is in the tensors alone."""
    decoder, device = parts
    attend, captured = decoder_module.attend, []

    def by_tensors(q, k, v, batch, kernel):
        bounds = tuple(batch.bound_S.tolist())
        assert batch.longest >= max(np.diff(bounds))
        return attend(q, k, v, dataclasses.replace(batch, bounds=bounds), "row by row")

    def capture(device, work):
        captured.append(work)
        return work

    monkeypatch.setattr(captured_module, "has_graphs", lambda device: True)
    monkeypatch.setattr(captured_module, "capture", capture)
    monkeypatch.setattr(decoder_module, "attend", by_tensors)
    monkeypatch.setattr(decoder, "kernel", "varlen")
    monkeypatch.setattr(captured_module, "NUM_TOKENS", (64, 128, 1280))
    made = CapturedReader(decoder, device)
    assert made.num_captured == len(captured) == 3
    return made


def rows_of(*lengths):
    return [[(7 * n + place) % 250 for place in range(length)] for n, length in enumerate(lengths)]


def last(rows):
    return [(len(row) - 1, len(row)) for row in rows]


@pytest.mark.parametrize(
    "lengths", [(5,), (64,), (20, 30, 14), (20, 30, 15), (1, 1, 1), (100, 28), (1000, 200), (9,) * NUM_ROWS]
)
def test_whatever_fits_is_read_alike(reader, parts, lengths, monkeypatch):
    rows = rows_of(*lengths)
    expected = parts[0].read(rows, last(rows))
    monkeypatch.setattr(parts[0], "read", None)  # the captured pass has to do
    with torch.no_grad():
        assert torch.allclose(reader.read(rows, last(rows)), expected, atol=1e-5)


@pytest.mark.parametrize("lengths", [(700, 700), (LONGEST + 1,), (5,) * (NUM_ROWS + 1)])
def test_what_does_not_fit_goes_the_other_way(reader, parts, lengths):
    rows = rows_of(*lengths)
    assert torch.equal(reader.read(rows, last(rows)), parts[0].read(rows, last(rows)))


def test_spans_of_several_and_the_base_model(reader, parts):
    rows = rows_of(12, 9)
    spans = [(3, 6), (8, 9)]
    assert torch.allclose(reader.read(rows, spans), parts[0].read(rows, spans), atol=1e-5)
    base = reader.read(rows, spans, adapted=False)
    assert torch.equal(base, parts[0].read(rows, spans, adapted=False))
    assert not torch.allclose(base, reader.read(rows, spans))


def test_nothing_is_captured_where_nothing_can_be(parts):
    assert CapturedReader(*parts).num_captured == 0
