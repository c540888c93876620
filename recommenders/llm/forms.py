"""The forms of a question about candidates, and how an answer becomes scores.

A form is an async function of an `Asked`: it puts questions and returns a score for each candidate, higher is better,
or None where no usable answer came. It does not know users, bases or slates.

Sources: list, point and pair of Liu et al. 2023 ("Is ChatGPT a good recommender?") and Dai et al. 2023; yes or no of
Bao et al. 2023 ("TALLRec"); one choice among indexed candidates of Yue et al. 2023 ("LlamaRec").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simenv.language_models import Request
from simenv.language_models.quoting import opaque_ids
from simenv.language_models.repair import (
    ParseError,
    integer_schema,
    load_repaired,
    load_strict,
    object_schema,
    read_number,
    without_wrapping,
)
from simenv.numeric import DoubleArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One user's question: who it is about, the candidates as they are shown, and how to ask.

    Attributes:
        ask: puts a request and reads its answer; None = no usable answer.
        count: adds to a counter of the accounting.
        request: makes the request from a user message, a schema and a label.
        render: fills a template that may use the person.
        items: texts of the candidates, in the order shown.
    """

    ask: Callable[[Request, Callable[[str], Any]], Awaitable[Any]]
    count: Callable[..., None]
    request: Callable[[str, Mapping[str, Any] | None, str], Request]
    render: Callable[..., str]
    items: Sequence[str]


Form = Callable[[Asked], Awaitable[DoubleArray | None]]


async def by_list(asked: Asked) -> DoubleArray | None:
    """All candidates in one question; the answer gives each its place."""
    return await _one_question(asked, "places", low=1, high=len(asked.items), sign=-1.0)


async def by_score(asked: Asked) -> DoubleArray | None:
    """All candidates in one question; the answer scores each from 0 to 100."""
    return await _one_question(asked, "scores", low=0, high=100, sign=1.0)


async def by_stars(asked: Asked) -> DoubleArray | None:
    """A question for each candidate: 1 to 5 stars."""
    return await _each_alone(asked, "stars", 1, 5)


async def by_yes(asked: Asked) -> DoubleArray | None:
    """A question for each candidate, yes or no; in the logits readout the score is the chance of a yes."""
    return await _each_alone(asked, "yes", 0, 1)


async def by_pair(asked: Asked) -> DoubleArray | None:
    """Merge sort: about n log2 n times, which of two is better, asked both ways round (Qin et al. 2023, "Large language
    models are effective text rankers with pairwise ranking prompting"), so that who only likes a place decides nothing.
    Answers that contradict each other, and those that are missing, keep the order shown.
    """
    answered = 0

    async def second_is_better(a: int, b: int) -> float:
        """0 to 1; a half without an answer."""
        nonlocal answered
        text = asked.render("pair", first=asked.items[a], second=asked.items[b])
        better = await asked.ask(
            asked.request(text, object_schema({"better": integer_schema(1, 2)}), "pair"),
            lambda said: load_number(said, "better", 1, 2),
        )
        answered += better is not None
        return 0.5 if better is None else better - 1

    async def first_is_better(a: int, b: int) -> bool:
        one, other = await asyncio.gather(second_is_better(a, b), second_is_better(b, a))
        return one <= other

    async def merge(left: list[int], right: list[int]) -> list[int]:
        merged: list[int] = []
        while left and right:
            merged.append((left if await first_is_better(left[0], right[0]) else right).pop(0))
        return merged + left + right

    runs = [[place] for place in range(len(asked.items))]
    while len(runs) > 1:
        pairs = [merge(runs[i], runs[i + 1]) for i in range(0, len(runs) - 1, 2)]
        odd = runs[-1:] if len(runs) % 2 else []
        runs = [*await asyncio.gather(*pairs), *odd]
    if not answered and len(asked.items) > 1:
        return None
    scores = np.empty(len(asked.items))
    scores[runs[0]] = -np.arange(len(asked.items), dtype=np.float64)
    return scores


