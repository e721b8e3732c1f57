"""Time the stages of the data pipeline apart, on one process unless said otherwise.

usage: python benchmarks/data_stages.py --data DIR

The leak audit is timed against 10,000 questions: the validation split, with changed words.
"""

import argparse
import dataclasses
import resource
import time

from medqa.config import DataConfig
from medqa.data.build import build_corpus
from medqa.data.duplicates import group_duplicates
from medqa.data.fingerprints import Fingerprint
from medqa.data.leaks import audit_leaks
from medqa.data.repair import Lexicon
from medqa.data.sources import read_split
from medqa.data.vocabulary import Vocabulary, row_text

start = 0.0


def told(stage, result):
    global start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {stage} | {time.monotonic() - start:.1f} | {peak:.2f} |", flush=True)
    start = time.monotonic()
    return result


def repaired(lexicon, examples):
    changed = 0
    for example in examples:
        row = row_text(example)
        if lexicon.touches(row):
            changed += any(lexicon(text, row) != text for text in row.split("\n"))
    return changed


def main():
    global start
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    config = DataConfig(name=args.data)
    print("| stage | seconds | peak memory so far, GiB |\n|---|---|---|")
    start = time.monotonic()
    rows = told("read train", read_split(config, "train", allow_repeated_options=True).examples)
    evaluation = read_split(config, "validation", allow_repeated_options=True).examples
    many = [
        dataclasses.replace(e, id=f"{e.id}-{i}", question=f"{e.question} variant {i} of it")
        for i in range(1 + 10_000 // len(evaluation))
        for e in evaluation
    ][:10_000]
    start = time.monotonic()
    vocabulary = told("count the words", Vocabulary(map(row_text, rows)))
    lexicon = told("learn the lost letters", Lexicon.learn(vocabulary))
    changed = told("put them back in every row", repaired(lexicon, rows))
    prints = told("fingerprints", [Fingerprint.of(row) for row in rows])
    told("group duplicates", group_duplicates(rows, prints, config.near_duplicate))
    told(f"leak audit against {len(many):,}", audit_leaks(iter(prints), many, config.near_duplicate))
    corpus = told("everything, on all processors", build_corpus(config, 0))
    print(f"\n{len(rows):,} rows, {len(lexicon.repairs):,} damaged words, {changed:,} rows repaired")
    print(f"{len(corpus.train):,} rows to train on")


if __name__ == "__main__":
    main()
