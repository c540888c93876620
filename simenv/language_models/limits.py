"""Budgeted and Limited: decorators that hold a language model to a budget and to the pace its server allows.

They do not know what is asked or answered. A limit delays or raises; it never makes an answer up.
"""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np

from simenv.errors import ConfigError
from simenv.language_models.accounting import Budget, SharedFile, Spending
from simenv.language_models.base import (
    Completion,
    Decorator,
    LanguageModel,
    LanguageModelError,
    Request,
    TransientError,
    UnansweredError,
)
from simenv.randomness import hash64

LONGEST_BACKOFF = 60.0
SAME_WORDS = 3  # times that a server may fail in the same words before it is believed


class Budgeted(Decorator):
    """Counts every call that reaches the backend and raises `BudgetExhausted` before one that would not fit.

    Before a call its prompt (counted or estimated) and its longest answer are reserved, so that calls in flight cannot
    overshoot together; after it the reservation becomes what the server reported. A call that fits only once others
    of this process have settled waits for them. Where neither tokens nor dollars are limited, nothing is counted
    beforehand: a small local model spends more on that than on everything else but its answer.

    Args:
        inner: what is paid for.
        budget: the limits.
        spending: what counts against them; this model's own by default.
    """

    def __init__(self, inner: LanguageModel, budget: Budget, spending: Spending | None = None) -> None:
        super().__init__(inner)
        self.budget = budget
        self.spending = spending or Spending()
        _, tokens, dollars = budget.limits
        self._foresees = min(tokens, dollars) < math.inf or self.spending.path is not None
        self._in_flight = 0
        self._settled = asyncio.Condition()

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return self.budget.cost(prompt_tokens, completion_tokens)

    async def complete(self, request: Request) -> Completion:
        reserved = self._most(request) if self._foresees else (0, 0.0)
        await self._reserve((1.0, *reserved))
        self.ledger.count("calls")
        tokens, dollars = 0, 0.0
        try:
            completion = await self.inner.complete(request)
            tokens = completion.prompt_tokens + completion.completion_tokens
            dollars = self.cost(completion.prompt_tokens, completion.completion_tokens)
            self.ledger.count("prompt_tokens", completion.prompt_tokens)
            self.ledger.count("completion_tokens", completion.completion_tokens)
            self.ledger.count("dollars", dollars)
            return completion
        finally:
            self.spending.settle((0.0, tokens - reserved[0], dollars - reserved[1]))
            self._in_flight -= 1
            async with self._settled:
                self._settled.notify_all()

    async def aclose(self) -> None:
        self.spending.close()
        await super().aclose()

    def _most(self, request: Request) -> tuple[int, float]:
        """Tokens and dollars that a call can take."""
        prompt = self.count_tokens(request)[0]
        return prompt + request.max_tokens, self.cost(prompt, request.max_tokens)

    async def _reserve(self, need: tuple[float, float, float]) -> None:
        async with self._settled:
            while not self.spending.reserve(need, self.budget.limits):
                if self._in_flight == 0:
                    raise self.budget.exhausted(self.spending.total())
                await self._settled.wait()
            self._in_flight += 1


class Pace(SharedFile):
    """When the next call may start, in a SQLite file that any number of processes share.

    Args:
        path: made, with its folder, if absent.
    """

    name = "llm.pace_file"
    what = "turns"
    setup = (
        "CREATE TABLE IF NOT EXISTS pace (id INTEGER PRIMARY KEY, next_start REAL NOT NULL)",
        "INSERT OR IGNORE INTO pace VALUES (1, 0)",
    )

    def take(self, spacing: float) -> float:
        """Take the next turn, which moves the one after it by `spacing`; seconds to wait until it comes."""
        now = time.time()
        with self._file() as connection:
            moved = "UPDATE pace SET next_start = max(next_start, ?) + ? RETURNING next_start"
            (after,) = connection.execute(moved, (now, spacing)).fetchone()
        return max(0.0, float(after) - spacing - now)

    def hold_back(self, seconds: float) -> None:
        """No turn comes before that time."""
        with self._file() as connection:
            connection.execute("UPDATE pace SET next_start = max(next_start, ?)", (time.time() + seconds,))


