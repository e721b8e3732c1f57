"""On a real accelerator: captured or not, packed or padded, the trajectory is the same."""

import pytest
import torch

from medqa.config import LoraConfig, ModelConfig, TrainConfig
from medqa.evaluate.score import choose_decoder, make_items
from medqa.hardware.device import choose_device
from medqa.hardware.graphs import has_graphs
from medqa.model.batch import tokenise_rows
from medqa.model.decoder import PackedDecoder
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter
from medqa.testing import make_examples
from medqa.train.engine import PlainEngine
from medqa.train.fast import PackedEngine
from medqa.train.schedule import plan_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch sees no accelerator"),
]

CONFIG = TrainConfig(batch_size=8, epochs=8, learning_rate=0.002, lora=LoraConfig(rank=8))


@pytest.fixture
def parts(tiny_model):
    device = choose_device(ModelConfig(name=str(tiny_model)))
    base = find_base(ModelConfig(name=str(tiny_model)))
    rows, _ = tokenise_rows(load_renderer(base), make_examples(40), max_length_tokens=512)
    plan = plan_steps([len(row) for row in rows], CONFIG, balanced=True)
    steps = [[rows[index] for index in step] for step in plan]

    def model():
        return attach_adapter(load_model(base, device), CONFIG.lora, seed=0)

    return device, base, model, steps


def trajectory(engine, steps):
    engine.expect(steps, CONFIG.batch_size)
    results = []
    for step, following in zip(steps, [*steps[1:], []], strict=True):
        results.append(engine.gradients(step, CONFIG.batch_size, following))
        engine.update(CONFIG.learning_rate)
    return [r.loss for r in results], [r.grad_norm for r in results]


def test_captured_and_launched_one_by_one_are_the_same(parts, caplog):
    caplog.set_level("INFO")
    device, _, model, steps = parts
    if not has_graphs(device):
        pytest.skip("graphs are captured on CUDA and HIP")
    notices = []
    engines = [PackedEngine(PackedDecoder(model()), CONFIG, device, notices.append) for _ in range(2)]
    engines[1]._graphs = False
    captured, launched = (trajectory(engine, steps) for engine in engines)
    assert "Passes are one graph" in caplog.text
    assert not notices
    for ours, expected in zip(captured, launched, strict=True):
        assert ours == pytest.approx(expected, rel=5e-3)


def test_the_fast_path_follows_the_plain_one(parts):
    device, _, model, steps = parts
    plain = trajectory(PlainEngine(model(), CONFIG, device), steps)
    fast = trajectory(PackedEngine(PackedDecoder(model()), CONFIG, device, print), steps)
    assert fast[0] == pytest.approx(plain[0], rel=0.01)
    assert plain[0][-1] < 0.97 * plain[0][0]


def test_flash_attention_over_rows_of_any_length_is_right_here(parts):
    device, _, model, _ = parts
    decoder = PackedDecoder(model())
    if torch.version.cuda and device.precision == "bf16":
        assert decoder.kernel == "varlen", decoder.kernel_reason


def test_packed_scores_equal_plain_ones(parts):
    device, base, model, _ = parts
    items = make_items(load_renderer(base), make_examples(9), "medqa")
    assert choose_decoder(model().eval(), items, device, max_length_tokens=1000) is not None
