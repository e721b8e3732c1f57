"""Export a run: the adapter, a merged model, or a GGUF; each is shown to be the model that was tuned.

    OUT/                  what to load: safetensors and tokenizer, or model.gguf and Modelfile
    OUT/parity.json       how its answers compare with the tuned model's
    OUT/run/              the run, flat, with the calibration that holds for the export: for
                          `medqa serve OUT/run --engine openai:URL`

Of an adapter, OUT is the flat run itself.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch

from medqa.errors import ConfigError, RunError
from medqa.evaluate.calibrate import NUM_ROWS_ON_CPU, fit_by_orders, held_back, load_calibration, record_of
from medqa.evaluate.engine import Engine, LocalEngine
from medqa.evaluate.score import make_items
from medqa.files import file_sha256, write_folder, write_json, write_text
from medqa.model.load import load_model
from medqa.model.lora import load_adapter
from medqa.model.tuned import TunedModel
from medqa.publish.folder import copy_run
from medqa.publish.gguf import WRITTEN, write_gguf
from medqa.publish.llama import QUANTIZED, LlamaEngine, quantize
from medqa.publish.merge import Precision, load_to_merge, merge, precisions_to_try, write_merged
from medqa.publish.modelfile import modelfile
from medqa.publish.parity import HeldOut, Parity, compare, find_held_out, is_valid
from medqa.publish.scrub import scrub
from medqa.records import Prediction
from medqa.runs import RunFolder, provenance
from medqa.trust.fitting import MIN_ROWS
from medqa.trust.permutation import NumOrders
from medqa.trust.store import FILE_NAME, CalibrationFile

__all__ = ["Exported", "Target", "export"]

log = logging.getLogger(__name__)

Target = Literal["adapter", "merged", "gguf"]

_MARK = "parity.json"
_USUAL_GGUF = ("q8_0", "f16")


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        path: The folder.
        kind: "adapter", "merged", or the quantisation of the GGUF.
        parity: How it answers, beside the tuned model.
        calibration: "valid", "refitted", "none", or "drifted": not valid, and nothing to refit it with.
        files: Name and size in bytes of each file, of the run's copy as one.
    """

    path: Path
    kind: str
    parity: Parity
    calibration: str
    files: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "parity": self.parity.to_json(),
            "calibration": self.calibration,
            "files": dict(self.files),
        }


@dataclasses.dataclass
class _Work:
    """What the ways to export share."""

    tuned: TunedModel
    held_out: HeldOut
    reference: list[Prediction]
    shipped: CalibrationFile | None
    out: Path
    base: str | None

    @property
    def run(self) -> RunFolder:
        return self.tuned.run

    def compare(self, kind: str, engine: Engine) -> Parity:
        log.info("Asking the export the same")
        calibration = self.shipped.for_orders(1) if self.shipped else None
        return compare(kind, self.reference, engine, self.held_out, calibration)


