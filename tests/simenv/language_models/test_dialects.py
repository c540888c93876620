"""Servers as they are: what the probe finds, how replies and complaints are read, and where keys must not appear."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from agents.llm.answers import page_schema, parse_page
from simenv.errors import ConfigError
from simenv.language_models import (
    Completion,
    LanguageModelError,
    Message,
    Request,
    UnansweredError,
    connect,
    openai,
    run,
)
from simenv.language_models.base import LanguageModel
from simenv.language_models.cache import Replay
from simenv.language_models.fake_server import DIALECTS, LLMServer, Reply, error
from simenv.language_models.ladder import climb, count_fallbacks
from simenv.language_models.repair import without_wrapping
from simenv.language_models.wire.dialects import FORMATS, enumerated, held, words_of
from simenv.language_models.wire.replies import read_reply
from simenv.language_models.wire.secrets import redacted

KEY = "sk-canary/5f2a+9c 0d1e"
PAGE = Request(messages=(Message("user", '# The page\nA: "Alien"'),), schema=page_schema(("A",)), max_tokens=100)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def ask(server: LLMServer, request: Request = PAGE, url: str | None = None, **options):
    """The answer or the exception, and the model."""
    model = openai("test", url or server.base_url, **({"backoff": 0.001, "timeout": 5.0} | options))

    async def one():
        try:
            return await model.complete(request)
        except Exception as failure:
            return failure
        finally:
            await model.aclose()

    return run(one()), model


@pytest.mark.parametrize(
    ("dialect", "answer_format", "refusals"),
    [
        ("llama-cpp-python", "json_object_schema", 2),
        ("llama.cpp", "json_object_schema", 2),
        ("json mode", "json_object", 3),
        ("text", "text", 4),
        ("reasoning", "json_schema_enum", 3),
        ("gemma", "json_schema", 1),
    ],
)
def test_one_probe_finds_the_dialect_and_says_it(dialect, answer_format, refusals, capsys):
    with LLMServer(dialect=DIALECTS[dialect]) as server:
        answer, model = ask(server, max_retries=0)
        assert isinstance(answer, Completion)
        assert (server.refused, len(server.seen)) == (refusals, 1)
        assert model.ledger.as_dict()["endpoint"].startswith(answer_format)
        assert f"understands {answer_format}" in capsys.readouterr().err
        ask(server)
        assert server.refused == refusals  # once in a process
    assert capsys.readouterr().err == ""
    sent = server.seen[0].body
    assert ("temperature" in sent, "max_completion_tokens" in sent) == (dialect != "reasoning", dialect == "reasoning")


def test_bounds_that_a_server_passes_over_become_enumerations():
    passes_over = Reply(body=json.dumps(reply({"content": '{"n": 9}'})))
    with LLMServer(dialect=lambda body: passes_over if "minimum" in json.dumps(body) else None) as server:
        ask(server)
    assert '"enum": [1, 2, 3, 4, 5]' in json.dumps(server.seen[0].body)
    with LLMServer(probe=Reply(content='{"n": 9}')) as server:
        _, model = ask(server)
    assert model.ledger.endpoint.startswith("json_schema,")  # enumerations did not help either
    assert "keeps structure" in model.ledger.endpoint
    few = enumerated(page_schema(("A",)), 16)["properties"]
    assert few["satisfaction"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    assert few["items"]["properties"]["A"]["properties"]["interest"] == {"type": "integer"}
    every = enumerated(page_schema(("A",)), None)["properties"]["items"]["properties"]["A"]["properties"]
    assert every["interest"]["enum"] == list(range(101))
    assert [held(text) for text in ('{"n": 5}', '{"n": 9}', "n = 9")] == ["bounds", "structure", "nothing"]


@pytest.mark.parametrize("answer_format", FORMATS)
def test_a_format_set_by_hand_stays(answer_format):
    with LLMServer() as server:
        ask(server, answer_format=answer_format)
    kind = server.seen[0].body.get("response_format", {"type": "text"})
    assert kind["type"] == {"json_schema_enum": "json_schema", "json_object_schema": "json_object"}.get(
        answer_format, answer_format
    )
    assert ("schema" in kind) == (answer_format == "json_object_schema")
    with LLMServer(dialect=DIALECTS["text"]) as server:
        failure, _ = ask(server, answer_format="json_object")
    assert isinstance(failure, LanguageModelError)
    assert "extra fields not permitted" in str(failure)
    with pytest.raises(ConfigError, match=r"llm\.answer_format=xml"):
        openai("test", "http://localhost:1/v1", answer_format="xml")


def reply(message, **choice):
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": None}


@pytest.mark.parametrize(
    "answer",
    [
        reply({"content": "{}"}),
        reply({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "{}"}]}),
        reply("{}"),
        reply(None, text="{}"),
        reply({"content": {}}),
        reply({"content": None, "tool_calls": [{"function": {"name": "answer", "arguments": "{}"}}]}),
        reply({"content": "", "tool_calls": [{"function": {"name": "answer", "arguments": {}}}]}),
        reply({"content": "{}", "reasoning_content": "first I thought"}),
        reply({"content": "{}"}) | {"usage": ["strange"]},
    ],
)
def test_answers_in_every_shape_are_read(answer):
    completion = read_reply(answer, PAGE)
    assert completion.text == "{}"
    assert completion.prompt_tokens == PAGE.estimated_tokens()


def test_usage_as_strings_counts():
    usage = {"usage": {"prompt_tokens": "12", "completion_tokens": "3"}}
    completion = read_reply(reply({"content": "{}"}) | usage, PAGE)
    assert (completion.prompt_tokens, completion.completion_tokens) == (12, 3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({}, "empty"),
        ({"choices": [None]}, "empty"),
        ([], "empty"),
        (reply({"content": "", "reasoning_content": "and then"}), "empty"),
        (reply({"content": "", "reasoning_content": "and then"}, finish_reason="length"), "cut_off"),
        (reply({"content": None, "tool_calls": []}), "empty"),
    ],
)
def test_replies_without_an_answer_say_why(answer, reason):
    with pytest.raises(UnansweredError) as caught:
        read_reply(answer, PAGE)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "[THINK]a {fine} film[/THINK]{}",
        "<|channel|>analysis<|message|>a film<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        "<think>never {mind}</think>\n{}",
        "```json\n{}\n```",
    ],
)
def test_reasoning_of_every_kind_is_no_part_of_an_answer(text):
    assert without_wrapping(text) == "{}"


def test_interest_as_a_fraction_of_one_is_mended():
    text = '{"items":{"A":{"interest":0.7,"rating":4},"B":{"interest":1,"rating":5}},"satisfaction":4}'
    scores = parse_page(text, ("A", "B"))
    assert scores.interest.tolist() == pytest.approx([70, 100])
    assert scores.repaired


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"error": {"message": "no", "code": 7}}', "no"),
        ('{"error": "no"}', "no"),
        ('[{"error": {"message": "no"}}]', "no"),
        ('{"detail": "no"}', "no"),
        ('{"detail": [{"loc": ["body"], "msg": "no"}]}', "body: no"),
        ('{"object": "error", "message": "no"}', "no"),
        ("<html><head><title>no</title></head><body>x</body></html>", "no"),
        ("no", "no"),
        ("", ""),
        ('{"odd": 1}', '{"odd": 1}'),
    ],
)
def test_the_words_of_errors_in_every_form(text, words):
    assert words_of(text)[0] == words


def test_a_model_that_loads_is_waited_for():
    def script(number, _):
        return error(503, "Loading model", retry_after="0.01") if number < 4 else None

    with LLMServer(script) as server:
        answer, model = ask(server, max_retries=0)
    assert isinstance(answer, Completion)
    assert model.ledger.total("retries") == 0
    with LLMServer(lambda *_: error(503, "Loading model", retry_after="0.01")) as server:
        failure, _ = ask(server, max_retries=0, max_wait=0.03)
    assert isinstance(failure, LanguageModelError)
    assert "Loading model" in str(failure)


def test_a_fault_in_the_same_words_is_believed():
    with LLMServer(lambda *_: error(500, "the tensor is cursed")) as server:
        failure, _ = ask(server, max_retries=50)
        assert len(server.seen) == 3
    assert str(failure) == "server: after 3 tries: HTTP 500: the tensor is cursed"
    with LLMServer(lambda n, _: error(500, f"oops {n}") if n < 5 else None) as server:
        answer, _ = ask(server, max_retries=5)
    assert isinstance(answer, Completion)


def test_json_validation_that_failed_once_changes_no_dialect():
    failed = error(400, "Failed to generate JSON. Please adjust your prompt.", "json_validate_failed")
    with LLMServer(lambda number, _: failed if number == 0 else None) as server:
        failure, model = ask(server)
        answer, _ = ask(server)
    assert (failure.reason, model.ledger.endpoint[:12]) == ("no_json", "json_schema,")
    assert server.seen[1].body["response_format"]["type"] == "json_schema"
    assert isinstance(answer, Completion)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html><title>Sign in</title></html>", "a page of HTML came back ('Sign in')"),
        ("data: {}\n\ndata: [DONE]\n", "streams its answer"),
        ("OK", "no JSON came back but 'OK'"),
    ],
)
def test_a_reply_that_is_no_chat_completion_stops_the_run_at_the_probe(body, words):
    with LLMServer(probe=Reply(body=body, headers={"content-type": "text/html"})) as server:
        failure, _ = ask(server)
    assert isinstance(failure, LanguageModelError)
    assert words in str(failure)


def test_an_error_inside_a_200_is_an_error():
    inside = Reply(body=json.dumps({"error": {"message": "Rate limited upstream", "code": 429}}))
    with LLMServer(lambda number, _: inside if number == 0 else None) as server:
        answer, model = ask(server)
    assert isinstance(answer, Completion)
    assert model.ledger.total("retries") == 1


def test_an_unknown_model_is_answered_with_those_there_are():
    with LLMServer(lambda *_: error(404, "model not found"), models=("alpha", "beta")) as server:
        failure, _ = ask(server)
    assert "HTTP 404: model not found; llm.model=test is none of those it has: alpha, beta" in str(failure)


def test_an_address_without_v1_or_scheme_is_answered_with_the_likely_one():
    with LLMServer() as server:
        bare = server.base_url.removesuffix("/v1")
        failure, _ = ask(server, url=bare)
    assert f"did you mean llm.base_url={server.base_url}?" in str(failure)
    with pytest.raises(ConfigError, match=r"did you mean http://localhost:8000/v1\?"):
        openai("test", "localhost:8000/v1")


def test_a_socks_proxy_is_named(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks9://me:hush@localhost:1")
    with LLMServer() as server:
        failure, _ = ask(server)
    assert isinstance(failure, LanguageModelError)
    assert "ALL_PROXY" in str(failure)
    assert "hush" not in str(failure)


# -- the ladder -------------------------------------------------------------------------------------------------------


def test_an_answer_that_was_cut_off_gets_more_room_and_a_stopped_run_quotes_the_server():
    def script(number, seen):
        return Reply(content='{"items":', finish="length") if number == 0 else error(400, f"Bad luck, {KEY}")

    def again(first, text, reason):
        assert (text, reason) == ('{"items":', "cut_off")
        return first

    with LLMServer(script) as server:
        model = openai("test", server.base_url)
        with pytest.raises(LanguageModelError, match="Bad luck"):
            run(climb(model, PAGE, lambda text: parse_page(text, ("A",)), again))
        run(model.aclose())
    assert [seen.body["max_tokens"] for seen in server.seen] == [100, 400]
    assert model.ledger.total("why:cut_off") == 1
    with LLMServer(lambda *_: error(500, f"cursed by {KEY}")) as server:
        model = openai("test", server.base_url, backoff=0.001)
        assert run(climb(model, PAGE, json.loads, lambda first, *_: first)) is None
        run(model.aclose())
    with pytest.raises(LanguageModelError) as caught:
        count_fallbacks(model, 2, 2, most=0.05, option="agent.max_fallback_share")
    assert "(server 2)" in str(caught.value)
    assert str(caught.value).count("cursed by [key]") == 1


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["{}\r", '"{}"', " {}\n"])
def test_a_key_with_what_copying_left_around_it_works_and_is_cut_in_every_encoding(around, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", around.format(KEY))
    with LLMServer() as server:
        answer, _ = ask(server)
    assert isinstance(answer, Completion)
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    for value in (KEY, around.format(KEY)):
        for form in (value, repr(value), json.dumps(value), quote(value), quote(value, safe=""), quote(value).lower()):
            assert "canary" not in redacted(f"see {form} there"), form


def test_secrets_among_the_parameters_are_sent_and_written_nowhere(tmp_path):
    secrets = {"api_key": "hush-hush-1", "extra_headers": {"X-Team": "hush-hush-2"}, "top_p": 0.5}
    echo = Reply(content=f'{{"items": {{}}, "said": "{KEY}"}}')
    with LLMServer(lambda *_: echo) as server:
        answer, model = ask(server, parameters=secrets, cache=tmp_path / "cache.sqlite")
    assert (server.seen[0].body["api_key"], server.seen[0].headers["x-team"]) == ("hush-hush-1", "hush-hush-2")
    assert "extra_headers" not in server.seen[0].body
    assert model.parameters == {"top_p": 0.5} == Replay("test", secrets).parameters
    assert "[key]" in answer.text
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY.encode() not in stored
    assert b"hush" not in stored


def test_what_another_backend_says_passes_through_the_same_ladder():
    class Silent(LanguageModel):
        async def complete(self, request):
            raise UnansweredError("empty", "nothing to say")

    model = connect(Silent("silent"))
    assert run(climb(model, PAGE, json.loads, lambda first, *_: first)) is None
    assert model.ledger.words == "nothing to say"


@pytest.mark.parametrize("damage", ["text", "file"])
def test_a_flipped_bit_in_the_cache_is_an_error_with_the_files_name(damage, tmp_path):
    path = tmp_path / "cache.sqlite"
    with LLMServer() as server:
        answer, _ = ask(server, cache=path)
        before = path.read_bytes()
        place = before.index(answer.text.encode()) + 30 if damage == "text" else 0
        if damage == "text":
            path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        else:
            with sqlite3.connect(path) as file:
                (size,) = file.execute("PRAGMA page_size").fetchone()
            file.close()
            path.write_bytes(before[:size] + bytes(len(before) - size))
        failure, _ = ask(server, cache=path)
    assert isinstance(failure, ConfigError)
    assert "cache.sqlite" in str(failure)


def test_a_cache_from_before_answers_had_digests_is_read(tmp_path):
    path = tmp_path / "cache.sqlite"
    with LLMServer() as server:
        ask(server, cache=path)
        with sqlite3.connect(path) as file:
            file.execute("ALTER TABLE answers DROP COLUMN digest")
        file.close()
        answer, _ = ask(server, cache=path)
    assert answer.cached


@pytest.mark.slow
@pytest.mark.llamacpp
def test_the_real_server_of_llama_cpp_answers_a_page():
    """docs/llm-users.md says how to build it; $SIMENV_LLAMACPP is its Python, $SIMENV_GGUF a model."""
    python, model = os.environ.get("SIMENV_LLAMACPP"), os.environ.get("SIMENV_GGUF")
    if not python or not model or not Path(model).is_file():
        pytest.skip("SIMENV_LLAMACPP and SIMENV_GGUF name no llama_cpp.server and no model")
    port = "8391"
    options = ["--model", model, "--host", "127.0.0.1", "--port", port, "--n_ctx", "2048"]
    server = subprocess.Popen([python, "-m", "llama_cpp.server", *options], stderr=subprocess.DEVNULL)
    try:
        backend = openai("test", f"http://127.0.0.1:{port}/v1", timeout=600, max_retries=60, backoff=0.5)
        began = time.monotonic()
        answer = run(backend.complete(PAGE))
        run(backend.aclose())
    finally:
        server.terminate()
        server.wait(30)
    print(f"{time.monotonic() - began:.0f} s, {answer.completion_tokens} tokens", file=sys.stderr)
    assert backend.ledger.endpoint.startswith("json_object_schema")
    scores = parse_page(answer.text, ("A",))
    assert 0 <= scores.interest[0] <= 100
    assert 1 <= scores.rating[0] <= 5
