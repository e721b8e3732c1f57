"""Does cleaning help? The same training on published, cleaned, and cleaned and shuffled rows.

usage: python benchmarks/cleaning.py prepare OUT --data DIR [--rows 6000] [--seeds 3]
       python benchmarks/cleaning.py train OUT --model DIR [--seeds 0 1 2] [--explain 20]
       python benchmarks/cleaning.py compare OUT

`prepare` needs no accelerator: it writes OUT/ARM-SEED.jsonl.gz, the rows of each arm drawn by hash (the same
number in each), the evaluation questions, and some held-out questions to explain. `train` tunes one adapter
for each and scores it on all evaluation questions, as published. `compare` pairs the arms by question.
"""

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ARMS = {
    "published": {"clean": False},
    "cleaned": {},
    "cleaned, shuffled": {"shuffle_options": True},
}


def write_rows(file, examples):
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(e.to_json()) + "\n" for e in examples)


def read_rows(file):
    from medqa.records import Example

    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        row["options"] = tuple(row["options"])
        row.pop("original", None)
    return [Example(**row) for row in rows]


def prepare(args):
    from medqa.config import DataConfig
    from medqa.data.build import build_corpus, evaluation_set
    from medqa.data.draw import sample, shuffled

    args.out.mkdir(parents=True, exist_ok=True)
    for arm, settings in ARMS.items():
        config = DataConfig(name=args.data, **{**settings, "shuffle_options": False})
        if not settings.get("shuffle_options"):
            corpus = build_corpus(config, 0)
        for seed in range(args.num_seeds):
            rows = sample(corpus.train, args.rows, seed)
            rows = [shuffled(row, seed) for row in rows] if settings.get("shuffle_options") else rows
            write_rows(args.out / f"{arm}-{seed}.jsonl.gz", rows)
    write_rows(args.out / "evaluation.jsonl.gz", evaluation_set(DataConfig(name=args.data), 0).examples)
    # Held out of training by the cleaned arms; the published arm draws 6,000 of 70,000 and may know some.
    write_rows(args.out / "explain.jsonl.gz", sample(corpus.calibration, 200, 7))


def score(tuned, items, base, device, title):
    from medqa.evaluate.score import default_batch_tokens, score_items
    from medqa.progress import track

    with track(title, len(items)) as task:
        predictions = score_items(
            tuned,
            items,
            device,
            max_length_tokens=base.max_length_tokens,
            batch_tokens=default_batch_tokens(device),
            task=task,
        )
    return [p.log_likelihoods for p in predictions]


def train(args):
    from medqa.config import RunConfig
    from medqa.evaluate.score import make_items
    from medqa.hardware.device import choose_device
    from medqa.model.batch import tokenise_rows
    from medqa.model.load import find_base, load_model, load_renderer
    from medqa.model.lora import attach_adapter
    from medqa.model.tuned import TunedModel
    from medqa.recipe import load_recipe
    from medqa.serve.answerer import Answerer
    from medqa.train.loop import train_adapter

    config = load_recipe("medmcqa", [f"model.name={args.model}", *args.settings])
    device = choose_device(config.model)
    base = find_base(config.model)
    renderer = load_renderer(base)
    model = load_model(base, device)
    evaluation = read_rows(args.out / "evaluation.jsonl.gz")[: args.limit]
    to_explain = read_rows(args.out / "explain.jsonl.gz")[: args.explain]
    items = {prompt: make_items(renderer, evaluation, prompt) for prompt in ("medqa", "lm_eval")}
    for seed in args.seeds:
        for arm in ARMS:
            result = args.out / f"result-{arm}-{seed}.json"
            if result.exists():
                continue
            start = time.monotonic()
            examples = read_rows(args.out / f"{arm}-{seed}.jsonl.gz")
            rows, _ = tokenise_rows(
                renderer, examples, max_length_tokens=config.train.max_length_tokens, explanations=True
            )
            settings = config.train.model_copy(update={"seed": seed})
            tuned = attach_adapter(model, settings.lora, seed)
            with tempfile.TemporaryDirectory() as folder:
                state = train_adapter(tuned, rows, settings, device, Path(folder), print)
            tuned.eval()
            scores = {
                prompt: score(tuned, prompt_items, base, device, f"{arm} {seed} {prompt}")
                for prompt, prompt_items in items.items()
            }
            explained = []
            if seed == 0 and to_explain:
                run = SimpleNamespace(config=RunConfig(), path=Path(arm))
                answerer = Answerer(TunedModel(run, base, device, renderer, tuned))
                explained = [answerer.answer(example).to_json() for example in to_explain]
            model = tuned.unload()
            seconds = time.monotonic() - start
            print(f"{arm} {seed}: {state.num_tokens:,} tokens, {seconds:.0f} s", flush=True)
            record = {
                "arm": arm,
                "seed": seed,
                "scores": scores,
                "explained": explained,
                "num_tokens": state.num_tokens,
                "seconds": round(seconds, 1),
                "device": device.record(),
            }
            result.write_text(json.dumps(record))


