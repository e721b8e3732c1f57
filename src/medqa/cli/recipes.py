"""The verbs about recipes."""

from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Json, Settings

__all__ = ["recipe_copy", "recipe_fields", "recipe_list", "recipe_show", "recipes"]

recipes = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, show and copy recipes.")


@recipes.command("list")
def recipe_list(as_json: Json = False) -> None:
    """List the recipes that ship with the package."""
    from medqa.cli.output import print_json, print_rows
    from medqa.recipe import recipe_names, recipe_text

    rows = []
    for name in recipe_names():
        first = recipe_text(name).splitlines()[0].lstrip("# ")
        rows.append((name, first))
    if as_json:
        print_json({"recipes": [{"name": name, "purpose": purpose} for name, purpose in rows]})
    else:
        print_rows(rows)


@recipes.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(help="Recipe name or path.")],
    settings: Settings = None,
    full: Annotated[bool, typer.Option(help="Show every setting, defaults too.")] = False,
) -> None:
    """Print a recipe."""
    from medqa.recipe import dump, load_recipe, recipe_text

    config = load_recipe(name, settings or [])
    print(dump(config) if full or settings else recipe_text(name), end="")


@recipes.command("fields")
def recipe_fields(as_json: Json = False) -> None:
    """Print every setting with its default and meaning."""
    from medqa.cli.output import print_fields, print_json
    from medqa.recipe import describe_fields

    fields = describe_fields()
    if as_json:
        print_json({key: {"default": value, "meaning": text} for key, value, text in fields})
    else:
        print_fields(fields)


@recipes.command("copy")
def recipe_copy(
    name: Annotated[str, typer.Argument(help="Recipe name.")],
    target: Annotated[Path, typer.Argument(help="File to write, ending in .yaml.")],
) -> None:
    """Copy a recipe into a file of your own."""
    from medqa.errors import ConfigError
    from medqa.files import write_text
    from medqa.recipe import recipe_text

    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{str(target)!r} does not end in .yaml", "recipes are found by that ending")
    if target.exists():
        raise ConfigError(f"{target} is there already", "give another name")
    text = recipe_text(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as exc:
        raise ConfigError(f"{target} can't be written: {exc}", "give another place") from exc
    print(f"Wrote {target}; use it with: medqa train {target}")
