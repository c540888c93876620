"""A deterministic stand-in for a language model that has taste: it likes what shares genres with what it is told.

It reads the prompt only: the history lines and the candidates as they are written there. A prompt that does not tell
the taste, or an answer form that is not read back rightly, makes the arm no better than chance.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from simenv.language_models import Completion, LanguageModel, Request

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def genres_of(line: str) -> list[str]:
    """The genres of an item's text: its second quoted part."""
    parts = _QUOTED.findall(line)
    return parts[1].split("/") if len(parts) > 1 else []


class TasteReader(LanguageModel):
    """Answers every form; `seen` keeps the requests."""

    def __init__(self, model: str = "taste-reader") -> None:
        super().__init__(model)
        self.seen: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.seen.append(request)
        self.ledger.count("calls")
        return Completion(text=answer(request), prompt_tokens=request.estimated_tokens(), completion_tokens=5)


def answer(request: Request) -> str:
    """What the stand-in says to a request, from its text alone."""
    return reply(next(m.content for m in request.messages if m.role == "user"), request.schema)


def reply(text: str, schema: object) -> str:
    """The answer to a prompt under a schema (None: words)."""
    before, after = re.split("Items to put in order:|Rank these:|$", text, maxsplit=1)
    taste: Counter[str] = Counter()
    for line in before.splitlines():
        if line.startswith("- "):
            taste.update(genres_of(line))
    total = sum(taste.values()) or 1

    def liking(line: str) -> float:
        genres = genres_of(line)
        return sum(taste[genre] for genre in genres) / total / max(1, len(genres)) ** 0.5

    properties = schema["properties"] if isinstance(schema, dict) else {}
    if "places" in properties or "scores" in properties:
        lines = dict(re.findall(r"^([A-Z]{1,2}): (.*)$", after, re.M))
        order = sorted(lines, key=lambda name: -liking(lines[name]))
        if "places" in properties:
            return json.dumps({"places": {name: order.index(name) + 1 for name in lines}})
        return json.dumps({"scores": {name: round(100 * liking(lines[name])) for name in lines}})
    if "pick" in properties:
        lines = dict(re.findall(r"^([A-Z]{1,2}): (.*)$", after, re.M))
        return json.dumps({"pick": max(lines, key=lambda name: liking(lines[name]))})
    if "better" in properties:
        first, second = (re.search(rf"^{name}: (.*)$", text, re.M) for name in ("First", "Second"))
        assert first is not None
        assert second is not None
        return json.dumps({"better": 1 if liking(first[1]) >= liking(second[1]) else 2})
    item = re.search(r"^(?:The item|What about this): (.*)$", text, re.M)
    if "stars" in properties and item:
        return json.dumps({"stars": 1 + round(4 * min(1.0, 2 * liking(item[1])))})
    if "yes" in properties and item:
        return json.dumps({"yes": int(liking(item[1]) > 0.25)})
    if "tool" in properties:
        kinds = re.findall(r'^(\d+): "([^"]*)", \d+ candidates$', text, re.M)
        best = max(kinds, key=lambda kind: taste[kind[1]], default=("0", ""))
        return json.dumps({"tool": 1 if "Tool:" not in text else 0, "argument": int(best[0])})
    return " ".join(_words(taste))


def _words(taste: Counter[str]) -> Sequence[str]:
    return [genre for genre, _ in taste.most_common(3)] or ["nothing"]
