"""Measure training speed beside other tools: the same tokens and labels, one machine, one after another.

usage: python benchmarks/speed.py prepare OUT --model DIR --data DIR [--rows 2000] [--random-weights]
       python benchmarks/speed.py all OUT ours ours-plain trainer hackathon trl unsloth llamafactory
       python benchmarks/speed.py run OUT ours [--steps 20]
       python benchmarks/speed.py table OUT
       python benchmarks/speed.py whole OUT

`prepare` draws and tokenises the rows once, into OUT/rows.json (which holds the data set's text as token
ids: not to be published). With --random-weights it writes a model of the same shape into OUT/model, for a
machine without the weights; without --data it keeps the rows that are there. `run` warms a tool up,
trains it --repeats times over all rows and writes OUT/TOOL.json; `all` runs each tool in a process of its
own (its output is in OUT/TOOL.log), then `table`. With --steps N a run takes as many rows as N steps need,
once. `whole` times `medqa train` and `medqa evaluate` as a user runs them.
"""

import argparse
import array
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

STARTED = time.monotonic()  # before torch is imported: a user waits for that too

import measure  # noqa: E402
from speed_peers import TOOLS  # noqa: E402
from speed_tools import Job  # noqa: E402


def prepare(args):
    args.out.mkdir(parents=True, exist_ok=True)
    if args.random_weights:
        write_random_model(args.model, args.out / "model")
    if args.data is None:
        print("rows kept:", len(json.loads((args.out / "rows.json").read_text())["rows"]))
        return
    from medqa.config import DataConfig, ModelConfig
    from medqa.data.build import build_corpus
    from medqa.model.batch import tokenise_rows
    from medqa.model.load import find_base, load_renderer

    model = args.out / "model" if args.random_weights else args.model
    corpus = build_corpus(DataConfig(name=str(args.data), max_train_rows=args.rows), seed=0)
    renderer = load_renderer(find_base(ModelConfig(name=str(model))))
    rows, counts = tokenise_rows(renderer, corpus.train, max_length_tokens=args.max_length)
    record = {
        "model": str(model.resolve()),
        "data": str(args.data.resolve()),
        "max_length": args.max_length,
        "num_tokens": sum(map(len, rows)),
        **counts,
        "rows": [{**dataclasses.asdict(row), "ids": list(row.ids)} for row in rows],
        "typecode": getattr(rows[0].ids, "typecode", None),
    }
    (args.out / "rows.json").write_text(json.dumps(record))
    print(f"{len(rows)} rows, {record['num_tokens']} tokens, {counts}")


