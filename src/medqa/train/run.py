"""A training run: settings in, run folder with adapter, plot and record out."""

import logging
import time
from pathlib import Path
from typing import Any

from medqa.config import RunConfig
from medqa.data.build import Corpus, build_corpus
from medqa.errors import DataError, DeviceError, RunError
from medqa.files import file_sha256, write_folder, write_json
from medqa.hardware.device import Device, choose_device
from medqa.hardware.doctor import compare_views, torch_view
from medqa.hardware.probe import probe
from medqa.hardware.selftest_record import last_selftest
from medqa.model.batch import TokenisedRow, tokenise_rows
from medqa.model.load import BaseFiles, find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.prompts import PromptRenderer
from medqa.runs import RunFolder
from medqa.train.loop import train_adapter
from medqa.train.plot import plot_loss

__all__ = ["resume", "train"]

log = logging.getLogger(__name__)

# Measured: 131e9 on two cores with AVX2. A server has ten times as much, still too little for days of work.
CPU_OPERATIONS_PER_S = 1e11
MAX_CPU_HOURS = 2.0


def train(config: RunConfig, path: Path, recipe: str, environment: dict[str, Any] | None = None) -> RunFolder:
    """Fine-tune an adapter into a new run folder.

    Everything that can be wrong with data or model is found before the folder is made.

    Args:
        config: All settings.
        path: Run folder to make.
        recipe: Name of the recipe, for the record.
        environment: What `prepare_environment` found and set, for the record.

    Raises:
        MedQAError: Of the kind that says what is wrong.
    """
    if path.exists():
        RunFolder.create(path, config, recipe)  # says what to do instead
    config = _with_whole_paths(config)
    prepared = _Prepared(config)
    run = RunFolder.create(path, config, recipe)
    write_json(path / "data.json", prepared.corpus.record)
    run.update(**prepared.record(), environment=environment or {}, selftest=last_selftest(prepared.device))
    return _train(run, prepared)


def resume(path: Path, trust_remote_code: str | None = None) -> RunFolder:
    """Go on with a run that was interrupted, to the result it would have had.

    Args:
        path: Run folder.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        RunError: If there is no run, or data or base model are not the ones it began with.
    """
    run = RunFolder.open(path, finished=False)
    if run.record["status"] == "complete":
        log.warning("%s is complete already: nothing to resume", path)
        return run
    if "data" not in run.record:
        raise RunError(f"{path} ended before training began", f"delete it and train again: rm -r {path}")
    model = run.config.model.model_copy(update={"trust_remote_code": trust_remote_code})
    prepared = _Prepared(run.config.model_copy(update={"model": model}), run.record["prompt"])
    for what, key in (("data", "sha256"), ("data", "num_tokens"), ("base_model", "fingerprint")):
        if prepared.record()[what][key] != run.record[what][key]:
            raise RunError(
                f"{path}: {what} differs from what the run began with",
                "put it back as it was, or train anew with another --out",
            )
    before, now = run.record["device"], prepared.device.record()
    if (before["name"], before["precision"]) != (now["name"], now["precision"]):
        began, goes_on = (f"{d['name']} in {d['precision']}" for d in (before, now))
        text = f"Begun on {began}, resumed on {goes_on}: the result differs in rounding"
        log.warning("%s", text)
        run.note(text)
    return _train(run, prepared)


def _with_whole_paths(config: RunConfig) -> RunConfig:
    """Write local names as whole paths, so that the run works from any folder."""

    def whole(name: str) -> str:
        try:
            path = Path(name).expanduser()
            return str(path.resolve()) if path.exists() else name
        except (OSError, ValueError, RuntimeError):  # no path at all: `locate` says what is wrong
            return name

    mix = tuple(part.model_copy(update={"name": whole(part.name)}) for part in config.data.mix)
    data = config.data.model_copy(update={"name": whole(config.data.name), "mix": mix})
    model = config.model.model_copy(update={"name": whole(config.model.name)})
    return config.model_copy(update={"data": data, "model": model})


