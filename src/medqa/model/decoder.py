"""A second way to run a Llama, Qwen2 or Qwen3 with its adapter: the same arithmetic in fewer, larger kernels.

Weights are shared with the PeftModel, which stays the reference: layers that take one input are one
matrix, of which their own weights become views. Rows are packed, so nothing is padded.

Shape legend: N tokens, M labelled tokens, D width of the hidden state, H query heads, G key and value
heads, E width of a head.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch.nn.functional import embedding, linear, rms_norm

from medqa.model.attention import attend, choose_kernel
from medqa.model.elementwise import LAUNCHED
from medqa.model.flat import AdapterPart, FlatAdapter, GroupFactors
from medqa.model.fused import adapted_linear, rotate, swiglu, weighted_nll
from medqa.model.packed import PackedBatch, PackedRows, pack_spans

__all__ = ["FAMILIES", "Attention", "PackedDecoder", "why_not_packed"]

Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Turns a block's number, queries (N, H, E), keys and values (N, G, E) into mixed values (N, H, E)."""

FAMILIES = ("llama", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass
class _Group:
    """Layers with one input, as one matrix."""

    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None
    parts: list[AdapterPart]
    factors: GroupFactors | None = None

    def __call__(self, x_NI: torch.Tensor, *, adapted: bool) -> torch.Tensor:
        if self.factors is None or not adapted:
            return linear(x_NI, self.weight_OI, self.bias_O)
        return adapted_linear(x_NI, self.weight_OI, self.bias_O, self.factors.a_RI, self.factors.b_OR)


@dataclasses.dataclass
class _Block:
    norm_attention_D: torch.Tensor
    qkv: _Group
    norm_q_E: torch.Tensor | None
    norm_k_E: torch.Tensor | None
    out: _Group
    norm_mlp_D: torch.Tensor
    gate_up: _Group
    down: _Group

    @property
    def groups(self) -> tuple[_Group, ...]:
        return self.qkv, self.out, self.gate_up, self.down


def why_not_packed(model: Any) -> str | None:
    """Say what keeps a PeftModel from being run packed; None if nothing does."""
    config = model.config
    [lora] = model.peft_config.values()
    factors = [name for name, _ in model.named_parameters() if "lora_" in name]
    known = all(name.endswith(("lora_A.default.weight", "lora_B.default.weight")) for name in factors)
    rope = getattr(config, "rope_parameters", None) or {}
    reasons = {
        f"blocks of {config.model_type} are not known": config.model_type not in FAMILIES,
        f"activation {getattr(config, 'hidden_act', None)}": getattr(config, "hidden_act", None) != "silu",
        "some blocks look through a sliding window": any(
            kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()
        ),
        f"rotary embedding of type {rope.get('rope_type')}": rope.get("rope_type", "default")
        not in ROPE_TYPES,
        "dropout": bool(lora.lora_dropout or getattr(config, "attention_dropout", 0)),
        "the adapter is of a special kind": bool(
            not (factors and known)
            or lora.use_dora
            or lora.use_rslora
            or lora.rank_pattern
            or lora.alpha_pattern
            or lora.modules_to_save
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


class PackedDecoder:
    """Runs packed rows through a model and its adapter.

    Attributes:
        config: The model's configuration.
        adapter: The adapter's weights, flat.
        kernel: Which attention runs.
        kernel_reason: Why.
        elementwise: How rotation and activation run.
        recompute: Whether blocks are computed again in the backward pass, to save memory.
    """

    def __init__(self, model: Any) -> None:
        """Join the layers of a PeftModel for which `why_not_packed` has nothing to say."""
        causal_lm = model.get_base_model()
        config, decoder = causal_lm.config, causal_lm.get_decoder()
        self.config = config
        self._embedding_VD = causal_lm.get_input_embeddings().weight
        self._head = causal_lm.get_output_embeddings()
        self._rotary = decoder.rotary_emb
        self._norm_D, self._eps = decoder.norm.weight, config.rms_norm_eps
        self._num_heads, self._num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        names = {id(p): name for name, p in model.named_parameters()}
        self._blocks = [_block(layer, names) for layer in decoder.layers]
        adapted = [group for block in self._blocks for group in block.groups if group.parts]
        self.adapter = FlatAdapter(
            [(len(group.weight_OI), group.parts) for group in adapted],
            self._embedding_VD.device,
            self._embedding_VD.dtype,
        )
        for group, factors in zip(adapted, self.adapter.groups, strict=True):
            group.factors = factors
        width = self._blocks[0].out.weight_OI.shape[1] // self._num_heads
        self._head_width = width
        self.kernel, self.kernel_reason = choose_kernel(
            self._embedding_VD.device, self._embedding_VD.dtype, (self._num_heads, self._num_kv_heads, width)
        )
        self.elementwise = LAUNCHED
        self.recompute = False

    def loss(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss of the rows, and the summed negative log-likelihood of the letters."""
        hidden_MD = self.hidden(batch)
        loss, nll_M = weighted_nll(
            hidden_MD, self._head.weight, self._head.bias, batch.label_M, batch.weight_M
        )
        return loss, (nll_M * batch.answer_M).sum()

    def hidden(self, batch: PackedRows, *, adapted: bool = True) -> torch.Tensor:
        """Return the last hidden state at the batch's positions.

        Args:
            batch: Packed rows.
            adapted: Whether the adapter applies; without it, this is the base model.

        Shapes:
            returns: (M, D).
        """

        def attention(block: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attend(q, k, v, batch, self.kernel)

        return self.run(batch.token_N, batch.place_N, batch.position_M, attention, adapted=adapted)

    def read(
        self, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], *, adapted: bool = True
    ) -> torch.Tensor:
        """Return the last hidden state (M, D) at spans (start, stop) of rows of token ids."""
        batch = pack_spans(rows, spans).to(self._embedding_VD.device)
        return self.hidden(batch, adapted=adapted)

    def run(
        self,
        token_N: torch.Tensor,
        place_N: torch.Tensor,
        position_M: torch.Tensor,
        attention: Attention,
        *,
        adapted: bool = True,
    ) -> torch.Tensor:
        """Return the last hidden state at some positions, whatever the tokens look at.

        Args:
            token_N: Token ids.
            place_N: Place of each in its row, from 0.
            position_M: Indices of the tokens whose state is wanted.
            attention: Called once for each block, with its number and the rotated queries, keys and values.
            adapted: Whether the adapter applies.

        Shapes:
            returns: (M, D).
        """
        x_ND = embedding(token_N, self._embedding_VD)
        cos_1NE, sin_1NE = self._rotary(x_ND, place_N[None])
        half = self._head_width // 2
        turn = (cos_1NE[0, :, None, :half], sin_1NE[0, :, None, :half])
        for number, block in enumerate(self._blocks):
            look = functools.partial(attention, number)
            if self.recompute and torch.is_grad_enabled():
                x_ND = torch.utils.checkpoint.checkpoint(
                    self._run, block, x_ND, turn, look, adapted, use_reentrant=False
                )
            else:
                x_ND = self._run(block, x_ND, turn, look, adapted)
        # index_select's gradient is one kernel that adds; plain indexing's sorts.
        return self._normed(x_ND.index_select(0, position_M), self._norm_D)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Return the head's output (M, V) for hidden states."""
        return linear(hidden_MD, self._head.weight, self._head.bias)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """Blocks, key and value heads, and width of a head: what a cache of keys or values needs."""
        return len(self._blocks), self._num_kv_heads, self._head_width

    @property
    def weight(self) -> torch.Tensor:
        """Some weight of the base model, for its device and precision."""
        return self._embedding_VD

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight.shape, weight, self._eps)

    def _run(
        self,
        block: _Block,
        x_ND: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        look: Callable[..., torch.Tensor],
        adapted: bool,
    ) -> torch.Tensor:
        heads, width = (self._num_heads, self._num_kv_heads, self._num_kv_heads), self._head_width
        qkv = block.qkv(self._normed(x_ND, block.norm_attention_D), adapted=adapted)
        # split's gradient is one concatenation; slices' are as many zero-filled sums.
        q, k, v = (
            part.unflatten(-1, (-1, width)) for part in qkv.split([count * width for count in heads], -1)
        )
        if block.norm_q_E is not None and block.norm_k_E is not None:
            q, k = self._normed(q, block.norm_q_E), self._normed(k, block.norm_k_E)
        mixed = look(rotate(q, *turn, self.elementwise), rotate(k, *turn, self.elementwise), v)
        x_ND = x_ND + block.out(mixed.flatten(1), adapted=adapted)
        both = block.gate_up(self._normed(x_ND, block.norm_mlp_D), adapted=adapted)
        return x_ND + block.down(swiglu(both, self.elementwise), adapted=adapted)


def _block(layer: Any, names: dict[int, str]) -> _Block:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Block(
        layer.input_layernorm.weight,
        _join((attention.q_proj, attention.k_proj, attention.v_proj), names),
        q_norm and q_norm.weight,
        k_norm and k_norm.weight,
        _join((attention.o_proj,), names),
        layer.post_attention_layernorm.weight,
        _join((mlp.gate_proj, mlp.up_proj), names),
        _join((mlp.down_proj,), names),
    )


def _join(layers: tuple[Any, ...], names: dict[int, str]) -> _Group:
    """Make one matrix of the layers' weights; their own become views of it."""
    bases = [getattr(layer, "base_layer", layer) for layer in layers]
    weight_OI = bases[0].weight.data
    if len(bases) > 1:
        sizes = [len(base.weight) for base in bases]
        weight_OI = torch.cat([base.weight.data for base in bases])
        for base, view in zip(bases, weight_OI.split(sizes), strict=True):
            base.weight.data = view
    biases = [base.bias for base in bases]
    bias_O = None
    if any(bias is not None for bias in biases):
        bias_O = torch.cat(
            [
                base.weight.new_zeros(len(base.weight)) if base.bias is None else base.bias.data
                for base in bases
            ]
        )
    parts, row = [], 0
    for layer, base in zip(layers, bases, strict=True):
        if base is not layer:
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            part = AdapterPart(names[id(a)], names[id(b)], a, b, row, layer.scaling["default"])
            parts.append(part)
        row += len(base.weight)
    return _Group(weight_OI, bias_O, parts)
