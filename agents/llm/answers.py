"""From the text of an answer to the scores of a page: strictly first, then with local repairs, never by guessing.

The module knows the form of an answer - ``{"items": {ID: {"interest": 0-100, "rating": 1-5}}, "satisfaction": 1-5}`` -
and no items, users or language models. What an answer does not say is not filled in: a missing item is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np

from simenv.datasets.base import FloatArray
from simenv.errors import ConfigError

INTEREST = (0, 100)
RATING = (1, 5)
SATISFACTION = (1, 5)
_SCORE = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:%|/\s*\d+)?\s*")


class ParseError(ValueError):
    """An answer does not say what was asked; `reason` is one word for the accounting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PageScores:
    """What a user thinks of the items of a page, in the order of the ids asked for."""

    interest: FloatArray  # (k,), 0-100
    rating: FloatArray  # (k,), 1-5
    satisfaction: float  # 1-5
    repaired: bool = False


def opaque_ids(k: int) -> tuple[str, ...]:
    """Ids that say nothing about the items: A, B, ... for up to 26, AA, AB, ... for up to 676."""
    if not 0 <= k <= 676:
        raise ConfigError(f"slate_size={k}: a language model is shown at most 676 items a page")
    if k <= 26:
        return tuple(ascii_uppercase[:k])
    return tuple(first + second for first in ascii_uppercase for second in ascii_uppercase)[:k]


def page_schema(ids: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a page's answer: every id exactly once, nothing else."""
    item = _object({"interest": _integer(*INTEREST), "rating": _integer(*RATING)})
    return _object({"items": _object(dict.fromkeys(ids, item)), "satisfaction": _integer(*SATISFACTION)})


def parse_page(text: str, ids: Sequence[str]) -> PageScores:
    """The scores in an answer.

    Reasoning in ``<think>`` tags and code fences around the answer are no part of it. The first rung takes JSON that
    keeps the schema; the second mends what can be mended without inventing anything: prose around the object,
    trailing commas, single quotes, bare keys, missing closing brackets, a list of items instead of a mapping, numbers
    as strings, ids in lower case, further ids beside the ones asked for.

    Raises:
        ParseError: where a score is missing, given twice, no number or out of range.
    """
    text = without_wrapping(text)
    try:
        return _page(_load(text), ids, repaired=False)
    except (ParseError, ValueError):
        return _page(_mended(_load_repaired(text)), ids, repaired=True)


def without_wrapping(text: str) -> str:
    """An answer without the model's reasoning and without code fences."""
    text = re.sub(r"<think(?:ing)?>.*?</think(?:ing)?>", "", text, flags=re.S | re.I)
    text = re.sub(r"^.*</think(?:ing)?>", "", text, flags=re.S | re.I)  # templates may open the tag in the prompt
    text = re.sub(r"<think(?:ing)?>.*$", "", text, flags=re.S | re.I)
    fenced = re.search(r"```[\w-]*\s*(.*?)(?:```|$)", text, flags=re.S)
    return (fenced.group(1) if fenced else text).strip()


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _integer(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _load(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ParseError("duplicate", f"a key is given twice among {keys[:8]}")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _load_repaired(text: str) -> Any:
    """The first JSON object in a text, after mending its syntax."""
    start = text.find("{")
    if start < 0:
        raise ParseError("no_json", f"no object in {text[:60]!r}")
    mended = _closed(text[start:].replace("“", '"').replace("”", '"'))
    for pattern, replacement in (
        (r"'([\w ]*)'", r'"\1"'),
        (r"([{,]\s*)([A-Za-z_]\w*)(\s*:)", r'\1"\2"\3'),
        (r",(\s*[}\]])", r"\1"),
    ):
        mended = re.sub(pattern, replacement, mended)
    try:
        return _load(mended)
    except json.JSONDecodeError as error:
        raise ParseError("bad_json", f"{error.msg} at character {error.pos}") from error


def _closed(text: str) -> str:
    """A text that begins with ``{``, up to the bracket that closes it; brackets that never close are added."""
    stack: list[str] = []
    quoted = False
    for position, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif character in "{[":
            stack.append("}" if character == "{" else "]")
        elif character in "}]":
            if not stack or stack.pop() != character:
                raise ParseError("bad_json", f"unexpected '{character}' at character {position}")
            if not stack:
                return text[: position + 1]
    return text.rstrip().rstrip(",") + "".join(reversed(stack))


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
    return PageScores(
        interest=_scores([items[name].get("interest") for name in ids], INTEREST, "interest", repaired),
        rating=_scores([items[name].get("rating") for name in ids], RATING, "rating", repaired),
        satisfaction=float(_scores([answer.get("satisfaction")], SATISFACTION, "satisfaction", repaired)[0]),
        repaired=repaired,
    )


def _scores(values: list[Any], bounds: tuple[int, int], name: str, repaired: bool) -> FloatArray:
    return np.array([_score(value, bounds, name, repaired) for value in values], np.float32)


def _score(value: Any, bounds: tuple[int, int], name: str, repaired: bool) -> float:
    if repaired and isinstance(value, str) and (match := _SCORE.fullmatch(value)):
        value = float(match.group(1))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ParseError("no_number", f"{name} is {value!r}; expected a number")
    if not bounds[0] <= value <= bounds[1]:
        raise ParseError("out_of_range", f"{name} is {value!r}; expected {bounds[0]} to {bounds[1]}")
    return float(value)
