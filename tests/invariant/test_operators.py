"""What a training step runs is stock PyTorch: every operator is on a reviewed list.

That list is what stands in for a test on cards that are not at hand: each of these operators is
PyTorch's own and has a kernel on CUDA, ROCm, XPU, MPS and the CPU.
"""

from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import choose_device
from medqa.model.batch import AnswerLoss, collate, tokenise_rows
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, compute_context, trainable_parameters
from medqa.testing import make_examples

LIST = Path(__file__).with_name("operators.txt")


class Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


def operators_of_a_step(tiny_model, precision):
    config = ModelConfig(name=str(tiny_model), device="cpu", dtype=precision)
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4, dropout=0.1), seed=0).train()
    rows, _ = tokenise_rows(load_renderer(base), make_examples(4), max_length_tokens=512)
    batch = collate(rows, 0.5)
    parameters = [p for _, p in trainable_parameters(model)]
    optimizer = torch.optim.AdamW(parameters)
    with Record() as record:
        with compute_context(model, device):
            loss, _ = AnswerLoss(model)(
                batch.input_ids_BT, batch.position_N, batch.label_N, batch.weight_N, batch.is_answer_N
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return record.names


def test_a_step_runs_reviewed_operators_only(tiny_model):
    reviewed = {line.split("#")[0].strip() for line in LIST.read_text().splitlines()} - {""}
    for precision in ("fp32", "bf16"):
        found = operators_of_a_step(tiny_model, precision)
        assert found <= reviewed, f"not on the list: {sorted(found - reviewed)}"
        assert all(name.startswith(("aten::", "profiler::")) for name in found)


def test_no_custom_kernels_in_the_package():
    """No Triton, no inline C++ or CUDA: there is nothing to compile for any card."""
    source = Path(__file__).parents[2] / "src"
    for file in source.rglob("*.py"):
        for word in ("import triton", "triton.jit", "load_inline", "cpp_extension", "torch.library"):
            assert word not in file.read_text(), f"{file}: {word}"
