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
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from medqa.errors import ConfigError, RunError
from medqa.evaluate.engine import Engine
from medqa.files import beside, file_sha256, read_json, write_folder, write_json, write_text
from medqa.model.load import find_base, load_renderer
from medqa.provenance import versions
from medqa.publish.folder import base_on_hub, copy_run
from medqa.publish.gguf import WRITTEN, refuse_unwritable, write_gguf
from medqa.publish.llama import QUANTIZED, LlamaEngine, quantize
from medqa.publish.llama_library import llama_library
from medqa.publish.merge import Precision, precisions_to_try, write_merged
from medqa.publish.modelfile import modelfile
from medqa.publish.parity import Parity
from medqa.publish.recalibrate import recalibrate
from medqa.publish.subject import Subject
from medqa.runs import RunFolder

__all__ = ["Exported", "Target", "export"]

log = logging.getLogger(__name__)

Target = Literal["adapter", "merged", "gguf"]

_MARK = "parity.json"
_KINDS = tuple(dict.fromkeys([*WRITTEN, *QUANTIZED]))
_USUAL_GGUF = ("q8_0", "f16")
_NUM_BEFORE_QUANTISING = 20
_FEW = 0.95


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
        out: Folder to make; an earlier export of the same run there is replaced once the new one is whole and
            sound.
        quantization: Of a GGUF: f32, f16, bf16, q8_0, or one that llama.cpp makes, such as q4_k_m; if not
            given, q8_0, or f16 where that changes too many letters.
        precision: Of a merged model; if not given, that of the base model's own files, or else the next that
            keeps every letter.
        num_questions: To compare by, at most.
        base: Name of the base model on the Hub, to stand in the run's copy instead of a local folder's.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        PublishError: If the export is not the tuned model, within `parity.BOUNDS`, or the adapter would be of
            no use elsewhere. Nothing is left then.
        MedQAError: Of the kind that says what else is wrong.
    """
    for option, value, target in (("quantize", quantization, "gguf"), ("dtype", precision, "merged")):
        if value is not None and to != target:
            raise ConfigError(f"--{option} {value} is for --to {target}, not for --to {to}", "leave it out")
    quantization = quantization and quantization.lower()
    if quantization is not None and quantization not in _KINDS:
        raise ConfigError(f"--quantize {quantization!r} is unknown", f"one of {', '.join(_KINDS)}")
    run = RunFolder.open(path)
    place = _free_place(out, run)
    if to == "adapter":
        base_on_hub(run, base)  # or nobody could load it
    if to == "gguf":
        llama_library()
        refuse_unwritable(find_base(run.config.model).path)
    work = Subject.ask(path, run, place, num_questions, trust_remote_code)
    with write_folder(place) as folder:
        if to == "adapter":
            copy_run(run, folder, base=base)
            engine: Engine = work.load(work.base, folder, work.renderer)
            parity = work.compare("adapter", engine)
            parity.require("the disk may be faulty; export again")
        else:
            copy_run(run, folder / "run", base=base)
            engine, parity = (
                _merged(work, folder, precision) if to == "merged" else _gguf(work, folder, quantization)
            )
        calibration = recalibrate(
            run, work.shipped, work.held_out, engine, parity, folder if to == "adapter" else folder / "run"
        )
        write_json(folder / _MARK, _record(work, folder, parity, calibration))
        engine.close()
        files = _list(folder)
    return Exported(out, parity.kind, parity, calibration, files)


def _free_place(out: Path, run: RunFolder) -> Path:
    """Return the folder to make, without links; refuse one that holds anything but this run's export."""
    hint = "--out gives another place"
    out = out.resolve()
    if run.path.resolve().is_relative_to(out):
        raise RunError(f"{out} holds the run itself, which would be replaced", hint)
    above = next(parent for parent in out.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RunError(f"{out} can't be made: {above} is {'not yours' if above.is_dir() else 'a file'}", hint)
    if out.exists():
        if not (out / _MARK).is_file():
            raise RunError(f"{out} is there already, and is no earlier export", hint)
        if read_json(out / _MARK).get("adapter_sha256") != run.record["adapter_sha256"]:
            raise RunError(f"{out} is the export of another run", hint)
    return out


def _merged(work: Subject, folder: Path, wanted: Precision | None) -> tuple[Engine, Parity]:
    """Write the first precision that keeps every letter, or the one that is wanted."""
    precisions = (wanted,) if wanted else precisions_to_try(work.base)
    for precision in precisions:
        _clear(folder)
        write_merged(work.merge(), work.renderer, folder, precision)
        # Loaded from its folder, tokenizer and all, as anybody would.
        base = dataclasses.replace(work.base, path=folder)
        engine = work.load(base, None, load_renderer(base, frozen=work.renderer.record()))
        parity = work.compare("merged" if precision != "fp32" else "merged fp32", engine)
        if parity.is_kept or precision == precisions[-1]:
            break
        log.warning("Rounded to %s, %s: rounding less", precision, parity)
        engine.close()
    parity.require("--dtype fp32 rounds nothing" if precision != "fp32" else "update transformers and peft")
    if load_renderer(base).sha256 != work.renderer.sha256:
        log.warning(
            "The chat template now gives another prompt than in training, as of one with today's date: "
            "`medqa serve --engine` sends the one of training, other clients send the new one"
        )
    log.info("Kept in %s", precision)
    return engine, parity


def _gguf(work: Subject, folder: Path, wanted: str | None) -> tuple[Engine, Parity]:
    """Write the smallest usual kind that keeps the letters, or the one that is wanted."""
    kinds = (wanted,) if wanted else _USUAL_GGUF
    with _merged_beside(work) as merged:
        for kind in kinds:
            _clear(folder)
            engine = _write_gguf(work, merged, folder, kind)
            parity = work.compare(kind, engine)
            if parity.is_kept or kind == kinds[-1]:
                break
            log.warning("As %s, %s: too few; quantising less", kind, parity)
            engine.close()
    parity.require("--to merged keeps every letter" if kind == "f32" else "--quantize f32 rounds nothing")
    if parity.share_same < _FEW:
        log.warning("As %s it answers otherwise than the tuned model: %s", kind, parity)
    return engine, parity


def _write_gguf(work: Subject, merged: Path, folder: Path, kind: str) -> LlamaEngine:
    limit = work.base.max_length_tokens
    written = kind if kind in WRITTEN else "f32"
    file = folder / f"model-{written}.gguf"
    log.info("Writing %s", file.name)
    write_gguf(merged, file, written, stop_token_id=work.renderer.stop_ids[0])
    engine = LlamaEngine(file, work.renderer, max_length_tokens=limit)
    if written != kind:
        # What is bound to nothing is made of something that is: else a fault would pass for rounding.
        work.compare(written, engine, _NUM_BEFORE_QUANTISING).require("update medqa and llama.cpp")
        engine.close()
        log.info("Quantising to %s", kind)
        quantized = folder / f"model-{kind}.gguf"
        quantize(file, quantized, kind, num_threads=torch.get_num_threads())
        file.unlink()
        engine = LlamaEngine(quantized, work.renderer, max_length_tokens=limit)
    write_text(folder / "Modelfile", modelfile(work.renderer, f"model-{kind}.gguf", limit))
    return engine


def _clear(folder: Path) -> None:
    """Take an earlier try away; the run's copy stays."""
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()


@contextlib.contextmanager
def _merged_beside(work: Subject) -> Iterator[Path]:
    """Write the merged model in fp32 to a folder that goes away again."""
    folder = beside(work.out)  # by this name the next export finds it, if this one is killed
    folder.mkdir(parents=True)
    try:
        write_merged(work.merge(), work.renderer, folder, "fp32")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _record(work: Subject, folder: Path, parity: Parity, calibration: str) -> dict[str, Any]:
    return {
        **parity.to_json(),
        "calibration": calibration,
        "adapter_sha256": work.run.record["adapter_sha256"],
        "files": {
            file.name: file_sha256(file)
            for file in sorted(folder.glob("*"))
            if file.suffix in (".safetensors", ".gguf")
        },
        "versions": versions(),
    }


def _list(folder: Path) -> tuple[tuple[str, int], ...]:
    found = [(file.name, file.stat().st_size) for file in sorted(folder.iterdir()) if file.is_file()]
    if (run := folder / "run").is_dir():
        found.append(("run/", sum(file.stat().st_size for file in run.iterdir())))
    return tuple(found)
