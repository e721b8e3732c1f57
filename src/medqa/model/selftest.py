"""Does this device compute rightly? One minute on the device itself, against float64 on the CPU.

Matrix product, attention, cross-entropy and one LoRA step forward and backward, in the precision
that training will use; then the same again, to see that it repeats; then how fast it is.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import COMPUTE, Device, choose_device
from medqa.hardware.selftest_record import keep_selftest
from medqa.model.lora import attach_adapter, compute_context, trainable_parameters

__all__ = ["BOUNDS", "relative_error", "run_selftest"]

# Largest relative error (norm of the difference by norm of the truth) that passes. A product of random
# matrices rounds its inputs to the precision's half unit: 2^-9 for bf16, 2^-12 for fp16, 2^-24 for fp32
# (2^-11 where fp32 products run in TF32). The bounds leave at least twice the
# error seen on an H100 and on a CPU, where the values are sound.
BOUNDS = {
    "bf16": {
        "matmul": 1e-2,
        "attention": 2e-2,
        "cross-entropy": 1e-5,
        "LoRA loss": 1e-2,
        "LoRA gradient": 6e-2,
    },
    "fp16": {
        "matmul": 2e-3,
        "attention": 4e-3,
        "cross-entropy": 1e-5,
        "LoRA loss": 2e-3,
        "LoRA gradient": 1e-2,
    },
    "fp32": {
        "matmul": 2e-3,
        "attention": 2e-3,
        "cross-entropy": 1e-5,
        "LoRA loss": 1e-4,
        "LoRA gradient": 2e-3,
    },
}

SIZE, RATE_SECONDS = 512, 1.0


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Norm of the difference, divided by the norm of the truth; infinite if a value is not finite."""
    difference = found.detach().cpu().double() - truth.detach().cpu().double()
    error = float(difference.norm() / truth.detach().double().cpu().norm())
    return error if error == error else float("inf")


def run_selftest(device: Device | None = None) -> dict[str, Any]:
    """Test the device that training would use, and keep the result for the runs that follow.

    Returns:
        passed, checks (name, error, bound, passed), rates and what was tested on.
    """
    device = device or choose_device(ModelConfig())
    start = time.monotonic()
    found, truth = {}, {}
    for name, compute in _checks().items():
        found[name] = compute(device, COMPUTE[device.precision])
        truth[name] = compute(_REFERENCE, torch.float64)
    bounds = BOUNDS[device.precision]
    checks = [_judge(name, relative_error(found[name], truth[name]), bound) for name, bound in bounds.items()]
    again = {name: compute(device, COMPUTE[device.precision]) for name, compute in _checks().items()}
    repeats = max(relative_error(again[name], found[name]) for name in found)
    checks.append(_judge("the same again", repeats, bounds["LoRA gradient"] / 10))
    result = {
        "passed": all(check["passed"] for check in checks),
        "device": device.name,
        "precision": device.precision,
        "torch": str(torch.__version__),
        "checks": checks,
        "repeats_exactly": repeats == 0,
        "rates": _rates(device),
        "seconds": round(time.monotonic() - start, 1),
    }
    keep_selftest(device, result)
    return result


_REFERENCE = Device(torch.device("cpu"), "CPU", "reference", "fp32", "reference", "", None)


def _judge(name: str, error: float, bound: float) -> dict[str, Any]:
    finite = min(error, 1e30)  # JSON has no infinity
    return {"name": name, "error": finite, "bound": bound, "passed": error <= bound}


def _random(*shape: int, seed: int) -> torch.Tensor:
    """Draw on the CPU in fp32, so that every device and precision starts from the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Check = Callable[[Device, torch.dtype], torch.Tensor]


def _checks() -> dict[str, Check]:
    return {
        "matmul": _matmul,
        "attention": _attention,
        "cross-entropy": _cross_entropy,
        "LoRA loss": lambda device, dtype: _lora_step(device, dtype)[0],
        "LoRA gradient": lambda device, dtype: _lora_step(device, dtype)[1],
    }


def _matmul(device: Device, dtype: torch.dtype) -> torch.Tensor:
    a, b = (_random(SIZE, SIZE, seed=seed).to(device.torch_device, dtype) for seed in (0, 1))
    return a @ b


def _attention(device: Device, dtype: torch.dtype) -> torch.Tensor:
    q, k, v = (_random(2, 4, 256, 64, seed=seed).to(device.torch_device, dtype) for seed in (2, 3, 4))
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _cross_entropy(device: Device, dtype: torch.dtype) -> torch.Tensor:
    """In fp32, as in training, whatever the precision of the products."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    logits = (4 * _random(256, 4096, seed=5)).to(device.torch_device, exact)
    labels = torch.arange(256, device=device.torch_device) * 16
    return cross_entropy(logits, labels, reduction="none")


def _lora_step(device: Device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and all adapter gradients in one vector, of a two-block Qwen3 with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(6)
    base = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            attn_implementation="sdpa",
        )
    ).requires_grad_(False)
    model = attach_adapter(base, LoraConfig(rank=8), seed=7)
    with torch.no_grad():
        for number, (_, p) in enumerate(trainable_parameters(model)):
            p.copy_(0.05 * _random(*p.shape, seed=100 + number))
    exact = dtype == torch.float64
    # The frozen weights are rounded to what training holds them in, on both sides.
    for p in base.parameters():
        if not p.requires_grad:
            p.data = p.data.to(COMPUTE["bf16"]).float()
    model = model.double() if exact else _place(model, device)
    ids = (torch.arange(4 * 64) * 37 % 2048).view(4, 64).to(device.torch_device)
    with compute_context(model, device):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits if exact else logits.float()
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    gradients = [p.grad.flatten() for _, p in trainable_parameters(model) if p.grad is not None]
    return loss, torch.cat(gradients)


def _place(model: Any, device: Device) -> Any:
    """Move to the device as training does: frozen weights in their type, adapter in fp32."""
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(device.weight_dtype)
    return model.to(device.torch_device)


def _rates(device: Device) -> dict[str, str]:
    """Measure matrix products and memory copies for about a second each."""
    size = 1024 if device.is_cpu else 8192
    dtype = COMPUTE[device.precision]
    a = torch.randn(size, size, device=device.torch_device).to(dtype)
    products = _per_second(device, lambda: a @ a)
    block = torch.empty(
        (64 if device.is_cpu else 1024) * 2**20, dtype=torch.uint8, device=device.torch_device
    )
    target = torch.empty_like(block)
    copies = _per_second(device, lambda: target.copy_(block))
    return {
        f"{device.precision} matrix products": f"{2 * size**3 * products / 1e12:.3g} TFLOP/s",
        "memory copies, read and written": f"{2 * block.numel() * copies / 1e9:.3g} GB/s",
    }


def _per_second(device: Device, work: Callable[[], Any]) -> float:
    for _ in range(3):
        work()
    device.synchronize()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < RATE_SECONDS:
        for _ in range(5):
            work()
        count += 5
        device.synchronize()
    return count / (time.perf_counter() - start)
