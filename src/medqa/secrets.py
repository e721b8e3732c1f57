"""What a secret looks like, and texts without it: tokens are in no log, no record and no error."""

import logging
import os
import re
from collections.abc import Iterator

__all__ = ["MaskSecrets", "find_secrets", "mask_secrets"]

_PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "an OpenAI key": r"\bsk-[A-Za-z0-9_-]{20,}\b",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}\b",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",
}
_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ENGINE_KEY|CREDENTIAL", re.IGNORECASE)
_NO_SECRETS = ("TOKENIZERS_PARALLELISM",)
_MIN_CHARACTERS = 8


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
    for _, value in _values():
        text = text.replace(value, "***")
    for pattern in _PATTERNS.values():
        text = re.sub(pattern, "***", text)
    return text


def _values() -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in os.environ.items()
        if _NAME.search(name) and name not in _NO_SECRETS and len(value) >= _MIN_CHARACTERS
    ]


class MaskSecrets(logging.Formatter):
    """Writes log lines without secrets, whoever put them there."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return mask_secrets(super().format(record))
