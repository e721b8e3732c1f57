"""The chat endpoint that OpenAI's client speaks: the last message is an exam question, the reply its answer.

What the client may set and this model does not know is refused where it would change the answer (several
choices, tools), and named in `medqa.ignored` where it would not (a sampling temperature: nothing is sampled).
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example as OpenAPIExample
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from medqa.config import ServeConfig
from medqa.data.exam import split_exam
from medqa.errors import ConfigError, DataError, MedQAError
from medqa.prompts import PromptRenderer
from medqa.records import Answer, Example
from medqa.serve.askable import MAX_CHARACTERS
from medqa.serve.desk import Desk, unless_gone
from medqa.serve.wire import STREAMED, answer_json, error_reply

__all__ = ["chat_routes"]

# Set by many clients by themselves, and without effect on an answer that is not sampled.
_IGNORED = (
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "user", "metadata"),
    *("store", "stop", "safety_identifier", "prompt_cache_key", "service_tier", "reasoning_effort"),
    *("verbosity", "response_format"),
)


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class ChatMessage(BaseModel):
    """A message."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_CHARACTERS)] | list[Part]

    @property
    def text(self) -> str:
        """Its text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation whose last message is a question with its options, one a line."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, use_attribute_docstrings=True)

    model: Annotated[str, Field(max_length=500)]
    """Name of the model, from /v1/models."""
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=100)]
    """The last one is read; those before it change nothing."""
    stream: bool = False
    """Send the reply as it is written."""
    stream_options: StreamOptions | None = None
    """Whether the last chunk tells the numbers of tokens."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Longest explanation; the server's own limit holds where it is lower."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    """The same under its newer name."""
    n: Literal[1] | None = None
    """One answer."""

    def settings(self, defaults: ServeConfig) -> ServeConfig:
        """Return how to answer."""
        limits = (defaults.max_explanation_tokens, self.max_tokens, self.max_completion_tokens)
        lowest = min(limit for limit in limits if limit is not None)
        return defaults.model_copy(update={"max_explanation_tokens": lowest})

    def ignored(self) -> list[str]:
        """Name what was set and has no effect.

        Raises:
            ConfigError: If something was set that would have to change the answer.
        """
        given = {name for name, value in (self.model_extra or {}).items() if value is not None}
        if unknown := given - set(_IGNORED):
            raise ConfigError(
                f"{min(unknown)[:60]!r} is not known here",
                "leave it out; POST /v1/answer has the whole answer",
            )
        return sorted(given)

    def question(self) -> tuple[Example, tuple[str, ...]]:
        """Read the question from the last message.

        Raises:
            DataError: If it can't be split into question and options.
        """
        last = self.messages[-1]
        if last.role != "user":
            raise DataError(f"the last message is the {last.role}'s", "end with the user's question")
        pasted = split_exam(last.text)
        return pasted.example.require_distinct_options(), pasted.notes


