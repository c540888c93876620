"""Rehearsal: a stand-in for a language model that gives answers of the right form and counts what it would be asked.

For dry runs: several steps, sorting by pairs and tools go on only if something answers. It costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simenv.language_models.base import Completion, Example, LanguageModel, Request, Tuning, estimate_tokens


class Rehearsal(LanguageModel):
    """Answers every request with the lowest integers and the first choices of its schema, or with a few words.

    Args:
        inner: the model that would be asked; it counts tokens and names prices.

    Attributes:
        asked: the requests so far.
        prompt_tokens, completion_tokens: of these; answers are as long as ours.
    """

    def __init__(self, inner: LanguageModel) -> None:
        super().__init__(inner.model, inner.parameters)
        self.inner = inner
        self.begin()

    def begin(self) -> None:
        """Count from nought."""
        self.asked: list[Request] = []
        self.prompt_tokens = self.completion_tokens = 0

    async def complete(self, request: Request) -> Completion:
        text = "something of the kind had before" if request.schema is None else json.dumps(_filled(request.schema))
        tokens, said = self.count_tokens(request)[0], estimate_tokens(text)
        self.asked.append(request)
        self.prompt_tokens += tokens
        self.completion_tokens += said
        return Completion(text=text, prompt_tokens=tokens, completion_tokens=said)

    def count_tokens(self, request: Request) -> tuple[int, str]:
        return self.inner.count_tokens(request)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return self.inner.cost(prompt_tokens, completion_tokens)

    def tune(self, examples: Sequence[Example], options: Tuning) -> Path:
        return Path()

    def adapted(self, folder: Path) -> LanguageModel:
        return self


def _filled(schema: Mapping[str, Any]) -> Any:
    if "properties" in schema:
        return {name: _filled(inner) for name, inner in schema["properties"].items()}
    return schema["enum"][0] if "enum" in schema else schema.get("minimum", 0)