async def by_pick(asked: Asked) -> DoubleArray | None:
    """One candidate is taken, by its letter; the others are equal.

    In the logits readout the scores are the chances of all letters, from one forward pass: LlamaRec's verbaliser.
    """
    ids = opaque_ids(len(asked.items))

    def parse(said: str) -> DoubleArray:
        given = load_object(said).get("pick")
        if isinstance(given, dict):
            return np.array([read_number(given.get(each, 0), (0, 1), "pick", repaired=True) for each in ids])
        named = str(given).strip().strip('"').upper()
        if named not in ids:
            asked.count("invented_ids")
            raise ParseError("no_items", f"'{named[:20]}' is none of the candidates")
        return np.array([float(each == named) for each in ids])

    text = asked.render("list", items=list(zip(ids, asked.items, strict=True)))
    return await asked.ask(asked.request(text, object_schema({"pick": {"type": "string", "enum": ids}}), "pick"), parse)


async def as_shown(asked: Asked) -> DoubleArray | None:
    """No question: the order in which the others would show the candidates, which is drawn."""
    return -np.arange(len(asked.items), dtype=np.float64)


FORMS: Mapping[str, Form] = {
    "list": by_list,
    "score": by_score,
    "point": by_stars,
    "yes-no": by_yes,
    "pair": by_pair,
    "pick": by_pick,
    "shown": as_shown,
}


async def _one_question(asked: Asked, name: str, *, low: int, high: int, sign: float) -> DoubleArray | None:
    ids = opaque_ids(len(asked.items))

    def parse(said: str) -> DoubleArray:
        answer = load_object(said)
        given = answer.get(name, answer)
        if isinstance(given, list):  # an order of ids instead of places
            given = {str(each).strip(): place + 1 for place, each in enumerate(given)}
        if not isinstance(given, dict):
            raise ParseError("no_items", f"no object '{name}'")
        told = {str(each).strip().strip('"').upper(): value for each, value in given.items()}
        asked.count("invented_ids", sum(each not in ids for each in told))
        missing = [each for each in ids if each not in told]
        if missing:
            raise ParseError("missing_items", f"nothing said of {', '.join(missing[:8])}")
        values = np.array([read_number(told[each], (low, high), name, repaired=True) for each in ids])
        if name == "places" and len(np.unique(values)) < len(values):
            asked.count("tied_places")
        return sign * values

    text = asked.render("list", items=list(zip(ids, asked.items, strict=True)))
    schema = object_schema({name: object_schema(dict.fromkeys(ids, integer_schema(low, high)))})
    return await asked.ask(asked.request(text, schema, name), parse)


async def _each_alone(asked: Asked, name: str, low: int, high: int) -> DoubleArray | None:
    schema = one_number(name, low, high)

    async def one(item: str) -> float | None:
        return await asked.ask(
            asked.request(asked.render("point", item=item), schema, name),
            lambda said: load_number(said, name, low, high),
        )

    answers = await asyncio.gather(*(one(item) for item in asked.items))
    known = [answer for answer in answers if answer is not None]
    if not known:
        return None
    middle = float(np.mean(known))
    return np.array([middle if answer is None else answer for answer in answers])


def one_number(name: str, low: int, high: int) -> Mapping[str, Any]:
    """Schema of an answer of one integer."""
    return object_schema({name: integer_schema(low, high)})


def load_number(said: str, name: str, low: int, high: int) -> float:
    """The number under a name in an answer; raises ParseError."""
    answer = load_object(said)
    if name not in answer:
        raise ParseError("no_number", f"no '{name}' in the answer")
    return read_number(answer[name], (low, high), name, repaired=True)


def load_object(said: str) -> dict[str, Any]:
    """The object in an answer: as it stands, else with repairs; raises ParseError."""
    text = without_wrapping(said)
    try:
        answer = load_strict(text)
    except ValueError:
        answer = load_repaired(text)
    if not isinstance(answer, dict):
        raise ParseError("no_json", f"no object in {text[:60]!r}")
    return answer
