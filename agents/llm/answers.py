"""From the text of an answer to the scores of a page: strictly first, then with local repairs, never by guessing.

The module knows the form of an answer - ``{"items": {ID: {"interest": 0-100, "rating": 1-5}}, "satisfaction": 1-5}`` -
and no items, users or language models. What an answer does not say is not filled in: a missing item is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simenv.datasets.base import FloatArray
from simenv.language_models.repair import (
    ParseError,
    integer_schema,
    load_repaired,
    load_strict,
    object_schema,
    read_number,
    without_wrapping,
)

INTEREST = (0, 100)
RATING = (1, 5)
SATISFACTION = (1, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageScores:
    """What a user thinks of the items of a page, in the order of the ids asked for."""

    interest: FloatArray  # (k,), 0-100
    rating: FloatArray  # (k,), 1-5
    satisfaction: float  # 1-5
    repaired: bool = False


def page_schema(ids: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a page's answer: every id exactly once, nothing else."""
    item = object_schema({"interest": integer_schema(*INTEREST), "rating": integer_schema(*RATING)})
    return object_schema(
        {"items": object_schema(dict.fromkeys(ids, item)), "satisfaction": integer_schema(*SATISFACTION)}
    )


def parse_page(text: str, ids: Sequence[str]) -> PageScores:
    """The scores in an answer.

    Reasoning in ``<think>`` tags and code fences around the answer are no part of it. The first rung takes JSON that
    keeps the schema; the second mends what can be mended without inventing anything: prose around the object,
    trailing commas, single quotes, bare keys, missing closing brackets, a list of items instead of a mapping, numbers
    as strings, interest as fractions of one, ids in lower case, further ids beside the ones asked for.

    Raises:
        ParseError: where a score is missing, given twice, no number or out of range.
    """
    text = without_wrapping(text)
    try:
        return _page(load_strict(text), ids, repaired=False)
    except (ParseError, ValueError):
        return _page(_mended(load_repaired(text)), ids, repaired=True)


def _mended(answer: Any) -> Any:
    """Other shapes that say the same, as the mapping asked for."""
    if not isinstance(answer, dict):
        return answer
    items = answer.get("items")
    if isinstance(items, list):
        named = [(str(item.get("id", "")), item) for item in items if isinstance(item, dict)]
        names = [name for name, _ in named]
        if len(set(names)) < len(names):
            raise ParseError("duplicate", f"an id is given twice among {names[:8]}")
        items = dict(named)
    if isinstance(items, dict):
        upper = {str(name).strip().upper(): item for name, item in items.items()}
        if len(upper) < len(items):
            raise ParseError("duplicate", f"an id is given twice among {list(items)[:8]}")
        items = upper
    return {**answer, "items": items}


def _page(answer: Any, ids: Sequence[str], *, repaired: bool) -> PageScores:
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, dict):
        raise ParseError("no_items", "the answer has no object 'items'")
    missing = [name for name in ids if name not in items]
    if missing:
        raise ParseError("missing_items", f"no scores for {', '.join(missing[:8])}; ids given: {list(items)[:8]}")
    if not repaired and len(items) > len(ids):
        raise ParseError("wrong_ids", f"{len(items)} items in the answer; expected {len(ids)}")
    for name in ids:
        if not isinstance(items[name], dict):
            raise ParseError("no_scores", f"item {name} is no object")
    interests = [items[name].get("interest") for name in ids]
    as_shares = all(isinstance(x, int | float) and 0 <= x <= 1 for x in interests) and any(x % 1 for x in interests)
    if len(ids) > 1 and as_shares:
        if not repaired:
            raise ParseError("out_of_range", "interest on 0-1; expected 0-100")
        interests = [100 * x for x in interests]
    return PageScores(
        interest=_scores(interests, INTEREST, "interest", repaired),
        rating=_scores([items[name].get("rating") for name in ids], RATING, "rating", repaired),
        satisfaction=float(_scores([answer.get("satisfaction")], SATISFACTION, "satisfaction", repaired)[0]),
        repaired=repaired,
    )


def _scores(values: list[Any], bounds: tuple[int, int], name: str, repaired: bool) -> FloatArray:
    return np.array([read_number(value, bounds, name, repaired=repaired) for value in values], np.float32)
