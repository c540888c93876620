"""OpenAICompatible: any server that speaks the OpenAI chat protocol - hosted, vLLM, Ollama, llama.cpp, ours.

Servers differ in what they understand. Before its first request a client asks one small question of a known answer, and
steps down where the server refuses: from a strict JSON schema to one with enumerations, to a JSON object with and
without schema, to free text; from `max_tokens` to `max_completion_tokens`; without temperature; without system role. A
later request that is refused may step further. A refusal counts as one whatever its status.
"""

from __future__ import annotations

import asyncio
import email.utils
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
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
)
from simenv.language_models.wire.dialects import FORMATS, PROBE_REQUEST, Dialect, held, words_of
from simenv.language_models.wire.replies import read_reply
from simenv.language_models.wire.secrets import api_key, public, redacted

if TYPE_CHECKING:
    from openai import AsyncOpenAI

REFUSALS = 10  # of one request for its form; there are no more dialects than that
LOADING_PAUSE = 2.0  # seconds between looks at a server that loads its model
LONGEST_WORDS = 300  # characters of a server's words that an error quotes
_OVERFLOW = re.compile(
    r"context[ _-]*(length|window|size)|maximum context|too many (input )?tokens|(prompt|input) is too long", re.I
)
_DECLINED = re.compile(r"content[ _-]*(filter|policy|management)|safety", re.I)
_NOT_JSON = re.compile(r"json_validate_failed|failed to (generate|validate) json", re.I)
_LOADING = re.compile(r"loading|warming up|not (yet )?ready", re.I)
_NO_MODEL = re.compile(r"model.{0,80}(not found|does not exist|unknown|not exist|not supported)|no such model", re.I)

_dialects: dict[tuple[str, ...], tuple[Dialect, str]] = {}  # what this process has found out about endpoints


