"""The HTTP application: the JSON API, its OpenAPI page, health and numbers, and the web page beside them."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import Example
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from medqa import __version__
from medqa.errors import MedQAError
from medqa.records import NOTICE, Answer
from medqa.serve.chat import chat_routes
from medqa.serve.desk import Desk, unless_gone
from medqa.serve.wire import (
    STREAMED,
    AnswerReply,
    AnswerRequest,
    Asked,
    BatchReply,
    BatchRequest,
    ErrorReply,
    Failure,
    answer_json,
    error_reply,
    retry_after,
    status_of,
)

__all__ = ["build_api"]

log = logging.getLogger(__name__)

# Questions of a batch that one request may have in the queue at a time.
BATCH_WIDTH = 64

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "Not JSON, or not for this server"},
    401: {"model": ErrorReply, "description": "No API key, or a wrong one"},
    403: {"model": ErrorReply, "description": "Sent by another web site"},
    413: {"model": ErrorReply, "description": "Too long a body"},
    415: {"model": ErrorReply, "description": "The body is not said to be JSON"},
    422: {"model": ErrorReply, "description": "A question or setting that can't be answered"},
    429: {"model": ErrorReply, "description": "Too many are waiting; see Retry-After"},
    502: {"model": ErrorReply, "description": "The engine does not answer"},
    503: {"model": ErrorReply, "description": "The server can't answer now"},
    504: {"model": ErrorReply, "description": "It took longer than the time limit"},
}

_BUG = ErrorReply(
    error=Failure(type="bug", message="something is wrong inside the server", hint="its log says what")
)
_JSON = re.compile(r"application/(?:[^/]+\+)?json")
_REFUSALS = {
    404: ("not_found", "/docs lists what there is"),
    405: ("bad_method", "/docs lists what there is"),
    415: ("bad_type", "send JSON with the header `Content-Type: application/json`"),
    503: ("server", "ask again later"),
}

_QUESTION = {"question": "Which vitamin prevents scurvy?", "options": ["Vitamin A", "Vitamin C", "Vitamin K"]}
_EXAMPLES: dict[str, Example] = {
    "letter": {"summary": "The letter", "value": _QUESTION},
    "explanation": {"summary": "With an explanation", "value": {**_QUESTION, "explain": True}},
    "stream": {"summary": "As it is written", "value": {**_QUESTION, "explain": True, "stream": True}},
}


def build_api(desk: Desk) -> FastAPI:
    """Build the application around a desk; whoever serves it puts a `Gate` around it."""
    app = FastAPIOffline(
        title="MedQA",
        version=__version__,
        description=f"Multiple-choice questions in, answers with calibrated confidence out.\n\n**{NOTICE}**",
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_said_to_be_json)],
    )
    _add_errors(app)
    _add_answers(app, desk)
    app.include_router(chat_routes(desk, _ERRORS))

    @app.get("/health", tags=["operation"])
    async def health() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operation"], responses={503: _ERRORS[503]})
    async def ready() -> dict[str, str]:
        """Say that questions are taken."""
        if not desk.service.ready:
            raise HTTPException(503, "questions are not taken now")
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse, responses={401: _ERRORS[401]})
    async def metrics() -> Response:
        """Give the numbers for Prometheus."""
        return Response(generate_latest(desk.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _said_to_be_json(request: Request) -> None:
    """Refuse what is not said to be JSON: browsers send such on behalf of other web sites unasked."""
    kind = request.headers.get("content-type", "")
    if request.method == "POST" and not _JSON.fullmatch(kind.partition(";")[0].strip().lower()):
        raise HTTPException(415, f"the content type is {kind[:100]!r}, expected application/json")


def _add_answers(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/answer", response_model=AnswerReply, responses={**STREAMED, **_ERRORS}, tags=["answers"])
    async def answer(
        request: Request, asked: Annotated[AnswerRequest, Body(openapi_examples=_EXAMPLES)]
    ) -> Response:
        """Answer one question.

        With `stream`, server-sent events: `answer` with the letter and how far to trust it, `token` with
        pieces of the explanation, then `done` with the whole answer, or `error`.
        """
        id, example = request.state.request_id, asked.example()
        settings = asked.settings(desk.defaults)
        if asked.stream:
            parts = desk.stream(example, settings=settings, client="api", id=id)
            first = await anext(parts)  # what can't be answered is told by its status
            return StreamingResponse(_events(first, parts, id), media_type="text/event-stream")
        found = await unless_gone(
            request, desk.answer(example, explain=asked.explain, settings=settings, id=id)
        )
        return JSONResponse(answer_json(found, id))

    @app.post("/v1/answers", response_model=BatchReply, responses=_ERRORS, tags=["answers"])
    async def answers(request: Request, batch: Annotated[BatchRequest, Body()]) -> Response:
        """Answer up to 256 questions; one that can't be answered has its error in its place."""
        width = asyncio.Semaphore(BATCH_WIDTH)

        async def one(number: int, asked: Asked) -> dict[str, Any]:
            id = f"{request.state.request_id}-{number}"
            try:
                example, settings = asked.example(), asked.settings(desk.defaults)
                async with width:
                    found = await desk.answer(example, explain=asked.explain, settings=settings, id=id)
            except MedQAError as exc:
                return error_reply(exc).model_dump()
            except Exception as exc:  # the others of the batch have their answers all the same
                log.exception("a bug, please report it", exc_info=exc)
                return _BUG.model_dump()
            return answer_json(found, id)

        work = asyncio.gather(*(one(number, asked) for number, asked in enumerate(batch.questions)))
        found = await unless_gone(request, work)
        return JSONResponse({"answers": found})


