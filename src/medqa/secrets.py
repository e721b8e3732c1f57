"""What a secret looks like, and texts without it: tokens are in no log, no record and no error."""

import logging
import os
import re
from collections.abc import Iterator

__all__ = ["MaskSecrets", "find_secrets", "mask_secrets", "remember_secret"]

_PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "an OpenAI key": r"\bsk-[A-Za-z0-9_-]{20,}\b",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?-----END [A-Z ]*PRIVATE KEY-----)?",
    # Up to the last @: a password may hold one, or a slash. A port and a path are none.
    "a password in an address": r"""(?<=://)[^\s/:@]{0,99}:(?!\d+/)[^\s"'<>]{1,300}(?=@)""",
    "a token in an address": r"(?<=://)[^\s/:@]{16,}(?=@)",
    "a key in an address": r"""(?i:[?&](?:(?:api[_-]?)?key|\w*token|secret|password)=)[^\s&#"'<>]+""",
    "a bearer's token": r"(?<=[Bb]earer )(?=\S*\d)[\w.~+/=-]{16,}",
}
# Not the names of places, such as HF_TOKEN_PATH.
_NAME = re.compile(
    r"(TOKEN(?!IZER)|SECRET|PASSWORD|PASSWD|API_?KEY|ENGINE_KEY|CREDENTIAL)(?!.*_(PATH|FILE|DIR)$)",
    re.IGNORECASE,
)
_MIN_CHARACTERS, _MIN_REMEMBERED = 8, 16
_remembered: set[str] = set()  # what was taken out of the environment


def remember_secret(value: str) -> None:
    """Mask a value from here on, wherever it came from; not one so short that words would be masked."""
    if len(value) >= _MIN_REMEMBERED:
        _remembered.add(value)


def find_secrets(text: str) -> Iterator[str]:
    """Name what of a text is a secret: a value of the environment's, or what looks like a key."""
    for variable, value in _values():
        if value in text:
            yield f"the value of {variable}"
    for kind, pattern in _PATTERNS.items():
        if re.search(pattern, text):
            yield kind


def mask_secrets(text: str) -> str:
    """Put stars where a secret stands."""
    # The longest first: one may begin as another does. Within a repr, line ends are written out.
    for value in sorted({*_remembered, *(value for _, value in _values())}, key=len, reverse=True):
        for form in {value, value.strip(), value.replace("\n", "\\n")}:
            text = text.replace(form, "***")
    for pattern in _PATTERNS.values():
        text = re.sub(pattern, "***", text)
    return text


def _values() -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in os.environ.items()
        if _NAME.search(name) and len(value.strip()) >= _MIN_CHARACTERS and not os.path.exists(value)  # noqa: PTH110
    ]


class MaskSecrets(logging.Formatter):
    """Writes log lines without secrets, whoever put them there."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return mask_secrets(super().format(record))
