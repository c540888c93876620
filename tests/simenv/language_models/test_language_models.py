"""The openai backend, limits, budget and bridge, over a real wire."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import time

import pytest

from agents.llm.answers import page_schema
from simenv.errors import BudgetExhausted, ConfigError
from simenv.language_models import (
    Budget,
    Completion,
    LanguageModel,
    LanguageModelError,
    Message,
    Request,
    TransientError,
    UnansweredError,
    connect,
    openai,
    run,
)
from simenv.language_models.accounting import Spending
from simenv.language_models.base import estimate_tokens
from simenv.language_models.fake_server import LLMServer, Reply, error
from simenv.language_models.limits import Budgeted, Limited
from simenv.language_models.wire.client import OpenAICompatible, retry_after

CANARY = "sk-canary-5f2a9c0d1e"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def page(*titles: str, **changes) -> Request:
    ids = "ABCDEFGHIJ"[: len(titles)]
    lines = "\n".join(f"{name}: {json.dumps(title)}" for name, title in zip(ids, titles))
    fields = {"messages": (Message("user", f"# The page\n{lines}"),), "schema": page_schema(ids), "max_tokens": 100}
    return Request(**(fields | changes))


def ask(server: LLMServer, *requests: Request, close: bool = True, **options):
    """Answers (or exceptions) of requests sent at once."""
    model = openai("test", server.base_url, **({"backoff": 0.001, "timeout": 5.0} | options))

    async def everything():
        answers = await asyncio.gather(*(model.complete(request) for request in requests), return_exceptions=True)
        await model.aclose()
        return answers

    return run(everything()), model


def test_a_page_is_scored_over_the_wire():
    with LLMServer() as server:
        (answer,), model = ask(server, page("Alien", "Heat"))
    assert set(json.loads(answer.text)["items"]) == {"A", "B"}
    sent = server.seen[0].body
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("test", 0.0, 100)
    total = model.ledger.as_dict()["total"]
    assert (total["calls"], total["retries"]) == (1, 0)
    assert total["prompt_tokens"] == answer.prompt_tokens > 0


def test_parameters_reach_the_body():
    with LLMServer() as server:
        ask(server, page("Alien"), parameters={"top_p": 0.5, "reasoning_effort": "low"})
    assert server.seen[0].body["top_p"] == 0.5
    assert server.seen[0].body["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("accepted", "n_calls"),
    [("schema without bounds", 2), ("json_object", 3), ("none", 5)],
    ids=lambda value: str(value),
)
def test_structured_outputs_fall_back_and_are_remembered(accepted, n_calls):
    def asked(seen):
        answer_format = seen.body.get("response_format", {"type": "none"})
        if answer_format["type"] == "json_schema":
            return "schema" if "minimum" in json.dumps(answer_format) else "schema without bounds"
        return answer_format["type"]

    def script(_, seen):
        if asked(seen) not in (accepted, "none"):
            return error(400, f"response_format: {asked(seen)} is not supported by this server")
        return None

    with LLMServer(script) as server:
        model = openai("test", server.base_url)
        for request in (page("Alien"), page("Heat")):
            assert json.loads(run(model.complete(request)).text)["items"]
        run(model.aclose())
    formats = [asked(seen) for seen in server.seen]
    assert len(formats) == n_calls + 1
    assert formats[n_calls - 1 :] == [accepted, accepted]


def test_other_fields_a_server_rejects_are_left_out():
    def script(_, seen):
        if "max_tokens" in seen.body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return error(400, "temperature does not support 0.0") if "temperature" in seen.body else None

    with LLMServer(script) as server:
        (answer,), _ = ask(server, page("Alien"))
    assert isinstance(answer, Completion)
    assert server.seen[-1].body["max_completion_tokens"] == 100


def test_retry_after_holds_everyone_back():
    def script(number, _):
        return error(429, "slow down", retry_after="0.15") if number == 0 else None

    with LLMServer(script) as server:
        answers, model = ask(server, *(page(f"Film {i}") for i in range(6)), concurrency=1)
    assert all(isinstance(answer, Completion) for answer in answers)
    assert server.seen[1].time - server.seen[0].time >= 0.15
    assert model.ledger.as_dict()["total"]["retries"] == 1


def test_a_server_that_asks_for_too_long_a_wait_stops_the_run():
    with LLMServer(lambda *_: error(429, "tomorrow", retry_after="86400")) as server:
        (failure,), _ = ask(server, page("Alien"), max_wait=10)
    assert isinstance(failure, LanguageModelError)
    assert "86400" in str(failure)
    assert len(server.seen) == 1


def test_retry_after_as_seconds_milliseconds_and_date():
    assert retry_after({"retry-after": "2"}) == 2.0
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert 55 < retry_after({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize(
    "bad",
    [
        error(500, "oops"),
        error(503, "busy"),
        Reply(drop=True),
        Reply(cut=40),
        Reply(body='{"choices": [{"mess'),
        Reply(body="<html>gateway</html>", status=502),
        Reply(trickle=0.2),
    ],
    ids=["500", "503", "dropped", "cut off", "truncated body", "html", "slow body"],
)
def test_passing_faults_are_retried(bad):
    with LLMServer(lambda number, _: bad if number < 2 else None) as server:
        (answer,), model = ask(server, page("Alien"), timeout=0.4)
    assert isinstance(answer, Completion)
    assert len(server.seen) == 3
    total = model.ledger.as_dict()["total"]
    assert (total["calls"], total["retries"]) == (3, 2)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(choices=False), "empty"),
        (Reply(content=""), "empty"),
        (Reply(message={"refusal": "I would rather not."}), "refusal"),
        (Reply(content="no", finish="content_filter"), "refusal"),
        (error(400, "The response was filtered by the content management policy", "content_filter"), "refusal"),
        (
            error(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded"),
            "context_overflow",
        ),
        (error(400, "the prompt is too long: 9000 tokens"), "context_overflow"),
    ],
)
def test_requests_that_no_retry_can_save(reply, reason):
    with LLMServer(lambda *_: reply) as server:
        (failure,), _ = ask(server, page("Alien"))
    assert isinstance(failure, UnansweredError)
    assert failure.reason == reason
    assert len(server.seen) == 1


def test_a_server_error_that_stays_leaves_the_request_unanswered():
    with LLMServer(lambda *_: error(500, "oops")) as server:
        (failure,), _ = ask(server, page("Alien"), max_retries=2)
    assert isinstance(failure, UnansweredError)
    assert not isinstance(failure, TransientError)
    assert (failure.reason, len(server.seen)) == ("server", 3)


def test_a_server_that_is_not_there_stops_the_run():
    with LLMServer() as server:
        pass
    (failure,), _ = ask(server, page("Alien"), max_retries=1)
    assert isinstance(failure, LanguageModelError)
    assert "after 2 tries" in str(failure)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_concerns_every_request_stops_the_run(status):
    with LLMServer(lambda *_: error(status, f"no, {CANARY} is wrong")) as server:
        (failure,), _ = ask(server, page("Alien"))
    assert isinstance(failure, LanguageModelError)
    assert str(status) in str(failure)
    assert len(server.seen) == 1


def test_the_key_is_sent_and_never_written(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    replies = [error(500, f"key {CANARY} broke me"), None, error(401, f"Incorrect API key provided: {CANARY}")]
    with LLMServer(lambda number, _: replies[number]) as server:
        (answer,), model = ask(server, page("Alien"), cache=tmp_path / "cache.db")
        (failure,), _ = ask(server, page("Heat"))
    assert server.seen[0].headers["authorization"] == f"Bearer {CANARY}"
    assert isinstance(answer, Completion)
    shown = [caplog.text, *capfd.readouterr(), repr(failure), str(failure), repr(vars(model)), str(failure.__cause__)]
    shown.append(json.dumps(model.ledger.as_dict()))
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [text for text in shown if CANARY in text]
    assert CANARY.encode() not in stored
    assert failure.__suppress_context__


def test_credentials_in_the_address_are_not_shown():
    with LLMServer(lambda *_: error(404, "no such model")) as server:
        url = server.base_url.replace("http://", "http://me:hush@")
        failure = ask(server, page("Alien"))[0][0]
        model = OpenAICompatible("test", url)
        with pytest.raises(LanguageModelError) as caught:
            run(model.complete(page("Alien")))
        run(model.aclose())
    assert "hush" not in str(caught.value)
    assert "127.0.0.1" in str(failure)


def test_a_hosted_service_needs_a_key_and_a_local_one_does_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        openai("test")
    with LLMServer() as server:
        (answer,), _ = ask(server, page("Alien"))
    assert isinstance(answer, Completion)


def test_a_server_without_usage_gets_an_estimate():
    with LLMServer(lambda *_: Reply(usage=False)) as server:
        (answer,), _ = ask(server, page("Alien"))
    assert answer.completion_tokens == estimate_tokens(answer.text)


def test_concurrency_is_bounded_and_used():
    with LLMServer(latency=0.02) as server:
        answers, _ = ask(server, *(page(f"Film {i}") for i in range(24)), concurrency=6)
    assert len(answers) == 24
    assert server.peak == 6


class Counting(LanguageModel):
    """Answers everything, after a while, with a fixed bill."""

    def __init__(self, prompt_tokens: int = 10, completion_tokens: int = 5) -> None:
        super().__init__("counting")
        self.asked = 0
        self.times: list[float] = []
        self.bill = prompt_tokens, completion_tokens

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        self.times.append(time.monotonic())
        await asyncio.sleep(0.001)
        return Completion(text="{}", prompt_tokens=self.bill[0], completion_tokens=self.bill[1])


def spend(model: LanguageModel, n: int) -> list[object]:
    async def everything():
        requests = (Request(messages=(Message("user", f"{i:036d}"),), max_tokens=5) for i in range(n))
        return await asyncio.gather(*(model.complete(request) for request in requests), return_exceptions=True)

    return run(everything())


@pytest.mark.parametrize("quota", [{"requests_per_minute": 60 / 0.03}, {"tokens_per_minute": 18 * 60 / 0.03}])
def test_the_rate_is_bounded(quota):
    backend = Counting()
    begin = time.monotonic()
    spend(Limited(backend, **quota), 5)
    assert backend.asked == 5
    assert all(at >= begin + i * 0.03 - 1e-3 for i, at in enumerate(sorted(backend.times)))


@pytest.mark.parametrize(
    ("budget", "n_answers"),
    [
        (Budget(calls=7), 7),
        (Budget(tokens=7 * 18 + 17), 7),
        (Budget(dollars=7 * (13 + 5) / 1e6, price_prompt=1.0, price_completion=1.0), 7),
        (Budget(), 20),
    ],
    ids=["calls", "tokens", "dollars", "none"],
)
def test_a_budget_is_never_overspent_in_flight(budget, n_answers):
    backend = Counting(prompt_tokens=13)
    model = Budgeted(backend, budget)
    answers = spend(model, 20)
    assert sum(isinstance(answer, Completion) for answer in answers) == n_answers
    assert backend.asked == n_answers
    for failure in answers:
        assert isinstance(failure, Completion | BudgetExhausted)
    total = model.ledger.total
    tokens = total("prompt_tokens") + total("completion_tokens")
    spent = model.spending.total()
    assert spent == pytest.approx((total("calls"), tokens, total("dollars")))
    assert all(amount <= limit * (1 + 1e-9) for amount, limit in zip(spent, budget.limits))


@pytest.mark.parametrize(
    ("budget", "shared", "n_counted"),
    [(Budget(calls=9), False, 0), (Budget(tokens=999), False, 3), (Budget(), True, 3)],
    ids=["calls", "tokens", "shared"],
)
def test_prompts_are_counted_beforehand_only_where_it_can_matter(tmp_path, monkeypatch, budget, shared, n_counted):
    backend = Counting()
    counted = []
    monkeypatch.setattr(backend, "count_tokens", lambda request: counted.append(request) or (1, "said"))
    model = Budgeted(backend, budget, Spending(tmp_path / "spending.db") if shared else None)
    assert all(isinstance(answer, Completion) for answer in spend(model, 3))
    assert len(counted) == n_counted


def test_a_call_that_turned_out_cheap_makes_room_for_others():
    model = Budgeted(Counting(prompt_tokens=1, completion_tokens=1), Budget(tokens=24))
    answers = spend(model, 5)
    assert sum(isinstance(answer, Completion) for answer in answers) == 4  # 2 + 2 + 2 + 18 would be the last to fit


def test_jobs_share_a_quota_through_a_file(tmp_path):
    first, second = Counting(), Counting()
    models = [
        connect(backend, requests_per_minute=60 / 0.03, pace_file=tmp_path / "pace.db") for backend in (first, second)
    ]

    async def everything():
        asked = (Request(messages=(Message("user", f"{i:036d}"),), max_tokens=5) for i in range(6))
        await asyncio.gather(*(models[i % 2].complete(request) for i, request in enumerate(asked)))

    begin = time.monotonic()
    run(everything())
    times = sorted(first.times + second.times)
    assert len(first.times) == len(second.times) == 3
    assert all(at >= begin + i * 0.03 - 2e-3 for i, at in enumerate(times))
    (tmp_path / "text.db").write_text("no database, but a text that is long enough to be read as one" * 20)
    (failure,) = spend(connect(Counting(), requests_per_minute=6000, pace_file=tmp_path / "text.db"), 1)
    assert "text.db: not a usable file of turns" in str(failure)


def test_jobs_share_a_budget_through_a_file(tmp_path):
    path = tmp_path / "run" / "spending.db"
    first = connect(Counting(), budget_calls=10, budget_file=path)
    second = connect(Counting(), budget_calls=10, budget_file=path)
    answers = spend(first, 7) + spend(second, 7)
    assert sum(isinstance(answer, Completion) for answer in answers) == 10
    run(first.aclose())
    resumed = spend(connect(Counting(), budget_calls=12, budget_file=path), 7)
    assert sum(isinstance(answer, Completion) for answer in resumed) == 2
    assert "budget_calls=12 (spent 12)" in str(resumed[-1])


def test_an_unusable_file_of_spending_is_named(tmp_path):
    (tmp_path / "text.db").write_text("no database, but long enough to be read as one" * 40)
    (failure,) = spend(connect(Counting(), budget_file=tmp_path / "text.db"), 1)
    assert isinstance(failure, ConfigError)
    assert "text.db" in str(failure)


def test_a_failed_call_costs_a_call_and_no_tokens():
    class Failing(Counting):
        async def complete(self, request: Request) -> Completion:
            raise UnansweredError("refusal")

    model = Budgeted(Failing(), Budget(calls=3, tokens=20))
    answers = spend(model, 5)
    assert model.spending.total() == (3, 0, 0)
    assert [type(answer) for answer in answers] == [UnansweredError] * 3 + [BudgetExhausted] * 2


def test_an_exhausted_budget_says_which_and_exits_3():
    answers = spend(connect(Counting(), budget_calls=0), 1)
    assert isinstance(answers[0], BudgetExhausted)
    assert answers[0].exit_code == 3
    assert "llm.budget_calls=0" in str(answers[0])


def test_money_needs_prices():
    with pytest.raises(ConfigError, match="price_prompt"):
        Budget(dollars=1.0)
    with pytest.raises(ConfigError, match="budget_calls=-1"):
        Budget(calls=-1)


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"requests_per_minute": 0}, {"tokens_per_minute": -1}, {"max_retries": -1}]
)
def test_limits_out_of_range_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        connect(Counting(), **options)


def test_backoff_grows_and_is_the_same_in_every_run():
    first, second = (Limited(Counting(), backoff=0.5) for _ in range(2))
    request, other = page("Alien"), page("Heat")
    waits = [first._wait_before(request, attempt) for attempt in range(4)]
    assert waits == [second._wait_before(request, attempt) for attempt in range(4)]
    assert all(0.25 * 2**n <= wait < 0.5 * 2**n for n, wait in enumerate(waits))
    assert first._wait_before(other, 0) != waits[0]


def test_the_ledger_keeps_rounds_apart_and_survives_a_checkpoint():
    model = connect(Counting(), price_prompt=2.0, price_completion=4.0)
    spend(model, 2)
    model.ledger.round = 3
    spend(model, 1)
    written = model.ledger.as_dict()
    assert written["total"]["dollars"] == pytest.approx(3 * (10 * 2 + 5 * 4) / 1e6)
    assert [row["round"] for row in written["rounds"]] == [0, 3]
    restored = connect(Counting())
    restored.ledger.load(json.loads(json.dumps(written)))
    assert restored.ledger.as_dict() == written


def test_an_interrupt_cancels_what_is_under_way(monkeypatch):
    unwound = []

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            unwound.append(True)

    import concurrent.futures

    original = concurrent.futures.Future.result
    interrupted = []

    def result(self, timeout=None):
        if not interrupted:
            interrupted.append(True)
            time.sleep(0.05)
            raise KeyboardInterrupt
        return original(self, timeout)

    monkeypatch.setattr(concurrent.futures.Future, "result", result)
    with pytest.raises(KeyboardInterrupt):
        run(endless())
    assert unwound == [True]


def test_factories_declare_what_only_carries():
    import inspect
    from dataclasses import fields

    from simenv.language_models import replay, transformers
    from simenv.language_models.factories import Around

    around = {field.name for field in fields(Around)}
    for factory, others in ((openai, 1), (transformers, 4), (replay, 2)):
        own = set(inspect.signature(factory).parameters)
        assert set(factory.carrying) <= own | around
        assert len(own - around - set(factory.carrying)) >= others
        assert not {"model", "parameters", "readout", "path", "dtype"} & set(factory.carrying)


def test_requests_are_validated():
    with pytest.raises(ConfigError, match="no messages"):
        Request(messages=())
    with pytest.raises(ConfigError, match="base_url"):
        openai("test", "localhost:8000")
    with pytest.raises(ConfigError, match=r"llm\.model"):
        openai("", "http://localhost:8000/v1")
