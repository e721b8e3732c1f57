"""Write docs/cli.md from the program itself; with --check, fail if it is out of date."""

import sys
from pathlib import Path

from typer.main import get_command

from medqa.cli.app import app
from medqa.recipe import describe_fields

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"


def commands(command, path):
    """Yield every verb with its full name."""
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, [*path, name])


def render() -> str:
    parts = ["# Command line\n\nMade from the program by `make docs`.\n"]
    for path, command in commands(get_command(app), ["medqa"]):
        context = command.make_context(" ".join(path), [], resilient_parsing=True)
        context.max_content_width = 100
        parts.append(f"## {' '.join(path)}\n\n```\n{command.get_help(context)}\n```\n")
    parts.append("## Settings\n\nFor recipes and `--set`.\n\n| setting | default | meaning |\n|---|---|---|")
    parts += [f"| `{key}` | `{value}` | {' '.join(text.split())} |" for key, value, text in describe_fields()]
    return "\n".join(parts) + "\n"


def main() -> int:
    text = render()
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text() != text:
            print(f"{TARGET.name} is out of date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
