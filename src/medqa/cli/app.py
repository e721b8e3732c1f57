"""The `medqa` program: its verbs, and the one place that catches errors.

Results go to stdout, progress and notices to stderr. Exit codes: 0 done, 1 a bug (with its
traceback), 2 something the user can mend, 130 interrupted. Heavy imports stay inside the verbs.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.bulk import answer
from medqa.cli.exporting import export
from medqa.cli.options import Json, Recipe, Settings, Trust
from medqa.cli.publishing import publish
from medqa.cli.recipes import recipes
from medqa.cli.reproducing import reproduce
from medqa.cli.serving import serve
from medqa.cli.training import train
from medqa.cli.trust import calibrate, compare, evaluate
from medqa.errors import ConfigError, MedQAError, machine_fault
from medqa.launch import place
from medqa.secrets import mask_secrets

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a small language model on clinical multiple-choice questions, and ask it.\n\n"
    "Start with `medqa quickstart`. Not medical advice: models err while sounding sure.",
)
app.add_typer(recipes, name="recipe")


def main() -> None:
    """Run the program."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    try:
        code = app(standalone_mode=False)
    except MedQAError as exc:
        code = _say(exc)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as exc:  # noqa: BLE001 - the last place that can mask what a bug shows
        # click's usage errors know how to show themselves; everything else is a bug.
        show = getattr(exc, "show", None)
        if show is not None:
            show()
            code = getattr(exc, "exit_code", 2)
        elif (fault := machine_fault(exc)) is not None:
            code = _say(fault)
        else:
            print(mask_secrets(traceback.format_exc()), end="", file=sys.stderr)
            code = 1
    if code == 130:
        print("Interrupted.", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _say(exc: MedQAError) -> int:
    rank, size = place()
    print(
        f"Error{f' in process {rank} of {size}' if size > 1 else ''}: {mask_secrets(str(exc))}",
        file=sys.stderr,
    )
    return 2


# What several processes do together, the first one telling of it; each would do the rest once.
_TOGETHER = ("train", "evaluate", "calibrate")
_SHARED = "answer"  # each does its share, and the one that ends last tells of it


@app.callback()
def _start(context: typer.Context) -> None:
    from medqa.cli.output import set_up_logging

    set_up_logging()
    verb, (rank, size) = context.invoked_subcommand, place()
    if rank and verb in _TOGETHER:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    if size > 1 and verb not in (*_TOGETHER, _SHARED):
        raise ConfigError(
            f"{size} processes were started, each of which would do `medqa {verb}` by itself",
            f"without torchrun; with it, there are {', '.join(_TOGETHER)} and {_SHARED}",
        )


@app.command()
def quickstart(
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make; runs/quickstart-N if not given.")
    ] = None,
) -> None:
    """Fine-tune, score and ask in minutes, on any machine, with no network.

    Uses the built-in 135M model and the built-in questions.
    """
    from medqa.hardware.environment import prepare_environment

    prepare_environment()
    from medqa.cli.quickstart import run_quickstart

    run_quickstart(out)


@app.command()
def doctor(
    as_json: Json = False,
    env: Annotated[
        bool, typer.Option("--env", help='Print only the lines for: eval "$(medqa doctor --env)".')
    ] = False,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Also check on the device that it computes rightly.")
    ] = False,
) -> None:
    """Say what training would run on, what stands in the way, and the lines that mend it.

    Needs no torch to start. Exits with 2 if training would not run on the accelerator that the
    machine has, or if the self-test fails.
    """
    from medqa.cli.doctor import show_doctor

    raise typer.Exit(0 if show_doctor(as_json=as_json, env=env, selftest=selftest) else 2)


@app.command()
def data(
    recipe: Recipe = None,
    settings: Settings = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="Name of one of the file's own columns."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make; data/RECIPE-N if not given.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Explain every problem of this file, and build nothing."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build the questions to train on, with a page that says what was done to every row.

    Writes train.jsonl, calibration.jsonl, selection.jsonl, data.json and data_report.html. Nothing
    leaves the machine. --check exits with 2 if training would refuse the file.

    \b
    Examples:
      medqa data --set data.name=path/to/medmcqa
      medqa data --check own.xlsx --map question=stem --map answer=solution
    """
    from medqa.cli.data import build_data, check_data, source_settings
    from medqa.recipe import DEFAULT_RECIPE, load_recipe

    recipe = recipe or DEFAULT_RECIPE
    settings = [*(settings or []), *source_settings(mapping or [], check)]
    config = load_recipe(recipe, settings)
    if check is not None:
        raise typer.Exit(0 if check_data(config.data, check, as_json=as_json) else 2)
    build_data(config, recipe, settings, out, as_json=as_json)


app.command()(train)
app.command()(calibrate)
app.command()(evaluate)
app.command()(compare)


@app.command()
def ask(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="Run folder that `medqa train` made, or hub:ORG/NAME."),
    ] = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="The question.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="One option; give it 2 to 10 times.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help='JSON file: {"question": ..., "options": [...]}; "context" may be added.'),
    ] = None,
    explain: Annotated[bool, typer.Option(help="Write the explanation too.")] = True,
    serve: Annotated[
        str | None, typer.Option(metavar="URL", help="Running server to ask, instead of RUN.")
    ] = None,
    settings: Settings = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Answer one question: letter, confidence, the options that stay in question, explanation.

    With --serve no model is loaded; a key is taken from MEDQA_API_KEY.

    \b
    Examples:
      medqa ask runs/quickstart-1 -q "Which vitamin prevents scurvy?" -o "Vitamin A" -o "Vitamin C"
      medqa ask runs/quickstart-1 --file question.json --json
      medqa ask runs/medmcqa-1 --set serve.max_risk=0.3 --set serve.orders=4
      medqa ask --serve http://127.0.0.1:7860 --file question.json
      medqa ask runs/quickstart-1            (asks for the question)
    """
    from medqa.cli.answer_output import print_answer
    from medqa.cli.asking import ask_run, ask_server
    from medqa.cli.output import print_json
    from medqa.cli.question import read_question

    if (run is None) == (serve is None):
        raise ConfigError(
            "neither a run nor a server to ask" if run is None else "a run and a server to ask",
            "medqa ask RUN, or medqa ask --serve URL",
        )
    example = read_question(question, option or [], file)
    if serve is not None:
        parts = ask_server(serve, example, settings or [], trust, explain=explain)
    elif run is not None:
        parts = ask_run(run, example, settings or [], trust, explain=explain)
    if as_json:
        *_, whole = (part for part in parts if not isinstance(part, str))
        print_json(whole.to_json())
    else:
        print_answer(parts, example.options)


app.command()(answer)
app.command()(serve)
app.command()(export)
app.command()(publish)
app.command()(reproduce)
