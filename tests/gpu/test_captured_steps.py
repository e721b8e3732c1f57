"""On an accelerator: texts written as captured steps are those of transformers' own pass."""

import pytest
import torch

from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import choose_device
from medqa.model.captured import CapturedReader
from medqa.model.decoder import PackedDecoder
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.model.packed_writer import PackedWriter, choose_writer
from medqa.model.writer import PlainWriter, Writing, write_through
from medqa.testing import make_examples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator with graphs"),
]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_captured_steps_write_what_the_plain_pass_writes(tiny_model, dtype):
    config = ModelConfig(name=str(tiny_model), dtype=dtype)
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    with torch.no_grad():
        for _, p in trainable_parameters(model):
            p.normal_(std=0.2)
    renderer, decoder = load_renderer(base), PackedDecoder(model)
    prompts = [renderer.answer_ids(example, n % 4) for n, example in enumerate(make_examples(9))]
    prompts[0] = prompts[0] * 3  # from one captured view to the next
    writer = PackedWriter(decoder, device, 1024, num_slots=4)
    ways = []
    for way in (writer, PlainWriter(model, device)):
        writings = [Writing(renderer, prompt, 40) for prompt in prompts]
        write_through(way, writings)
        ways.append([writing.ids for writing in writings])
    if dtype == "fp32":
        assert ways[0] == ways[1]
    assert choose_writer(decoder, device, renderer, prompts[:3], 1024) is not None


def test_captured_passes_read_what_the_decoder_reads(tiny_model):
    config = ModelConfig(name=str(tiny_model), dtype="bf16")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    with torch.no_grad():
        for _, p in trainable_parameters(model):
            p.normal_(std=0.2)
    decoder = PackedDecoder(model)
    reader = CapturedReader(decoder, device)
    if decoder.kernel != "varlen":
        pytest.skip(f"no pass can be captured: {decoder.kernel_reason}")
    assert reader.num_captured
    for lengths in ((90,), (128, 1), (40,) * 64, (1000, 1000, 1000)):
        rows = [[(7 * n + place) % 250 for place in range(length)] for n, length in enumerate(lengths)]
        spans = [(len(row) - 1, len(row)) for row in rows]
        with torch.no_grad():
            for _ in range(2):
                found, expected = (way.read(rows, spans).float() for way in (reader, decoder))
                assert (found - expected).norm() < 0.02 * expected.norm()
