"""The pieces of the page as HTML, from page.html.j2. Torch-free, and nothing here knows gradio.

Questions, options and explanations are other people's text: the template escapes everything. A piece goes
through gradio's Markdown, the one component that shows HTML without evaluating code (which our
Content-Security-Policy forbids). It leaves a block of HTML alone up to the first empty line, so a piece is
one line that begins with a block; line breaks within texts are written as references.
"""

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

import jinja2
from markupsafe import Markup, escape

from medqa.errors import MedQAError
from medqa.records import NOTICE, Answer, Example
from medqa.serve.about import About

__all__ = [
    "Asked",
    "about_part",
    "after_part",
    "answer_part",
    "history_part",
    "part",
    "problem_part",
    "reason_part",
    "start_page",
]

SHORT_QUESTION = 90

_FOREIGN = re.compile(
    r'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>|<link rel="(?:manifest|icon|preconnect)"[^>]*>'
)
_BODY = re.compile(r"<body[^>]*>")
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='7' fill='%230b5f6b'/%3E"
    "%3Cpath d='M13 6h6v7h7v6h-7v7h-6v-7H6v-6h7z' fill='white'/%3E%3C/svg%3E"
)
_NO_SCRIPT = (
    "<noscript><p>This page needs JavaScript. Or ask on the command line: medqa ask RUN</p></noscript>"
)

State = Literal["writing", "stopped", "done"]
Plain = Literal["head", "start", "asking", "stopped", "failed", "notes", "label", "hint", "status"]


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A question that was asked on this visit, with what came of it."""

    example: Example
    answer: Answer


def answer_part(answer: Answer, example: Example) -> str:
    """Show letter, likelihoods of the options, answer set and steadiness."""
    return _render("answer", answer=answer, options=example.options)


def reason_part(text: str, state: State) -> str:
    """Show the explanation as far as it is written."""
    return _render("reason", text=text, state=state)


def after_part(answer: Answer) -> str:
    """Show the check of the explanation, the notice, and the answer as JSON."""
    return _render("after", answer=answer, json=json.dumps(answer.to_json(), indent=2, ensure_ascii=False))


def history_part(entries: Sequence[Asked]) -> str:
    """List what was asked on this visit."""
    return _render("history", entries=entries)


def about_part(known: About) -> str:
    """Tell what the model is and how it was measured."""
    return _render("about", about=known, notice=NOTICE)


def problem_part(error: MedQAError) -> str:
    """Say what is wrong, and what cures it."""
    return _render("problem", message=error.message, hint=error.hint)


def part(name: Plain, **values: Any) -> str:
    """Write one of the other pieces."""
    return _render(name, **values)


def _render(name: str, **values: Any) -> str:
    html = _template().render(part=name, **values).strip()
    return html.replace("\t", "&#9;").replace("\r", "&#13;").replace("\n", "&#10;")


@functools.cache
def _template() -> jinja2.Template:
    source = (importlib.resources.files("medqa.serve") / "page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "share": _share,
        "sentence": _sentence,
        "shorten": _shorten,
        "commands": _commands,
        "tidy": "{:g}".format,
    }
    # Blanks between the template's lines mean nothing; those in values stay.
    lines = (line.strip() for line in source.split("\n"))
    return environment.from_string("".join(f"{line} " if line else "" for line in lines))


def _share(share: float) -> str:
    """Write a probability in whole percent; what is not quite 0 or 100 is not written so."""
    if 0 < share < 0.005:
        return "under 1\u00a0%"
    return "over 99\u00a0%" if 0.995 < share < 1 else f"{100 * share:.0f}\u00a0%"


def _sentence(text: str, capital: bool = True) -> str:
    """Begin with a capital and end with a full stop."""
    text = text.strip()
    text = text[:1].upper() + text[1:] if capital else text
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHORT_QUESTION else text[:SHORT_QUESTION].rsplit(" ", 1)[0] + " \u2026"


def _commands(text: str) -> Markup:
    """Set what stands between backticks as code."""
    pieces = str(escape(text)).split("`")
    return Markup("".join(f"<code>{p}</code>" if place % 2 else p for place, p in enumerate(pieces)))


def start_page(text: str) -> str:
    """Tidy gradio's start page: nothing of other servers, and our title, style and script.

    The style is here and not with gradio's, which comes by script: so nothing jumps.
    """
    text = _FOREIGN.sub("", text).replace("</head>", f"{_own_head()}</head>", 1)
    return _BODY.sub(lambda found: found[0] + _NO_SCRIPT, text, count=1)


@functools.cache
def _own_head() -> str:
    files = importlib.resources.files("medqa.serve")
    css, js = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return f'<title>MedQA</title><link rel="icon" href="{_ICON}"><style>{css}</style><script>{js}</script>'
