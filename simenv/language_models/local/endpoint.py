"""ChatEndpoint: the OpenAI chat protocol over HTTP in front of a `TransformersLocal` - routes, bodies and errors.

Requests that arrive together share the model's batches; the protocol neither sees nor decides which. Ports, signals and
how a server is started are not known here. starlette and pydantic are imported only here.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jinja2

from simenv.errors import ConfigError, MissingExtraError
from simenv.language_models.base import Completion, Message, Request, UnansweredError

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request as HTTPRequest
    from starlette.responses import JSONResponse
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtraError("simenv.language_models.serve", "serve") from error

if TYPE_CHECKING:
    from simenv.language_models.local.model import TransformersLocal

LONGEST_BODY = 4 << 20  # bytes; a page's prompt takes a few thousand
DEFAULT_MAX_TOKENS = 1024
# Fields that would change an answer in a way this server cannot, and the values at which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
}


class ProtocolError(Exception):
    """A request that gets no completion, as the protocol tells it."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class TextPart(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Turn(BaseModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class NamedSchema(BaseModel):
    """The ``json_schema`` of a response format; name and ``strict`` decide nothing, decoding is always strict."""

    definition: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


Limit = Annotated[int, Field(ge=1, strict=True)]


class Body(BaseModel):
    """The body of a chat completion; fields named neither here nor in `NEUTRAL` (``seed``, ...) are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Turn] = Field(min_length=1)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    response_format: ResponseFormat | None = None


class ChatEndpoint:
    """Answers chat completions, one model, without streaming.

    A draw (temperature above 0) is keyed by the request itself: the same request gets the same answer, and ``seed``
    decides nothing. A missing temperature means 1, as in the protocol. Free text (no ``json_schema``) is decoded
    greedily whatever the temperature. In the logits readout an integer of the schema is answered by its expectation,
    a number with up to four decimals, exactly as in process; only clients that insist on whole numbers mind.

    Args:
        model: what answers, under the name that its cache uses (``NAME``, or ``NAME:logits``).
    """

    def __init__(self, model: TransformersLocal) -> None:
        self.model = model
        self.started = int(time.time())

    def application(self) -> Starlette:
        """The routes: ``POST /v1/chat/completions``, ``GET /v1/models``, ``GET /health``."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._completions, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._one_model),
                Route("/health", self._health),
            ],
            exception_handlers={ProtocolError: _refused, HTTPException: _no_route, Exception: _broken},
        )

    async def _completions(self, http: HTTPRequest) -> JSONResponse:
        body = await _body(http)
        self._check_name(body.model)
        wanted = body.response_format or ResponseFormat(type="text")
        request = self._request(body, wanted)
        try:
            completion = await self.model.complete(request)
        except UnansweredError as error:
            if error.reason == "context_overflow":
                raise ProtocolError(400, "context_length_exceeded", str(error), param="messages") from None
            raise ProtocolError(500, error.reason, str(error), kind="server_error") from None
        if wanted.type == "json_object" and not _is_object(completion.text):
            raise ProtocolError(
                400,
                "json_validate_failed",
                "the model's text is no JSON object; only response_format json_schema is decoded under constraint",
                param="response_format",
            )
        return JSONResponse(self._written(completion))

    def _request(self, body: Body, wanted: ResponseFormat) -> Request:
        """What the body asks, or the reason why this model cannot answer it."""
        schema = None
        if wanted.type == "json_schema":
            if wanted.json_schema is None:
                message = "response_format.json_schema: Field required"
                raise ProtocolError(400, "invalid_body", message, param="response_format")
            schema = wanted.json_schema.definition
            try:
                self.model.check_schema(schema)
            except ConfigError as error:
                raise ProtocolError(400, "unsupported_schema", str(error), param="response_format") from None
        messages = tuple(turn.message() for turn in body.messages)
        try:
            self.model.check_messages(messages)
        except jinja2.TemplateError as error:
            message = f"messages: the model's chat template refuses them: {error}"
            raise ProtocolError(400, "invalid_messages", message, param="messages") from None
        limit = body.max_completion_tokens or body.max_tokens
        if limit is None:
            room = self.model.max_length - self.model.count_tokens(Request(messages=messages))[0]
            limit = min(DEFAULT_MAX_TOKENS, max(room, 1))
        temperature = 1.0 if body.temperature is None else body.temperature
        return Request(messages=messages, schema=schema, max_tokens=limit, temperature=temperature)

    def _written(self, completion: Completion) -> dict[str, Any]:
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish}
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model.model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
                "total_tokens": completion.prompt_tokens + completion.completion_tokens,
            },
        }

    async def _models(self, http: HTTPRequest) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _one_model(self, http: HTTPRequest) -> JSONResponse:
        self._check_name(http.path_params["name"])
        return JSONResponse(self._card())

    async def _health(self, http: HTTPRequest) -> JSONResponse:
        return JSONResponse({"status": "ok", "model": self.model.model})

    def _card(self) -> dict[str, Any]:
        return {"id": self.model.model, "object": "model", "created": self.started, "owned_by": "simenv"}

    def _check_name(self, name: str) -> None:
        if name != self.model.model:
            message = f"model '{name[:100]}' does not exist; this server has '{self.model.model}'"
            raise ProtocolError(404, "model_not_found", message, param="model")


async def _body(http: HTTPRequest) -> Body:
    """The request's body, checked.

    Raises:
        ProtocolError: no JSON, not the protocol's form, or a field that this server cannot honour.
    """
    try:
        sent = json.loads(await _read(http))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(400, "invalid_json", f"the body is no JSON: {error}") from None
    try:
        body = Body.model_validate(sent)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise ProtocolError(400, "invalid_body", f"{place}: {first['msg']}", param=place) from None
    for name, neutral in NEUTRAL.items():
        value = (body.model_extra or {}).get(name)
        if value is not None and value not in neutral:
            message = f"{name}={json.dumps(value)[:60]} is not supported; leave it out"
            raise ProtocolError(400, "unsupported_parameter", message, param=name)
    return body


async def _read(http: HTTPRequest) -> bytes:
    parts, size = [], 0
    async for part in http.stream():
        parts.append(part)
        size += len(part)
        if size > LONGEST_BODY:
            raise ProtocolError(413, "body_too_large", f"the body is longer than {LONGEST_BODY:,} bytes")
    return b"".join(parts)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


async def _refused(http: HTTPRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, ProtocolError)
    return JSONResponse(error.body, error.status)


async def _no_route(http: HTTPRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    message = f"{http.method} {http.url.path}: {error.detail}"
    told = ProtocolError(error.status_code, codes.get(error.status_code, "http_error"), message)
    return JSONResponse(told.body, error.status_code, headers=error.headers)


async def _broken(http: HTTPRequest, error: Exception) -> JSONResponse:
    """An error of ours; uvicorn writes its traceback to the server's stderr."""
    told = ProtocolError(500, "internal_error", "the server failed; its log says why", kind="server_error")
    return JSONResponse(told.body, 500)
