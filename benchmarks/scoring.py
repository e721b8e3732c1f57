"""Measure how many questions a second are scored, base and tuned, packed and plain.

usage: python benchmarks/scoring.py RUN [--set data.name=DIR] [--repeats 3] [--plain]

Times scoring alone, and with tokenising, on all evaluation questions of a finished run, after a warm-up.
Prints a Markdown table.
"""

import argparse
import statistics
import time
from pathlib import Path

from medqa.data.build import evaluation_set
from medqa.evaluate.score import choose_decoder, default_batch_tokens, make_items, score_items
from medqa.model.tuned import load_tuned
from medqa.recipe import changed_config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="the plain way too")
    args = parser.parse_args()
    tuned = load_tuned(args.run)
    config = changed_config(tuned.run.config, args.settings, ("data",))
    examples = evaluation_set(config.data, 0).examples
    limit = tuned.base.max_length_tokens
    print("| prompt | way | model | questions | tokens | questions/s (range) |\n|---|---|---|---|---|---|")
    for prompt in ("medqa", "lm_eval"):
        start = time.perf_counter()
        items = make_items(tuned.renderer, examples, prompt)
        tokenising = time.perf_counter() - start
        decoder = choose_decoder(tuned.model, items, tuned.device, max_length_tokens=limit)
        for way in (decoder, None) if args.plain else (decoder,):
            for adapted in (False, True):
                rates = []
                for _ in range(args.repeats + 1):
                    start = time.perf_counter()
                    score_items(
                        tuned.model,
                        items,
                        tuned.device,
                        max_length_tokens=limit,
                        batch_tokens=default_batch_tokens(tuned.device),
                        adapted=adapted,
                        decoder=way,
                    )
                    rates.append(len(items) / (time.perf_counter() - start))
                rates = rates[1:]  # the first warms up
                print(
                    f"| {prompt} | {'packed' if way else 'plain'} | {'tuned' if adapted else 'base'} "
                    f"| {len(items):,} | {sum(len(item.prefix) for item in items):,} "
                    f"| {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) |"
                )
        print(f"\nTokenising the {prompt} prompt took {tokenising:.2f} s, once for both models.\n")
    print(f"{tuned.device.name}, {tuned.device.precision}; peak {tuned.device.peak_memory_gib()} GiB")


if __name__ == "__main__":
    main()
