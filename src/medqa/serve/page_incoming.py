"""What may reach the page: the few requests that its own script sends, each made anew of what was checked.

Gradio tells of a request that it did not expect with status 500 and a traceback, and takes its own address
from headers that anybody can set. So what comes from a browser ends here; what gradio gets was made here.
"""

import json
import re
from typing import Annotated, Any
from urllib.parse import parse_qs

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medqa.serve.incoming import Incoming, Message, Receive, RefusedError, Scope, header

__all__ = ["OPEN", "PageRequests"]

_HASH = r"[A-Za-z0-9_-]{1,64}"
_FILE = r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+"
OPEN = re.compile(
    rf"/(?:(?:assets|static){_FILE}|theme\.css"
    rf"|gradio_api/(?:heartbeat/{_HASH}|queue/(?:join|data)|cancel|reset)/?)?"
)
"""The page itself, its scripts and styles, and the events."""

MAX_BODY_BYTES = 1024 * 1024
"""Where no gate stands before the page; a gate takes less."""
MAX_INPUTS = 64

_KEPT = (b"accept", b"accept-encoding")
_JSON = re.compile(rb"application/json *(?:;.*)?", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_HINT = "open the page anew"

_Name = Annotated[str, Field(pattern=f"^{_HASH}$")]
_Place = Annotated[int, Field(ge=0, le=1_000_000)]
_Value = str | bool | int | Annotated[float, Field(allow_inf_nan=False)] | None


class _Sent(BaseModel):
    # What else a newer script may send is not passed on.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Join(_Sent):
    fn_index: _Place
    session_hash: _Name
    data: Annotated[list[_Value], Field(max_length=MAX_INPUTS)]
    trigger_id: _Place | None = None


class _Cancel(_Sent):
    fn_index: _Place
    session_hash: _Name
    event_id: _Name


class _Reset(_Sent):
    event_id: _Name


_BODIES: dict[str, type[_Sent]] = {
    "/gradio_api/queue/join": _Join,
    "/gradio_api/cancel": _Cancel,
    "/gradio_api/reset": _Reset,
}


class PageRequests:
    """Reads what a browser sends to a page.

    Args:
        blocks: The page.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        self._blocks = blocks

    async def read(self, path: str, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Return a request that gradio can take, in place of one that came in.

        Args:
            path: Its address within the page; one that `OPEN` matches.
            scope: What came with it.
            receive: Gives its body.

        Raises:
            RefusedError: If the page's script would not send such a request.
        """
        path = path.rstrip("/")
        body = await Incoming(scope, receive).body(MAX_BODY_BYTES) or b""
        query, headers = b"", _headers(scope)
        if path.endswith("/queue/data") and scope["method"] == "GET":
            query = self._session(scope)
        if scope["method"] != "POST" or path not in _BODIES:
            body = b""
        else:
            body = self._body(_BODIES[path], scope, body)
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        return {**scope, "headers": headers, "query_string": query}, _replayed(body, receive)

    def _session(self, scope: Scope) -> bytes:
        """Return the query that names a visit; one that nothing was asked on is none."""
        names = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])
        if len(names) != 1 or not re.fullmatch(_HASH, names[0]):
            raise RefusedError(422, "bad_request", "session_hash: it has to name a visit, once", _HINT)
        if names[0] not in self._blocks._queue.pending_messages_per_session:
            raise RefusedError(404, "not_found", "nothing was asked on this visit", _HINT)
        return f"session_hash={names[0]}".encode()

    def _body(self, kind: type[_Sent], scope: Scope, body: bytes) -> bytes:
        if not _JSON.fullmatch(header(scope, b"content-type")):
            raise RefusedError(415, "bad_type", "the content type is not application/json", _HINT)
        try:
            sent = kind.model_validate_json(body)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
            if first["type"] == "json_invalid":
                raise RefusedError(400, "bad_json", "the body is no JSON", _HINT) from exc
            # Of a value that could be several things only the place among the inputs is told.
            place = ".".join(str(part) for part in first["loc"][:2])
            raise RefusedError(422, "bad_request", f"{place or 'the body'}: {first['msg']}", _HINT) from exc
        values = sent.model_dump()
        if isinstance(sent, _Join):
            values |= {"data": self._inputs(sent), "trigger_id": None}
        return json.dumps(values).encode()

    def _inputs(self, sent: _Join) -> list[Any]:
        """Return what an event takes.

        Raises:
            RefusedError: If there is no such event, or it takes something else.
        """
        event = self._blocks.fns.get(sent.fn_index)
        if event is None or event.fn is None:
            raise RefusedError(422, "bad_request", f"fn_index: there is no event {sent.fn_index}", _HINT)
        if len(sent.data) != len(event.inputs):
            told = f"data: {len(sent.data)} values, event {sent.fn_index} takes {len(event.inputs)}"
            raise RefusedError(422, "bad_request", told, _HINT)
        return [
            _input(number, component, value)
            for number, (component, value) in enumerate(zip(event.inputs, sent.data, strict=True))
        ]


def _input(number: int, component: Any, value: Any) -> Any:
    """Return what a part of the form may hold; what was never opened comes as None."""
    if isinstance(component, gr.State):  # it is kept here, whatever is sent
        return None
    fits = False
    if isinstance(component, gr.Textbox):
        value = "" if value is None else value
        fits = isinstance(value, str)
    elif isinstance(component, gr.Checkbox):
        fits = isinstance(value, bool)
    elif isinstance(component, gr.Radio):
        choices = [None, *(choice for _, choice in component.choices)]
        fits = value in choices and not isinstance(value, bool)  # to Python False is 0
    if not fits:
        kind = type(component).__name__.lower()
        raise RefusedError(422, "bad_request", f"data.{number}: not a value of a {kind}", _HINT)
    return value


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers that gradio needs."""
    kept = [(name, value) for name, value in scope["headers"] if name.lower() in _KEPT]
    if host := header(scope, b"host"):
        if not _names_a_host(host):
            raise RefusedError(400, "bad_host", "the header Host names no host", "give a name and a port")
        kept.append((b"host", host))
    # A proxy says so under which address browsers see the page; gradio builds its own addresses of it.
    forwarded = header(scope, b"x-forwarded-host").partition(b",")[0].strip()
    if _names_a_host(forwarded):
        kept.append((b"x-forwarded-host", forwarded))
    if header(scope, b"x-forwarded-proto").partition(b",")[0].strip() == b"https":
        kept.append((b"x-forwarded-proto", b"https"))
    return kept


def _names_a_host(value: bytes) -> bool:
    found = _HOST.fullmatch(value)
    return found is not None and int(found[1] or 0) < 2**16


def _replayed(body: bytes, receive: Receive) -> Receive:
    left = [body]

    async def replay() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return replay
