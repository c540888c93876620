"""A server on loopback that speaks the OpenAI chat protocol, well or badly: for tests and benchmarks, yours too.

By default it scores each item of a page by a hash of its title, so that its opinion depends on neither ids nor order.
A `script` decides, per request, on another reply; a `dialect` refuses what a kind of server refuses, in its words
(`DIALECTS`), before that. The client's probe it answers by itself. It knows of prompts only how they list a page. Also
a program:

    python -m simenv.language_models.fake_server --latency 0.2   # prints its base URL, serves until interrupted
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simenv.language_models.wire.dialects import PROBE

_PAGE = re.compile(r"^# The page$", re.M)
_ITEM = re.compile(r'^([A-Z]{1,2}): ("(?:[^"\\]|\\.)*")', re.M)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server does with one request."""

    status: int = 200
    content: str | None = None  # of the message; None = scores of the page asked about
    message: Mapping[str, Any] | None = None  # the whole message, e.g. with a refusal
    body: str | None = None  # the whole HTTP body
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = "stop"
    choices: bool = True
    usage: bool = True
    delay: float = 0.0  # seconds before the reply begins
    drop: bool = False  # close the connection without a word
    cut: int | None = None  # close it after this many bytes of the body
    trickle: float = 0.0  # seconds between single bytes


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    time: float  # seconds of a monotonic clock
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The texts of all messages, one below the other."""
        return "\n".join(message["content"] for message in self.body["messages"])


Script = Callable[[int, Seen], Reply | None]
Refusal = Callable[[dict[str, Any]], Reply | None]  # from a request's body to what a server says of it


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in the protocol's form."""
    written = json.dumps({"error": {"message": message, "type": "error", "code": code}})
    return Reply(status=status, body=written, headers={k.replace("_", "-"): v for k, v in headers.items()})


def _format(body: dict[str, Any]) -> str:
    return str((body.get("response_format") or {"type": "text"})["type"])


def _raw(status: int, body: object) -> Reply:
    return Reply(status=status, body=json.dumps(body))


def _llama_cpp_python(body: dict[str, Any]) -> Reply | None:
    """llama-cpp-python 0.3: a validation error of its own types, as a 500; objects are held, bounds are not."""
    if _format(body) == "json_schema":
        told = "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' "
        told += "or 'json_object'\", 'input': 'json_schema'}]"
        return error(500, told, "internal_server_error")
    return None


def _llama_cpp(body: dict[str, Any]) -> Reply | None:
    """llama.cpp before it knew json_schema."""
    if _format(body) == "json_schema":
        told = 'response_format type must be one of "text" or "json_object", but got: json_schema'
        return _raw(500, {"error": {"code": 500, "message": told, "type": "server_error"}})
    return None


def _no_schema_key(body: dict[str, Any]) -> Reply | None:
    """A hosted service with JSON mode alone."""
    if _format(body) == "json_schema":
        return _raw(400, {"error": {"message": "This response_format type is unavailable now"}})
    if "schema" in body.get("response_format", {}):
        return _raw(400, {"error": {"message": "Unknown parameter: 'response_format.schema'."}})
    return None


def _text_only(body: dict[str, Any]) -> Reply | None:
    if "response_format" in body:
        return _raw(422, {"detail": [{"loc": ["body", "response_format"], "msg": "extra fields not permitted"}]})
    return None


def _reasoning(body: dict[str, Any]) -> Reply | None:
    """A hosted reasoning model: another name of the limit, no temperature, no bounds in schemas."""
    if "max_tokens" in body:
        return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    if "temperature" in body:
        return error(400, "Unsupported value: 'temperature' does not support 0.0 with this model.")
    if "minimum" in json.dumps(body):
        return error(400, "Invalid schema for response_format 'answer': 'minimum' is not permitted.")
    return None


def _gemma(body: dict[str, Any]) -> Reply | None:
    if any(message["role"] == "system" for message in body["messages"]):
        return _raw(500, {"error": "Jinja Exception: System role not supported"})
    return None


DIALECTS: dict[str, Refusal] = {
    "llama-cpp-python": _llama_cpp_python,
    "llama.cpp": _llama_cpp,
    "json mode": _no_schema_key,
    "text": _text_only,
    "reasoning": _reasoning,
    "gemma": _gemma,
}


def items_of(prompt: str) -> dict[str, str]:
    """Titles by id of the page at the end of a prompt."""
    return {name: json.loads(title) for name, title in _ITEM.findall(_PAGE.split(prompt)[-1])}