class OpenAICompatible(LanguageModel):
    """Chat completions over HTTP.

    Args:
        model: as the server calls it.
        base_url: the endpoint, ending in ``/v1``; None = ``OPENAI_BASE_URL``, else the hosted service.
        parameters: further fields of the request body (``top_p``, ``reasoning_effort``, ...); part of the cache key.
            ``extra_headers`` become headers of the request. What is named like a secret is sent and nowhere written.
        timeout: longest time for one answer to arrive in full, seconds.
        answer_format: one of `FORMATS`; None = the strictest that the server understands.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        answer_format: str | None = None,
    ) -> None:
        super().__init__(model, public(parameters or {}))
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            likely = f"; did you mean http://{base_url.removesuffix('/')}?" if "://" not in base_url else ""
            shown = redacted(base_url.rpartition("@")[2])
            raise ConfigError(f"llm.base_url={shown}: expected http://... or https://...{likely and redacted(likely)}")
        if timeout <= 0:
            raise ConfigError(f"llm.timeout={timeout}: expected a positive number of seconds")
        if answer_format is not None and answer_format not in FORMATS:
            raise ConfigError(f"llm.answer_format={answer_format}: expected null or one of {', '.join(FORMATS)}")
        self.base_url = base_url
        self.timeout = timeout
        self.dialect = Dialect() if answer_format is None else Dialect(answer_format, settled=True)
        self._sent = {name: value for name, value in (parameters or {}).items() if name != "extra_headers"}
        self._headers = {name: str(value) for name, value in (parameters or {}).get("extra_headers", {}).items()}
        self._probed = False
        self._probing = asyncio.Lock()
        self._client: AsyncOpenAI | None = None
        if not (api_key() or base_url or os.environ.get("OPENAI_BASE_URL")):
            raise ConfigError("OPENAI_API_KEY is not set; expected a key, or llm.base_url of a server without one")

    async def complete(self, request: Request) -> Completion:
        if not self._probed:
            await self._probe()
        return await self._asked(request)

    async def aclose(self) -> None:
        if self._client is not None:
            self._dropped.detach()
            await self._client.close()
            self._client = None

    # -- what the server understands ------------------------------------------------------------------------------

    async def _probe(self) -> None:
        """Find the dialect by one small request; say it, and note it for the run card."""
        async with self._probing:
            if self._probed:
                return
            known = (self._where(), self.model, self.dialect.answer_format if self.dialect.settled else "")
            if known not in _dialects:
                kept = await self._try_dialects()
                note = f"{self.dialect}; of a schema the server keeps {kept}"
                _dialects[known] = self.dialect, note
                print(f"{self.model} at {self._where()} understands {note}", file=sys.stderr)
            self.dialect, self.ledger.endpoint = _dialects[known]
            self._probed = True

    async def _try_dialects(self) -> str:
        """Settle `self.dialect`; returns what it keeps of a schema."""
        kept = await self._answer_to_probe()
        if kept == "structure" and self.dialect.answer_format == FORMATS[0] and not self.dialect.settled:
            first = self.dialect
            self.dialect = replace(first, answer_format=FORMATS[1])
            kept_by_enumeration = await self._answer_to_probe()
            if self.dialect.answer_format == FORMATS[1] and kept_by_enumeration == "bounds":
                return kept_by_enumeration
            self.dialect = first
        return kept

    async def _answer_to_probe(self) -> str:
        try:
            return held((await self._asked(PROBE_REQUEST)).text)
        except TransientError as failure:
            if failure.reason != "bad_response":
                raise
            raise LanguageModelError(f"{self.model} at {self._where()}: {failure.detail}{self._likely()}") from None
        except UnansweredError:
            return "nothing (it gave no answer to the probe)"

    # -- one request ----------------------------------------------------------------------------------------------

    async def _asked(self, request: Request) -> Completion:
        """The answer, in whatever dialect the server takes it."""
        if request is PROBE_REQUEST:
            self.ledger.count("probes")
        for _ in range(REFUSALS):
            try:
                return await self._sent_as(request, self.dialect)
            except TransientError as failure:
                if failure.reason != "dialect":
                    raise
                self.ledger.count("probes")
        raise LanguageModelError(f"{self.model} at {self._where()}: refuses every form of request")

    async def _sent_as(self, request: Request, dialect: Dialect) -> Completion:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        body = dialect.body(self.model, request) | self._sent
        try:
            async with asyncio.timeout(self.timeout):
                # the generic call: the typed one spends more time on checking a known body than all else together
                answer = await self._open().post("/chat/completions", cast_to=object, body=body)
        except (TimeoutError, APIConnectionError) as error:
            failure: Exception = (
                TransientError("timeout", f"no full answer within {self.timeout:g} s")
                if isinstance(error, (TimeoutError, APITimeoutError)) and not _is_unreachable(error)
                else TransientError("connection", self._words(str(error.__cause__ or error)))
            )
        except APIStatusError as error:
            response = error.response
            failure = await self._failure(response.status_code, response.text, response.headers, dialect)
        except (APIError, json.JSONDecodeError, UnicodeDecodeError) as error:
            failure = TransientError("bad_response", self._words(str(error)))
        else:
            answer, failed = _opened(answer)
            if failed is None:
                return read_reply(answer, request)
            status, text = failed
            failure = (
                TransientError("bad_response", self._words(text))
                if status == 200
                else await self._failure(status, text, {}, dialect)
            )
        raise failure from None

    async def _failure(self, status: int, text: str, headers: Mapping[str, str], dialect: Dialect) -> Exception:
        """What an error means for the request and for the run."""
        told, code = words_of(text)
        words = self._words(told)
        where, said = f"{self.model} at {self._where()}", f"HTTP {status}: {words}" if words else f"HTTP {status}"
        pause = retry_after(headers)
        if status == 402 or (status == 429 and code == "insufficient_quota"):
            return LanguageModelError(f"{where}: the account has no quota left ({said})")
        if status == 429:
            return TransientError("rate_limit", said, pause)
        if status == 503 and _LOADING.search(words):
            return TransientError("loading", said, LOADING_PAUSE if pause is None else pause)
        if status in (401, 403):
            return LanguageModelError(f"{where}: {said}; expected a valid OPENAI_API_KEY")
        if status == 413 or code == "context_length_exceeded" or _OVERFLOW.search(words):
            return UnansweredError("context_overflow", words)
        if _NOT_JSON.search(f"{code} {words}"):
            return UnansweredError("no_json", words)
        if status < 500 and _DECLINED.search(f"{code} {words}"):
            return UnansweredError("refusal", words)
        simpler = dialect.after(told, status)
        if simpler is not None and status != 404:
            if self.dialect == dialect:
                self.dialect = simpler
            return TransientError("dialect", words, retry_after=0.0)
        if status in (408, 409) or status >= 500:
            return TransientError("server", said, pause)
        if status in (400, 404) and (status == 404 or _NO_MODEL.search(words)):
            return LanguageModelError(f"{where}: {said}{await self._models_there()}")
        return LanguageModelError(f"{where}: {said}")

    async def _models_there(self) -> str:
        """Which models the server has, as the end of a sentence; the likely address where it does not say."""
        from openai import OpenAIError

        try:
            async with asyncio.timeout(min(self.timeout, 10.0)):
                listed: Any = await self._open().get("/models", cast_to=object)
            names = [str(card["id"]) for card in listed["data"]]
        except (OpenAIError, TimeoutError, ValueError, KeyError, TypeError):
            return self._likely()
        return f"; llm.model={self.model} is none of those it has: {self._words(', '.join(names[:20]) or 'none')}"

    def _likely(self) -> str:
        where = self._where().rstrip("/")
        return "" if where.endswith("/v1") else f"; did you mean llm.base_url={where}/v1?"

    # -- the connection -------------------------------------------------------------------------------------------

    def _open(self) -> AsyncOpenAI:
        """The client, made on first use."""
        if self._client is None:
            from openai import AsyncOpenAI, DefaultAioHttpClient

            # Half of what a call takes through httpx, whose pool looks at all connections for each. It knows no SOCKS
            # proxies, and no credentials in addresses.
            address = self.base_url or os.environ.get("OPENAI_BASE_URL", "")
            fast = importlib.util.find_spec("aiohttp") is not None and "@" not in address and not _proxies()
            try:
                self._client = AsyncOpenAI(
                    http_client=DefaultAioHttpClient() if fast else None,
                    api_key=api_key() or "none",
                    base_url=self.base_url,
                    timeout=self.timeout,
                    max_retries=0,
                    default_headers=self._headers,
                )
            except (ImportError, ValueError) as error:  # a SOCKS proxy without the package for it; a proxy of no kind
                raise LanguageModelError(
                    f"{', '.join(_proxies()) or 'the proxy'}: {self._words(str(error))}; expected an http proxy, "
                    "pip install 'httpx[socks]', or NO_PROXY for the server's host"
                ) from None
            self._dropped = when_dropped(self, self._client.close, at_exit=True)
        return self._client

    def _where(self) -> str:
        return _without_credentials(str(self._open().base_url))

    def _words(self, text: str) -> str:
        """One short line of a server's message, without keys."""
        hidden = [value for value in self._headers.values() if len(value) >= 4]
        for value in hidden:
            text = text.replace(value, "[key]")
        return " ".join(redacted(text).split())[:LONGEST_WORDS]


