"""A server on loopback that speaks the OpenAI chat protocol, well or badly: for tests and benchmarks, yours too.

By default it scores each item of a page by a hash of its title, so that its opinion depends on neither ids nor order.
A `script` decides, per request, on another reply. It knows of prompts only how they list a page. Also a program:

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


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in the protocol's form."""
    written = json.dumps({"error": {"message": message, "type": "error", "code": code}})
    return Reply(status=status, body=written, headers={k.replace("_", "-"): v for k, v in headers.items()})


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

    Attributes:
        seen: requests in the order of arrival.
        peak: most requests in flight at once.
    """

    def __init__(self, script: Script | None = None, *, latency: float = 0.0, port: int = 0) -> None:
        self.script = script
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
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
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

    async def _reply(self, reply: Reply, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        if reply.drop:
            return False
        body = (reply.body if reply.body is not None else json.dumps(_completion(reply, seen))).encode()
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