def scores(prompt: str) -> dict[str, Any]:
    """The default answer to a page: a hash of each title, 0-100 and 1-5."""
    hashes = {name: zlib.crc32(title.encode()) for name, title in items_of(prompt).items()}
    items = {name: {"interest": value % 101, "rating": 1 + value % 5} for name, value in hashes.items()}
    return {"items": items, "satisfaction": 1 + sum(hashes.values()) % 5}


class LLMServer:
    """Serves on a free port from a background thread, as a context manager.

    Args:
        script: (number of the request, the request) -> a Reply, or None for the default one.
        latency: seconds before each reply.
        dialect: what the server refuses; one of `DIALECTS`, or None.
        probe: what it answers to the client's probe; None = it keeps the bounds where there is a schema.
        models: those it lists.

    Attributes:
        seen: requests in the order of arrival, probes and what the dialect refused left out.
        refused: how many requests the dialect refused.
        peak: most requests in flight at once.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        latency: float = 0.0,
        port: int = 0,
        dialect: Refusal | None = None,
        probe: Reply | None = None,
        models: tuple[str, ...] = ("test",),
    ) -> None:
        self.script = script
        self.dialect, self.probe, self.models = dialect, probe, models
        self.refused = 0
        self.latency = latency
        self.port = port
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def base_url(self) -> str:
        """What `llm.base_url` has to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> LLMServer:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) and await self._exchange(head, reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return  # the client has gone, or the server stops
        finally:
            writer.close()

    async def _exchange(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection stays open."""
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
        sent = await reader.readexactly(int(headers.get("content-length", "0")))
        if not start.split()[1].startswith("/v1/"):
            return await self._reply(_raw(404, {"detail": "Not Found"}), None, writer)
        if start.startswith("GET"):
            return await self._reply(_raw(200, {"data": [{"id": name} for name in self.models]}), None, writer)
        body = json.loads(sent)
        refusal = self.dialect and self.dialect(body)
        if refusal:
            self.refused += 1
            return await self._reply(refusal, None, writer)
        if body["messages"][-1]["content"].endswith(PROBE):
            kept = '{"n": 5}' if "enum" in json.dumps(body) or "minimum" in json.dumps(body) else '{"n": 9}'
            return await self._reply(
                self.probe or Reply(content=kept), Seen(time.monotonic(), "", headers, body), writer
            )
        seen = Seen(time.monotonic(), start.split()[1], headers, body)
        number = len(self.seen)
        self.seen.append(seen)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            reply = (self.script and self.script(number, seen)) or Reply()
            if self.latency or reply.delay:
                await asyncio.sleep(self.latency + reply.delay)
            return await self._reply(reply, seen, writer)
        finally:
            self.in_flight -= 1

    async def _reply(self, reply: Reply, seen: Seen | None, writer: asyncio.StreamWriter) -> bool:
        if reply.drop:
            return False
        written = json.dumps(_completion(reply, seen)) if reply.body is None and seen is not None else reply.body or ""
        body = written.encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **reply.headers}
        head = f"HTTP/1.1 {reply.status} x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(head.encode("latin-1") + b"\r\n")
        if reply.cut is not None:
            writer.write(body[: reply.cut])
            await writer.drain()
            return False
        if reply.trickle:
            for byte in body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(reply.trickle)
        else:
            writer.write(body)
            await writer.drain()
        return True


def _completion(reply: Reply, seen: Seen) -> dict[str, Any]:
    if reply.message is not None:
        message = dict(reply.message)
    else:
        content = reply.content
        if content is None:
            asked = seen.body["messages"]
            page = next((m["content"] for m in asked if "# The page" in m["content"]), None)
            content = "It suits me." if page is None else json.dumps(scores(page))
        message = {"role": "assistant", "content": content}
    written = {"role": "assistant", "content": None, **message}
    answer: dict[str, Any] = {
        "id": "answer",
        "object": "chat.completion",
        "created": 0,
        "model": seen.body.get("model", ""),
        "choices": [{"index": 0, "message": written, "finish_reason": reply.finish}] if reply.choices else [],
    }
    if reply.usage:
        prompt, completion = len(seen.prompt) // 4, len(written["content"] or "") // 4
        answer["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="an OpenAI-compatible server that scores pages by a hash of the titles"
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--port", type=int, default=0, help="0 = a free one")
    options = parser.parse_args()
    with LLMServer(latency=options.latency, port=options.port) as server:
        print(server.base_url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")
