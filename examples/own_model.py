"""From questions to a published folder, with the built-in model: python examples/own_model.py [FOLDER]."""

import sys
from pathlib import Path

from medqa.evaluate.run import evaluate
from medqa.publish.folder import write_published
from medqa.recipe import load_recipe
from medqa.records import Example
from medqa.serve.answerer import Answerer
from medqa.train.run import train

SETTINGS = ["data.max_train_rows=120"]  # data.name=own and model.name=Qwen/Qwen3-1.7B for the real thing


def main(folder: Path) -> None:
    """Train, measure, ask and write what would be on the Hub."""
    run = train(load_recipe("quickstart", SETTINGS), folder / "run", "quickstart").path

    score = evaluate(run)["scores"]["medqa"]
    for model in ("base", "tuned"):
        low, high = score[model]["accuracy_interval"]
        print(f"{model}: {score[model]['accuracy']:.1%} right ({low:.1%} to {high:.1%})")

    question = Example("Lack of which vitamin causes scurvy?", ("Vitamin A", "Vitamin C", "Vitamin D"))
    answer = Answerer.load(run).answer(question)
    print(f"{answer.letter}, {answer.confidence:.0%} sure: {answer.explanation}")
    print(answer.notice)

    published = write_published(run, "ORG/NAME", folder / "published")
    for name, num_bytes, _ in published.files:
        print(f"{name:30} {num_bytes:>12,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-model"))
