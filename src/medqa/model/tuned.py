"""A finished run's model, loaded: what scoring and answering start from."""

import dataclasses
from pathlib import Path
from typing import Any

from medqa.errors import ModelError
from medqa.hardware.device import Device, choose_device
from medqa.launch import wants_shards
from medqa.model.decoder import PackedDecoder
from medqa.model.load import BaseFiles, find_base, load_model, load_renderer
from medqa.model.lora import load_adapter
from medqa.prompts import PromptRenderer
from medqa.runs import RunFolder

__all__ = ["TunedModel", "load_tuned"]


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A run's model, ready to score and to answer.

    Attributes:
        run: The run folder.
        base: The base model's files.
        device: Where it is.
        renderer: Its prompt.
        model: PeftModel in evaluation mode.
        decoder: The packed way through it, if it was found to equal the plain one already.
    """

    run: RunFolder
    base: BaseFiles
    device: Device
    renderer: PromptRenderer
    model: Any
    decoder: PackedDecoder | None = None


def load_tuned(path: Path, trust_remote_code: str | None = None, **changes: Any) -> TunedModel:
    """Load base model and adapter of a finished run, with the prompt that it was trained on.

    Args:
        path: Run folder.
        trust_remote_code: Name of the base model, if its own code may run. Never taken from the run.
        changes: Settings of the model that differ from the run's: `device` and `dtype`.

    Raises:
        RunError: If the run is missing or half written.
        ModelError: If the base model is not the one that the adapter was trained on.
    """
    run = RunFolder.open(path)
    adapter = run.adapter
    config = run.config.model.model_copy(update={"trust_remote_code": trust_remote_code, **changes})
    base = find_base(config)
    if base.fingerprint != run.record["base_model"]["fingerprint"]:
        raise ModelError(
            f"{base.path} is not the base model that {path} was trained on: its weights differ",
            f"the run began with {run.record['base_model']['path']}; put that model back",
        )
    device = choose_device(config)
    model = load_adapter(load_model(base, device, shard=config.shard or wants_shards()), adapter, device)
    return TunedModel(run, base, device, load_renderer(base, adapter, run.record["prompt"]), model)
