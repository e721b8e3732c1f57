"""Write docs/cli.md from the program itself, and check every block of code in the documentation.

With --check, fail if docs/cli.md is out of date. Python has to compile; a line that begins with `medqa` has
to be one that the program understands.
"""

import re
import shlex
import sys
from pathlib import Path

from typer.main import get_command

from medqa.cli.app import app
from medqa.recipe import describe_fields

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "cli.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


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


def block_faults() -> list[str]:
    """Name every block of code that doesn't hold."""
    faults = []
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if file == TARGET:
            continue
        text = file.read_text()
        for block in BLOCK.finditer(text):
            where = f"{file.relative_to(ROOT)}:{text.count(chr(10), 0, block.start()) + 1}"
            kind, code = block.groups()
            if kind == "python":
                try:
                    compile(code, where, "exec")
                except SyntaxError as exc:
                    faults.append(f"{where}: {exc}")
            elif kind in ("", "sh", "bash", "console"):
                lines = code.replace("\\\n", " ").splitlines()
                faults += [f"{where}: {fault}" for line in lines if (fault := line_fault(line))]
    return faults


def line_fault(line: str) -> str | None:
    """Say what is wrong with a line for a shell, if it calls this program."""
    found = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*medqa ([^#]*)", line)
    if not found:
        return None
    words = ["medqa", *shlex.split(found[1])]
    command, rest = get_command(app), words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            return f"{line.strip()}: there is no verb {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    given = [word.partition("=")[0] for word in rest if re.match(r"-{1,2}[a-z]", word)]
    unknown = [name for name in given if name not in known]
    return f"{line.strip()}: {unknown[0]} is unknown" if unknown else None


def main() -> int:
    for fault in (faults := block_faults()):
        print(fault, file=sys.stderr)
    if faults:
        return 1
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
