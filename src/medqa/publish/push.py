"""Send a folder to the Hugging Face Hub: one repository, one commit, nothing twice.

The token is the library's own business: HF_TOKEN, or what `hf auth login` keeps. It is in no message, no log
and no file of ours.
"""

import dataclasses
import fnmatch
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from medqa.errors import HubError
from medqa.publish.check import MODEL_FILES
from medqa.publish.refusals import find_cause, is_passing, masked, reason, refused

__all__ = ["Pushed", "check_name", "is_private", "push"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Kind = Literal["model", "space"]

# The library itself sends a file up to six times, over 23 s; this is for what is down for longer.
WAITS_S = (2.0, 10.0)

# By what an earlier publication is known, and which of its files the next one may take away.
_MARKS: dict[str, str] = {"model": "run.json", "space": "medqa/__init__.py"}
# What the Hub itself puts into a new one; it gives a Space a card.
_NEW: dict[str, frozenset[str]] = {
    "model": frozenset({".gitattributes"}),
    "space": frozenset({".gitattributes", "README.md"}),
}
_OWN: dict[str, tuple[str, ...]] = {
    "model": tuple(sorted(MODEL_FILES)),
    "space": ("medqa/*", "app.py", "requirements.txt"),
}


@dataclasses.dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
        url: Address of the repository.
        commit: Id of the commit that holds it.
        num_files: Files of the publication, those that were there already among them.
        num_bytes: Their size.
    """

    url: str
    commit: str
    num_files: int
    num_bytes: int


def check_name(name: str) -> None:
    """Refuse what can't be a repository's id.

    Raises:
        HubError: If it isn't ORG/NAME, of letters that the Hub takes.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") == 1:
            return
        why = "there is no slash in it"
    except HFValidationError as exc:
        why = str(exc).splitlines()[0]
    raise HubError(
        f"{name!r} is no name of a repository: {why}",
        "give ORG/NAME: who it belongs to, and letters, digits, '-', '_' and '.'",
    )


def push(
    folder: Path, repo: str, *, kind: Kind, public: bool, message: str, again: str = "the same command"
) -> Pushed:
    """Make a repository hold a folder, in one commit.

    What arrived in an earlier attempt isn't sent again. Files that others put there stay.

    Args:
        folder: What to send, all of it.
        repo: ORG/NAME.
        kind: What it is.
        public: Whether everyone may see a repository that is made for it.
        message: The commit's.
        again: The command that goes on if this is broken off.

    Raises:
        HubError: If the Hub can't be reached or refuses; what is wrong, and the way out.
    """
    return _until_done(_Sending(folder, repo, kind, public, message, again), _Sending.send)


def is_private(folder: Path, repo: str, *, kind: Kind, public: bool, again: str = "the same command") -> bool:
    """Look whether a push can go ahead, and if what it makes will be private; nothing is sent.

    Raises:
        HubError: If the repository holds something else, or everyone could see what is meant to be private.
    """
    return _until_done(_Sending(folder, repo, kind, public, "", again), _Sending.look)


def _until_done(sending: "_Sending", step: "Callable[[_Sending], T]") -> T:
    for wait_s in (*WAITS_S, None):
        try:
            return _attempt(sending, step)
        except _BrokenOffError as exc:
            done = str(exc)
        if wait_s is not None:
            log.warning("The Hub breaks off (%s); trying again in %.0f s", done, wait_s)
            time.sleep(wait_s)
    raise HubError(
        f"the Hub can't be reached, or breaks off: {done}",
        f"nothing is lost: what arrived isn't sent again. Go on with: {sending.again}",
    )


def _api(repo: str, again: str) -> tuple[Any, str]:
    """Return the library's client, and the token."""
    check_name(repo)
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(
            f"{repo} can't be pushed: HF_HUB_OFFLINE is set", f"go on without it: HF_HUB_OFFLINE=0 {again}"
        )
    if (token := huggingface_hub.get_token()) is None:
        raise HubError(
            "there is no token for the Hub",
            "set HF_TOKEN to one that may write, or log in once: hf auth login",
        )
    # Whole files by their checksum: an adapter is small, and what the Hub has of it is plain to see.
    # The variable HF_HUB_DISABLE_XET is read at import, which torch's libraries did long ago.
    constants.HF_HUB_DISABLE_XET = True
    return huggingface_hub.HfApi(token=token), token


class _BrokenOffError(Exception):
    """What may go well another time."""


def _attempt(sending: "_Sending", step: "Callable[[_Sending], T]") -> T:
    """Try once; raises `_BrokenOffError` if it may go well another time."""
    from huggingface_hub.errors import HfHubHTTPError

    token = sending.token
    # The base class of its HTTP client, whichever that is: it changed between releases.
    transport = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    try:
        return step(sending)
    except KeyboardInterrupt:
        log.warning("Stopped. What arrived stays there; go on with: %s", sending.again)
        raise
    except (transport, RuntimeError, ValueError, OSError) as exc:
        cause = find_cause(exc)
        # What is raised from here on has no cause: a foreign text may hold what was sent, the token too.
        if isinstance(cause, HfHubHTTPError) and not is_passing(cause):
            raise refused(cause, sending.token, sending.repo, sending.user, sending.again) from None
        if not isinstance(cause, transport):
            text = masked(str(cause), token)
            raise HubError(f"{sending.repo} was not pushed: {text}", sending.again) from None
        raise _BrokenOffError(masked(reason(cause), token)) from None


class _Sending:
    """One push, which may take several attempts."""

    def __init__(self, folder: Path, repo: str, kind: Kind, public: bool, message: str, again: str) -> None:
        self._api, self.token = _api(repo, again)
        self.user: str | None = None
        self.repo, self.again = repo, again
        self._folder, self._message = folder, message
        self._kind, self._public = kind, public
        self._said: set[str] = set()

    def look(self) -> bool:
        """Look whether it can be done; whether the repository is private, or will be."""
        self.user = self.user or self._api.whoami()["name"]
        state = self._state()
        if state is not None:
            self._there(state)
        return not self._public if state is None else bool(state.private)

    def send(self) -> Pushed:
        """Do it, from the state that the Hub is in now."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        self.user = self.user or self._api.whoami()["name"]
        state = self._state() or self._create()
        there = self._there(state)
        files = {path.relative_to(self._folder).as_posix(): path for path in _files(self._folder)}
        gone = sorted(
            name
            for name in there - files.keys()
            if any(fnmatch.fnmatchcase(name, one) for one in _OWN[self._kind])
        )
        if gone:
            self._say(f"No longer part of {self.repo}, and taken away: {', '.join(gone)}")
        done = self._api.create_commit(
            self.repo,
            [
                *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message=self._message,
            repo_type=self._kind,
            # Nobody else's commit of this moment is written over.
            parent_commit=state.sha,
        )
        place = self.repo if self._kind == "model" else f"spaces/{self.repo}"
        sizes = [path.stat().st_size for path in files.values()]
        return Pushed(f"{self._api.endpoint}/{place}", done.oid, len(files), sum(sizes))

    def _there(self, state: Any) -> set[str]:
        """Name what is there already; refuse what must not be written over, or be seen."""
        self._check_visibility(state)
        there = {file.rfilename for file in state.siblings or ()} - _NEW[self._kind]
        if there and not (_MARKS[self._kind] in there and self._is_ours(state.sha)):
            some = ", ".join(sorted(there)[:3])
            raise HubError(
                f"{self.repo} holds something else than a {self._kind} of medqa: {some}",
                "choose another name, or empty that repository on the Hub",
            )
        return there

    def _is_ours(self, revision: str) -> bool:
        """Whether what is there was published by this program; what model it was is said if it is another."""
        if self._kind == "space":
            return True
        path = self._api.hf_hub_download(self.repo, _MARKS["model"], revision=revision)
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            adapter, made_by = record["adapter_sha256"], record["versions"]["medqa"]
        except (OSError, ValueError, TypeError, KeyError):
            return False
        mine = json.loads((self._folder / "run.json").read_text(encoding="utf-8"))
        if adapter != mine.get("adapter_sha256"):
            self._say(f"{self.repo} held another model of medqa {made_by}; its history on the Hub keeps that")
        return True

    def _state(self) -> Any:
        """What the Hub says of the repository; None if it knows none."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            return self._api.repo_info(self.repo, repo_type=self._kind)
        except GatedRepoError:  # another's
            raise
        except RepositoryNotFoundError:
            return None

    def _create(self) -> Any:
        sdk = {"space_sdk": "gradio"} if self._kind == "space" else {}
        self._api.create_repo(self.repo, repo_type=self._kind, private=not self._public, **sdk)
        # What the Hub made of it counts, not what it was asked for.
        return self._api.repo_info(self.repo, repo_type=self._kind)

    def _check_visibility(self, state: Any) -> None:
        if not state.private and not self._public:
            raise HubError(
                f"{self.repo} is public, and --public was not given: everyone could read what is pushed",
                "--public, if that is meant; else another name, or make it private on the Hub",
            )
        if state.private and self._public:
            self._say(f"{self.repo} stays private: its settings on the Hub make it public")

    def _say(self, text: str) -> None:
        if text not in self._said:
            log.warning("%s", text)
        self._said.add(text)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