class _Prepared:
    """Everything that training needs, found and checked."""

    def __init__(self, config: RunConfig, prompt: dict[str, Any] | None = None) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}
        clock = time.monotonic()
        self.device: Device = choose_device(config.model)
        if self.device.is_cpu and config.model.device == "auto":
            for finding in compare_views(probe(), torch_view()):
                log.warning(
                    "Training on the CPU: %s. Mend: %s", finding.message, finding.command or "medqa doctor"
                )
        # Questions first: they are small, and what is wrong with them shows at once.
        self.corpus: Corpus = build_corpus(config.data, config.train.seed)
        self.seconds["prepare questions"], clock = time.monotonic() - clock, time.monotonic()
        self.base: BaseFiles = find_base(config.model)
        self.renderer: PromptRenderer = load_renderer(self.base, frozen=prompt)
        self.seconds["find base model"], clock = time.monotonic() - clock, time.monotonic()
        self.rows, self.counts = self._rows()
        self.seconds["tokenise"], clock = time.monotonic() - clock, time.monotonic()
        self._refuse_slow_training()
        self.model: Any = load_model(self.base, self.device)
        self.seconds["load base model"] = time.monotonic() - clock

    @property
    def limit(self) -> int:
        return min(self.config.train.max_length_tokens, self.base.max_length_tokens)

    def _rows(self) -> tuple[list[TokenisedRow], dict[str, int]]:
        limit = self.limit
        rows, counts = tokenise_rows(
            self.renderer,
            self.corpus.train,
            max_length_tokens=limit,
            explanations=self.config.train.explanations,
        )
        if not rows:
            raise DataError(
                f"all {len(self.corpus.train)} prompts are longer than {limit} tokens",
                "--set train.max_length_tokens=... must leave room for a question",
            )
        return rows, counts

    def _refuse_slow_training(self) -> None:
        """Stop before hours on the CPU, unless they are wanted.

        A row's token costs 4 operations a weight: 2 forward, 2 for the gradient that passes through.
        """
        num_tokens = self.config.train.epochs * sum(len(row) for row in self.rows)
        hours = 4 * self.base.num_parameters * num_tokens / CPU_OPERATIONS_PER_S / 3600
        if self.device.is_cpu and hours > MAX_CPU_HOURS and not self.config.train.allow_slow:
            raise DeviceError(
                f"{self.base.num_parameters / 1e9:.1f} billion weights on {num_tokens:,} tokens take about "
                f"{hours:,.0f} hours on the CPU ({self.device.reason})",
                "`medqa doctor` says how to get an accelerator used; or fewer rows with "
                "--set data.max_train_rows=...; or wait: --set train.allow_slow=true",
            )

    def notices(self) -> list[str]:
        limit = self.limit
        texts = {
            "num_too_long": "questions left out: their prompt is longer than",
            "num_explanations_cut": "explanations cut (and trained without a stop token) at",
        }
        return [
            f"{count:,} of {len(self.corpus.train):,} {texts[key]} {limit} tokens"
            for key, count in self.counts.items()
            if count
        ]

    def record(self) -> dict[str, Any]:
        num_tokens = sum(len(row) for row in self.rows)
        return {
            "data": {**self.corpus.summary, **self.counts, "num_tokens": num_tokens},
            "base_model": self.base.record(),
            "device": self.device.record(),
            "prompt": self.renderer.record(),
        }


def _train(run: RunFolder, prepared: _Prepared) -> RunFolder:
    config = prepared.config
    for text in prepared.notices():
        log.warning("%s", text)
        if text not in run.record["notices"]:
            run.note(text)

    def notice(text: str) -> None:
        log.warning("%s", text)
        run.note(text)

    clock = time.monotonic()
    model = attach_adapter(prepared.model, config.train.lora, config.train.seed)
    num_trained = sum(p.numel() for _, p in trainable_parameters(model))
    log.info(
        "Training %s adapter weights (LoRA rank %d) on %s rows, %s: %s, %s (%s)",
        f"{num_trained:,}",
        config.train.lora.rank,
        f"{len(prepared.rows):,}",
        prepared.device.name,
        prepared.device.precision,
        prepared.device.torch_device,
        prepared.device.precision_reason,
    )
    try:
        state = train_adapter(model, prepared.rows, config.train, prepared.device, run.path, notice)
    except KeyboardInterrupt:
        log.warning("Stopped and saved; go on with: medqa train --resume %s", run.path)
        raise
    _save_adapter(run, model, prepared)
    plot_loss(run.path / "metrics.jsonl", run.path / "loss.png")
    peak_gib = prepared.device.peak_memory_gib()
    seconds = {
        **prepared.seconds,
        "training steps": state.seconds,
        "train": time.monotonic() - clock,
    }
    run.finish(
        adapter_sha256=file_sha256(run.path / "adapter" / "adapter_model.safetensors"),
        training={
            "num_steps": state.step,
            "num_tokens": state.num_tokens,
            "tokens_per_second": round(state.num_tokens / state.seconds, 1),
            "num_trained_parameters": num_trained,
            "micro_batch_size": state.micro_batch_size,
            "peak_memory_gib": peak_gib and round(peak_gib, 2),
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
        },
    )
    return run


def _save_adapter(run: RunFolder, model: Any, prepared: _Prepared) -> None:
    """Write the adapter in PEFT's own format, with the tokenizer beside it."""
    # A Hub name holds everywhere; a folder or the built-in model only here.
    name = prepared.config.model.name
    is_hub_id = not name.startswith("builtin:") and not Path(name).expanduser().exists()
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = name if is_hub_id else str(prepared.base.path.resolve())
    with write_folder(run.path / "adapter") as beside:
        model.save_pretrained(str(beside), safe_serialization=True)
        prepared.renderer.tokenizer.save_pretrained(str(beside))