async def _events(
    first: Answer | str, parts: AsyncGenerator[Answer | str, None], id: str
) -> AsyncIterator[str]:
    """Turn an answer as it comes into server-sent events; closing it stops the writing."""
    async with contextlib.aclosing(parts):
        try:
            yield _event("answer", answer_json(first, id))  # type: ignore[arg-type]
            async for part in parts:
                if isinstance(part, Answer):
                    yield _event("done", answer_json(part, id))
                else:
                    yield _event("token", {"text": part})
        except MedQAError as exc:
            yield _event("error", error_reply(exc).model_dump())


def _event(name: str, data: dict[str, Any]) -> str:
    # ASCII: to many readers of streams U+2028 and its like end a line.
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _add_errors(app: FastAPI) -> None:
    """Give every error the same shape, and never more of the inside than a sentence."""

    def reply(status: int, type: str, message: str, hint: str = "", **headers: str) -> JSONResponse:
        body = ErrorReply(error=Failure(type=type, message=message, hint=hint))
        return JSONResponse(body.model_dump(), status, headers=headers)

    @app.exception_handler(MedQAError)
    async def known(_: Request, exc: MedQAError) -> JSONResponse:
        return JSONResponse(error_reply(exc).model_dump(), status_of(exc)[0], headers=retry_after(exc))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> JSONResponse:
        [first, *rest] = exc.errors()
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return reply(400, "bad_json", f"the body is no JSON: {first['ctx']['error']}", "send one object")
        text = first["msg"].removeprefix("Value error, ")
        text = f"{place}: {text}" if place else text
        more = f"; and {len(rest)} more" if rest else ""
        return reply(422, "bad_request", text + more, "/docs describes the fields")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, exc: HTTPException) -> JSONResponse:
        word, hint = _REFUSALS.get(exc.status_code, ("refused", ""))
        return reply(exc.status_code, word, str(exc.detail), hint, **dict(exc.headers or {}))

    @app.exception_handler(Exception)
    async def bug(_: Request, exc: Exception) -> JSONResponse:
        log.exception("a bug, please report it", exc_info=exc)
        return JSONResponse(_BUG.model_dump(), 500)
