"""Write a merged model as a GGUF: what llama.cpp and all that stands on it run.

Tensor by tensor, so that the model is never in memory as a whole. Names, order of rows and settings are
those of llama.cpp's own converter.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from medqa.errors import ModelError
from medqa.files import beside, read_json, synced
from medqa.publish.gguf_tokenizer import OTHER_CONVERTER, refuse_unwritable_tokenizer, write_tokenizer

__all__ = ["WRITTEN", "refuse_unwritable", "write_gguf"]

log = logging.getLogger(__name__)

_KINDS = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}

# Kinds that are written here; all others are made of an f32 one by llama.cpp.
WRITTEN = tuple(_KINDS)

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_Q8_BLOCK = 32


def write_gguf(
    model_folder: Path, out: Path, kind: str, *, stop_token_id: int, name: str | None = None
) -> None:
    """Write a folder with a transformers model as one GGUF; it is whole or not there.

    Args:
        model_folder: Holds config.json, *.safetensors, tokenizer.json and the chat template, if it has one.
        out: File to write.
        kind: One of `WRITTEN`. Vectors stay in f32 whatever it is.
        stop_token_id: Token that ends the model's turn: what a reader of the GGUF stops at.
        name: Of the model; that of the file if not given.

    Raises:
        ModelError: If the model can't be written so that llama.cpp computes the same.
    """
    if kind not in _KINDS:
        raise ValueError(f"{kind!r} is not one of {', '.join(WRITTEN)}")
    config = read_json(model_folder / "config.json")
    architecture = _architecture(config)
    with _weights(model_folder) as weights:
        tensors = _Tensors(config, architecture, weights, kind)
        part = beside(out)
        writer = gguf.GGUFWriter(part, gguf.MODEL_ARCH_NAMES[architecture])
        try:
            _write_settings(writer, config, kind, name or out.stem)
            write_tokenizer(writer, model_folder, config["vocab_size"], stop_token_id)
            tensors.write(writer)
            writer.close()
            synced(part)
            part.replace(out)
        finally:
            writer.close()
            part.unlink(missing_ok=True)


def refuse_unwritable(model_folder: Path) -> None:
    """Raise ModelError if a model can't be written so that llama.cpp computes the same; reads no weights."""
    _architecture(read_json(model_folder / "config.json"))
    refuse_unwritable_tokenizer(model_folder)


def _architecture(config: dict[str, Any]) -> gguf.MODEL_ARCH:
    """Find llama.cpp's architecture; refuse settings that it would compute otherwise."""
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(f"a GGUF of the architecture {kind!r} is not written here: {known}", OTHER_CONVERTER)
    slides = config.get("sliding_window") and (kind == "mistral" or config.get("use_sliding_window"))
    reasons = {
        f"hidden_act={config.get('hidden_act')!r}": config.get("hidden_act") not in ("silu", "swish"),
        f"sliding_window={config.get('sliding_window')}": slides,
        "quantization_config": config.get("quantization_config"),
    }
    for reason, refused in reasons.items():
        if refused:
            raise ModelError(f"a GGUF of a model with {reason} is not written here", OTHER_CONVERTER)
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise ModelError("a GGUF of a model with sliding attention is not written here", OTHER_CONVERTER)
    rope = _rope(config)["rope_type"]
    if rope not in ("default", "linear") and (rope != "llama3" or kind != "llama"):
        raise ModelError(f"a GGUF with the rope scaling {rope!r} is not written here", OTHER_CONVERTER)
    return _ARCHITECTURES[kind]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Read how positions are turned, from the place where this or an earlier transformers writes it."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def _head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _write_settings(writer: gguf.GGUFWriter, config: dict[str, Any], kind: str, name: str) -> None:
    rope = _rope(config)
    heads = config["num_attention_heads"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(_head_size(config))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(_KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


@contextlib.contextmanager
def _weights(folder: Path) -> Iterator[dict[str, Any]]:
    """Open every shard; what is found under a name is read only when it is asked for."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            shard = stack.enter_context(safe_open(file, framework="pt"))
            found.update(dict.fromkeys(shard.keys(), shard))
        if not found:
            raise ModelError(f"{folder} holds no *.safetensors", "export the run again, with --to merged")
        yield found


class _Tensors:
    """A model's tensors under their names in a GGUF, each read, turned and quantised when it is written."""

    def __init__(
        self, config: dict[str, Any], architecture: gguf.MODEL_ARCH, weights: dict[str, Any], kind: str
    ) -> None:
        self._weights, self._kind = weights, kind
        self._turned = architecture == gguf.MODEL_ARCH.LLAMA
        heads = config["num_attention_heads"]
        self._heads = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
        self._rope, self._head_size = _rope(config), _head_size(config)
        names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
        tied = bool(config.get("tie_word_embeddings"))
        if not tied and "lm_head.weight" not in weights:
            # llama.cpp would take the embedding for it, without a word.
            raise ModelError("the model's files hold no lm_head.weight", "export the run again")
        self._names: dict[str, str] = {}
        for source in sorted(weights):
            if source.endswith("rotary_emb.inv_freq") or (tied and source == "lm_head.weight"):
                continue
            target = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ModelError(f"a GGUF has no name for the model's tensor {source!r}", OTHER_CONVERTER)
            self._names[source] = target

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Write the header, then the tensors one by one."""
        extra = self._rope_factors()
        if extra is not None:
            writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
        for source, target in self._names.items():
            shape = self._weights[source].get_slice(source).get_shape()
            kind = self._kind_of(source, shape)
            stored = gguf.quant_shape_to_byte_shape(shape, kind)
            num_bytes = math.prod(stored)
            writer.add_tensor_info(target, stored, np.dtype(np.uint8), num_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if extra is not None:
            writer.write_tensor_data(extra)
        for source in self._names:
            writer.write_tensor_data(self._read(source))

    def _kind_of(self, source: str, shape: list[int]) -> gguf.GGMLQuantizationType:
        kind = _KINDS[self._kind][0]
        if len(shape) < 2:
            return gguf.GGMLQuantizationType.F32
        if kind == gguf.GGMLQuantizationType.Q8_0 and shape[-1] % _Q8_BLOCK:
            log.warning("%s stays f16: its rows are no multiple of %d values", source, _Q8_BLOCK)
            return gguf.GGMLQuantizationType.F16
        return kind

    def _read(self, source: str) -> Any:
        tensor = self._weights[source].get_tensor(source).to(torch.float32)
        part = source.split(".")[-2]
        if self._turned and part in self._heads:
            tensor = _interleave(tensor, self._heads[part])
        values = tensor.contiguous().numpy()
        kind = self._kind_of(source, list(values.shape))
        with np.errstate(over="ignore"):
            stored = gguf.quantize(values, kind)
        if kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(stored).all():
            raise ModelError(f"{source} has values too large for f16", "--quantize bf16, q8_0 or f32")
        return stored.view(np.uint8)

    def _rope_factors(self) -> Any:
        """Compute what Llama 3 divides each frequency by; None for others.

        Source:
            transformers, modeling_rope_utils, `_compute_llama3_parameters`; the quotient of plain and
            scaled frequency.
        """
        rope = self._rope
        if rope["rope_type"] != "llama3":
            return None
        exponents = np.arange(0, self._head_size, 2, dtype=np.float64) / self._head_size
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * rope["rope_theta"] ** exponents)
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _interleave(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Order the rows of each head as llama.cpp turns them: by pairs, where transformers has two halves."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
