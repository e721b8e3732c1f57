"""Take the places of this machine out of what is handed over: a path keeps its last part."""

import re
from typing import Any

__all__ = ["scrub", "scrub_text"]

# A path by itself, and one within a sentence: that has two parts at least, as "10 /mm3" is none.
_WHOLE = re.compile(r"(?:file://|~?/|[A-Za-z]:[\\/])[^\n]*")
_WITHIN = re.compile(
    r"""(?<![\w./:~-])
        (?:file://|~)?/ (?:[\w.@+~%-]+/)+ [\w.@+~%-]*
      | (?<![\w./:~-]) ~/ [\w.@+~%-]+
      | (?<!\w) [A-Za-z]:[\\/] [^\s'"]+""",
    re.VERBOSE,
)


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
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or "folder"
