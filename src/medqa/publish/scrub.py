"""Take the places of this machine out of what is handed over: a path keeps its last part."""

import re
from typing import Any

__all__ = ["scrub", "scrub_command", "scrub_text"]

# Where files lie; elsewhere a path has three parts at least, as "5 mg /kg/day" is a dose.
_ROOTS = (
    "home|Users|root|tmp|var|mnt|media|opt|usr|etc|srv|data|scratch|work|workspace|projects?|content|kaggle|"
    "gpfs|lustre|nfs|Volumes|private|proc|dev|run|export|net|share"
)
_PART = r"[\w.@+~%-]"
# A path by itself, and one within a sentence.
_WHOLE = re.compile(rf"(?:file://|~)?/(?:{_ROOTS})/[^\n]*|" r"(?:file://|~?/|~\w|[A-Za-z]:[\\/]|\\\\)\S*")
_WITHIN = re.compile(
    rf"""(?<![\w./:~-]) (?:file://|~)?/ (?:{_ROOTS})/ {_PART}+ (?:/{_PART}*)*
      | (?<![\w./:~-]) (?:file://|~)?/ (?:{_PART}+/){{2,}} {_PART}*
      | (?<![\w./:~-]) ~{_PART}*/ {_PART}+ (?:/{_PART}*)*
      | (?<!\w) [A-Za-z]:[\\/] [A-Za-z0-9.][\w.-]+ [^\s'"]*
      | (?<!\S) \\\\ [\w.-]+ \\ [^\s'"]+""",
    re.VERBOSE,
)
# What in a command is a place for sure; "a/b" may be a model on the Hub.
_PLACE = re.compile(r"[~/.\\]|[A-Za-z]:[\\/]|file:")
_HOMES = re.compile(r"(?:file://)?/(?:home|Users)/[^/]+/?|~\w*/?")


def scrub_command(command: str) -> str:
    """Cut every path in the words of a command to its last part, relative ones too."""
    return " ".join(_last_word(word) for word in command.split(" "))


def _last_word(word: str) -> str:
    name, equals, value = word.rpartition("=")
    return name + equals + _last_part(value) if _PLACE.match(value) else word


def scrub(value: Any) -> Any:
    """Cut every path in plain values, keys and all, to its last part."""
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, dict):
        return {scrub(key): scrub(one) for key, one in value.items()}
    return [scrub(one) for one in value] if isinstance(value, list) else value


def scrub_text(text: str) -> str:
    """Cut every path in a text to its last part."""
    if _WHOLE.fullmatch(text) and len(text) > 1:
        return _last_part(text)
    return _WITHIN.sub(lambda m: _last_part(m[0]), text)


def _last_part(path: str) -> str:
    if _HOMES.fullmatch(path):  # would be a user's name
        return "home"
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "folder"