def chat_routes(desk: Desk, errors: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Build the routes.

    Args:
        desk: Where answers come from.
        errors: Responses to document.
    """
    router = APIRouter(prefix="/v1", tags=["for OpenAI's client"], responses=errors)
    model, created = desk.service.answerer.run.name, int(time.time())

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        one = {"id": model, "object": "model", "created": created, "owned_by": "medqa"}
        return {"object": "list", "data": [one]}

    text = "Which vitamin prevents scurvy?\nA. Vitamin A\nB. Vitamin C\nC. Vitamin K"
    sample = {"model": model, "messages": [{"role": "user", "content": text}]}
    examples: dict[str, OpenAPIExample] = {
        "whole": {"summary": "The whole reply", "value": sample},
        "stream": {"summary": "As it is written", "value": {**sample, "stream": True}},
    }

    @router.post("/chat/completions", responses=STREAMED)
    async def chat(
        request: Request, asked: Annotated[ChatRequest, Body(openapi_examples=examples)]
    ) -> Response:
        """Answer the exam question in the last message: its text, then the options, one a line."""
        if asked.model != model:
            raise DataError(f"there is no model {asked.model[:100]!r}", f"this server has {model!r}")
        ignored, settings = asked.ignored(), asked.settings(desk.defaults)
        example, notes = asked.question()
        id = request.state.request_id
        parts = desk.stream(example, settings=settings, client="chat", id=id)
        extra = {"ignored": ignored, "notes": list(notes)}
        reply = _Reply(id, model, extra, desk.service.answerer.engine.renderer, example)
        if asked.stream:
            first = await anext(parts)
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return StreamingResponse(reply.chunks(first, parts, usage), media_type="text/event-stream")
        return JSONResponse(await unless_gone(request, reply.whole(parts)))

    return router


class _Reply:
    """An answer in the shape of a chat completion."""

    def __init__(
        self, id: str, model: str, extra: dict[str, Any], renderer: PromptRenderer, example: Example
    ) -> None:
        self._id = id
        self._head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
        self._extra, self._renderer, self._example = extra, renderer, example

    async def whole(self, parts: AsyncGenerator[Answer | str, None]) -> dict[str, Any]:
        texts, answer = [], None
        async with contextlib.aclosing(parts):
            async for part in parts:
                texts += self._texts(part, first=answer is None)
                answer = part if isinstance(part, Answer) else answer
        message = {"role": "assistant", "content": "".join(texts), "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _finish_reason(answer),
            "logprobs": None,
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(answer),
            "medqa": self._medqa(answer),
        }

    async def chunks(
        self, first: Answer | str, parts: AsyncGenerator[Answer | str, None], usage: bool
    ) -> AsyncIterator[str]:
        answer: Answer | None = None
        async with contextlib.aclosing(parts):
            yield self._chunk({"role": "assistant", "content": ""})
            try:
                for text in self._texts(first, first=True):
                    yield self._chunk({"content": text})
                async for part in parts:
                    answer = part if isinstance(part, Answer) else answer
                    for text in self._texts(part, first=False):
                        yield self._chunk({"content": text})
            except MedQAError as exc:
                yield _event(error_reply(exc).model_dump())
                return
            yield self._chunk({}, finish_reason=_finish_reason(answer), medqa=self._medqa(answer))
            if usage:
                yield self._line({"choices": [], "usage": self._usage(answer)})
            yield "data: [DONE]\n\n"

    def _texts(self, part: Answer | str, *, first: bool) -> list[str]:
        """Put an answer into words: letter and confidence, the explanation, then what was found of it."""
        if isinstance(part, str):
            return [part]
        if first:
            return [f"{_verdict(part)}\n\n"]
        warning = (part.explanation_check or {}).get("warning")
        return [f"\n\n{f'Beware: {warning} ' if warning else ''}{part.notice}"]

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._line({"choices": [choice], **more})

    def _line(self, values: dict[str, Any]) -> str:
        return _event({**self._head, "object": "chat.completion.chunk", **values})

    def _usage(self, answer: Answer | None) -> dict[str, int]:
        """Count tokens: of the question as the model reads it, and of letter and explanation."""
        explanation = (answer.explanation or "") if answer else ""
        read = len(self._renderer.prefix_ids(self._example))
        written = 1 + len(self._renderer.encode_all([explanation])[0])
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _medqa(self, answer: Answer | None) -> dict[str, Any]:
        return {
            **self._extra,
            "answer": answer_json(answer, self._id) if answer else None,
        }


def _event(data: dict[str, Any]) -> str:
    # ASCII: to many readers of streams U+2028 and its like end a line.
    return f"data: {json.dumps(data)}\n\n"


def _finish_reason(answer: Answer | None) -> str:
    return "length" if answer and answer.explanation_finished is False else "stop"


def _verdict(answer: Answer) -> str:
    best, sure = f"{answer.letter}. {answer.option}", f"confidence {answer.confidence:.0%}"
    if answer.calibration is None:
        sure += ", not calibrated"
    text = f"Not sure enough to answer: {answer.reason}. Best guess: {best}" if answer.abstain else best
    text += f" ({sure})"
    if answer.caveat:
        return f"{text}. Beware: {answer.caveat}."
    if answer.answer_set and answer.alpha is not None:
        text += f". Still in question, {1 - answer.alpha:.0%} sure: {' or '.join(answer.answer_set)}."
    return text
