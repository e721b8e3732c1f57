"""The verb that does a run once more."""

from pathlib import Path
from typing import Annotated, Any

import typer

from medqa.cli.options import Json, Run, Settings, Trust

__all__ = ["reproduce"]


def reproduce(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make; runs/RUN-again-N if not given.")
    ] = None,
    settings: Settings = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Train and measure a run once more from its own record, and say what came out the same.

    RUN may be a published folder; it doesn't know where data and base model are here: --set says so. A run
    that was given minutes is repeated step by step, not minute by minute.

    \b
    Examples:
      medqa reproduce runs/medmcqa-1
      medqa reproduce hub:ORG/NAME --set data.name=path/to/medmcqa
    """
    from medqa.cli.output import print_json, set_up_logging
    from medqa.hardware.environment import prepare_environment
    from medqa.runs import RunFolder, new_run_path

    folder = RunFolder.open(run)
    environment = prepare_environment(folder.config.model.device)
    from medqa.publish.reproduce import reproduce as reproduce_run

    set_up_logging()  # what was imported may have changed it
    path = out or new_run_path(f"{folder.name.replace('/', '--')}-again")
    found = reproduce_run(run, path, settings or [], environment, trust)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", f"{found['of']}", "once more", "", box=None, pad_edge=False)
    for one in found["agreement"]:
        values = [str(one[key])[:16] for key in ("before", "now")]
        if one["what"] == "prompt":  # a text
            values = ["as recorded", "as recorded" if one["same"] else "another"]
        table.add_row(one["what"], *values, "same" if one["same"] else "DIFFERS")
    for one in found["figures"]:
        values = [
            f"{one[key]:.4f}" + (f" ({low:.4f} to {high:.4f})" if interval else "")
            for key, interval in zip(("before", "now"), one["intervals"], strict=True)
            for low, high in [interval or (0.0, 0.0)]
        ]
        table.add_row(one["what"], *values, f"{one['now'] - one['before']:+.4f}")
    for place in ("first", "last") if found["loss"] else ():
        before, now = found["loss"][place]
        table.add_row(f"loss of the {place} step", f"{before:.6f}", f"{now:.6f}", f"{now - before:+.2g}")
    Console(emoji=False, highlight=False).print(table)
    print(_verdict(found))
    print(f"Written to {found['run']}/reproduction.json")


def _verdict(found: dict[str, Any]) -> str:
    """Say in a sentence or two what it comes to."""
    differing = [one["what"] for one in found["agreement"] if not one["same"] and one["what"] != "adapter"]
    if found["adapter_difference"] is None:
        numbers = [one["now"] - one["before"] for one in found["figures"]]
        if not numbers:
            return "The adapter is the same to the bit."
        greatest = max(map(abs, numbers))
        measured = "all numbers are the same" if not greatest else f"numbers differ by {greatest:.2g} at most"
        also = "" if found["same_questions"] else ", of other questions"
        return f"The adapter is the same to the bit; {measured}{also}."
    greatest, mean = (found["adapter_difference"][key] for key in ("greatest", "mean"))
    if greatest is None:
        return "The adapter has other tensors: it is another model."
    text = f"The adapter differs: its weights by {mean:.2g} on average, {greatest:.2g} at most. "
    cause = (
        f"What else differs: {', '.join(differing)}." if differing else "Nothing else that is recorded does."
    )
    return text + cause