def compare(args):
    from medqa.trust.metrics import expected_calibration_error, mcnemar_p, wilson_interval

    evaluation = read_rows(args.out / "evaluation.jsonl.gz")
    answers = np.array([e.answer for e in evaluation])
    right = {prompt: {} for prompt in ("medqa", "lm_eval")}
    print("| arm | seed | own prompt | lm-eval's | ECE |\n|---|---|---|---|---|")
    for arm in ARMS:
        for file in sorted(args.out.glob(f"result-{arm}-*.json")):
            result = json.loads(file.read_text())
            cells = []
            for prompt in right:
                scores = np.array([row + [-np.inf] * (4 - len(row)) for row in result["scores"][prompt]])
                correct = scores.argmax(1) == answers[: len(scores)]
                right[prompt].setdefault(arm, {})[result["seed"]] = correct
                low, high = wilson_interval(int(correct.sum()), len(correct))
                cells.append(f"{correct.mean():.4f} ({low:.3f}-{high:.3f})")
                if prompt == "medqa":
                    shares = np.exp(scores - scores.max(1, keepdims=True))
                    confidence = (shares / shares.sum(1, keepdims=True)).max(1)
                    ece = expected_calibration_error(confidence, correct)
            print(
                f"| {arm} | {result['seed']} | {' | '.join(cells)} | {ece:.3f} | {result['num_tokens']:,} |"
            )
    draw = np.random.default_rng(0)
    for prompt, arms in right.items():
        for arm in list(ARMS)[1:]:
            if arm not in arms:
                continue
            seeds = sorted(arms[arm].keys() & arms["published"].keys())
            gains = np.mean([arms[arm][s].astype(float) - arms["published"][s] for s in seeds], axis=0)
            boots = [gains[draw.integers(0, len(gains), len(gains))].mean() for _ in range(4000)]
            flips = draw.choice([-1.0, 1.0], (4000, len(gains))) @ gains / len(gains)
            p = (1 + np.sum(np.abs(flips) >= abs(gains.mean()) - 1e-12)) / 4001
            singles = ", ".join(f"{mcnemar_p(arms['published'][s], arms[arm][s]):.2g}" for s in seeds)
            low, high = np.quantile(boots, [0.025, 0.975])
            print(
                f"{prompt}: {arm} - published: {100 * gains.mean():+.2f} points ({100 * low:+.2f} to "
                f"{100 * high:+.2f}), permutation p = {p:.3f}, {len(seeds)} seeds, McNemar by seed: {singles}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for verb in (prepare, train, compare):
        sub = verbs.add_parser(verb.__name__)
        sub.set_defaults(verb=verb)
        sub.add_argument("out", type=Path)
        if verb is prepare:
            sub.add_argument("--data", required=True)
            sub.add_argument("--rows", type=int, default=6000)
            sub.add_argument("--seeds", dest="num_seeds", type=int, default=3)
        if verb is train:
            sub.add_argument("--model", required=True)
            sub.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
            sub.add_argument("--set", dest="settings", action="append", default=[])
            sub.add_argument("--explain", type=int, default=20)
            sub.add_argument("--limit", type=int)
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
