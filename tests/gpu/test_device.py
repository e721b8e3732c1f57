"""On a real accelerator: it computes rightly, in each precision, and training fits its memory."""

import json

import pytest
import torch

from medqa.config import ModelConfig
from medqa.hardware.device import choose_device
from medqa.hardware.doctor import diagnose
from medqa.hardware.memory import plan_memory
from medqa.hardware.selftest_record import last_selftest
from medqa.model.selftest import run_selftest
from medqa.recipe import load_recipe
from medqa.train.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch sees no accelerator"),
]


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32"])
def test_the_device_computes_rightly(precision):
    device = choose_device(ModelConfig(dtype=precision))
    result = run_selftest(device)
    assert result["passed"], result["checks"]
    assert last_selftest(device) == result


def test_doctor_agrees_with_torch():
    findings = diagnose()
    assert findings["ok"], findings["findings"]
    assert len(findings["torch"]["devices"]) == len(findings["machine"]["cards"])


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_training_follows_the_cpu(settings, tmp_path, precision):
    losses = []
    for device, dtype in (("auto", precision), ("cpu", "fp32")):
        extra = [f"model.device={device}", f"model.dtype={dtype}"]
        run = train(load_recipe("medmcqa", [*settings, *extra]), tmp_path / device, "medmcqa")
        losses.append(
            [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        )
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_memory_plan_asks_the_device():
    device = choose_device(ModelConfig())
    config = type("Widths", (), {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28})
    assert plan_memory(device, config, 512, 16).rows >= 1
    assert plan_memory(device, config, 50_000_000, 16).checkpointing