class Limited(Decorator):
    """At most `concurrency` calls in flight, at a bounded rate, with bounded retries.

    A `Retry-After` of the server holds back every call, not only the one that was told. Without one the wait before
    retry n is `backoff` * 2^n, times a factor in [0.5, 1) that is a hash of the request: spread out, yet the same in
    every run. Where retries run out, or a server fails in the same words for the third time, a timeout or a failing
    request is left unanswered; a server that cannot be reached or keeps refusing by rate stops the run. One that loads
    its model is waited for, up to `max_wait`.

    Args:
        inner: the model to hold back.
        concurrency: calls in flight at once.
        requests_per_minute, tokens_per_minute: the server's quota; None = unlimited. Calls are spaced evenly.
        max_retries: further tries after the first.
        backoff: seconds.
        max_wait: longest `Retry-After` that is waited for, seconds.
        pace: turns that other processes take too, for a quota that all of them share; None = this one's alone.
    """

    def __init__(
        self,
        inner: LanguageModel,
        *,
        concurrency: int = 64,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_retries: int = 5,
        backoff: float = 0.5,
        max_wait: float = 300.0,
        pace: Pace | None = None,
    ) -> None:
        super().__init__(inner)
        if concurrency < 1 or max_retries < 0 or backoff < 0:
            raise ConfigError(
                f"llm.concurrency={concurrency}, llm.max_retries={max_retries}, llm.backoff={backoff}: "
                "expected at least 1, 0 and 0"
            )
        for name, rate in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if rate is not None and rate <= 0:
                raise ConfigError(f"llm.{name}={rate}: expected a positive number, or null for no limit")
        self.concurrency = concurrency
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.max_retries = max_retries
        self.backoff = backoff
        self.max_wait = max_wait
        self._pace = pace if requests_per_minute or tokens_per_minute else None
        self._slots = asyncio.Semaphore(concurrency)
        self._next_start = 0.0
        self._not_before = 0.0

    async def complete(self, request: Request) -> Completion:
        attempt, loading, words = 0, 0.0, [""]
        while True:
            async with self._slots:
                await self._take_turn(request)
                try:
                    return await self.inner.complete(request)
                except TransientError as error:
                    failure = error
                self._hold_back(failure)
            if failure.reason == "loading" and loading < self.max_wait:
                loading += failure.retry_after or 1.0  # a turn is taken only after that
                continue
            words.append(failure.detail)
            believed = failure.reason in ("server", "bad_response") and len(set(words[-SAME_WORDS:])) == 1
            if attempt == self.max_retries or (believed and len(words) > SAME_WORDS):
                break
            self.ledger.count("retries")
            if failure.retry_after is None:
                await asyncio.sleep(self._wait_before(request, attempt))
            attempt += 1
        if failure.reason in ("connection", "rate_limit", "loading"):
            raise LanguageModelError(
                f"{self.model}: no answer after {attempt + 1} tries ({failure}); answers so far are kept"
            )
        raise UnansweredError(failure.reason, f"after {attempt + 1} tries: {failure.detail}")

    async def aclose(self) -> None:
        if self._pace is not None:
            self._pace.close()
        await super().aclose()

    async def _take_turn(self, request: Request) -> None:
        """Wait until the quota, and the server's last Retry-After, allow another call."""
        now = asyncio.get_running_loop().time()
        spacing = 60.0 / self.requests_per_minute if self.requests_per_minute else 0.0
        if self.tokens_per_minute:
            tokens = request.estimated_tokens() + request.max_tokens
            spacing = max(spacing, 60.0 * tokens / self.tokens_per_minute)
        if self._pace is not None:
            await asyncio.sleep(self._pace.take(spacing))
            return
        start = max(now, self._next_start)
        self._next_start = start + spacing
        if start > now:
            await asyncio.sleep(start - now)
        while (wait := self._not_before - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait)

    def _hold_back(self, failure: TransientError) -> None:
        if failure.retry_after is None:
            return
        if failure.retry_after > self.max_wait:
            raise LanguageModelError(
                f"{self.model}: the server asks to wait {failure.retry_after:g} s; "
                f"llm.max_wait is {self.max_wait:g} s; answers so far are kept"
            )
        if self._pace is not None:
            self._pace.hold_back(failure.retry_after)
        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + failure.retry_after)

    def _wait_before(self, request: Request, attempt: int) -> float:
        digest = int(request.key(self.model, self.parameters)[:15], 16)
        share = float(hash64(digest, attempt, 0, 0, 0, 0) >> np.uint64(11)) * 2.0**-53
        return float(min(LONGEST_BACKOFF, self.backoff * 2.0**attempt) * (0.5 + 0.5 * share))
