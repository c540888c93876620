"""The served model in a process of its own, tiny and random, asked by the openai client and by ours."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from agents.llm.answers import page_schema, parse_page
from agents.llm.user import LLMUser
from recommenders.popularity import Popularity
from simenv.datasets import synthetic
from simenv.errors import MissingExtraError
from simenv.language_models import LanguageModelError, Message, Request, UnansweredError, openai, run, serve
from simenv.language_models.quoting import opaque_ids
from simenv.language_models.wire.client import OpenAICompatible
from simenv.platform import Platform, Schedule
from tests.simenv.language_models.local.test_model import backend, save_tiny_model

pytest.importorskip("torch")
pytest.importorskip("uvicorn")
ROOT = Path(__file__).resolve().parents[4]
SCHEMA = page_schema("AB")


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    url: str
    model: str
    folder: Path

    def post(self, body: object, path: str = "/chat/completions") -> tuple[int, dict]:
        """Status and body of a raw exchange; `body` as bytes is sent as it is."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._exchange(urllib.request.Request(self.url + path, data=data))

    def get(self, path: str) -> tuple[int, dict]:
        return self._exchange(urllib.request.Request(self.url.removesuffix("/v1") + path))

    @staticmethod
    def _exchange(asked: urllib.request.Request) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def body(self, **changes: object) -> dict:
        """A chat completion's body about a page; None takes a field out."""
        named = {"name": "answer", "strict": True, "schema": SCHEMA}
        whole = {
            "model": self.model,
            "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Alien"}],
            "temperature": 0,
            "max_tokens": 100,
            "response_format": {"type": "json_schema", "json_schema": named},
        }
        return {name: value for name, value in (whole | changes).items() if value is not None}


@contextlib.contextmanager
def serving(folder: Path, *options: str):
    """A server of a folder's model, killed at the end if it still runs."""
    command = [sys.executable, "-m", "simenv.language_models.serve", "--path", str(folder), "--device", "cpu", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            ready = process.stdout.readline().split()
            assert ready[:1] == ["serving"], process.stderr.read()
            yield Served(process, ready[3], ready[1], folder)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("served") / "tiny", max_length=8192)


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as served:
        yield served


@pytest.fixture(scope="module")
def logits(folder):
    with serving(folder, "--readout", "logits", "--model", "users", "--batch-size", "8") as served:
        yield served


def pages(n: int) -> list[Request]:
    return [
        Request(
            messages=(Message("system", "Judge."), Message("user", "Film " * (1 + i % 5) + str(i))),
            schema=SCHEMA,
            max_tokens=100,
        )
        for i in range(n)
    ]


def ask_all(server: Served, requests: list[Request]):
    """Every request at once, through the project's own client."""

    async def everything():
        model = OpenAICompatible(server.model, server.url)
        try:
            return await asyncio.gather(*(model.complete(request) for request in requests))
        finally:
            await model.aclose()

    return run(everything())


def test_the_openai_client_gets_what_the_model_says_in_process(server):
    from openai import OpenAI

    with OpenAI(api_key="none", base_url=server.url, max_retries=0) as client:
        said = client.chat.completions.create(**server.body())
        free = client.chat.completions.create(**server.body(response_format=None, max_tokens=5, seed=3))
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"
    local = backend(server.folder)
    messages = (Message("system", "Judge."), Message("user", "Alien"))
    page, text = local.answer(
        [Request(messages=messages, schema=SCHEMA, max_tokens=100), Request(messages=messages, max_tokens=5)]
    )
    assert (said.model, said.object, said.choices[0].finish_reason) == ("tiny", "chat.completion", "stop")
    assert said.choices[0].message.content == page.text
    usage = said.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (page.prompt_tokens, page.completion_tokens)
    assert usage.total_tokens == page.prompt_tokens + page.completion_tokens
    assert (free.choices[0].message.content, free.choices[0].finish_reason) == (text.text, text.finish)


def test_sixteen_at_once_get_their_own_answers(server):
    requests = pages(16)
    answers = ask_all(server, requests)
    assert [answer.text for answer in answers] == [a.text for a in backend(server.folder).answer(requests)]
    assert len({answer.text for answer in answers}) > 8


