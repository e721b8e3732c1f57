"""Show how time and memory grow with the number of rows: preparing, tokenising, planning, training steps.

usage: python benchmarks/growth.py OUT --data DIR [--sizes 1000 4000 16000 64000] [--model DIR] [--steps 20]

Each size runs in a process of its own, on that many rows drawn from the training split, with the whole
evaluation split beside them for the leak audit. Training plans all rows, and is stopped after --steps
steps: what grows with the rows shows in the first step. Without --model it is the tests' tiny one, whose
tokenizer takes a token a byte. Writes OUT/growth.json and OUT/growth.png, and prints a Markdown table.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import describe_device, forget_peak, peak_memory_gib, peak_rss_gib, pick_device, sync, versions

from medqa.config import DataConfig, LoraConfig, ModelConfig, TrainConfig

STAGES = (
    "prepare questions",
    "tokenise",
    "load the model",
    "plan and first step",
    "further steps",
)


class Enough(Exception):  # noqa: N818  # no error: it ends a training that went far enough
    pass


class Stages:
    """Seconds of each stage, and the greatest memory up to its end."""

    def __init__(self, device):
        self.device, self.seconds, self.rss_gib = device, {}, {}
        self.clock = time.monotonic()

    def done(self, name):
        sync(self.device)
        self.seconds[name] = time.monotonic() - self.clock
        self.rss_gib[name] = peak_rss_gib()
        self.clock = time.monotonic()


class StepCounter:
    def __init__(self, stages, limit):
        self.stages, self.left = stages, limit

    def __call__(self, optimizer, args, kwargs):
        if "plan and first step" not in self.stages.seconds:
            self.stages.done("plan and first step")
        self.left -= 1
        if self.left == 0:
            self.stages.done("further steps")
            raise Enough


def child(args):
    """Run every stage on OUT/data and write what they took to OUT/child.json."""
    from medqa.data.build import build_corpus
    from medqa.hardware.device import choose_device
    from medqa.model.batch import tokenise_rows
    from medqa.model.load import find_base, load_model, load_renderer
    from medqa.model.lora import attach_adapter

    config = ModelConfig(name=str(args.model), device=args.device)
    device, base = choose_device(config), find_base(config)
    stages = Stages(args.device)
    corpus = build_corpus(DataConfig(name=str(args.out / "data")), 0)
    stages.done("prepare questions")
    limit = min(args.max_length, base.max_length_tokens)
    rows, counts = tokenise_rows(load_renderer(base), corpus.train, max_length_tokens=limit)
    stages.done("tokenise")
    forget_peak(args.device)
    model = attach_adapter(load_model(base, device), LoraConfig(), 0)
    stages.done("load the model")
    train(model, rows, device, StepCounter(stages, args.steps), args)
    record = {
        "num_trained_on": len(rows),
        "num_tokens": sum(map(len, rows)),
        **counts,
        "seconds": stages.seconds,
        "rss_gib": stages.rss_gib,
        "worker_rss_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "device_gib": None if args.device == "cpu" else peak_memory_gib(args.device),
        "device": describe_device(args.device),
    }
    (args.out / "child.json").write_text(json.dumps(record))


def train(model, rows, device, counter, args):
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from medqa.train.loop import train_adapter

    config = TrainConfig(batch_size=args.batch, max_length_tokens=args.max_length)
    hook = register_optimizer_step_post_hook(counter)
    with tempfile.TemporaryDirectory() as folder:
        try:
            train_adapter(model, rows, config, device, Path(folder), print)
        except Enough:
            return
        finally:
            hook.remove()
    sys.exit(f"{len(rows)} rows give fewer than {args.steps} steps of {args.batch}")


def measure_size(size, examples, args):
    """Draw the rows and run a child on them."""
    from medqa.testing import write_medmcqa

    drawn = random.Random(0).sample(examples["train"], size)
    shutil.rmtree(args.out / "data", ignore_errors=True)
    write_medmcqa(args.out / "data" / "train.jsonl", drawn)
    write_medmcqa(args.out / "data" / "validation.jsonl", examples["validation"])
    options = ["--model", args.model, "--steps", args.steps, "--batch", args.batch]
    options += ["--max-length", args.max_length, "--device", args.device, "--child"]
    subprocess.run([sys.executable, __file__, str(args.out), *map(str, options)], check=True)
    record = json.loads((args.out / "child.json").read_text())
    return {"num_rows": size, **record}


def show(records):
    print("| rows | " + " | ".join(f"{stage}, s" for stage in STAGES) + " | peak RSS, GiB | device, GiB |")
    print("|" + "---|" * (len(STAGES) + 3))
    for r in records:
        seconds = " | ".join(f"{r['seconds'][stage]:.1f}" for stage in STAGES)
        on_device = "-" if r["device_gib"] is None else f"{r['device_gib']:.2f}"
        print(f"| {r['num_rows']:,} | {seconds} | {max(r['rss_gib'].values()):.2f} | {on_device} |")


def plot(records, file):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [r["num_rows"] for r in records]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for stage in STAGES:
        left.plot(sizes, [r["seconds"][stage] for r in records], marker="o", label=stage)
    left.set(title="Seconds of each stage", ylabel="seconds", yscale="log")
    for stage in ("prepare questions", "tokenise", "further steps"):
        memory = [r["rss_gib"][stage] for r in records]
        right.plot(sizes, memory, marker="o", label=f"process, up to: {stage}")
    if records[0]["device_gib"] is not None:
        right.plot(sizes, [r["device_gib"] for r in records], marker="s", label="tensors on the device")
    right.set(title="Peak memory", ylabel="GiB", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="rows", xscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000, 64000])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = pick_device(args.device)
    if args.child:
        child(args)
        return
    from medqa.data.sources import read_split
    from medqa.testing import make_tiny_model

    if args.data is None:
        parser.error("--data is needed")
    args.out.mkdir(parents=True, exist_ok=True)
    args.model = args.model or make_tiny_model(args.out / "model")
    source = DataConfig(name=str(args.data))
    splits = {s: read_split(source, s, allow_repeated_options=True).examples for s in ("train", "validation")}
    records = [measure_size(size, splits, args) for size in args.sizes if size <= len(splits["train"])]
    shutil.rmtree(args.out / "data")
    (args.out / "growth.json").write_text(json.dumps({"sizes": records, "versions": versions()}, indent=2))
    plot(records, args.out / "growth.png")
    show(records)


if __name__ == "__main__":
    main()
