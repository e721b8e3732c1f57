"""How much of a tuned model each export keeps: letters, probabilities, size and time.

    python benchmarks/export_parity.py RUN OUT.json [--questions 500] bf16 fp16 fp32 f16 q8_0 q4_k_m

Kinds bf16, fp16 and fp32 are merged models; w8 is one whose weights alone are rounded as q8_0 does, computed
in fp32; the others are GGUF files, run by llama.cpp on the CPU. All are asked the same questions, held back
back from the run's training.
"""

import argparse
import copy
import dataclasses
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

import torch

from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.score import make_items
from medqa.model.load import load_model
from medqa.model.tuned import load_tuned
from medqa.publish.gguf import WRITTEN, write_gguf
from medqa.publish.llama import LlamaEngine, quantize
from medqa.publish.merge import merge, write_merged
from medqa.publish.parity import compare, find_held_out, is_valid

MERGED = ("bf16", "fp16", "fp32")


def round_weights(model):
    """A copy with weights that went through q8_0 and back."""
    from gguf import GGMLQuantizationType, quants

    rounded = copy.deepcopy(model)
    kind = GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.ndim == 2:
                blocks = quants.quantize(weight.detach().cpu().numpy(), kind)
                weight.copy_(torch.from_numpy(quants.dequantize(blocks, kind)).view_as(weight))
    return rounded


def export(kind, tuned, folder):
    """Export to a folder; the engine of it."""
    if kind == "w8":
        return LocalEngine(dataclasses.replace(tuned, model=round_weights(tuned.model)))
    if kind in MERGED:
        write_merged(copy.deepcopy(tuned.model), tuned.renderer, folder, kind)
        base = dataclasses.replace(tuned.base, path=folder)
        return LocalEngine(dataclasses.replace(tuned, model=load_model(base, tuned.device)))
    with tempfile.TemporaryDirectory() as merged:
        write_merged(copy.deepcopy(tuned.model), tuned.renderer, Path(merged), "fp32")
        first = kind if kind in WRITTEN else "f32"
        write_gguf(Path(merged), folder / f"{first}.gguf", first, stop_token_id=tuned.renderer.stop_ids[0])
    if first != kind:
        quantize(folder / "f32.gguf", folder / f"{kind}.gguf", kind, num_threads=torch.get_num_threads())
        (folder / "f32.gguf").unlink()
    limit = tuned.base.max_length_tokens
    return LlamaEngine(folder / f"{kind}.gguf", tuned.renderer, max_length_tokens=limit)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("kinds", nargs="+")
    parser.add_argument("--questions", type=int, default=500)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    tuned = load_tuned(args.run, dtype="fp32")
    held_out = find_held_out(tuned.run, args.questions)
    shipped = load_calibration(tuned.run, tuned.renderer)
    calibration = shipped.for_orders(1) if shipped else None
    reference = LocalEngine(tuned).score(make_items(tuned.renderer, held_out.examples, "medqa"))
    tuned = dataclasses.replace(tuned, model=merge(tuned))
    found = []
    for kind in args.kinds:
        folder, start = Path(tempfile.mkdtemp(dir=args.out.parent)), time.monotonic()
        try:
            engine = export(kind, tuned, folder)
            written = time.monotonic() - start
            named = kind if kind not in MERGED else "merged"
            parity = compare(named, tuned.renderer, reference, engine, held_out, calibration)
            row = {
                "kind": kind,
                **parity.to_json(),
                "calibration_holds": is_valid(parity),
                "mib": sum(f.stat().st_size for f in folder.glob("model*.safetensors")) / 2**20
                or sum(f.stat().st_size for f in folder.glob("*.gguf")) / 2**20,
                "seconds_to_write": written,
                "seconds_to_ask": time.monotonic() - start - written,
                "device": engine.device_record()["name"],
            }
            engine.close()
        finally:
            shutil.rmtree(folder)
        found.append(row)
        print(f"{kind}: {parity}; drift {parity.drift}; {row['mib']:.0f} MiB, {written:.0f} s", flush=True)
        args.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
