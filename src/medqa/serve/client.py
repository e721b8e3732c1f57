"""A client of a running server: it gives what `Answerer.stream` gives, and needs neither model nor torch.

    parts = ServerClient("http://127.0.0.1:7860").stream(example)

What the server refuses arrives as the error that it would have been here, in the server's own words.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from medqa.config import RunConfig
from medqa.errors import (
    BusyError,
    CalibrationError,
    ConfigError,
    DataError,
    DependencyError,
    EngineError,
    MedQAError,
    TimeLimitError,
)
from medqa.evaluate.protocol import read_lines
from medqa.recipe import changed_config
from medqa.records import LETTERS, Answer, Example
from medqa.serve.access import ENV_API_KEY
from medqa.serve.incoming import is_loopback

if TYPE_CHECKING:
    import httpx

__all__ = ["ServerClient", "request_fields"]

CONNECT_TIMEOUT_S = 10.0
# Longer than a server's own limit, so that it is the server that says what took so long.
READ_TIMEOUT_S = 90.0

_SENT = ("orders", "alpha", "max_risk")
_ADDRESS_HINT = "give the address that `medqa serve` printed, such as http://127.0.0.1:7860"
_KEY_HINT = f"export {ENV_API_KEY}=... with the key that the server was started with"

_ERRORS: dict[str, type[MedQAError]] = {
    "bad_question": DataError,
    "bad_request": DataError,
    "bad_setting": ConfigError,
    "not_calibrated": CalibrationError,
    "timeout": TimeLimitError,
    "unauthorized": ConfigError,
}
# The server names the question by itself; all else of an answer it sends.
_ANSWER = TypeAdapter(Answer)
_FIELDS = tuple(field.name for field in dataclasses.fields(Answer) if field.name != "question")


class ServerClient:
    """A server that `medqa serve` started.

    Attributes:
        url: Its address.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout_s: float = READ_TIMEOUT_S) -> None:
        """Take the address; nothing is sent yet.

        Args:
            url: Address, as `medqa serve` prints it.
            api_key: The server's key; None if it asks for none.
            timeout_s: Longest time without a sign of life.

        Raises:
            ConfigError: If the address is none, or the key does not fit into a header.
            DependencyError: If httpx is not installed.
        """
        try:
            import httpx
        except ModuleNotFoundError as exc:
            raise DependencyError("asking a server needs httpx", 'pip install "medqa[serve]"') from exc
        self.url, is_local = _checked(url)
        # Its value is a secret: it is not shown.
        if api_key is not None and not (api_key and all("!" <= sign <= "~" for sign in api_key)):
            raise ConfigError(
                f"the key in {ENV_API_KEY} is empty, or holds a blank or a sign that is not ASCII", _KEY_HINT
            )
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._is_local = is_local

    def stream(
        self, example: Example, *, explain: bool = True, settings: Mapping[str, Any] | None = None
    ) -> Iterator[Answer | str]:
        """Answer one question as it comes: the answer, pieces of its explanation, the whole answer.

        Args:
            example: The question.
            explain: Whether to have the explanation written.
            settings: Fields of the request, of `request_fields`.

        Raises:
            MedQAError: What the server refuses, as the error it is there.
            EngineError: If it can't be reached, or is no MedQA server.
        """
        body: dict[str, Any] = {
            "question": example.question,
            "options": example.options,
            "context": example.context,
        }
        body |= {"explain": explain, "stream": explain, **(settings or {})}
        with self._posted(body) as response:
            kind = response.headers.get("content-type", "").partition(";")[0]
            if response.status_code != 200:
                response.read()
                raise self._refusal(response)
            if kind != ("text/event-stream" if explain else "application/json"):
                raise self._no_server(f"it sent {kind or 'nothing known'!r}")
            if not explain:
                response.read()
                yield self._answer(example, self._object(response.text))
                return
            yield from self._parts(example, response)

    def _parts(self, example: Example, response: "httpx.Response") -> Iterator[Answer | str]:
        name = ""
        for line in read_lines(response.iter_bytes()):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                told = self._object(value)
                if name == "error":
                    raise self._error(told, response)
                if name == "token":
                    yield str(told.get("text", ""))
                elif name in ("answer", "done"):
                    yield self._answer(example, told)
                if name == "done":
                    return
        raise EngineError(f"{self.url} stopped in the middle of its answer", "ask again; its log says why")

    def _answer(self, example: Example, told: Mapping[str, Any]) -> Answer:
        letters = LETTERS[: len(example.options)]
        try:
            # Only the fields known here: a newer server may send more.
            values = {name: told[name] for name in _FIELDS}
            answer = _ANSWER.validate_python({"question": example.question, **values})
        except (KeyError, ValidationError) as exc:
            first = (
                exc.errors()[0] if isinstance(exc, ValidationError) else {"loc": exc.args, "msg": "missing"}
            )
            raise self._misfit(f"{first['loc'][0]}: {first['msg']}") from exc
        if answer.letter not in letters or set(answer.probabilities) != set(letters):
            raise self._misfit(
                f"letter {answer.letter!r} and probabilities of {sorted(answer.probabilities)}"
            )
        if not all(0 <= share <= 1 for share in (*answer.probabilities.values(), answer.confidence)):
            raise self._misfit(f"confidence {answer.confidence!r}, probabilities {answer.probabilities}")
        return answer

    def _misfit(self, found: str) -> EngineError:
        return EngineError(
            f"{self.url} sent an answer that does not fit the question: {found}",
            "see that client and server are of the same version of medqa",
        )

    def _object(self, text: str) -> dict[str, Any]:
        try:
            told = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise self._no_server(f"it sent {text[:60]!r}") from exc
        if not isinstance(told, dict):
            raise self._no_server(f"it sent {text[:60]!r}")
        return told

    def _refusal(self, response: "httpx.Response") -> MedQAError:
        # An address with a path too many leads to a MedQA server's 404, too.
        if response.status_code in (404, 405) or response.is_redirect:
            return self._no_server(f"its /v1/answer gives HTTP {response.status_code}")
        return self._error(self._object(response.text), response)

    def _error(self, told: Mapping[str, Any], response: "httpx.Response") -> MedQAError:
        """Make an error of what the server says."""
        said = told.get("error")
        if not isinstance(said, dict) or not isinstance(said.get("message"), str):
            return self._no_server(f"it answers HTTP {response.status_code}")
        kind, message, hint = str(said.get("type")), said["message"], str(said.get("hint") or "")
        if kind == "unauthorized":
            return ConfigError(f"{self.url}: {message}", _KEY_HINT)
        if response.status_code == 429:
            wait = response.headers.get("retry-after", "")
            seconds = float(wait) if wait.isdigit() and len(wait) < 6 else 1.0
            return BusyError(f"{self.url}: {message}", f"try again in {seconds:.0f} s", retry_after_s=seconds)
        if kind in _ERRORS:
            return _ERRORS[kind](message, hint)
        return EngineError(f"{self.url}: {message}", hint)

    def _no_server(self, found: str) -> EngineError:
        return EngineError(f"{self.url} is not a MedQA server: {found}", _ADDRESS_HINT)

    @contextlib.contextmanager
    def _posted(self, body: dict[str, Any]) -> "Iterator[httpx.Response]":
        """Ask, and turn what httpx raises into errors that say what to do."""
        import httpx

        try:
            with (
                # No proxy leads to this machine.
                httpx.Client(
                    headers=self._headers, timeout=self._timeout, trust_env=not self._is_local
                ) as client,
                client.stream("POST", f"{self.url}/v1/answer", json=body) as response,
            ):
                yield response
        except httpx.ConnectTimeout as exc:
            raise EngineError(f"{self.url} does not answer", _ADDRESS_HINT) from exc
        except httpx.TimeoutException as exc:
            raise TimeLimitError(
                f"{self.url} has said nothing for {self._timeout.read:g} s",
                "ask again, or with --no-explain, which takes far less",
            ) from exc
        except httpx.ConnectError as exc:
            raise EngineError(
                f"nothing answers at {self.url}: {exc}", f"start one: medqa serve RUN; or {_ADDRESS_HINT}"
            ) from exc
        except (httpx.RemoteProtocolError, httpx.NetworkError) as exc:
            raise EngineError(f"{self.url} broke off: {exc}", f"ask again; or {_ADDRESS_HINT}") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise EngineError(f"{self.url} can't be asked: {exc}", _ADDRESS_HINT) from exc