def write_random_model(source, folder, **shape):
    """Write configuration and tokenizer of a model with random bf16 weights, standard deviation 0.02."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source, **shape)
    config.initializer_range = 0.02
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def read_rows(out):
    """Return the rows, the folder of the model and the longest row allowed."""
    from medqa.model.batch import TokenisedRow

    record = json.loads((out / "rows.json").read_text())
    model = out / "model" if (out / "model").exists() else Path(record["model"])
    code = record.get("typecode")
    rows = [{**row, "ids": array.array(code, row["ids"]) if code else row["ids"]} for row in record["rows"]]
    return [TokenisedRow(**row) for row in rows], model.resolve(), record["max_length"]


def run(args):
    rows, model, max_length = read_rows(args.out)
    job = Job(model, args.batch, max_length, measure.pick_device(args.device))
    record = {"tool": args.tool, "command": " ".join(sys.argv)}
    try:
        record |= {"status": "ok", **measure_tool(TOOLS[args.tool](job), rows, args)}
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:  # noqa: BLE001  # whatever another tool raises is its result
        lines = [line for line in str(exc).splitlines() if line.strip()] or ["no message"]
        print(f"{args.tool}: {exc!r}", file=sys.stderr)
        record |= {"status": "not run", "reason": f"{type(exc).__name__}: {lines[-1].strip()}"}
    write(args.out / f"{args.tool}.json", record)


def measure_tool(tool, rows, args):
    device, batch = tool.job.device, tool.job.batch
    tool.use()
    startup = {"import": time.monotonic() - STARTED}
    clock = time.monotonic()
    tool.load()
    startup["load"], clock = time.monotonic() - clock, time.monotonic()
    by_length = sorted(rows, key=lambda row: -len(row))
    tool.train(by_length[:batch], 1)  # the longest: memory that is short shows at once
    startup["first step"], clock = time.monotonic() - clock, time.monotonic()
    tool.train(by_length[:: max(1, len(rows) // (args.warm_up * batch))], 1)
    warm_up = time.monotonic() - clock
    epochs = args.epochs
    if args.steps:
        rows, epochs = rows[: args.steps * args.batch], 1
    measure.forget_peak(device)
    outcomes, rates = [], [measure.matmul_rate(device)]
    for _ in range(args.repeats):  # the rate again and again: it tells whether the machine was left alone
        outcomes.append(tool.train(rows, epochs))
        rates.append(measure.matmul_rate(device))
    return {
        "settings": tool.settings.format(batch=batch),
        "num_rows": len(rows),
        "epochs": epochs,
        "runs": [{**vars(o), "tokens_per_second": o.num_tokens / o.seconds} for o in outcomes],
        "startup_seconds": startup,
        "warm_up_seconds": warm_up,
        "peak_memory_gib": measure.peak_memory_gib(device),
        "peak_memory_of": "the process" if device == "cpu" else "tensors on the device",
        **share_of_rate(tool.job.model, outcomes, rates),
        "notes": tool.notes,
        "device": measure.describe_device(device),
        "versions": measure.versions(),
    }


def share_of_rate(model, outcomes, rates):
    """A token costs 4 operations a frozen weight: 2 forward, 2 for the gradient that passes through."""
    from medqa.model.load import fingerprint

    num_weights = fingerprint(model)[1]
    speed = statistics.median(o.num_tokens / o.seconds for o in outcomes)
    share = 4 * num_weights * speed / statistics.median(rates)
    return {"num_weights": num_weights, "matmul_flops": rates, "share_of_matmul_rate": share}


def run_all(args):
    for name in args.tools:
        file = args.out / f"{name}.json"
        file.unlink(missing_ok=True)
        options = ["--repeats", args.repeats, "--batch", args.batch, "--epochs", args.epochs]
        options += ["--warm-up", args.warm_up]
        options += ["--device", args.device, *(["--steps", args.steps] if args.steps else [])]
        command = [sys.executable, __file__, "run", str(args.out), name, *map(str, options)]
        reason = f"took more than {args.limit_seconds} s"
        with (args.out / f"{name}.log").open("w") as log:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                done = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, timeout=args.limit_seconds, check=False
                )
                reason = f"ended with code {done.returncode}, see {name}.log"
            except subprocess.TimeoutExpired:
                pass
        if not file.exists():
            write(file, {"tool": name, "command": " ".join(command), "status": "not run", "reason": reason})
    table(args)


def spread(values, digits):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def table(args):
    files = [args.out / f"{name}.json" for name in TOOLS]
    records = [json.loads(file.read_text()) for file in files if file.exists()]
    done = [r for r in records if r["status"] == "ok"]
    speeds = {r["tool"]: statistics.median(run["tokens_per_second"] for run in r["runs"]) for r in done}
    lines = [
        "| tool | settings | seconds | steps | tokens/s | times the slowest | ours is faster by "
        "| share of the matmul rate | peak memory, GiB | start-up, s | warm-up, s | last loss |",
        "|" + "---|" * 12,
    ]
    for r in records:
        if r["status"] != "ok":
            lines.append(f"| {r['tool']} | not run: {r['reason']} |" + " |" * 10)
            continue
        speed, last = speeds[r["tool"]], r["runs"][-1]
        startup = sum(r["startup_seconds"].values())
        ours = f"{speeds['ours'] / speed:.2f} x" if "ours" in speeds else "-"
        lines.append(
            f"| {r['tool']} | {r['settings']} | {spread([run['seconds'] for run in r['runs']], 1)} "
            f"| {last['num_steps']} | {speed:,.0f} | {speed / min(speeds.values()):.2f} | {ours} "
            f"| {r['share_of_matmul_rate']:.1%} | {r['peak_memory_gib']:.1f} "
            f"| {startup:.1f} | {r['warm_up_seconds']:.1f} | {last['final_loss']:.3f} |"
        )
    keys = ("device", "num_rows", "epochs", "peak_memory_of")
    lines += [f"\n{key}: " + "; ".join(sorted({str(r[key]) for r in done})) for key in keys]
    for r in done:
        rates = spread([rate / 1e12 for rate in r["matmul_flops"]], 3)
        found = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
        lines.append(f"\n{r['tool']}: measured matmul rate {rates} TFLOP/s; {found}")
        if setup := statistics.median(run["setup_seconds"] for run in r["runs"]):
            lines.append(f"  - {setup:.2f} of its seconds are outside the steps: checks, planning, saving")
        lines += [f"  - {note}" for note in r["notes"]]
    lines.append("\nLosses of different tools don't compare: each weighs a row's tokens in its own way.")
    (args.out / "speed.md").write_text("\n".join(lines) + "\n")
    write(args.out / "speed.json", records)
    print("\n".join(lines))


def whole(args):
    """Time both commands from import to files; their own record tells the stages."""
    rows = json.loads((args.out / "rows.json").read_text())
    path = args.out / "whole-run"
    shutil.rmtree(path, ignore_errors=True)
    model = read_rows(args.out)[1]
    settings = [f"model.name={model}", f"data.name={args.data or rows['data']}", *args.settings]
    flags = [part for setting in settings for part in ("--set", setting)]
    seconds = {}
    for verb in (["train", "medmcqa-2k", "--out", str(path), *flags], ["evaluate", str(path)]):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "medqa", *verb], check=True)
        seconds[f"medqa {verb[0]}"] = time.monotonic() - start
    training = json.loads((path / "run.json").read_text())["training"]
    [report] = path.glob("report*.json")  # one for a part of the questions has their number in its name
    scoring = json.loads(report.read_text())["seconds"]
    write(args.out / "whole.json", {"seconds": seconds, "training": training, "scoring": scoring})
    print("| stage | seconds |\n|---|---|")
    stages = {**seconds, **training["seconds"]}
    stages |= scoring if isinstance(scoring, dict) else {"scoring": scoring}
    for name, value in stages.items():
        print(f"| {name} | {value:.1f} |")


def write(file, record):
    file.write_text(json.dumps(record, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True)

    def verb(name, function):
        added = verbs.add_parser(name)
        added.add_argument("out", type=Path)
        added.set_defaults(function=function)
        return added

    prepare_verb = verb("prepare", prepare)
    prepare_verb.add_argument("--model", type=Path, required=True)
    prepare_verb.add_argument("--data", type=Path, help="without it, the rows of an earlier call stay")
    prepare_verb.add_argument("--rows", type=int, default=2000)
    prepare_verb.add_argument("--max-length", type=int, default=512)
    prepare_verb.add_argument("--random-weights", action="store_true")
    run_verb, all_verb = verb("run", run), verb("all", run_all)
    run_verb.add_argument("tool")
    all_verb.add_argument("tools", nargs="+")
    all_verb.add_argument("--limit-seconds", type=float, help="stop a tool that takes longer")
    for added in (run_verb, all_verb):
        added.add_argument("--repeats", type=int, default=3)
        added.add_argument("--steps", type=int, help="as many rows as this many steps take, once")
        added.add_argument("--batch", type=int, default=16)
        added.add_argument("--epochs", type=int, default=2)
        added.add_argument(
            "--warm-up", type=int, default=4, help="batches of all lengths before the clock runs"
        )
        added.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    verb("table", table)
    whole_verb = verb("whole", whole)
    whole_verb.add_argument("--data", help="the folder that `prepare` read, if not given")
    whole_verb.add_argument("--set", dest="settings", action="append", default=[])
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
