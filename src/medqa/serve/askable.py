"""What keeps a question from being asked, whichever way it came in; found before the model is."""

import re

from medqa.errors import DataError
from medqa.records import LETTERS, Example

__all__ = ["MAX_CHARACTERS", "why_not_askable"]

# A text of this many characters is no exam question; reading it would hold up everyone else.
MAX_CHARACTERS = 50_000

# C0 and C1 but for tab and line ends, and what turns the direction of writing around.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def why_not_askable(example: Example) -> DataError | None:
    """Say what keeps a question from being asked; None if nothing does."""
    num_characters = sum(map(len, (example.question, example.context or "", *example.options)))
    if num_characters > MAX_CHARACTERS:
        return DataError(
            f"the question has {num_characters:,} characters, at most {MAX_CHARACTERS:,} are read",
            "shorten the question or its context",
        )
    try:
        example.require_distinct_options()
    except DataError as exc:
        return exc
    return _control_character(example)


def _control_character(example: Example) -> DataError | None:
    texts = {"the question": example.question, "the context": example.context or ""}
    texts |= {f"option {letter}": text for letter, text in zip(LETTERS, example.options, strict=False)}
    for name, text in texts.items():
        if found := _CONTROL.search(text):
            return DataError(
                f"{name} holds the control character U+{ord(found[0]):04X}",
                "leave it out",
            )
    return None