def export(
    path: Path,
    to: Target,
    out: Path,
    *,
    quantization: str | None = None,
    precision: Precision | None = None,
    num_questions: int = 200,
    base: str | None = None,
    trust_remote_code: str | None = None,
) -> Exported:
    """Export a finished run, and compare the export with the tuned model.

    Everything is computed in fp32, so that what is compared is the weights and not the rounding of a device.

    Args:
        path: Run folder.
        to: What to make.
        out: Folder to make; an earlier export there is replaced once the new one is whole and sound.
        quantization: Of a GGUF: f32, f16, bf16, q8_0, or one that llama.cpp makes, such as q4_k_m; if not
            given, q8_0, or f16 where that changes too many letters.
        precision: Of a merged model; if not given, that of the base model's own files, or else the next that
            keeps every letter.
        num_questions: To compare by, at most.
        base: Name of the base model on the Hub, to stand in the run's copy instead of a local folder's.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        PublishError: If the export is not the tuned model, within `parity.BOUNDS`. Nothing is left then.
        MedQAError: Of the kind that says what else is wrong.
    """
    for option, value, target in (("quantize", quantization, "gguf"), ("dtype", precision, "merged")):
        if value is not None and to != target:
            raise ConfigError(f"--{option} {value} is for --to {target}, not for --to {to}", "leave it out")
    if quantization is not None and quantization not in {*WRITTEN, *QUANTIZED}:
        known = ", ".join([*WRITTEN, *QUANTIZED])
        raise ConfigError(f"--quantize {quantization!r} is unknown", f"one of {known}")
    if out.exists() and not (out / _MARK).is_file():
        raise RunError(f"{out} is there already, and is no earlier export", "--out gives another name")
    if RunFolder.open(path).path.resolve().is_relative_to(out.resolve()):
        raise RunError(f"{out} holds the run itself, which would be replaced", "--out gives another place")
    tuned = load_to_merge(path, trust_remote_code)
    held_out = find_held_out(tuned.run, num_questions)
    log.info("Asking the tuned model %d questions, %s", len(held_out.examples), held_out.source)
    reference = LocalEngine(tuned).score(make_items(tuned.renderer, held_out.examples, "medqa"))
    work = _Work(tuned, held_out, reference, load_calibration(tuned.run, tuned.renderer), out, base)
    with write_folder(out) as folder:
        if to == "adapter":
            return _finish(work, folder, *_adapter(work, folder))
        log.info("Merging in fp32")
        work.tuned = dataclasses.replace(tuned, model=merge(tuned))
        if to == "merged":
            return _finish(work, folder, *_merged(work, folder, precision))
        return _finish(work, folder, *_gguf(work, folder, quantization))


def _adapter(work: _Work, folder: Path) -> tuple[Engine, Parity]:
    copy_run(work.run, folder, base=work.base)
    tuned = work.tuned
    # Loaded anew from its copy, on the base as it came.
    model = load_adapter(load_model(tuned.base, tuned.device), folder, tuned.device)
    again = LocalEngine(dataclasses.replace(tuned, model=model))
    parity = work.compare("adapter", again)
    parity.require("the disk may be faulty; export again")
    return again, parity


def _merged(work: _Work, folder: Path, wanted: Precision | None) -> tuple[Engine, Parity]:
    """Write the first precision that keeps every letter, or the one that is wanted."""
    precisions = (wanted,) if wanted else precisions_to_try(work.tuned)
    for precision in precisions:
        for file in folder.iterdir():
            file.unlink()
        write_merged(work.tuned.model, work.tuned, folder, precision)
        # Loaded from its folder, as anybody would.
        base = dataclasses.replace(work.tuned.base, path=folder)
        engine = LocalEngine(dataclasses.replace(work.tuned, model=load_model(base, work.tuned.device)))
        parity = work.compare("merged", engine)
        if parity.keeps_letters or precision == precisions[-1]:
            break
        log.warning("Rounded to %s, %s: rounding less", precision, parity)
    parity.require("--dtype fp32 rounds nothing" if precision != "fp32" else "update transformers and peft")
    log.info("Kept in %s", precision)
    return engine, parity


def _gguf(work: _Work, folder: Path, wanted: str | None) -> tuple[Engine, Parity]:
    """Write the smallest usual kind that keeps the letters, or the one that is wanted."""
    kinds = (wanted,) if wanted else _USUAL_GGUF
    with _merged_beside(work) as merged:
        for kind in kinds:
            engine = _write_gguf(work, merged, folder, kind)
            parity = work.compare(kind, engine)
            if parity.keeps_letters or kind == kinds[-1]:
                break
            log.warning("As %s, %s: too few; quantising less", kind, parity)
            engine.close()
            (folder / _gguf_name(kind)).unlink()
    parity.require("--quantize f16 or f32 keeps more, --quantize q4_k_m and the like are not held to a bound")
    return engine, parity


