"""What larger models and several processes take on this machine's accelerators.

usage: scale.py memory WORK CONFIG DATA [SIZE ...]              of 1.7b 4b 8b (all, if none is named)
       scale.py processes WORK CONFIG DATA N [--share] [SETTING ...]

CONFIG is a folder with Qwen3-1.7B's configuration and tokenizer; weights are random, in the shape of the
Qwen3 of that size: right for speed and memory. `memory` trains 1,280 rows of up to 256 tokens, 16 and 64 a
pass, and compares the memory that was taken with the estimate that plans go by. `processes` trains,
measures with one process and with N, and compares losses, predictions and tokens a second; with --share
the N processes share one accelerator, by gloo: that shows whether the results are the same, not the speed.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from speed import write_random_model

SHAPES = {
    "1.7b": {},
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "layer_types": ["full_attention"] * 36,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "layer_types": ["full_attention"] * 36,
        "tie_word_embeddings": False,
    },
}
MAX_TOKENS = int(os.environ.get("SCALE_TOKENS", "256"))
NUM_ROWS = int(os.environ.get("SCALE_ROWS", "1280"))


def model_of(size, work, config):
    """Return the folder of a model of random weights in a shape, written once."""
    model = Path(work) / f"model-{size}"
    if not model.exists():
        start = time.monotonic()
        write_random_model(Path(config), model, **SHAPES[size])
        print(f"{size}: random weights written in {time.monotonic() - start:.0f} s", flush=True)
    return model


def medqa(run, *words, num=1, launcher=None):
    """Train or evaluate in processes of their own; seconds it took."""
    program = ["-m", "medqa"] if launcher is None else [launcher]
    if num > 1:
        program = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}", *program]
    start = time.monotonic()
    with run.with_suffix(".log").open("a") as log:
        done = subprocess.run(
            [sys.executable, *program, *words], stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        print(run.with_suffix(".log").read_text()[-3000:])
    return done.returncode, time.monotonic() - start


def words_of(settings):
    return [word for setting in settings for word in ("--set", setting)]


def memory(work, config, data, *sizes):
    """Train each size at 16 and 64 rows a pass."""
    import torch

    print(
        "| model | rows a pass | weights, GiB | a row, GiB | estimated, GiB | peak, GiB | path | tokens/s |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size in sizes or SHAPES:
        model = model_of(size, work, config)
        for rows in (16, 64):
            run = Path(work) / f"memory-{size}-{rows}"
            settings = [
                *(f"model.name={model}", f"data.name={data}", f"data.max_train_rows={NUM_ROWS}"),
                *("data.calibration_share=0", "data.selection_share=0"),
                *(f"train.max_length_tokens={MAX_TOKENS}", "train.allow_slow=true"),
                *("train.batch_size=64", f"train.micro_batch_size={rows}"),
            ]
            code, seconds = medqa(run, "train", *words_of(settings), "--out", str(run))
            if code:
                print(f"| {size} | {rows} | exit code {code} after {seconds:.0f} s |", flush=True)
                continue
            print(memory_row(size, model, json.loads((run / "run.json").read_text())), flush=True)
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name(), torch.__version__)


def memory_row(size, model, record):
    """Compare what a run took with the estimate, as a row of the table."""
    from transformers import AutoConfig

    from medqa.config import ModelConfig
    from medqa.hardware.memory import row_gib
    from medqa.model.load import find_base

    trained, precision = record["training"], record["device"]["precision"]
    rows, path = trained["micro_batch_size"], trained["path"]
    num_parameters = find_base(ModelConfig(name=str(model))).num_parameters
    weights = num_parameters * (4 if precision == "fp32" else 2) / 2**30
    a_row = row_gib(AutoConfig.from_pretrained(model), MAX_TOKENS, precision)
    return (
        f"| {size} | {rows} | {weights:.1f} | {a_row:.2f} | {weights + rows * a_row:.1f} "
        f"| {trained['peak_memory_gib']} | {path['path']}: {path.get('graph') or path.get('reason')} "
        f"| {trained['tokens_per_second']:,.0f} |"
    )


def processes(work, config, data, num, *options):
    """Train, calibrate and measure with one process and with several, and compare."""
    shared = "--share" in options
    launcher = str(Path(__file__).with_name("shared_accelerator.py")) if shared else None
    settings = [
        *(f"model.name={model_of('1.7b', work, config)}", f"data.name={data}"),
        *(f"data.max_train_rows={NUM_ROWS}", "data.max_eval_rows=400", "evaluate.orders=1"),
        *("evaluate.explanations=0", "evaluate.traps=0", f"train.max_length_tokens={MAX_TOKENS}"),
        *("train.batch_size=64", "train.micro_batch_size=16", "train.allow_slow=true"),
        *(option for option in options if "=" in option),
    ]
    found = {}
    for count in (1, int(num)):
        name = "-".join(option.replace("=", "-") for option in options if "=" in option)
        run, launched = Path(work) / f"processes-{count}-{name}", {"num": count, "launcher": launcher}
        code, seconds = medqa(
            run, "train", *words_of(settings), "--out", str(run), num=count, launcher=launcher
        )
        if not code:
            code, _ = medqa(run, "evaluate", str(run), **launched)
        if code:
            sys.exit(f"{count} processes: exit code {code}")
        record = json.loads((run / "run.json").read_text())
        lines = (run / "metrics.jsonl").read_text().splitlines()
        rows = (run / "predictions-400.jsonl").read_text().splitlines()
        found[count] = (
            [json.loads(line)["loss"] for line in lines],
            [json.loads(row)["log_likelihoods"] for row in rows],
            record["training"]["tokens_per_second"],
        )
        path = record["training"]["path"]
        print(
            f"{count} processes: {len(lines)} steps, {record['training']['num_tokens']:,} tokens, "
            f"{found[count][2]:,.0f} tokens/s, {seconds:.0f} s, {len(rows)} predictions, "
            f"path {path['path']} {path.get('graph') or path.get('reason')}",
            flush=True,
        )
    (one, first, speed), (several, others, speeds) = found[1], found[int(num)]
    apart = max(abs(a - b) / a for a, b in zip(one, several, strict=True))
    far = max(abs(a - b) for x, y in zip(first, others, strict=True) for a, b in zip(x, y, strict=True))
    print(f"losses differ by at most {apart:.1e} of the loss; log-likelihoods by at most {far:.1e} nats")
    if not shared:
        print(f"scaling efficiency at {num}: {speeds / speed / int(num):.1%}")


if __name__ == "__main__":
    ways = {"memory": memory, "processes": processes}
    if len(sys.argv) < 5 or sys.argv[1] not in ways:
        sys.exit(__doc__)
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    ways[sys.argv[1]](*sys.argv[2:])
