"""What goes wrong with the Hub, in words that say the way out and hold no token."""

from typing import Any

from medqa.errors import HubError

__all__ = ["find_cause", "is_passing", "masked", "reason", "refused"]


def find_cause(exc: BaseException) -> BaseException:
    """Find what went wrong inside: the library wraps it when it sends large files."""
    while isinstance(exc, RuntimeError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def is_passing(exc: Any) -> bool:
    """Whether it may go well another time."""
    return exc.response.status_code in (408, 429) or exc.response.status_code >= 500


def reason(exc: Any) -> str:
    """Say in a few words why nothing arrived."""
    if (response := getattr(exc, "response", None)) is not None:
        return f"it answers {response.status_code}"
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def masked(text: str, token: str) -> str:
    """Take the token out of a text that others wrote."""
    return text.replace(token, "hf_...").strip()


def refused(exc: Any, token: str, repo: str, user: str | None, again: str) -> HubError:
    """Say what the Hub refuses, and the way out."""
    status = exc.response.status_code
    said = masked(exc.server_message or exc.response.headers.get("X-Error-Message") or "", token)
    text = f"{said} ({status})" if said else f"status {status}"
    if status == 401:
        return HubError(
            "the Hub doesn't know the token", "set HF_TOKEN to one that may write, or: hf auth login --force"
        )
    if status in (402, 413) or any(word in said.lower() for word in ("quota", "storage limit")):
        return HubError(
            f"the Hub has no room for {repo}: {text}",
            "free space in the account's storage settings on the Hub, or push to another ORG",
        )
    if status in (403, 404):
        return HubError(
            f"{user or 'who the token belongs to'} may not write to {repo}: {text}",
            f"take a token with write access to {repo.partition('/')[0]}, or a name of your own: {user}/...",
        )
    if status == 409:
        return HubError(f"the name {repo} is taken: {text}", "choose another name")
    if status == 412:
        return HubError(f"{repo} was changed by somebody else just now", f"look at it, then: {again}")
    return HubError(f"the Hub refuses {repo}: {text}", again)