def _proxies() -> list[str]:
    """Names of the variables that name a proxy."""
    return sorted(name for name in os.environ if name.lower() in ("all_proxy", "http_proxy", "https_proxy"))


def _is_unreachable(error: BaseException) -> bool:
    """Whether a timeout is none: openai's aiohttp client calls every lost or refused connection one."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__module__.startswith("aiohttp") and not isinstance(cause, TimeoutError):
            return True
        cause = cause.__cause__
    return False


def _opened(answer: Any) -> tuple[Any, tuple[int, str] | None]:
    """A reply's body, and what is wrong with it: (status, text), 200 where it is no chat completion at all."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)  # JSON under another content type
        except ValueError:
            text = answer.lstrip()
            if text.startswith(("data:", "event:", ":")):
                return answer, (200, "the server streams its answer though it was not asked to")
            if text[:1] == "<":
                return answer, (200, f"a page of HTML came back ('{words_of(text)[0][:80]}'), not a chat completion")
            return answer, (200, f"no JSON came back but '{text[:80]}'")
    fault = answer.get("error") if isinstance(answer, Mapping) else None
    if fault and not answer.get("choices"):
        code = str(fault.get("code", fault.get("status"))) if isinstance(fault, Mapping) else ""
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500
        return answer, (status, json.dumps(answer))
    return answer, None


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
