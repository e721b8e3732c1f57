"""The arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Json", "Recipe", "Run", "Settings", "Trust"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Recipe = Annotated[
    str | None, typer.Argument(help="Recipe name, or a path ending in .yaml; medmcqa if not given.")
]
Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder that `medqa train` made, or hub:ORG/NAME.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=V", help="Change one setting; may be repeated."),
]
Trust = Annotated[
    str | None,
    typer.Option("--trust-remote-code", metavar="NAME", help="Run's base model whose own code may run."),
]