def test_logits_come_over_the_wire_as_they_are(logits):
    """Numbers with decimals where the schema says integers, which our parser reads; the name is that of the cache."""
    requests = pages(16)
    local = backend(logits.folder, model="users", readout="logits")
    assert logits.model == local.model == "users:logits"
    for far, near in zip(ask_all(logits, requests), local.answer(requests)):
        one, two = parse_page(far.text, opaque_ids(2)), parse_page(near.text, opaque_ids(2))
        assert not one.repaired
        np.testing.assert_allclose(one.interest, two.interest, atol=1e-3)
        np.testing.assert_allclose(one.rating, two.rating, atol=1e-4)
    assert (one.interest != one.interest.round()).any()


def test_a_draw_is_keyed_by_the_request(server):
    bodies = [server.body(temperature=2, messages=[{"role": "user", "content": str(i)}]) for i in range(4)]
    drawn = [[server.post(body)[1]["choices"][0]["message"]["content"] for body in bodies] for _ in range(2)]
    assert drawn[0] == drawn[1]
    unheated = [server.post(body | {"temperature": None})[1]["choices"][0]["message"]["content"] for body in bodies]
    assert unheated != [
        server.post(body | {"temperature": 0})[1]["choices"][0]["message"]["content"] for body in bodies
    ]


def test_other_ways_to_say_the_same(server):
    plain = server.post(server.body())[1]["choices"][0]["message"]["content"]
    parts = [{"type": "text", "text": "Ali"}, {"type": "text", "text": "en"}]
    messages = [{"role": "developer", "content": "Judge."}, {"role": "user", "content": parts}]
    for changes in (
        {"messages": messages},
        {"max_tokens": None, "max_completion_tokens": 100},
        {"max_tokens": None},
        {"stream": False, "n": 1, "top_p": 1.0, "stop": [], "tools": [], "seed": 7, "user": "me", "metadata": {}},
    ):
        status, answer = server.post(server.body(**changes))
        assert (status, answer["choices"][0]["message"]["content"]) == (200, plain), changes


def test_health_and_models(server, logits):
    assert server.get("/health") == (200, {"status": "ok", "model": "tiny"})
    status, listed = logits.get("/v1/models")
    assert (status, [card["id"] for card in listed["data"]]) == (200, ["users:logits"])
    assert logits.get("/v1/models/users:logits")[1] == listed["data"][0]


WORDY = {"type": "object", "properties": {"A": {"type": "string"}}}


@pytest.mark.parametrize(
    ("changes", "status", "code", "says"),
    [
        ({"model": "gpt"}, 404, "model_not_found", "'tiny'"),
        ({"model": None}, 400, "invalid_body", "model: Field required"),
        ({"messages": None}, 400, "invalid_body", "messages"),
        ({"messages": []}, 400, "invalid_body", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_body", "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_body", "messages.0"),
        ({"temperature": -1}, 400, "invalid_body", "temperature"),
        ({"temperature": float("nan")}, 400, "invalid_body", "temperature"),
        ({"max_tokens": 0}, 400, "invalid_body", "max_tokens"),
        ({"max_tokens": True}, 400, "invalid_body", "max_tokens"),
        ({"max_tokens": 9000}, 400, "context_length_exceeded", "the model takes 8192"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, 400, "context_length_exceeded", "90"),
        ({"stream": True}, 400, "unsupported_parameter", "stream=true"),
        ({"n": 2}, 400, "unsupported_parameter", "n=2"),
        ({"stop": ["x"]}, 400, "unsupported_parameter", "stop"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "xml"}}, 400, "invalid_body", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, 400, "invalid_body", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": WORDY}}},
            400,
            "unsupported_schema",
            "'A': string",
        ),
        ({"response_format": {"type": "json_object"}, "max_tokens": 5}, 400, "json_validate_failed", "json_schema"),
    ],
)
def test_what_cannot_be_answered_is_said_in_the_protocols_form(server, changes, status, code, says):
    got, answer = server.post(server.body(**changes))
    assert (got, answer["error"]["code"]) == (status, code)
    assert answer["error"]["type"] == "invalid_request_error"
    assert says in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_bodies_and_addresses_that_are_none(server):
    for sent, status, code in (
        (b"{", 400, "invalid_json"),
        (b"\xff", 400, "invalid_json"),
        (b"[" * 10**5, 400, "invalid_json"),
    ):
        got, answer = server.post(sent)
        assert (got, answer["error"]["code"]) == (status, code)
    assert server.post([])[1]["error"]["code"] == "invalid_body"
    assert server.post(b" " * (5 << 20))[1]["error"]["code"] == "body_too_large"
    for path, status, code in (("/v2", 404, "unknown_url"), ("/v1/chat/completions", 405, "method_not_allowed")):
        got, answer = server.get(path)
        assert (got, answer["error"]["code"]) == (status, code)
    assert server.get("/health")[0] == 200