def request_fields(settings: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a request that `serve.KEY=VALUE` settings stand for.

    Raises:
        ConfigError: If one can't be sent along, or its value is wrong.
    """
    known = [f"serve.{name}" for name in _SENT]
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if equals and key.strip() not in known:
            raise ConfigError(
                f"--set {setting!r} can't be sent along: that is set where the server is started",
                f"of a question, {', '.join(known)} can be set",
            )
    changed = changed_config(RunConfig(), settings, ("serve",)).serve
    named = {setting.partition("=")[0].strip().removeprefix("serve.") for setting in settings}
    if "max_risk" in named and changed.max_risk is None:
        raise ConfigError(
            "--set serve.max_risk=null can't be sent along: a question can only state another risk",
            "leave it out, or start the server without one",
        )
    return {name: getattr(changed, name) for name in _SENT if name in named}


def _checked(url: str) -> tuple[str, bool]:
    """Return an address without what is too much of it, and whether it is this machine's."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname or "", parts.port
    except ValueError as exc:
        raise ConfigError(f"{url!r} is no address: {exc}", _ADDRESS_HINT) from exc
    if "@" in parts.netloc:  # its password must not be shown
        raise ConfigError("the address holds a user or password", f"leave it out; {_KEY_HINT}")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(f"{url!r} is not the address of a server", _ADDRESS_HINT)
    return url.strip().rstrip("/").removesuffix("/v1"), is_loopback(host)
