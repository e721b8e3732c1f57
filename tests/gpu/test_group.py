"""On an accelerator: NCCL beside captured passes, and sharded weights, in a group of one.

What one process can show of several: every message goes through the library that several would use.
"""

import socket

import pytest
import torch
import torch.distributed as dist

from conftest import tiny_settings
from medqa.config import LoraConfig, ModelConfig
from medqa.hardware import group as groups
from medqa.hardware.device import choose_device
from medqa.model.batch import AnswerLoss, collate, tokenise_rows
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, compute_context, trainable_parameters
from medqa.recipe import load_recipe
from medqa.testing import make_examples
from medqa.train.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
]


class Talking(groups.Group):
    """A group of one that sends its messages all the same."""

    num_sums = 0

    def sum_(self, tensor):
        self.num_sums += 1
        dist.all_reduce(tensor)


@pytest.fixture
def talking(monkeypatch):
    """Join a group of one by the backends that several processes take here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    dist.init_process_group(groups._BACKENDS["cuda"], init_method=address, rank=0, world_size=1)
    group = Talking()
    monkeypatch.setattr(groups, "_current", group)
    yield group
    dist.destroy_process_group()


def test_sums_by_nccl_leave_captured_passes_as_they_are(tiny_model, small_data, tmp_path, request):
    settings = [*tiny_settings(tiny_model, small_data), "model.device=auto", "train.epochs=8"]
    alone = train(load_recipe("medmcqa", settings), tmp_path / "alone", "medmcqa")
    group = request.getfixturevalue("talking")
    told = train(load_recipe("medmcqa", settings), tmp_path / "told", "medmcqa")
    assert group.num_sums >= 2 * told.record["training"]["num_steps"]
    paths = [run.record["training"]["path"] for run in (alone, told)]
    assert paths[0].get("graph", "").split(",")[0] == paths[1].get("graph", "").split(",")[0]
    assert told.record["adapter_sha256"] == alone.record["adapter_sha256"]


def test_sharded_weights_give_the_same_loss_and_gradient(tiny_model, talking):
    config = ModelConfig(name=str(tiny_model))
    base, device = find_base(config), choose_device(config)
    rows, _ = tokenise_rows(load_renderer(base), make_examples(8), max_length_tokens=512)
    results = []
    for shards in (False, True):
        model = load_model(base, device)
        if shards:
            talking.shard(model, device.torch_device)
        model = attach_adapter(model, LoraConfig(rank=4), seed=0)
        with torch.no_grad():
            for _, p in trainable_parameters(model):
                p.add_(0.01)
        batch = collate(rows, 0.5).to(device.torch_device)
        with compute_context(model, device):
            loss, _ = AnswerLoss(model)(
                batch.input_ids_BT, batch.position_N, batch.label_N, batch.weight_N, batch.is_answer_N
            )
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for _, p in trainable_parameters(model)])
        results.append((float(loss.detach()), gradient))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)
