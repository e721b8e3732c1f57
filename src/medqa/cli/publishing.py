"""The verb that puts a run on the Hugging Face Hub."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medqa.cli.options import Json, Run

if TYPE_CHECKING:
    from medqa.publish.folder import Published
    from medqa.publish.push import Kind, Pushed

__all__ = ["publish"]


def publish(
    run: Run,
    to: Annotated[str, typer.Option(metavar="ORG/NAME", help="Model repository on the Hub.")],
    space: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Also make a Space, a page on the Hub that answers with it."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; published/ORG--NAME if not given.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="The base model's own id on the Hub, if the run has a folder."),
    ] = None,
    push: Annotated[
        bool, typer.Option("--push", help="Send it to the Hub; nothing is sent without this.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone read what is made; else only you and ORG.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the folder that would be on the Hub, check it, and send it if told to.

    Without --push nothing leaves this machine. With it, all of the folder goes up in one commit, and the same
    command goes on if it is broken off. The token is taken from HF_TOKEN or `hf auth login`.

    \b
    Examples:
      medqa publish runs/medmcqa-1 --to me/medmcqa-qwen3
      medqa publish runs/medmcqa-1 --to me/medmcqa-qwen3 --space me/medmcqa-demo --push
    """
    from medqa.cli.output import print_json, set_up_logging
    from medqa.publish.push import check_name

    check_name(to)
    if space is not None:
        check_name(space)
    out = out or Path("published") / to.replace("/", "--")
    _refuse_else(out)
    from medqa.publish.folder import write_published

    made: list[tuple[Kind, Published]] = [("model", write_published(run, to, out, base=base))]
    if space is not None:
        from medqa.publish.space import write_space

        beside = out.with_name(f"{out.name}--space--{space.replace('/', '--')}")
        made.append(("space", write_space(to, space, beside, run=out)))
    set_up_logging()  # what was imported may have changed it
    again = _command(run, to, space, out, base, public=public)
    if not as_json:
        _print_made(made, push=push, public=public, again=again)
    pushed: list[Pushed] = []
    try:
        if push:
            _look(made, public=public, again=again)
            for kind, one in made:
                pushed.append(_push(kind, one, public=public, again=again))
                if not as_json:
                    print(f"Pushed {pushed[-1].url}, commit {pushed[-1].commit[:12]}")
    finally:  # what was done, if the second one fails
        if as_json:
            print_json(_record(made, pushed, public=public, again=again))


def _look(made: "list[tuple[Kind, Published]]", *, public: bool, again: str) -> None:
    """See that all of it can be pushed before any of it is."""
    import logging

    from medqa.publish.push import is_private

    private = {
        kind: is_private(one.path, one.repo, kind=kind, public=public, again=again) for kind, one in made
    }
    if private == {"model": True, "space": False}:
        logging.getLogger("medqa.publish").warning(
            "The Space is public, the model it shows is private: it needs the secret HF_TOKEN, and everyone "
            "who opens the Space asks the model"
        )


def _refuse_else(out: Path) -> None:
    """Refuse to write over a folder that is no earlier publication."""
    from medqa.errors import RunError
    from medqa.publish.check import MODEL_FILES

    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file", "--out gives another place")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    mine = {"README.md", "run.json"} <= names <= MODEL_FILES
    if names and not mine:
        raise RunError(f"{out} is there already, and no published run", "--out gives another place")


def _push(kind: "Kind", one: "Published", *, public: bool, again: str) -> "Pushed":
    from medqa import __version__
    from medqa.publish.push import push

    what = "Model" if kind == "model" else "Space"
    message = f"{what} made with medqa {__version__}"
    return push(one.path, one.repo, kind=kind, public=public, message=message, again=again)


def _command(run: Path, to: str, space: str | None, out: Path, base: str | None, *, public: bool) -> str:
    """Return the command that sends it."""
    words = ["medqa", "publish", str(run), "--to", to]
    words += ["--space", space] if space else []
    words += ["--out", str(out)] if out != Path("published") / to.replace("/", "--") else []
    words += ["--base", base] if base else []
    return shlex.join([*words, "--push", *(["--public"] if public else [])])


def _print_made(made: "list[tuple[Kind, Published]]", *, push: bool, public: bool, again: str) -> None:
    for kind, one in made:
        print(f"Wrote {one.path}, {'the Space' if kind == 'space' else 'the model'} {one.repo}")
        rows = _rows(one) if kind == "model" else _summed(one)
        width = max(len(name) for name, _ in rows)
        for name, size in rows:
            print(f"  {name:<{width}}  {size / 1024:>12,.1f} KiB")
    num = made[0][1].num_questions
    looked = f"none of the {num:,} questions trained on" if num else "NOT looked for: questions trained on"
    print(f"Checked  the model: no secrets, no places of this machine, no code; {looked}")
    print(f"Visible  {'to everyone' if public else 'to its owner alone; --public opens it'}")
    if not push:
        print("Nothing was sent. Look at it, then:")
        print(f"  {again}")


def _rows(one: "Published") -> list[tuple[str, int]]:
    return [(name, size) for name, size, _ in one.files]


def _summed(one: "Published") -> list[tuple[str, int]]:
    """Give the package as one row: it has many files."""
    package = [size for name, size, _ in one.files if name.startswith("medqa/")]
    rest = [(name, size) for name, size, _ in one.files if not name.startswith("medqa/")]
    return [*rest, (f"medqa/ ({len(package)} files)", sum(package))]


def _record(
    made: "list[tuple[Kind, Published]]", pushed: "list[Pushed]", *, public: bool, again: str
) -> dict[str, Any]:
    import dataclasses

    return {
        "folders": [
            {
                "kind": kind,
                "repo": one.repo,
                "path": str(one.path),
                "files": [{"name": n, "bytes": size, "sha256": mark} for n, size, mark in one.files],
            }
            for kind, one in made
        ],
        "visibility": "public" if public else "private",
        "pushed": [dataclasses.asdict(one) for one in pushed],
        "push": again,
    }
