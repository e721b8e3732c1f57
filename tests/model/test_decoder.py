"""The packed way through a model equals transformers and PEFT: every family, every adapter."""

import dataclasses
import random

import pytest
import torch
import transformers

from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import choose_device
from medqa.model import attention
from medqa.model.batch import AnswerLoss, collate
from medqa.model.decoder import PackedDecoder, why_not_packed
from medqa.model.lora import attach_adapter, compute_context, trainable_parameters, without_adapter
from medqa.model.packed import pack, pack_spans, slots_for
from medqa.model.parity import check_parity
from medqa.testing import row_of

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "qwen3": lambda **more: transformers.Qwen3Config(head_dim=16, **SIZES, **more),
    "qwen2": lambda **more: transformers.Qwen2Config(**SIZES, **more),
    "llama": lambda **more: transformers.LlamaConfig(**SIZES, **more),
    "llama, biases, scaled rotation": lambda: transformers.LlamaConfig(
        **{**SIZES, "num_key_value_heads": 4},
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}
RNG = random.Random(0)
ROWS = [
    row_of([RNG.randrange(99) for _ in range(length)], length - rest, 1, min(2, rest - 1))
    for length, rest in ((40, 1), (23, 9), (70, 50), (8, 4))
]


def tuned(config, lora=None, dtype=torch.float32):
    """A model with random weights, biases and norms, and an adapter that has an effect."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    model.config._attn_implementation = "sdpa"
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.requires_grad_(False)
    model = attach_adapter(model.eval(), lora or LoraConfig(rank=4), seed=0)
    randomise(model)
    return model


def randomise(model):
    with torch.no_grad():
        for _, p in trainable_parameters(model):
            p.copy_(0.1 * torch.randn_like(p))


def device_of(dtype="fp32"):
    return choose_device(ModelConfig(device="cpu", dtype=dtype))


def plain(model, dtype="fp32"):
    b = collate(ROWS, 0.3)
    with compute_context(model, device_of(dtype)):
        loss, answer = AnswerLoss(model)(b.input_ids_BT, b.position_N, b.label_N, b.weight_N, b.is_answer_N)
    named = trainable_parameters(model)
    grads = torch.autograd.grad(loss, [p for _, p in named])
    return loss.detach(), answer, {name: g for (name, _), g in zip(named, grads, strict=True)}


def packed(decoder, slots=None):
    loss, answer = decoder.loss(pack(ROWS, 0.3, slots))
    adapter = decoder.adapter
    adapter.grad.zero_()
    adapter.add_gradients(torch.autograd.grad(loss, adapter.leaves))
    return loss.detach(), answer, adapter.named(adapter.grad * adapter.factor)


def assert_equal(ours, expected, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(ours[0], expected[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(ours[1], expected[1], rtol=rtol, atol=atol)
    assert ours[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        torch.testing.assert_close(ours[2][name], gradient, rtol=rtol, atol=atol, msg=name)


LORAS = {
    "all linear": LoraConfig(rank=4),
    "q and v": LoraConfig(rank=3, alpha=5, targets=("q_proj", "v_proj")),
    "up alone": LoraConfig(rank=2, targets=("up_proj",)),
    "last block": LoraConfig(rank=4, last_blocks=1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_plain_ones(family):
    model = tuned(FAMILIES[family]())
    expected = plain(model)
    decoder = PackedDecoder(model)
    assert why_not_packed(model) is None
    assert_equal(packed(decoder), expected)
    assert_equal(plain(model), expected)  # the model's own weights are views now, and the same


@pytest.mark.parametrize("lora", LORAS)
def test_any_layers_can_be_adapted(lora):
    model = tuned(FAMILIES["qwen3"](), LORAS[lora])
    expected = plain(model)
    assert_equal(packed(PackedDecoder(model)), expected)


def test_filling_up_a_fixed_shape_changes_nothing():
    model = tuned(FAMILIES["qwen3"]())
    slots = dataclasses.replace(slots_for([ROWS]), num_tokens=320, num_labels=128, num_rows=12)
    decoder = PackedDecoder(model)
    assert_equal(packed(decoder, slots), packed(decoder))


def test_recomputing_changes_nothing():
    decoder = PackedDecoder(tuned(FAMILIES["qwen3"]()))
    expected = packed(decoder)
    decoder.recompute = True
    assert_equal(packed(decoder), expected)


def test_half_precision_stays_within_its_bounds():
    model = tuned(FAMILIES["qwen3"](), dtype=torch.bfloat16)
    expected = plain(model, "bf16")
    ours = packed(PackedDecoder(model))
    torch.testing.assert_close(ours[0], expected[0].float(), rtol=1e-2, atol=0)
    # The same weights in single precision tell which of the two is nearer to what it should be.
    exact = plain(model.float())[2]
    errors = [
        torch.cat([(found[name].float() - g).flatten() for name, g in exact.items()]).norm()
        for found in (expected[2], ours[2])
    ]
    assert errors[1] < 1.1 * errors[0]
    assert errors[1] < 0.06 * torch.cat([g.flatten() for g in exact.values()]).norm()


def test_hidden_states_of_base_and_tuned_model():
    model = tuned(FAMILIES["qwen2"]())
    decoder = PackedDecoder(model)
    rows = [list(row.ids) for row in ROWS]
    batch = pack_spans(rows, [(len(row) - 1, len(row)) for row in rows])
    with torch.inference_mode():
        for adapted in (True, False):
            with without_adapter(model) if not adapted else torch.no_grad():
                expected = [
                    model.get_base_model().get_decoder()(torch.tensor([row])).last_hidden_state[0, -1]
                    for row in rows
                ]
            ours = decoder.hidden(batch, adapted=adapted)
            torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_weights_go_to_the_model_and_back():
    model = tuned(FAMILIES["llama"]())
    adapter = PackedDecoder(model).adapter
    before = {name: p.detach().clone() for name, p in trainable_parameters(model)}
    for name, view in adapter.named(adapter.weights).items():
        assert torch.equal(view, before[name])
    adapter.weights.mul_(2)
    adapter.store()
    assert all(torch.equal(p.detach(), 2 * before[name]) for name, p in trainable_parameters(model))
    randomise(model)
    adapter.load()
    assert_equal(packed(PackedDecoder(model)), plain(model))


def test_nothing_off_the_diagonal_ever_moves():
    """Layers that share an input share one B matrix; what is not theirs must stay zero."""
    adapter = PackedDecoder(tuned(FAMILIES["qwen3"]())).adapter
    used = torch.zeros_like(adapter.weights)
    for view in adapter.named(used).values():
        view.fill_(1)
    assert torch.equal(adapter.factor != 0, used != 0)
    assert used.mean() < 0.9


REFUSED = {
    "another family": (lambda: transformers.MistralConfig(**SIZES), "blocks of mistral"),
    "activation": (lambda: FAMILIES["llama"](hidden_act="gelu"), "activation gelu"),
    "sliding window": (
        lambda: FAMILIES["qwen2"](use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "sliding window",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_left_to_the_plain_way(case):
    make, reason = REFUSED[case]
    assert reason in why_not_packed(tuned(make()))


def test_dropout_is_left_to_the_plain_way():
    assert "dropout" in why_not_packed(tuned(FAMILIES["llama"](), LoraConfig(rank=2, dropout=0.1)))


def test_parity_is_found_and_leaves_the_adapter_alone():
    model = tuned(FAMILIES["qwen3"]())
    decoder = PackedDecoder(model)
    before = [p.detach().clone() for _, p in trainable_parameters(model)]
    parity = check_parity(model, decoder, ROWS, 0.5, device_of())
    assert parity.equal
    after = [p.detach() for _, p in trainable_parameters(model)]
    assert all(map(torch.equal, before, after))
    assert_equal(packed(decoder), plain(model))


@pytest.mark.parametrize("breakage", ["_eps", "rotation", "_norm_D"])
def test_a_difference_is_found(breakage, monkeypatch):
    model = tuned(FAMILIES["qwen3"]())
    decoder = PackedDecoder(model)
    if breakage == "rotation":
        monkeypatch.setattr("medqa.model.decoder.rotate", lambda x, *rest: x)
    elif breakage == "_eps":
        decoder._eps = 0.5
    else:
        decoder._norm_D = decoder._norm_D * 1.05
    assert not check_parity(model, decoder, ROWS, 0.5, device_of()).equal


def test_the_one_kernel_is_taken_only_where_it_is_right(monkeypatch):
    """On a device without flash attention the reason says so; a wrong kernel is found out."""
    assert attention.choose_kernel(torch.device("cpu"), torch.bfloat16, (4, 2, 16))[0] == "row by row"
    row_by_row = attention.attend

    class Elsewhere:
        type = "elsewhere"

    def run(kernels):
        monkeypatch.setattr(attention, "attend", kernels)
        monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self.float())
        monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)
        monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: None)
        return attention.choose_kernel(Elsewhere(), torch.bfloat16, (4, 2, 16))

    def right(q, k, v, batch, kernel):
        return row_by_row(q, k, v, batch, "row by row")

    def wrong(q, k, v, batch, kernel):
        return right(q, k, v, batch, kernel) * (1.1 if kernel == "varlen" else 1)

    def missing(q, k, v, batch, kernel):
        if kernel == "varlen":
            raise NotImplementedError("no kernel\nand more")
        return right(q, k, v, batch, kernel)

    assert run(right)[0] == "varlen"
    assert run(wrong) == ("row by row", "flash attention over rows of any length is off by 10.0% here")
    assert run(missing)[1].endswith("does not run here: no kernel")
