"""Answer questions of the evaluation split with a run and print them whole, good and bad.

usage: python benchmarks/ask_examples.py RUN [COUNT] [--openings N]

--openings N also writes N explanations and counts how many open with an answer marker, end by
themselves and name the chosen option.
"""

import argparse
import re
from pathlib import Path

from medqa.data.build import evaluation_set, sample
from medqa.model.tuned import load_tuned
from medqa.records import LETTERS
from medqa.serve.answerer import Answerer

MARKER = re.compile(r"\W*(ans\b|answer|\(?[a-eA-E]\)|option\b)", re.IGNORECASE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=5)
    parser.add_argument("--openings", type=int, default=0)
    args = parser.parse_args()
    tuned = load_tuned(args.run)
    config = tuned.run.config
    questions = sample(evaluation_set(config.data, 0).examples, max(args.count, args.openings), 7)
    answerer = Answerer(tuned)
    answers = [answerer.answer(q) for q in questions]
    for q, a in list(zip(questions, answers, strict=True))[: args.count]:
        print(f"\n### {q.question.strip()}")
        for letter, option in zip(LETTERS, q.options, strict=False):
            print(f"- {letter}. {option} ({a.probabilities[letter]:.0%})")
        verdict = "right" if a.letter == LETTERS[q.answer] else f"wrong, the key is {LETTERS[q.answer]}"
        print(f"\nAnswer: **{a.letter}. {a.option}** ({verdict})\n\n> {a.explanation}")
        if not a.explanation_finished:
            print("> (cut at the length limit)")
    if args.openings:
        n = len(answers)
        opens = sum(bool(MARKER.match(a.explanation)) for a in answers)
        ends = sum(a.explanation_finished for a in answers)
        names = sum(a.option.strip(" .").lower() in a.explanation.lower() for a in answers)
        print(f"\n{n} explanations: {opens} open with an answer marker, {ends} end by themselves, ")
        print(f"{names} name the chosen option's text")


if __name__ == "__main__":
    main()
