"""OpenAICompatible: any endpoint that speaks the OpenAI chat protocol - hosted, vLLM, Ollama, llama.cpp.

What a server understands differs (structured outputs, the name of the token limit, temperature): the first refusal
teaches it, and it is remembered. The key comes from ``OPENAI_API_KEY`` and goes into the request header, nowhere
else: errors are rewritten and cut from the exceptions of the client, which carry the request.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from simenv.errors import ConfigError
from simenv.language_models.background_loop import when_dropped
from simenv.language_models.base import (
    Completion,
    LanguageModel,
    LanguageModelError,
    Request,
    TransientError,
    UnansweredError,
    estimate_tokens,
)

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

FORMATS = ("json_schema", "json_schema_without_bounds", "json_object", "text")  # from strict to free
_FORMAT = re.compile(r"response_format|json_schema|json_object|json mode|structured|guided|grammar|schema", re.I)
_OVERFLOW = re.compile(
    r"context[ _-]*(length|window|size)|maximum context|too many (input )?tokens|(prompt|input) is too long", re.I
)
_REFUSAL = re.compile(r"content[ _-]*(filter|policy|management)|safety", re.I)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server is known to understand."""

    answer_format: str = FORMATS[0]
    limit_field: str = "max_tokens"
    takes_temperature: bool = True

    def after(self, complaint: str) -> Dialect | None:
        """The dialect to try after a rejected request, or None where the complaint is about something else."""
        if "max_completion_tokens" in complaint and self.limit_field == "max_tokens":
            return replace(self, limit_field="max_completion_tokens")
        if "temperature" in complaint and self.takes_temperature:
            return replace(self, takes_temperature=False)
        if _FORMAT.search(complaint) and self.answer_format != FORMATS[-1]:
            return replace(self, answer_format=FORMATS[FORMATS.index(self.answer_format) + 1])
        return None


class OpenAICompatible(LanguageModel):
    """Chat completions over HTTP.

    Args:
        model: as the server calls it.
        base_url: the endpoint, ending in ``/v1``; None = ``OPENAI_BASE_URL``, else the hosted service.
        parameters: further fields of the request body (``top_p``, ``reasoning_effort``, ...); part of the cache key.
        timeout: longest time for one answer to arrive in full, seconds.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
    ) -> None:
        super().__init__(model, parameters)
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise ConfigError(f"llm.base_url={_without_credentials(base_url)}: expected http://... or https://...")
        if timeout <= 0:
            raise ConfigError(f"llm.timeout={timeout}: expected a positive number of seconds")
        self.base_url = base_url
        self.timeout = timeout
        self.dialect = Dialect()
        self._client: AsyncOpenAI | None = None
        if not (os.environ.get("OPENAI_API_KEY") or base_url or os.environ.get("OPENAI_BASE_URL")):
            raise ConfigError("OPENAI_API_KEY is not set; expected a key, or llm.base_url of a server without one")

    async def complete(self, request: Request) -> Completion:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        dialect = self.dialect
        try:
            async with asyncio.timeout(self.timeout):
                # the generic call: the typed one spends more time on checking a known body than all else together
                answer = await self._open().post("/chat/completions", cast_to=object, body=self._body(request, dialect))
        except (TimeoutError, APITimeoutError):
            failure: Exception = TransientError("timeout", f"no full answer within {self.timeout:g} s")
        except APIConnectionError as error:
            failure = TransientError("connection", self._redact(str(error.__cause__ or error)))
        except APIStatusError as error:
            failure = self._failure(error, dialect)
        except (APIError, json.JSONDecodeError, UnicodeDecodeError) as error:
            failure = TransientError("bad_response", self._redact(str(error)))
        else:
            return self._completion(answer, request)
        raise failure from None

    async def aclose(self) -> None:
        if self._client is not None:
            self._dropped.detach()
            await self._client.close()
            self._client = None

    def _open(self) -> AsyncOpenAI:
        """The client, made on first use."""
        if self._client is None:
            from openai import AsyncOpenAI

            self._client = AsyncOpenAI(
                api_key=os.environ.get("OPENAI_API_KEY") or "none",
                base_url=self.base_url,
                timeout=self.timeout,
                max_retries=0,
            )
            self._dropped = when_dropped(self, self._client.close)
        return self._client

    def _body(self, request: Request, dialect: Dialect) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            dialect.limit_field: request.max_tokens,
        }
        if dialect.takes_temperature:
            body["temperature"] = request.temperature
        if request.schema is not None and dialect.answer_format.startswith("json_schema"):
            bounded = dialect.answer_format == FORMATS[0]
            schema = request.schema if bounded else without_bounds(request.schema)
            named = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif request.schema is not None and dialect.answer_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body | dict(self.parameters)

    def _completion(self, answer: Any, request: Request) -> Completion:
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not choices:
            raise UnansweredError("empty", "the server sent no choices")
        choice = choices[0]
        message = choice.get("message") or {}
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            raise UnansweredError("refusal", "the model declined")
        text = message.get("content")
        if not isinstance(text, str) or not text.strip():
            raise UnansweredError("empty", "the server sent an empty message")
        usage = answer.get("usage") or {}
        return Completion(
            text=text,
            prompt_tokens=usage.get("prompt_tokens") or request.estimated_tokens(),
            completion_tokens=usage.get("completion_tokens") or estimate_tokens(text),
            finish=str(choice.get("finish_reason")),
        )

    def _failure(self, error: APIStatusError, dialect: Dialect) -> Exception:
        """What an HTTP error means for the request and for the run."""
        status, code, complaint = error.status_code, str(error.code or ""), self._redact(error.message)
        where = f"{self.model} at {self._where()}"
        if status == 429 and code == "insufficient_quota":
            return LanguageModelError(f"{where}: the account has no quota left")
        if status == 429:
            return TransientError("rate_limit", f"HTTP {status}", retry_after(error.response.headers))
        if status in (408, 409) or status >= 500:
            return TransientError("server", f"HTTP {status}", retry_after(error.response.headers))
        if status in (401, 403):
            return LanguageModelError(f"{where}: HTTP {status}; expected a valid OPENAI_API_KEY")
        if status in (400, 413, 422):
            if status == 413 or code == "context_length_exceeded" or _OVERFLOW.search(complaint):
                return UnansweredError("context_overflow", complaint)
            if _REFUSAL.search(f"{code} {complaint}"):
                return UnansweredError("refusal", complaint)
            simpler = dialect.after(complaint)
            if simpler is not None:
                if self.dialect == dialect:
                    self.dialect = simpler
                return TransientError("dialect", complaint, retry_after=0.0)
        return LanguageModelError(f"{where}: HTTP {status}: {complaint}")

    def _where(self) -> str:
        return _without_credentials(str(self._open().base_url))

    def _redact(self, text: str) -> str:
        """One short line of a server's message without the key."""
        key = os.environ.get("OPENAI_API_KEY")
        text = text.replace(key, "[key]") if key else text
        text = re.sub(r"\b(sk|key)-[\w-]{6,}", "[key]", text)
        return " ".join(text.split())[:300]


def without_bounds(schema: Any) -> Any:
    """A JSON schema without the bounds of its numbers, which some strict servers refuse."""
    if not isinstance(schema, Mapping):
        return schema
    return {name: without_bounds(value) for name, value in schema.items() if name not in ("minimum", "maximum")}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks to wait: ``retry-after-ms``, or ``Retry-After`` as seconds or as a date (RFC 9110)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers.get(name, "")) * unit)
        except ValueError:
            continue
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