def _write_gguf(work: _Work, merged: Path, folder: Path, kind: str) -> LlamaEngine:
    renderer = work.tuned.renderer
    written = kind if kind in WRITTEN else "f32"
    first = folder / _gguf_name(written)
    log.info("Writing %s", first.name)
    write_gguf(merged, first, written, stop_token_id=renderer.stop_ids[0])
    if written != kind:
        log.info("Quantising to %s", kind)
        quantize(first, folder / _gguf_name(kind), kind, num_threads=torch.get_num_threads())
        first.unlink()
    limit = work.tuned.base.max_length_tokens
    write_text(folder / "Modelfile", modelfile(renderer, _gguf_name(kind), limit))
    return LlamaEngine(folder / _gguf_name(kind), renderer, max_length_tokens=limit)


def _gguf_name(kind: str) -> str:
    return f"model-{kind}.gguf"


@contextlib.contextmanager
def _merged_beside(work: _Work) -> Iterator[Path]:
    """Write the merged model in fp32 to a folder that goes away again."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=work.out.parent, prefix=f".{work.out.name}-") as name:
        write_merged(work.tuned.model, work.tuned, Path(name), "fp32")
        yield Path(name)


def _finish(work: _Work, folder: Path, engine: Engine, parity: Parity) -> Exported:
    """See to the calibration, and put the run's copy beside."""
    run = folder
    if parity.kind != "adapter":
        run = folder / "run"
        copy_run(work.run, run, base=work.base)
    calibration = _calibration(work, engine, parity, run)
    write_json(
        folder / _MARK,
        {
            **parity.to_json(),
            "calibration": calibration,
            "adapter_sha256": work.run.record["adapter_sha256"],
            "files": {
                file.name: file_sha256(file)
                for file in sorted(folder.glob("*"))
                if file.suffix in (".safetensors", ".gguf")
            },
            "versions": provenance()["versions"],
        },
    )
    engine.close()
    return Exported(work.out, parity.kind, parity, calibration, _list(folder))


def _calibration(work: _Work, engine: Engine, parity: Parity, run: Path) -> str:
    """Keep the calibration if it holds for the export, else fit it anew."""
    if work.shipped is None:
        return "none"
    if is_valid(parity):
        return "valid"
    data = work.held_out.data
    if data is None or len(data.calibration) < MIN_ROWS:
        log.warning(
            "The calibration does not hold for this export, and is left out: too few questions to refit it"
        )
        (run / FILE_NAME).unlink(missing_ok=True)
        return "drifted"
    config = work.run.config
    num_rows = min(len(data.calibration), NUM_ROWS_ON_CPU)
    fit, choose = held_back(work.run, data, num_rows)
    shipped = cast("Collection[NumOrders]", work.shipped.by_orders)
    wanted: list[NumOrders] = sorted({1, config.serve.orders, *shipped})
    log.info("The calibration does not hold for this export: fitting it anew to %d questions", len(fit))
    record = {"data": record_of(data, fit, choose), "export": parity.kind, **provenance(), "command": ""}
    by_orders = fit_by_orders(engine, fit, choose, wanted)
    items = make_items(engine.renderer, [canary.example for canary in work.shipped.canaries], "medqa")
    canaries = tuple(
        dataclasses.replace(canary, log_likelihoods=found.log_likelihoods)
        for canary, found in zip(work.shipped.canaries, engine.score(items), strict=True)
        if found.status == "scored"
    )
    (run / FILE_NAME).unlink(missing_ok=True)  # may share its content with the run's own
    CalibrationFile(work.shipped.identity, by_orders, scrub(record), canaries).write(run)
    return "refitted"


def _list(folder: Path) -> tuple[tuple[str, int], ...]:
    found = [(file.name, file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file()]
    if (run := folder / "run").is_dir():
        found.append(("run/", sum(file.stat().st_size for file in run.iterdir())))
    return tuple(found)
