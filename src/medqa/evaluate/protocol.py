"""What OpenAI-compatible servers write, read strictly: models, log-probabilities, text, errors.

Log-probabilities come in two layouts. vLLM and SGLang write a dictionary for each place, by text or, where
vLLM is asked for it, by "token_id:123". llama.cpp's server writes a list for each place, with ids.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from medqa.errors import EngineError, RefusedByEngineError

__all__ = [
    "PREFIX",
    "Address",
    "ServedModel",
    "TopTokens",
    "choose_model",
    "read_error",
    "read_event",
    "read_likelihood",
    "read_lines",
    "read_models",
    "read_text",
    "read_top",
]

PREFIX = "openai:"

_BY_ID = "token_id:"
# Servers compute in half precision and round: a log-probability may lie a little above 0.
_ABOVE_ZERO = 1e-3


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server is, and which of its models to ask.

    Attributes:
        url: Up to and including /v1, as a rule.
        tuned: Name of the tuned model there; None if there is only one.
        base: Name of the base model there; None if it isn't served.
    """

    url: str
    tuned: str | None = None
    base: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `openai:URL`, `openai:URL#TUNED` or `openai:URL#TUNED,BASE`.

        Raises:
            EngineError: If it is none of them, or holds a password, which would be shown and logged.
        """
        hint = "write openai:http://HOST:PORT/v1, or openai:http://HOST:PORT/v1#MODEL"
        if not text.startswith(PREFIX):
            raise EngineError(f"the engine {text!r} is unknown", hint)
        url, _, names = text.removeprefix(PREFIX).partition("#")
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if usable and (parts.username or parts.password or parts.query):
            raise EngineError(
                f"the engine's URL for {parts.hostname} holds a name, a password or a query",
                "give the server's key in the environment variable MEDQA_ENGINE_KEY",
            )
        found = [name.strip() for name in names.split(",")] if names else []
        if not usable or len(found) > 2 or not all(found):
            raise EngineError(f"the engine {text!r} is no URL of a server", hint)
        return cls(url.rstrip("/"), *found)


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that a server offers.

    Attributes:
        name: What to ask for.
        max_length_tokens: Longest input and output together; None if the server doesn't say.
        parent: The base model, of an adapter.
    """

    name: str
    max_length_tokens: int | None = None
    parent: str | None = None


@dataclasses.dataclass(frozen=True)
class TopTokens:
    """The likeliest next tokens, by id or, from servers without ids, by text.

    Their log-probabilities are as the server wrote them: `read_likelihood` judges those that are used.
    """

    by_id: Mapping[int, Any]
    by_text: Mapping[str, Any]


def read_models(payload: Any) -> list[ServedModel]:
    """Read the answer to GET /models.

    Raises:
        EngineError: If it lists no models.
    """
    try:
        models = [_read_model(card) for card in payload["data"]]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise EngineError(f"the server's list of models can't be read: {exc!r}", _IS_IT) from exc
    if not models:
        raise EngineError("the server offers no model", "start it with one")
    return models


_IS_IT = "is it an OpenAI-compatible server, and does the URL end in /v1?"


def _read_model(card: dict[str, Any]) -> ServedModel:
    # vLLM and SGLang say max_model_len, llama.cpp's server the length of a slot.
    length = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx")
    if not isinstance(card["id"], str) or not (length is None or type(length) is int):
        raise TypeError("a model's name or length is of the wrong type")
    parent = card.get("parent")
    return ServedModel(card["id"], length, parent if isinstance(parent, str) else None)


def choose_model(models: Sequence[ServedModel], name: str | None, url: str) -> ServedModel:
    """Find the model that was asked for, or the only one.

    Raises:
        EngineError: If there is no such model, or several and none was named.
    """
    names = ", ".join(repr(model.name) for model in models)
    if name is None:
        if len(models) == 1:
            return models[0]
        adapter = next((model for model in models if model.parent), None)
        example = f"{adapter.name},{adapter.parent}" if adapter else models[0].name
        raise EngineError(
            f"the server at {url} offers several models: {names}",
            f"name the tuned one, and the base after a comma: {PREFIX}{url}#{example}",
        )
    for model in models:
        if model.name == name:
            return _with_length(model, models)
        # SGLang takes BASE:ADAPTER and lists the base only.
        if name.startswith(f"{model.name}:"):
            return ServedModel(name, model.max_length_tokens, model.name)
    raise EngineError(f"the server at {url} offers no model {name!r}, only {names}", "check the name after #")


