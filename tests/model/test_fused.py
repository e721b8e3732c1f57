"""Each fused product equals its plain composition, forward and backward."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear, silu

from medqa.model import fused

N, D, R, OUT, H, E, V = 9, 12, 5, 14, 3, 8, 40


def randn(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)


def same(ours, plain, inputs):
    """Compare value and gradients by a random direction."""
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(plain)
    grads = (torch.autograd.grad(out, inputs, direction) for out in (ours, plain))
    for mine, expected in zip(*grads, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [True, False])
def test_adapted_linear(bias):
    x, a, b = randn(N, D), randn(R, D), randn(OUT, R)
    weight, shift = randn(OUT, D, grad=False), randn(OUT, grad=False) if bias else None
    plain = linear(x, weight, shift) + linear(linear(x, a), b)
    same(fused.adapted_linear(x, weight, shift, a, b), plain, (x, a, b))


def test_the_first_layer_needs_no_gradient_by_its_input():
    x, a, b = randn(N, D, grad=False), randn(R, D), randn(OUT, R)
    out = fused.adapted_linear(x, randn(OUT, D, grad=False), None, a, b)
    assert [g.shape for g in torch.autograd.grad(out.sum(), (a, b))] == [a.shape, b.shape]


def test_rotate_equals_transformers():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x = randn(N, H, E)
    angle = torch.rand(N, E // 2, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    both = [torch.cat([part, part], -1)[None] for part in (cos, sin)]
    plain, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], *both)
    same(fused.rotate(x, cos[:, None], sin[:, None]), plain[0].transpose(0, 1), (x,))


def test_rotate_takes_views():
    wide = randn(N, 2 * H, E)
    angle = torch.rand(N, 1, E // 2, dtype=torch.float64)
    part = wide[:, H:]
    ours = fused.rotate(part, angle.cos(), angle.sin())
    same(ours, fused.rotate(part.contiguous(), angle.cos(), angle.sin()), (wide,))


def test_swiglu():
    both = randn(N, 2 * D)
    gate, up = both.chunk(2, -1)
    same(fused.swiglu(both), silu(gate) * up, (both,))


@pytest.mark.parametrize("chunk", [2, 4, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_weighted_nll(monkeypatch, chunk, bias):
    monkeypatch.setattr(fused, "CHUNK_LABELS", chunk)
    hidden = torch.randn(N, D, requires_grad=True)
    head, shift = torch.randn(V, D), torch.randn(V) if bias else None
    label, weight = torch.randint(V, (N,)), torch.rand(N)
    weight[-1] = 0  # what fills up a fixed shape has no weight
    plain = cross_entropy(linear(hidden, head, shift), label, reduction="none")
    loss, nll = fused.weighted_nll(hidden, head, shift, label, weight)
    torch.testing.assert_close(nll, plain.detach())
    assert not nll.requires_grad
    torch.testing.assert_close(loss, (plain * weight).sum())
    for factor in (1.0, 3.0):
        ours, expected = (
            torch.autograd.grad(factor * value, hidden, retain_graph=True)[0]
            for value in (loss, (plain * weight).sum())
        )
        torch.testing.assert_close(ours, expected)
        assert not ours[-1].any()