def test_our_client_understands_the_errors(server):
    long = Request(messages=(Message("user", "x" * 9000),), schema=SCHEMA, max_tokens=10)
    with pytest.raises(UnansweredError, match="context_overflow"):
        ask_all(server, [long])
    stranger = Served(server.process, server.url, "stranger", server.folder)
    with pytest.raises(LanguageModelError, match=r"stranger.*HTTP 404.*this server has 'tiny'"):
        ask_all(stranger, pages(1))


def test_one_bad_request_among_many_spoils_no_other(server):
    bodies = [server.body(messages=[{"role": "user", "content": f"Film {i}"}]) for i in range(8)]
    bodies[3] = server.body(max_tokens=9000)
    answers: dict[int, int] = {}

    def ask(i: int) -> None:
        answers[i] = server.post(bodies[i])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i] for i in range(8)] == [200, 200, 200, 400, 200, 200, 200, 200]


def test_what_cannot_be_served_is_one_line(folder, capsys, monkeypatch):
    assert serve.main(["--path", str(folder / "absent")]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert serve.main(["--path", str(folder), "--port", str(taken.getsockname()[1])]) == 2
    assert serve.main(["--path", str(folder), "--host", "nowhere"]) == 2
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.main(["--path", str(folder)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [word in line for word, line in zip(("config.json", "--port", "--host nowhere", "'serve'"), lines)] == [
        True
    ] * 4


def test_the_protocol_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.delitem(sys.modules, "simenv.language_models.local.endpoint", raising=False)
    with pytest.raises(MissingExtraError, match=r"simenv\.language_models\.serve needs the extra 'serve'"):
        importlib.import_module("simenv.language_models.local.endpoint")


def test_llm_users_live_on_it_from_end_to_end(logits):
    """Two rounds of a platform whose users ask the server: every page is answered, none by the stand-in."""
    world = synthetic(n_users=10, n_items=40, seed=0)
    users = LLMUser(openai(logits.model, logits.url, concurrency=16))
    users.bind(world, world.tastes, seed=0)
    platform = Platform(world, users, Popularity(), seed=0, schedule=Schedule(slate_size=3))
    for _ in range(2):
        platform.step()
    total = users.accounting["total"]
    assert total["pages"] == total["calls"] > 10
    assert total["fallbacks"] == 0
    assert total["prompt_tokens"] > 1000 * total["calls"]


def test_a_signal_lets_what_is_in_flight_finish(server, logits):
    """The last test: it stops both servers, one by each signal, once they have read twenty pages."""
    for served, number in ((server, signal.SIGTERM), (logits, signal.SIGINT)):
        with contextlib.ExitStack() as stack:
            netloc = urlsplit(served.url).netloc
            asked = [stack.enter_context(contextlib.closing(HTTPConnection(netloc, timeout=60))) for _ in range(20)]
            for i, connection in enumerate(asked):
                body = served.body(messages=[{"role": "user", "content": f"Film {i} " * 20}])
                connection.request("POST", "/v1/chat/completions", json.dumps(body))
            assert served.get("/health")[0] == 200  # read after the others
            served.process.send_signal(number)
            answers = [connection.getresponse() for connection in asked]
            assert [answer.status for answer in answers] == [200] * 20
            assert len({json.load(answer)["id"] for answer in answers}) == 20
        assert served.process.wait(60) == 0
        assert "Traceback" not in served.process.stderr.read()
        with pytest.raises(urllib.error.URLError):
            served.get("/health")
