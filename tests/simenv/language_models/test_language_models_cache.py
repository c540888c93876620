"""The response cache: exact replay, in one process and in several."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

from simenv.errors import ConfigError
from simenv.language_models import (
    CacheMiss,
    Completion,
    LanguageModel,
    Message,
    Request,
    UnansweredError,
    connect,
    replay,
    run,
)
from simenv.language_models.cache import Cached


class Moody(LanguageModel):
    """Never says the same twice; refuses what says so."""

    def __init__(self, model: str = "moody", mood: str = "") -> None:
        super().__init__(model)
        self.mood = mood
        self.asked = 0

    async def complete(self, request: Request) -> Completion:
        self.asked += 1
        number = self.asked
        await asyncio.sleep(0.002)
        if "refuse" in request.messages[0].content:
            raise UnansweredError("refusal", "no")
        return Completion(text=f"{self.mood}{number}", prompt_tokens=7, completion_tokens=3)


def ask(text: str = "hello", **changes) -> Request:
    return Request(messages=(Message("user", text),), **changes)


def gather(model: LanguageModel, *requests: Request):
    async def everything():
        return await asyncio.gather(*(model.complete(request) for request in requests), return_exceptions=True)

    return run(everything())


def test_the_second_time_is_free_and_equal(tmp_path):
    backend = Moody()
    model = connect(backend, cache=tmp_path / "deep" / "cache.db", budget_calls=1)
    first, second = run(model.complete(ask())), run(model.complete(ask()))
    assert (first.text, first.cached, second.cached) == ("1", False, True)
    assert replace(second, cached=False) == first
    total = model.ledger.as_dict()["total"]
    assert (total["calls"], total["cached"], total["prompt_tokens"]) == (1, 1, 7)


@pytest.mark.parametrize(
    "other",
    [
        ask("goodbye"),
        ask(attempt=1),
        ask(temperature=0.5),
        ask(max_tokens=9),
        ask(prompt_version="2"),
        ask(schema={"type": "object"}),
        Request(messages=(Message("system", "hello"),)),
        Request(messages=(Message("user", "hello"), Message("user", ""))),
    ],
)
def test_whatever_decides_an_answer_is_in_the_key(other):
    assert ask().key("m", {}) != other.key("m", {})
    assert other.key("m", {}) != other.key("n", {}) != other.key("n", {"top_p": 1})


def test_the_key_is_stable_and_blind_to_the_label():
    assert ask(label="round 1").key("m", {"a": 1, "b": 2}) == ask().key("m", {"b": 2, "a": 1})
    golden = "b0f01e2e1b6db6e2"
    assert ask().key("m", {})[:16] == golden


def test_equal_requests_in_flight_are_asked_once(tmp_path):
    backend = Moody()
    answers = gather(connect(backend, cache=tmp_path / "c.db"), *[ask()] * 8)
    assert backend.asked == 1
    assert {answer.text for answer in answers} == {"1"}


def test_replay_needs_no_backend(tmp_path):
    path = tmp_path / "c.db"
    live = connect(Moody(), cache=path)
    requests = [ask(f"page {i}") for i in range(20)]
    answers = gather(live, *requests)
    run(live.aclose())
    again = gather(replay("moody", path), *reversed(requests))
    assert [answer.text for answer in again] == [answer.text for answer in reversed(answers)]


def test_a_miss_names_what_is_missing(tmp_path):
    path = tmp_path / "c.db"
    run(connect(Moody(), cache=path).complete(ask()))
    with pytest.raises(CacheMiss, match=r"'moody' for round 2, page 0, user 5, attempt 1, prompts v3"):
        run(replay("moody", path).complete(ask("new", attempt=1, prompt_version="v3", label="round 2, page 0, user 5")))
    with pytest.raises(CacheMiss, match="'another'"):
        run(replay("another", path).complete(ask()))


def test_giving_up_is_replayed_once_the_run_went_on(tmp_path):
    path = tmp_path / "c.db"
    live = connect(Moody(), cache=path)
    with pytest.raises(UnansweredError, match="refusal"):
        run(live.complete(ask("refuse")))
    with pytest.raises(CacheMiss):
        run(replay("moody", path).complete(ask("refuse")))
    run(live.commit())
    with pytest.raises(UnansweredError) as caught:
        run(replay("moody", path).complete(ask("refuse")))
    assert caught.value.reason == "refusal"


def test_a_failure_is_not_asked_again_in_the_same_run(tmp_path):
    backend = Moody()
    model = connect(backend, cache=tmp_path / "c.db")
    for _ in range(2):
        with pytest.raises(UnansweredError):
            run(model.complete(ask("refuse")))
    assert backend.asked == 1


def test_the_first_answer_stored_is_everybodys(tmp_path):
    """Two caches on one file, as in two processes: both run, and both replay, on one answer."""
    models = [Cached(Moody(mood=mood), tmp_path / "c.db") for mood in ("glad ", "sad ")]

    async def both():
        return await asyncio.gather(*(model.complete(ask()) for model in models))

    first, second = run(both())
    assert first.text == second.text


def test_processes_share_a_file(tmp_path):
    path = tmp_path / "c.db"
    program = textwrap.dedent(
        """
        import asyncio, sys
        from simenv.language_models import Completion, LanguageModel, Message, Request, connect, run
        class Named(LanguageModel):
            async def complete(self, request):
                await asyncio.sleep(0.001)
                return Completion(text=sys.argv[2], prompt_tokens=1, completion_tokens=1)
        model = connect(Named("m"), cache=sys.argv[1])
        async def everything():
            requests = (Request(messages=(Message("user", str(i)),)) for i in range(200))
            return await asyncio.gather(*(model.complete(request) for request in requests))
        print("".join(answer.text for answer in run(everything())))
        """
    )
    command = [sys.executable, "-c", program, str(path)]
    running = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abc"]
    saw = {process.communicate(timeout=60)[0].strip() for process in running}
    assert len(saw) == 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (200,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_prompts_are_not_stored(tmp_path):
    model = connect(Moody(), cache=tmp_path / "c.db")
    run(model.complete(ask("a private thought")))
    run(model.aclose())
    assert b"private" not in (tmp_path / "c.db").read_bytes()


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.db"):
        replay("m", tmp_path / "absent.db")
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to be read as one" * 20)
    with pytest.raises(ConfigError, match=r"text\.db"):
        run(connect(Moody(), cache=tmp_path / "text.db").complete(ask()))
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE answers (question TEXT)")
    other.close()
    with pytest.raises(ConfigError, match=r"other\.db"):
        run(connect(Moody(), cache=tmp_path / "other.db").complete(ask()))


@pytest.mark.parametrize("where", ["text", "completion_tokens", "digest", "page"])
def test_a_bit_flip_in_mid_run_is_met_with_the_name_of_the_file(tmp_path, where):
    path = tmp_path / "c.db"
    model = connect(Moody(), cache=path)
    run(model.complete(ask()))
    if where == "page":  # what SQLite itself stumbles over, behind the back of the open connection
        run(model.aclose())
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
    else:
        with sqlite3.connect(path) as other:
            (old,) = other.execute(f"SELECT {where} FROM answers").fetchone()
            flipped = old ^ 4 if isinstance(old, int) else chr(ord(old[0]) ^ 4) + old[1:]
            other.execute(f"UPDATE answers SET {where} = ?", (flipped,))
        other.close()
    for text in ("hello", "hello") if where != "page" else ("hello", "something new"):
        with pytest.raises(ConfigError, match=r"llm\.cache=.*c\.db: .*(damaged|malformed)"):
            run(model.complete(ask(text)))
    if where != "page":
        assert run(model.complete(ask("something new"))).text == "2"  # the run's other answers are as good as before
    run(model.aclose())