def _with_length(model: ServedModel, models: Sequence[ServedModel]) -> ServedModel:
    """Take an adapter's length from its base: vLLM tells that only."""
    if model.max_length_tokens is not None or model.parent is None:
        return model
    lengths = (other.max_length_tokens for other in models if other.name == model.parent)
    return dataclasses.replace(model, max_length_tokens=next(lengths, None))


def read_top(payload: Any) -> TopTokens:
    """Read the likeliest first tokens of a completion.

    Raises:
        EngineError: If there are none.
        RefusedByEngineError: If there are none for this prompt, by the server's content filter.
    """
    try:
        choice = payload["choices"][0]
        _refuse_filtered(choice.get("finish_reason"))
        logprobs = choice["logprobs"]
        if logprobs is None:
            raise EngineError(
                "the server gives no log-probabilities",
                "take one that does, such as vLLM, SGLang or llama.cpp's; `transformers serve` doesn't",
            )
        if "content" in logprobs:
            rows = [(row.get("id"), row["token"], row["logprob"]) for row in _first(logprobs["content"])]
        else:
            rows = [(_id_in(text), text, value) for text, value in logprobs["top_logprobs"][0].items()]
        by_id = {int(number): value for number, _, value in rows if number is not None}
        by_text = {str(text): value for number, text, value in rows if number is None}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise EngineError(f"the server's log-probabilities can't be read: {exc!r}", _IS_IT) from exc
    return TopTokens(by_id, by_text)


def _first(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = content[0]["top_logprobs"]
    return rows


def _id_in(key: str) -> int | None:
    return int(key.removeprefix(_BY_ID)) if key.startswith(_BY_ID) else None


def read_likelihood(value: Any) -> float:
    """Read a log-probability.

    Raises:
        EngineError: If it is none.
        RefusedByEngineError: If it is no finite number, as it may be after one prompt and not another.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedByEngineError(
            f"the server gives a log-probability that is no finite number: {value!r}",
            "look at the server's own log; half precision may overflow: try another --dtype there",
        )
    if value > _ABOVE_ZERO:
        raise EngineError(
            f"the server gives a log-probability above 0: {value!r}",
            "it must give log-probabilities, not logits; vLLM: --logprobs-mode raw_logprobs",
        )
    return float(value)


def read_text(payload: Any) -> tuple[str, bool]:
    """Read a completion's text, and whether it ended by itself.

    Raises:
        EngineError: If it can't be read, or was broken off by the server; RefusedByEngineError if filtered.
    """
    try:
        choice = payload["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    except (KeyError, TypeError, IndexError) as exc:
        raise EngineError(f"the server's text can't be read: {exc!r}", _IS_IT) from exc
    if not isinstance(text, str):
        raise EngineError(f"the server's text is a {type(text).__name__}", _IS_IT)
    return text, _ended(reason)


def _refuse_filtered(reason: Any) -> None:
    if reason == "content_filter":
        raise RefusedByEngineError(
            "the server's content filter broke off the text: 'content_filter'",
            "ask something else, or a server without such a filter",
        )


def _ended(reason: Any) -> bool:
    _refuse_filtered(reason)
    if reason not in ("stop", "length"):
        raise EngineError(f"the server broke off the text: {reason!r}", "look at the server's own log")
    return bool(reason == "stop")


def read_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Put together the lines of an event stream: they end in \n or \r\n, and nowhere else."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def read_event(line: str) -> tuple[str, bool | None] | None:
    """Read a line of a streamed completion.

    Returns:
        New text, and whether the text ended by itself, None while it goes on; None for a line that says
        nothing of it.

    Raises:
        EngineError: If it can't be read, or tells of an error.
    """
    name, _, data = line.partition(":")
    if name not in ("data", "error") or data.strip() in ("", "[DONE]"):
        return None
    try:
        payload = json.loads(data)
        if name == "error" or "error" in payload:
            raise EngineError(
                f"the server broke off the text: {read_error(data)}", "look at the server's own log"
            )
        if not payload["choices"]:  # the account of tokens at the end
            return None
        choice = payload["choices"][0]
        text, reason = choice["text"] or "", choice.get("finish_reason")
    except (KeyError, TypeError, ValueError, IndexError) as exc:
        raise EngineError(f"the server's text can't be read: {exc!r}", _IS_IT) from exc
    return str(text), None if reason is None else _ended(reason)


def read_error(text: str) -> str:
    """Find a server's own words in what it answered."""
    try:
        found = json.loads(text)
        while isinstance(found, dict):
            found = next(found[key] for key in ("error", "message", "detail") if key in found)
    except (ValueError, StopIteration, RecursionError):
        found = text
    words = " ".join(str(found).split())
    return words[:300] or "no message"
