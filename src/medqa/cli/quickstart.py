"""The whole way on built-in parts: fine-tune, score, ask, and say what to do next."""

import time
from pathlib import Path

from rich.console import Console

from medqa.cli.answer_output import print_answer
from medqa.cli.output import print_trained
from medqa.cli.trust_output import print_report
from medqa.data.build import evaluation_set
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.run import evaluate_tuned
from medqa.model.tuned import load_tuned
from medqa.recipe import load_recipe
from medqa.records import LETTERS
from medqa.runs import new_run_path
from medqa.serve.answerer import Answerer
from medqa.train.run import train

__all__ = ["run_quickstart"]

RECIPE = "quickstart"


def run_quickstart(out: Path | None) -> None:
    """Train, evaluate and ask on the built-in model and questions."""
    start = time.monotonic()
    say = Console(stderr=True).rule
    config = load_recipe(RECIPE)
    path = out or new_run_path(RECIPE)
    say("1 of 3: fine-tune the built-in model on the built-in questions")
    print_trained(train(config, path, RECIPE))
    say("2 of 3: score base and tuned model on held-out questions")
    questions = evaluation_set(config.data, config.train.seed)
    tuned = load_tuned(path)
    print_report(evaluate_tuned(tuned, questions))
    say("3 of 3: ask one of them")
    example = questions.examples[0]
    print_answer(Answerer(LocalEngine(tuned), tuned.run).stream(example), example.options)
    if example.answer is not None:
        print(f"(The key says {LETTERS[example.answer]}. {example.options[example.answer]})")
    print(
        f"\nDone in {time.monotonic() - start:.0f} s. This model has 135 million weights and saw a few "
        "hundred questions: it shows the way, it does not know medicine.\nNext:\n"
        f"  {'medqa ask ' + str(path):<32}type in a question of your own\n"
        f"  {'medqa doctor':<32}what this machine would train with\n"
        f"  {'medqa recipe list':<32}recipes for real models\n"
        f"  {'medqa train':<32}Qwen3-1.7B on MedMCQA, from the Hub"
    )
