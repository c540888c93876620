"""The ladder of answers: asked, mended, asked once more, given up - every rung counted - for many requests at once.

What an answer means is the caller's affair (`read`), and so is what happens where none can be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from simenv.language_models.base import LanguageModel, LanguageModelError, Request, UnansweredError
from simenv.language_models.repair import ParseError

T = TypeVar("T")
ROOM = 4  # times the longest answer, for the second attempt of one that was cut off
FEWEST_PAGES = 20  # pages before a share of fallbacks means anything


async def climb(
    model: LanguageModel, request: Request, read: Callable[[str], T], again: Callable[[Request, str, str], Request]
) -> T | None:
    """What an answer says, by at most two attempts; None = no usable answer.

    Args:
        model: what is asked; its ledger counts ``second_attempts`` and ``why:<reason>``.
        request: the first attempt.
        read: from the text of an answer to what it says; raises `ParseError`.
        again: (first request, text of the answer or "", one word for what is wrong) -> the second attempt, with
            ``attempt=1``. One that was ``cut_off`` gets room for a longer answer by itself.

    Raises:
        BudgetExhausted: the next call does not fit the budget.
        LanguageModelError: the model cannot be used.
    """
    for attempt in (0, 1):
        text, finish = "", ""
        try:
            answer = await model.complete(request)
            text, finish = answer.text, answer.finish
            return read(text)
        except (UnansweredError, ParseError) as error:
            reason = "cut_off" if finish == "length" else error.reason
            model.ledger.count(f"why:{reason}")
            if isinstance(error, UnansweredError) and error.detail:
                model.ledger.words = error.detail
            if attempt == 0:
                model.ledger.count("second_attempts")
                request = again(request, text, reason)
                if reason == "cut_off":
                    request = replace(request, max_tokens=ROOM * request.max_tokens)
    return None


async def side_by_side(model: LanguageModel, work: Callable[[int], Awaitable[None]], rows: Iterable[int]) -> None:
    """Run `work(row)` for every row, as many at a time as the model can use.

    After a failure nothing new starts; what is in flight is paid for, and let finish so that it reaches the cache.
    """
    rows = list(rows)
    waiting = iter(rows)
    failures: list[Exception] = []

    async def worker() -> None:
        for row in waiting:
            if failures:
                return
            try:
                await work(row)
            except Exception as error:
                failures.append(error)

    await asyncio.gather(*(worker() for _ in range(min(2 * model.concurrency, len(rows)))))
    if failures:
        raise failures[0]


def count_fallbacks(model: LanguageModel, pages: int, fallbacks: int, *, most: float, option: str) -> None:
    """Count pages, and those without a usable answer, in the model's ledger.

    Args:
        model: what was asked.
        pages: asked about just now.
        fallbacks: of these, without a usable answer.
        most: largest share of fallbacks.
        option: the configuration key of `most`, for the error.

    Raises:
        LanguageModelError: more than that share of all pages so far fell back.
    """
    ledger = model.ledger
    ledger.count("pages", pages)
    ledger.count("fallbacks", fallbacks)
    total, failed = ledger.total("pages"), ledger.total("fallbacks")
    if failed > most * max(total, FEWEST_PAGES):
        totals = ledger.as_dict()["total"]
        reasons = sorted((-count, name[4:]) for name, count in totals.items() if name.startswith("why:"))
        why = ", ".join(f"{name} {-count}" for count, name in reasons)
        said = f"; the last complaint: {ledger.words}" if ledger.words else ""
        raise LanguageModelError(
            f"{model.model}: {failed:g} of {total:g} pages had no usable answer ({why}); "
            f"{option}={most:g} allows no more{said}"
        )
