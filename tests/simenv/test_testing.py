"""The suite of language models, inherited by each that runs without a download, and the fakes that ship with it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from simenv.language_models import LanguageModel, TransientError, UnansweredError, openai
from simenv.testing import SCHEMA, FakeLanguageModel, LanguageModelSuite, LLMServer, Reply


def obedient(request):
    return json.dumps({"interest": 42}) if request.schema == SCHEMA else None


class TestFake(LanguageModelSuite):
    def make(self) -> LanguageModel:
        return FakeLanguageModel(obedient)


class TestOpenAI(LanguageModelSuite):
    """The OpenAI client against a server that answers by the schema it is sent."""

    @pytest.fixture(autouse=True)
    def server(self) -> Iterator[None]:
        def script(_number, seen):
            asked = seen.body.get("response_format", {}).get("json_schema", {}).get("schema", {})
            return Reply(content='{"interest": 7}') if "interest" in asked.get("properties", {}) else None

        with LLMServer(script) as server:
            self.url = server.base_url
            yield

    def make(self) -> LanguageModel:
        return openai("test", self.url, timeout=10)


def test_a_fake_says_what_it_is_told_and_remembers_the_question():
    told = {"a": "yes", "b": TransientError("busy"), "c": None}
    model = FakeLanguageModel(lambda request: told[request.messages[-1].content])
    suite = LanguageModelSuite()
    yes, busy, default = suite.answers(model, *(suite.ask(text) for text in "abc"))
    assert yes.text == "yes"
    assert isinstance(busy, UnansweredError)
    assert default.text == "It suits me."
    assert sorted(request.messages[-1].content for request in model.asked) == ["a", "b", "c"]
