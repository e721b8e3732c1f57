"""The verbs that say how right a run is, and how far to trust it."""

from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Json, Run, Settings, Trust

__all__ = ["calibrate", "compare", "evaluate"]


def calibrate(
    run: Run,
    orders: Annotated[
        list[int] | None,
        typer.Option(
            help="Option orders to calibrate for: 1, 4 or 24; may be repeated; else as the run is set to."
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Calibrate on at most this many held-back questions.")
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Fit the confidence of a run to questions that were held back from its training.

    `medqa train` does this at its end. Writes calibration.json beside the adapter: temperature, answer sets,
    and what risk to expect at what confidence. The questions a run is measured on are never used.

    \b
    Examples:
      medqa calibrate runs/medmcqa-1
      medqa calibrate runs/medmcqa-1 --orders 1 --orders 24
    """
    from medqa.cli.output import print_json
    from medqa.cli.trust_output import print_calibration
    from medqa.errors import ConfigError
    from medqa.hardware.environment import prepare_environment
    from medqa.runs import RunFolder
    from medqa.trust.permutation import NUM_ORDERS

    chosen = [number for number in NUM_ORDERS if number in (orders or ())]
    if wrong := set(orders or ()) - set(chosen):
        raise ConfigError(f"--orders {min(wrong)}", "1 is the order given, 4 every rotation, 24 every order")
    prepare_environment(RunFolder.open(run).config.model.device)
    from medqa.evaluate.calibrate import calibrate as calibrate_run

    file = calibrate_run(run, chosen, max_rows=rows, trust_remote_code=trust)
    if as_json:
        print_json({"run": str(run), **file.summary()})
    else:
        print_calibration(run, file)


def evaluate(
    run: Run,
    settings: Settings = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure on this many questions only.")] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="openai:URL", help="Server that holds the model, instead of this process."),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Measure a run on its evaluation questions: how right it is, and how far to trust it.

    Writes report.html, report.json and predictions.jsonl into the run. Shows our own score and lm-eval's side
    by side; they answer different questions and must not be mixed. Questions that may be known from
    training are flagged, and the scores are given without them too.

    Through a server, --engine openai:URL[#TUNED[,BASE]], the base model is measured only if it is named. The
    files are then report-server.html, report-server.json and predictions-server.jsonl.

    \b
    Examples:
      medqa evaluate runs/medmcqa-1
      medqa evaluate runs/medmcqa-1 --set data.name=exam.csv
      medqa evaluate runs/medmcqa-1 --set evaluate.orders=1 --set evaluate.explanations=0
      medqa evaluate runs/medmcqa-1 --engine openai:http://gpu-1:8000/v1
    """
    from medqa.cli.output import print_json
    from medqa.cli.trust_output import print_report
    from medqa.hardware.environment import prepare_environment
    from medqa.runs import RunFolder

    folder = RunFolder.open(run)
    if engine is None:
        prepare_environment(folder.config.model.device)
    from medqa.evaluate.run import evaluate as evaluate_run

    report = evaluate_run(run, settings or [], max_rows=limit, trust_remote_code=trust, engine=engine)
    if as_json:
        print_json(report)
    else:
        print_report(report)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Run folder that was evaluated.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another; gains are this one's.")],
    as_json: Json = False,
) -> None:
    """Compare two runs on the same questions, paired: is the difference more than chance?

    Goes by what `medqa evaluate` wrote of each; loads no model.

    \b
    Examples:
      medqa compare runs/medmcqa-1 runs/medmcqa-2
    """
    from medqa.cli.output import print_json
    from medqa.cli.trust_output import print_comparison
    from medqa.evaluate.compare import compare_runs

    found = compare_runs(run_a, run_b)
    if as_json:
        print_json(found)
    else:
        print_comparison(found)
