"""Train and measure the same recipe under several settings, side by side.

usage: python benchmarks/quality.py OUT --recipe medmcqa-2k --set model.name=DIR --set data.name=DIR \
           --dev 2000 --parallel 6 "base=" "hot=train.learning_rate=6e-4"

Every variant is NAME=SETTING[,SETTING...]. With --dev N, variants are measured on N rows held out of
the training split (never on validation), so that a choice between them spoils no later result.
Writes OUT/NAME (run folders), OUT/quality.json and prints a Markdown table. Variants run in
parallel processes, so their times don't count.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medqa.config import DataConfig
from medqa.data.build import sample
from medqa.data.sources import read_split
from medqa.records import LETTERS


def write_rows(file, examples):
    with file.open("w", encoding="utf-8") as out:
        for e in examples:
            row = {"id": e.id, "question": e.question, "cop": e.answer, "exp": e.explanation}
            row |= {f"op{a}": option for a, option in zip(LETTERS.lower(), e.options, strict=False)}
            out.write(json.dumps({**row, "subject_name": e.subject}) + "\n")


def hold_out(data, folder, num_dev):
    """Split the training rows by hash into dev rows and the rest; drop dev rows' twins by text."""
    examples = read_split(DataConfig(name=data), "train").examples
    dev = sample(examples, num_dev, seed=20_261)
    held = {e.id for e in dev}
    questions = {e.question.strip().lower() for e in dev}
    rest = [e for e in examples if e.id not in held and e.question.strip().lower() not in questions]
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", rest)
    write_rows(folder / "validation.jsonl", dev)
    return str(folder)


def run_variant(args, name, settings):
    path = args.out / name
    flags = [part for s in [*args.settings, *settings] for part in ("--set", s)]
    log = (args.out / f"{name}.log").open("w")
    for verb in (["train", args.recipe, "--out", str(path), *flags], ["evaluate", str(path)]):
        command = [sys.executable, "-m", "medqa", *verb]
        if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
            return name, None
    return name, json.loads((path / "report.json").read_text())


def row_of(name, report):
    if report is None:
        return f"| {name} | failed: see {name}.log |"
    own, lm = (report["scores"].get(k, {}).get("tuned") for k in ("medqa", "lm_eval"))
    low, high = own["accuracy_interval"]
    lm_eval = f"{lm['accuracy']:.4f}" if lm else "-"
    return (
        f"| {name} | {own['num_questions']} | {own['accuracy']:.4f} ({low:.3f}-{high:.3f}) | {lm_eval} "
        f"| {own['nll']:.3f} | {own['ece']:.3f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--recipe", default="medmcqa-2k")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--dev", type=int, help="measure on this many rows held out of train")
    parser.add_argument("--parallel", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.dev:
        [data] = [s.partition("=")[2] for s in args.settings if s.startswith("data.name=")]
        args.settings.append(f"data.name={hold_out(data, args.out / 'data', args.dev)}")
    start = time.monotonic()
    with ThreadPoolExecutor(args.parallel) as pool:
        jobs = []
        for variant in args.variants:
            name, _, settings = variant.partition("=")
            jobs.append(pool.submit(run_variant, args, name, [s for s in settings.split(",") if s]))
        results = dict(job.result() for job in jobs)
    (args.out / "quality.json").write_text(json.dumps(results, indent=2))
    print("| variant | n | accuracy (95 % interval) | lm-eval's | NLL | ECE |\n|---|---|---|---|---|---|")
    for name, report in results.items():
        print(row_of(name, report))
    print(f"\n{len(results)} variants in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
