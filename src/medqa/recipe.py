"""Recipes: a short YAML file plus `--set a.b=v` gives a RunConfig.

Precedence, only this: field default < recipe < --set. A recipe is a name of one that ships with
the package, or a path ending in .yaml.
"""

import difflib
import importlib.resources
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from medqa.config import RunConfig
from medqa.errors import ConfigError

__all__ = [
    "DEFAULT_RECIPE",
    "changed_config",
    "describe_fields",
    "dump",
    "load_recipe",
    "recipe_names",
    "recipe_text",
    "refuse_planned",
    "with_whole_paths",
]

DEFAULT_RECIPE = "medmcqa"


def recipe_names() -> list[str]:
    """Name the recipes that ship with the package, the default one first."""
    folder = importlib.resources.files("medqa") / "recipes"
    names = sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_RECIPE)


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe.

    Raises:
        ConfigError: If there is no such recipe or file.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"recipe {name!r} can't be read: {exc}", "check the path") from exc
    names = recipe_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"unknown recipe {name!r}",
            f"{meant}Known: {', '.join(names)}; or give a path ending in .yaml",
        )
    return (importlib.resources.files("medqa") / "recipes" / f"{name}.yaml").read_text("utf-8")


def load_recipe(name: str = DEFAULT_RECIPE, settings: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply `a.b=v` settings to it.

    Raises:
        ConfigError: If the recipe, a key or a value is wrong; names the key and what was meant.
    """
    try:
        tree = yaml.safe_load(recipe_text(name)) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"recipe {name!r} is not valid YAML: {exc}", "mend the line it names") from exc
    if not isinstance(tree, dict):
        raise ConfigError(
            f"recipe {name!r} holds a {type(tree).__name__}, expected sections such as data: and train:",
            "see `medqa recipe show medmcqa`",
        )
    if isinstance(model := tree.get("model"), dict) and model.get("trust_remote_code"):
        raise ConfigError(
            f"recipe {name!r} asks to run code of {model['trust_remote_code']!r}",
            "a recipe may not; if you trust it, say so yourself: --set model.trust_remote_code=NAME",
        )
    return _validated(tree, settings, f"recipe {name!r}")


def changed_config(config: RunConfig, settings: Sequence[str], sections: Sequence[str]) -> RunConfig:
    """Apply `a.b=v` settings to the settings of a finished run.

    Args:
        config: The run's settings.
        settings: What to change.
        sections: The sections in which something may change.

    Raises:
        ConfigError: If a key or a value is wrong, or the section is another one.
    """
    for setting in settings:
        if setting.split(".")[0].strip() not in sections:
            raise ConfigError(
                f"--set {setting!r} has no effect here",
                f"what a run was trained with stays; of {', '.join(sections)} settings can change",
            )
    return _validated(config.model_dump(mode="json"), settings, "--set")


def _validated(tree: dict[str, Any], settings: Sequence[str], where: str) -> RunConfig:
    for setting in settings:
        _apply(tree, setting)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as exc:
        raise _explain(exc, where) from exc


def _apply(tree: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {setting!r} is not of the form a.b=v", "for example --set train.epochs=2")
    *sections, last = key.strip().split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {section!r} is a value, not a section", _FIELDS_HINT)
    try:
        node[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # "2024-13-45" looks like a date
        node[last] = text


# What --minutes decides.
PLANNED = ("train.epochs", "train.explanation_share")
_FIELDS_HINT = "`medqa recipe fields` lists every key"


def _explain(exc: ValidationError, where: str) -> ConfigError:
    known = [path for path, _, _ in _walk(RunConfig())]
    lines, hint = [], _FIELDS_HINT
    for error in exc.errors():
        path = ".".join(str(part) for part in error["loc"] if str(part) not in ("int", "float"))
        if error["type"] == "extra_forbidden":
            close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            lines.append(f"{path}: unknown.{f' Did you mean {close[0]}?' if close else ''}")
        else:
            message = error["msg"][0].lower() + error["msg"][1:]
            lines.append(f"{path}: {message} (found {error['input']!r})")
    return ConfigError(f"{where}: " + "; ".join(lines), hint)


def _walk(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""


def refuse_planned(settings: Sequence[str]) -> None:
    """Refuse settings that a time leaves nothing to decide about.

    Raises:
        ConfigError: If one of them is set.
    """
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in PLANNED:
            raise ConfigError(
                f"--set {key} and --minutes both say how much to train",
                "leave one of them out; --set data.max_train_rows=... still sets the most",
            )


def with_whole_paths(config: RunConfig) -> RunConfig:
    """Write local names as whole paths, so that the run works from any folder."""

    def whole(name: str) -> str:
        try:
            path = Path(name).expanduser()
            return str(path.resolve()) if path.exists() else name
        except (OSError, ValueError, RuntimeError):  # no path at all: `locate` says what is wrong
            return name

    mix = tuple(part.model_copy(update={"name": whole(part.name)}) for part in config.data.mix)
    data = config.data.model_copy(update={"name": whole(config.data.name), "mix": mix})
    model = config.model.model_copy(update={"name": whole(config.model.name)})
    return config.model_copy(update={"data": data, "model": model})


def describe_fields(config: RunConfig | None = None) -> list[tuple[str, Any, str]]:
    """List every key with its value (the default's if no config is given) and its description."""
    return list(_walk(config or RunConfig()))


def dump(config: RunConfig) -> str:
    """Write a config as a complete recipe."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
