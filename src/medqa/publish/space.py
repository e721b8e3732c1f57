"""A Space: a folder that shows a published run on a page, as it is, on the Hub or anywhere else."""

import importlib.metadata
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

import medqa
from medqa.errors import DependencyError, RunError
from medqa.files import write_folder, write_text
from medqa.hub import HUB_MARK
from medqa.publish.check import check_secrets
from medqa.publish.folder import Published
from medqa.publish.push import check_name
from medqa.runs import RunFolder

__all__ = ["write_space"]

HARDWARE = "cpu-upgrade"
"""What is suggested: a model of 1 or 2 billion weights answers there in seconds."""

_SUFFIXES = frozenset({".css", ".j2", ".js", ".jsonl", ".py", ".typed", ".yaml"})

# What a build of torch brings along for one kind of card: it knows best which.
_PLATFORM = re.compile(r"(nvidia-|cuda-|triton|pytorch-triton)")

_APP = '''"""A page that answers with {repo}."""

# The package lies beside this file: it is on no package index, and of a Space's files only requirements.txt
# is there when packages are installed.
from medqa.serve.space import main

if __name__ == "__main__":  # where cards are lent, a process imports this file again
    main("{mark}{repo}")
'''

_README = """# {title}

Answers multiple-choice questions of medical exams with [{repo}](https://huggingface.co/{repo}): letter,
confidence, the options that stay in question, and an explanation. Not medical advice: models err while
sounding sure.

- `app.py` serves the page at `/` and a JSON API, described at `/docs`.
- `requirements.txt` holds the exact versions that this was made with.
- `medqa/` is the program itself, version {version}.

A private model needs a token that may read it: set the secret `HF_TOKEN` in the Space's settings. The
variable `MEDQA_RUN` names another model, or a folder. On a machine of your own:
`GRADIO_SERVER_NAME=127.0.0.1 python app.py`.
"""


def write_space(repo: str, space: str, out: Path, *, run: Path | None = None) -> Published:
    """Write the folder of a Space.

    Args:
        repo: ORG/NAME of the published run that it shows.
        space: ORG/NAME of the Space.
        out: Folder to make; an earlier one is replaced.
        run: The published run, if it is at hand: its base model is named on the Space's page.

    Raises:
        HubError: If a name is none.
        RunError: If `out` is something else.
        DependencyError: If a package that serving needs is not installed.
    """
    check_name(repo)
    check_name(space)
    if out.exists() and not (out / "medqa" / "__init__.py").is_file():
        raise RunError(f"{out} is there already, and no Space of medqa", "--out gives another place")
    pins = "".join(f"{pin}\n" for pin in _pins())
    title = repo.partition("/")[2]
    with write_folder(out) as folder:
        shutil.copytree(Path(medqa.__file__).parent, folder / "medqa", ignore=_no_leavings)
        write_text(folder / "app.py", _APP.format(repo=repo, mark=HUB_MARK))
        write_text(folder / "requirements.txt", pins)
        front = yaml.safe_dump(_front_matter(repo, title, run), sort_keys=False, allow_unicode=True)
        text = _README.format(title=title, repo=repo, version=medqa.__version__)
        write_text(folder / "README.md", f"---\n{front}---\n\n{text}")
        check_secrets(folder)
    return Published.of(out, space)


def _front_matter(repo: str, title: str, run: Path | None) -> dict[str, object]:
    models = [repo]
    if run is not None:
        base = RunFolder.open(run).record["base_model"]["name"]
        if re.fullmatch(r"[\w.-]+/[\w.-]+", base):
            models.append(base)
    return {
        "title": title,
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "suggested_hardware": HARDWARE,
        "license": "apache-2.0",
        "models": models,
        "short_description": "Medical exam questions, with calibrated confidence",
        "tags": ["medical", "multiple-choice", "calibration"],
    }


def _no_leavings(folder: str, names: list[str]) -> list[str]:
    """Name what is no file of the package: what tools leave behind, and what somebody put beside it."""
    return [
        name
        for name in names
        if name == "__pycache__"
        or name.startswith(".")
        or not ((Path(folder) / name).is_dir() or Path(name).suffix in _SUFFIXES)
    ]


def _pins() -> list[str]:
    """Pin what `medqa[serve]` needs, and what that needs, to the versions at hand."""
    found: dict[str, str] = {}
    _collect("medqa", frozenset({"serve"}), found, set())
    del found["medqa"]
    _leave_to_the_hub(found)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _leave_to_the_hub(found: dict[str, str]) -> None:
    """Drop pins that would clash: the Hub installs gradio[oauth,mcp] in the same call as these."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("gradio") or ():
        one = Requirement(line)
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        asked = one.marker and any(one.marker.evaluate({"extra": extra}) for extra in ("oauth", "mcp"))
        if not asked or name not in found or one.specifier.contains(found[name], prereleases=True):
            continue
        del found[name]
        for needed in map(Requirement, importlib.metadata.requires(name) or ()):
            if any(spec.operator == "==" for spec in needed.specifier):  # goes with one version of it
                found.pop(re.sub(r"[-_.]+", "-", needed.name).lower(), None)


def _collect(
    package: str, extras: frozenset[str], found: dict[str, str], seen: set[tuple[str, frozenset[str]]]
) -> None:
    name = re.sub(r"[-_.]+", "-", package).lower()
    if (name, extras) in seen or _PLATFORM.match(name):
        return
    seen.add((name, extras))
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as exc:
        raise DependencyError(
            f"a Space needs the package {package}, whose version here would be pinned",
            'pip install "medqa[serve]", or make quickstart once',
        ) from exc
    # 2.13.0+cu130 is a build for one kind of card; anybody's index has 2.13.0.
    found[name] = version.partition("+")[0]
    for needed, its_extras in _needs(package, extras):
        _collect(needed, its_extras, found, seen)


def _needs(package: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Give what a package needs on a machine like this one, with the extras it asks for."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires(package) or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield one.name, frozenset(one.extras)
