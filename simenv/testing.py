"""Checks that every language model must pass, to inherit for one of your own, and fakes; needs pytest.

    class TestMine(LanguageModelSuite):
        def make(self) -> LanguageModel:
            return Mine()

`FakeLanguageModel` answers in this process, `LLMServer` over HTTP as a real server would. The suite knows the public
interface alone. The suites of recommenders and of user models are `recommenders.testing` and `agents.testing`.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from simenv.language_models.background_loop import run
from simenv.language_models.base import (
    CacheMiss,
    Completion,
    LanguageModel,
    Message,
    Request,
    UnansweredError,
    estimate_tokens,
)
from simenv.language_models.factories import connect, replay
from simenv.language_models.fake_server import LLMServer, Reply, Seen, error, scores

__all__ = ["FakeLanguageModel", "LLMServer", "LanguageModelSuite", "Reply", "Seen", "error"]

SCHEMA = {
    "type": "object",
    "properties": {"interest": {"type": "integer", "minimum": 0, "maximum": 100}},
    "required": ["interest"],
    "additionalProperties": False,
}


class FakeLanguageModel(LanguageModel):
    """Answers without a model: a page by a hash of its items' titles, anything else with one sentence.

    Args:
        answer: request -> text, or an exception to raise; None = the default answer.

    Attributes:
        asked: requests in the order of arrival.
    """

    def __init__(self, answer: Callable[[Request], str | Exception | None] | None = None) -> None:
        super().__init__("fake")
        self.answer = answer
        self.asked: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request)
        said = self.answer(request) if self.answer else None
        if isinstance(said, Exception):
            raise said
        prompt = request.messages[-1].content
        page = next((m.content for m in request.messages if "# The page" in m.content), None)
        if said is None:
            said = json.dumps(scores(page)) if page else "It suits me."
        self.ledger.count("prompt_tokens", estimate_tokens(prompt))
        return Completion(text=said, prompt_tokens=estimate_tokens(prompt), completion_tokens=estimate_tokens(said))


class LanguageModelSuite:
    """What a language model promises, one test each. Override `make`."""

    follows_schemas: ClassVar[bool] = True  # whether an answer to a schema is one by the schema
    repeats_itself: ClassVar[bool] = True  # whether temperature 0 gives the same answer twice

    def make(self) -> LanguageModel:
        """A fresh language model."""
        raise NotImplementedError("a subclass of LanguageModelSuite defines make()")

    def ask(self, text: str = "Do you like films about rivers?", **options: Any) -> Request:
        """A request of one user message; override it where a model answers only prompts of its own kind."""
        told: dict[str, Any] = {"max_tokens": 64, "prompt_version": "suite"} | options
        return Request(messages=(Message("system", "You are a person."), Message("user", text)), **told)

    def answers(self, model: LanguageModel, *requests: Request) -> list[Any]:
        """Completions, or the errors, of requests that are asked side by side."""

        async def together() -> list[Any]:
            return await asyncio.gather(*(model.complete(request) for request in requests), return_exceptions=True)

        return run(together())

    def test_has_a_name_a_ledger_and_room_for_requests(self) -> None:
        model = self.make()
        assert model.model
        assert json.dumps(dict(model.parameters)), "parameters are part of the cache key"
        assert model.ledger.total("calls") == 0
        assert model.concurrency >= 1

    def test_answers_side_by_side(self) -> None:
        model = self.make()
        requests = [self.ask(f"What about item {number}?") for number in range(5)]
        for completion in self.answers(model, *requests):
            assert isinstance(completion, Completion), completion
            assert completion.text
            assert completion.prompt_tokens >= 0
            assert completion.completion_tokens >= 0
            assert not completion.cached

    def test_temperature_0_repeats_itself(self) -> None:
        if not self.repeats_itself:
            pytest.skip("this model may answer differently")
        model = self.make()
        first, other, again = (self.answers(model, self.ask(text))[0].text for text in ("one", "two", "one"))
        assert first == again
        assert other

    def test_an_answer_follows_the_schema(self) -> None:
        if not self.follows_schemas:
            pytest.skip("this model does not promise it")
        (completion,) = self.answers(self.make(), self.ask("How much, from 0 to 100?", schema=SCHEMA))
        value = json.loads(completion.text)
        assert list(value) == ["interest"]
        assert type(value["interest"]) is int
        assert 0 <= value["interest"] <= 100

    def test_tokens_and_cost_are_numbers(self) -> None:
        model = self.make()
        tokens, how = model.count_tokens(self.ask())
        assert tokens > 0
        assert how
        assert model.cost(0, 0) == 0
        assert math.isfinite(model.cost(1000, 100))
        assert model.cost(1000, 100) >= 0

    def test_copies_share_the_model(self) -> None:
        model = self.make()
        assert copy.deepcopy([model])[0] is model, "connections, ledger and budget are one"

    def test_answers_are_cached_and_replayed(self, tmp_path: Path) -> None:
        cache = tmp_path / "answers.db"
        model = connect(self.make(), cache=cache)
        first = self.answers(model, self.ask())[0]
        run(model.commit())
        calls = model.ledger.total("calls")
        second = self.answers(model, self.ask())[0]
        assert (second.text, second.cached) == (first.text, True)
        assert model.ledger.total("calls") == calls
        run(model.aclose())
        again = replay(model.model, cache, **({"parameters": dict(model.parameters)} if model.parameters else {}))
        assert self.answers(again, self.ask())[0].text == first.text
        (absent,) = self.answers(again, self.ask("What was never asked?"))
        assert isinstance(absent, CacheMiss)
        run(again.aclose())

    def test_a_budget_stops_it(self) -> None:
        from simenv.errors import BudgetExhausted

        model = connect(self.make(), budget_calls=1)
        assert isinstance(self.answers(model, self.ask("one"))[0], (Completion, UnansweredError))
        assert isinstance(self.answers(model, self.ask("two"))[0], BudgetExhausted)

    def test_closes(self) -> None:
        model = self.make()
        self.answers(model, self.ask())
        run(model.aclose())
