"""Speed and cost of LLM users: calls per second against a server with latency, pages per second from the cache, tokens.

The server (simenv.language_models.fake_server) is another process on loopback, so the figures are those of
the client side. The ideal is concurrency / latency: 64 / 0.2 s = 320 calls/s.

    python benchmarks/llm.py [--pages 3840] [--latency 0.2] [--concurrency 64] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agents.llm.user import LLMUser
from simenv.datasets import synthetic
from simenv.language_models import openai, replay, run
from simenv.randomness import Key, Purpose, uniforms

KEY = Key(0)


@contextlib.contextmanager
def server(latency: float) -> Iterator[str]:
    """The test server in a process of its own; its base URL."""
    command = [sys.executable, "-m", "simenv.language_models.fake_server", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@dataclass(frozen=True)
class Rate:
    """How many per second of wall time, and what each takes of this process's CPU."""

    per_second: float
    cpu_ms: float

    def __str__(self) -> str:
        return f"{self.per_second:7.1f}/s, {self.cpu_ms:.2f} ms CPU each (at most {1000 / self.cpu_ms:.0f}/s a core)"

    def against(self, ideal: float) -> str:
        return f"{self}, {self.per_second / ideal:.1%} of the ideal {ideal:.0f}/s"


class Clock:
    """Starts when made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def rate(self, n: int) -> Rate:
        return Rate(n / (time.perf_counter() - self.wall), 1000 * (time.process_time() - self.cpu) / n)


async def bare(url: str, bodies: list[dict[str, object]], concurrency: int) -> Rate:
    """The rate of the openai client alone."""
    from openai import AsyncOpenAI

    slots = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:

        async def one(body: dict[str, object]) -> None:
            async with slots:
                await client.chat.completions.create(**body)  # type: ignore[call-overload]

        await asyncio.gather(*(one(body) for body in bodies[:concurrency]))
        clock = Clock()
        await asyncio.gather(*(one(body) for body in bodies))
        return clock.rate(len(bodies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=3840)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="profile the event loop's thread on the live pages")
    options = parser.parse_args()

    n, c = options.pages, options.concurrency
    world = synthetic(n_users=n + c, n_items=1000, seed=0)
    users = np.arange(n + c)
    luck = uniforms(KEY, Purpose.RANDOM_SLATE, users[:, None], np.arange(1000)[None, :])
    slates = np.argsort(luck, axis=1)[:, :10].astype(np.int32)

    with server(options.latency) as url, tempfile.TemporaryDirectory() as folder:
        ideal = c / options.latency
        cache = Path(folder) / "cache.db"
        model = LLMUser(openai("bench", url, cache=cache, concurrency=c))
        model.bind(world, world.tastes, seed=0)
        model.score(users[n:], slates[n:], KEY)  # open the connections

        bodies = []
        for user in range(n):
            request = model._scorer.request(user, slates[user], KEY)
            messages = [{"role": message.role, "content": message.content} for message in request.messages]
            bodies.append({"model": "bench", "messages": messages, "max_tokens": 300})
        print(f"bare client        {run(bare(url, bodies, c)).against(ideal)}")

        profiler = None
        if options.profile:
            import cProfile

            profiler = cProfile.Profile()
            run(_call(profiler.enable))
        clock = Clock()
        model.score(users[:n], slates[:n], KEY)
        rate = clock.rate(n)
        if profiler is not None:
            import pstats

            run(_call(profiler.disable))
            pstats.Stats(profiler).sort_stats("cumulative").print_stats(40)
        print(f"LLM users, live    {rate.against(ideal)}")

        again = LLMUser(replay("bench", cache))
        again.bind(world, world.tastes, seed=0)
        again.score(users[n:], slates[n:], KEY)
        clock = Clock()
        again.score(users[:n], slates[:n], KEY)
        print(f"LLM users, cached  {clock.rate(n)}")

        total = model.accounting["total"]
        pages = total["pages"]
        estimate = model.dry_run(users[:64], slates[:64], KEY, pages=1)
        print(
            f"tokens per page of 10 at 4 characters a token: prompt {total['prompt_tokens'] / pages:.0f}, "
            f"completion {total['completion_tokens'] / pages:.0f}; {estimate.common_prefix:.0%} of the first prompt "
            "are the same for everyone"
        )


async def _call(function: object) -> None:
    function()  # type: ignore[operator]


if __name__ == "__main__":
    main()
