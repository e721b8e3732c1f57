"""The verb that fine-tunes."""

import time
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Json, Recipe, Settings, Trust
from medqa.errors import ConfigError
from medqa.launch import place

__all__ = ["train"]

# What --minutes counts from: loading torch and the model is part of the wait.
STARTED = time.monotonic()


def train(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make; runs/RECIPE-N if not given.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run instead.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Be done in so many minutes: plans what fits, trains, scores."),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an adapter.

    With --minutes, this machine's speed is measured, and rows, epochs, share of explanations and questions to
    score are planned to fit; the plan is shown, and made anew when the speed changes.

    \b
    Examples:
      medqa train
      medqa train --minutes 5
      medqa train medmcqa-2k --set model.name=path/to/model --set data.name=path/to/medmcqa
      medqa train --resume runs/medmcqa-1
    """
    from medqa.cli.output import print_json, print_trained
    from medqa.cli.trust_output import print_report
    from medqa.data.prepared import begin_corpus
    from medqa.files import read_sealed
    from medqa.hardware.environment import prepare_environment
    from medqa.recipe import DEFAULT_RECIPE, load_recipe, refuse_planned, with_whole_paths
    from medqa.runs import new_run_path

    if resume is not None:
        if settings or out or recipe or minutes:
            raise ConfigError(
                "--resume goes on with the run's own recipe, settings and folder",
                "leave out RECIPE, --set, --out and --minutes, or train anew without --resume",
            )
        prepare_environment()
        from medqa.train.run import resume as resume_run

        run = resume_run(resume, trust)
    else:
        recipe = recipe or DEFAULT_RECIPE
        config = with_whole_paths(load_recipe(recipe, settings or []))
        if minutes:
            refuse_planned(settings or [])
        environment = prepare_environment(config.model.device)
        # In a process of its own, which has a head start of torch's import.
        questions = begin_corpus(config.data, config.train.seed) if place()[1] == 1 else None
        from medqa.train.run import train as train_run

        end = STARTED + 60 * minutes if minutes else None
        path = out or new_run_path(recipe)
        run = train_run(config, path, recipe, environment, questions=questions, end=end)
    if as_json:
        print_json({"run": str(run.path), **run.record})
        return
    print_trained(run)
    if "report" in run.record and place()[0] == 0:
        print_report(read_sealed(run.path / run.record["report"]))
