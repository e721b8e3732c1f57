"""The letters' log-likelihoods, out of the likeliest first tokens that a server gives."""

import functools
from collections.abc import Mapping
from typing import Any

from medqa.errors import EngineError, RefusedByEngineError
from medqa.evaluate.connection import Connection
from medqa.evaluate.protocol import TopTokens, read_likelihood, read_top
from medqa.evaluate.score import Item
from medqa.evaluate.transport import Stop
from medqa.records import LETTERS

__all__ = ["NUM_TOP", "LetterReader"]

# How many of the likeliest tokens are asked for: as many as vLLM gives by default; where a letter is not in
# there, more; then all there are.
NUM_TOP = (20, 500)


class LetterReader:
    """Asks a server for letters, from any number of threads."""

    def __init__(self, connection: Connection, tokenizer: Any) -> None:
        self._connection, self._tokenizer = connection, tokenizer

    def ask(self, model: str, item: Item, stop: Stop) -> tuple[tuple[float, ...], bool]:
        """Ask for the log-likelihood of each letter, which is one token.

        Args:
            model: Its name at the server.
            item: The question.
            stop: Ends it.

        Returns:
            The log-likelihoods, and whether more than the usual number of tokens had to be asked for.

        Raises:
            EngineError: If the server can't be reached, or answers with something else.
            RefusedByEngineError: If it doesn't give them for this question.
        """
        body = {
            "model": model,
            "prompt": item.prefix,
            "max_tokens": 1,
            "temperature": 0,
            "return_tokens_as_token_ids": True,  # vLLM's; others overlook it
        }
        ids, refusal = [letter[0] for letter in item.letters], ""
        found: list[float | None] = []
        for size in (*NUM_TOP, len(self._tokenizer)):
            try:
                top = read_top(self._connection.post("completions", {**body, "logprobs": size}, stop))
            except RefusedByEngineError as exc:
                if not found:
                    raise _of_question(item, exc) from exc
                refusal = f"; when asked for {size}: {exc.message}"
                break
            try:
                found = [self._value(top, token) for token in ids]
            except RefusedByEngineError as exc:
                raise _of_question(item, exc) from exc
            values = [value for value in found if value is not None]
            if len(values) == len(ids):
                return tuple(values), size > NUM_TOP[0]
        raise RefusedByEngineError(
            f"{LETTERS[found.index(None)]} of question {item.example.id!r} is not among the likeliest tokens "
            f"that the server gives{refusal}",
            "let it give more of them; vLLM: --max-logprobs -1 (as many as are asked for)",
        )

    def _value(self, top: TopTokens, token: int) -> float | None:
        values: Mapping[Any, Any] = top.by_id or top.by_text
        name = token if top.by_id else self._text(token)
        return read_likelihood(values[name]) if name in values else None

    def _text(self, token: int) -> str:
        """Return a letter's text, for servers that name tokens by text only."""
        text, num_others = self._texts[token]
        if num_others:
            raise EngineError(
                f"the server names tokens by their text, and {text!r} is that of {1 + num_others} tokens",
                "take a server that gives token ids: vLLM, llama.cpp's",
            )
        return text

    @functools.cached_property
    def _texts(self) -> dict[int, tuple[str, int]]:
        """Text of each token, and how many others have the same."""
        size = len(self._tokenizer)
        texts = self._tokenizer.batch_decode(
            [[token] for token in range(size)], clean_up_tokenization_spaces=False
        )
        counts: dict[str, int] = {}
        for text in texts:
            counts[text] = counts.get(text, -1) + 1
        return {token: (text, counts[text]) for token, text in enumerate(texts)}


def _of_question(item: Item, exc: RefusedByEngineError) -> RefusedByEngineError:
    return RefusedByEngineError(f"question {item.example.id!r}: {exc.message}", exc.hint)
