"""Dialects of the OpenAI chat protocol: what a server is asked in, and what its complaints say about that.

The module sends nothing; `client` asks, and steps from dialect to dialect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from simenv.language_models.base import Message, Request
from simenv.language_models.repair import ParseError, integer_schema, load_strict, object_schema, without_wrapping

FORMATS = ("json_schema", "json_schema_enum", "json_object_schema", "json_object", "text")  # from strict to free
FEW = 16  # values of an integer up to which bounds may be written as an enumeration under json_schema

_FORMAT = re.compile(r"response_format|json_schema|json_object|json mode|structured|guided|grammar|schema", re.I)
_FORMAT_FAULT = re.compile(r"response_format|json_schema|json_object|type must be one of|grammar", re.I)
_SYSTEM = re.compile(r"system role|system (message|prompt)s? (is|are) not|roles must alternate", re.I)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server is known to understand.

    Attributes:
        answer_format: one of `FORMATS`: a JSON schema; one whose bounds are enumerations; ``json_object`` with a
            ``schema`` beside it (llama.cpp and its kin); ``json_object``; nothing but the words of the prompt.
        limit_field: the name of the longest answer.
        takes_temperature: whether it may be told.
        takes_system: whether there is a system role.
        settled: `answer_format` was chosen by hand.
    """

    answer_format: str = FORMATS[0]
    limit_field: str = "max_tokens"
    takes_temperature: bool = True
    takes_system: bool = True
    settled: bool = False

    def after(self, complaint: str, status: int) -> Dialect | None:
        """The dialect to try after a rejected request, or None where the complaint is about something else.

        Args:
            complaint: the server's words.
            status: of the reply; servers also refuse with 500, and then only plain words count.
        """
        if "max_completion_tokens" in complaint and self.limit_field == "max_tokens":
            return replace(self, limit_field="max_completion_tokens")
        if self.limit_field in complaint and self.limit_field == "max_completion_tokens":
            return replace(self, limit_field="max_tokens")
        if _SYSTEM.search(complaint) and self.takes_system:
            return replace(self, takes_system=False)
        if status < 500 and "temperature" in complaint and self.takes_temperature:
            return replace(self, takes_temperature=False)
        about_format = (_FORMAT if status < 500 else _FORMAT_FAULT).search(complaint)
        if about_format and self.answer_format != FORMATS[-1] and not self.settled:
            return replace(self, answer_format=FORMATS[FORMATS.index(self.answer_format) + 1])
        return None

    def body(self, model: str, request: Request) -> dict[str, Any]:
        """A request's body."""
        messages = request.messages if self.takes_system else _without_system(request.messages)
        written: dict[str, Any] = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            self.limit_field: request.max_tokens,
        }
        if self.takes_temperature:
            written["temperature"] = request.temperature
        if request.schema is not None and self.answer_format != "text":
            written["response_format"] = self._format(request.schema)
        return written

    def _format(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        if self.answer_format == "json_object":
            return {"type": "json_object"}
        if self.answer_format == "json_object_schema":
            return {"type": "json_object", "schema": enumerated(schema, None)}
        wanted = schema if self.answer_format == "json_schema" else enumerated(schema, FEW)
        return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": wanted}}

    def __str__(self) -> str:
        system = "" if self.takes_system else ", no system role"
        temperature = "temperature" if self.takes_temperature else "no temperature"
        return f"{self.answer_format}, {self.limit_field}, {temperature}{system}"


def enumerated(schema: Any, most: int | None) -> Any:
    """A JSON schema without bounds of numbers: integers of at most `most` values (None = any) are enumerated.

    Strict servers refuse bounds, grammars of others pass over them; an enumeration both hold to.
    """
    if not isinstance(schema, Mapping):
        return schema
    low, high = schema.get("minimum"), schema.get("maximum")
    bare = {name: enumerated(value, most) for name, value in schema.items() if name not in ("minimum", "maximum")}
    if schema.get("type") != "integer" or not isinstance(low, int) or not isinstance(high, int):
        return bare
    if most is None or high - low < most:
        bare["enum"] = list(range(low, high + 1))
    return bare


PROBE = 'Reply with this JSON object and nothing else: {"n": 9}'
PROBE_REQUEST = Request(
    messages=(Message("system", "You reply in JSON."), Message("user", PROBE)),
    schema=object_schema({"n": integer_schema(1, 5)}),
    max_tokens=64,
)


def held(text: str) -> str:
    """What of `PROBE_REQUEST`'s schema, which contradicts its words, an answer keeps: bounds, structure or nothing."""
    try:
        answer = load_strict(without_wrapping(text))
    except (ParseError, ValueError):
        return "nothing"
    value = answer.get("n") if isinstance(answer, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or set(answer) != {"n"}:
        return "nothing"
    return "bounds" if 1 <= value <= 5 else "structure"


def words_of(text: str) -> tuple[str, str]:
    """What the body of an error says, and its code: of every form in which servers write errors.

    ``{"error": {"message": ..., "code": ...}}``, ``{"error": "..."}``, ``{"detail": "..."}``, ``{"detail": [{"msg":
    ...}]}``, ``{"message": ...}``, lists of these, a page of HTML, plain text.
    """
    try:
        body = json.loads(text)
    except ValueError:
        title = re.search(r"<title[^>]*>(.*?)</title>|<h1[^>]*>(.*?)</h1>", text, flags=re.S | re.I)
        bare = re.sub(r"<[^>]*>", " ", text)
        return (title.group(1) or title.group(2)).strip() if title else " ".join(bare.split()), ""
    return _said(body), _code(body)


def _said(body: Any) -> str:
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        return "; ".join(filter(None, (_said(part) for part in body[:3])))
    if not isinstance(body, Mapping):
        return ""
    if "msg" in body and isinstance(body.get("loc"), list):  # a validation error names the field
        return f"{'.'.join(str(part) for part in body['loc'])}: {body['msg']}"
    for name in ("message", "msg", "error", "detail", "errors", "reason"):
        if body.get(name):
            return _said(body[name])
    return json.dumps(body)[:300] if body else ""


def _code(body: Any) -> str:
    if isinstance(body, list):
        body = body[0] if body else None
    if not isinstance(body, Mapping):
        return ""
    inner = body.get("error")
    return _code(inner) if isinstance(inner, Mapping) else str(body.get("code") or body.get("type") or "")


def _without_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system's words at the head of the first turn of the user."""
    told = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    if told and rest:
        rest[0] = Message(rest[0].role, "\n\n".join([*told, rest[0].content]))
    return tuple(rest or (Message("user", told[0]),))
