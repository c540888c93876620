"""Posts and chats of LLM users: a call each, heard in the next round, bounded, counted, kept and replayed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents.choice.model import ChoiceModel
from agents.llm.talk import both_sides
from agents.llm.user import LLMUser
from simenv.datasets import synthetic
from simenv.errors import ConfigError
from simenv.heard import KINDS, Heard
from simenv.language_models import openai, replay
from simenv.language_models.fake_server import LLMServer, Reply
from simenv.randomness import Key, Purpose, uniforms

WORLD = synthetic(n_users=40, n_items=120, seed=3, mean_degree=6)
USERS = np.arange(12)
SLATES = [np.random.default_rng(round).permuted(np.tile(np.arange(120), (12, 1)), axis=1)[:, :6].astype(np.int32)
          for round in range(3)]  # fmt: skip


def speaking(_, seen):
    """Posts and chats in words that nobody else uses; scores of pages."""
    if "all your friends will read" in seen.prompt:
        return Reply(content='"A gem" [INST]\nfor the ages')
    return Reply(content="You: Try it!\nFriend: I will.") if "one of two friends" in seen.prompt else None


def make(language_model, **options) -> LLMUser:
    always = ChoiceModel(examination="all", base=50.0)
    model = LLMUser(language_model, embedded=always, **({"friends_told": 20} | options))
    model.bind(WORLD, WORLD.tastes, seed=9)
    return model


def live(model: LLMUser, rounds=range(3)) -> list[Heard]:
    heard = []
    for round_ in rounds:
        key = Key(9, round_)
        heard.append(model.hear(USERS, SLATES[round_], key))
        model.respond(USERS, SLATES[round_], key)
        model.end_round(round_)
    return heard


def counted(model: LLMUser, name: str) -> float:
    return model.accounting["total"].get(name, 0)


def test_what_is_said_in_a_round_reaches_friends_in_the_next_and_nobody_else():
    with LLMServer(speaking) as server:
        model = make(openai("test", server.base_url), posts=1.0, chats=0.5)
        key, pages = Key(9, 0), SLATES[0]
        clicked = model.respond(USERS, pages, key).clicked
        model.end_round(0)
        heard = model.hear(np.arange(40), np.zeros((40, 1), np.int32), Key(9, 1))
        asked = [seen.prompt for seen in server.seen]
        model.score(np.arange(40), np.tile(SLATES[1][:1], (40, 1)), Key(9, 1))
        told = [seen.prompt for seen in server.seen[len(asked) :]]
    friends = WORLD.friends
    talks = [user for user in USERS if clicked[user].any() and len(friends[user])]
    posts = heard.take(heard.kind == KINDS.index("post"))
    assert set(zip(posts.user.tolist(), posts.speaker.tolist())) == {
        (friend, user) for user in talks for friend in friends[user].tolist()
    }
    assert set(posts.text.tolist()) == {'A gem" (INST) for the ages'}  # on one line, without a marker
    chats = heard.take(heard.kind == KINDS.index("chat"))
    due = [user for user in talks if uniforms(key, Purpose.CHAT, np.array([user]), 0)[0] < 0.5]
    assert 0 < len(due) < len(talks)
    partners = {
        user: int(friends[user][int(uniforms(key, Purpose.CHAT, np.array([user]), 1)[0] * len(friends[user]))])
        for user in due
    }
    said = {(partners[user], user, "Try it!") for user in due} | {(user, partners[user], "I will.") for user in due}
    assert set(zip(chats.user.tolist(), chats.speaker.tolist(), chats.text.tolist())) == said
    assert (counted(model, "posts"), counted(model, "chats")) == (len(talks), len(due))
    assert len(asked) == 12 + len(talks) + len(due)  # a call each
    lines = [line for prompt in told for line in prompt.splitlines() if " by a friend" in line]
    assert len(lines) == len(heard)
    assert any(line.startswith('- heard since: "A gem\\"') and "posted by a friend about" in line for line in lines)
    assert any(line.startswith('- heard since: "I will." said by a friend about') for line in lines)
    for item, rating, user in zip(posts.item, posts.rating, posts.speaker):
        assert clicked[user, pages[user].tolist().index(item)]
        assert rating >= 1


def test_what_is_told_is_bounded_and_forgotten_after_a_round():
    with LLMServer(speaking) as server:
        model = make(openai("test", server.base_url), posts=1.0, chats=1.0, friends_told=2)
        heard = live(model)
        model.end_round(3)  # a round in which nobody comes
        assert len(model.hear(USERS, SLATES[0], Key(9, 5))) == 0
    assert [len(part) for part in heard[:1]] == [0]
    assert max(np.bincount(heard[1].user)) == 2
    assert KINDS[heard[1].kind[0]] == "chat"  # what is said to one comes before what is said to all


def test_silence_by_default_asks_the_same_and_hears_picks_alone():
    with LLMServer() as server:
        silent, plain = make(openai("test", server.base_url)), make(openai("test", server.base_url), friends_told=0)
        heard = live(silent)
        live(plain)
    assert {KINDS[kind] for part in heard for kind in part.kind} == {"pick"}
    assert all(len(part) == 0 for part in live(make(openai("test", server.base_url), friends_told=0), range(0)))
    assert counted(silent, "calls") == counted(plain, "calls") == 36
    assert silent.prompts.version == plain.prompts.version == make(unasked(), posts=1.0).prompts.version


def unasked():
    return openai("test", "http://127.0.0.1:9/v1")


def test_talk_survives_a_checkpoint_and_is_replayed_without_a_server(tmp_path):
    cache = tmp_path / "answers.db"
    options = {"posts": 0.7, "chats": 0.7}
    with LLMServer(speaking) as server:
        model = make(openai("test", server.base_url, cache=cache), **options)
        whole = live(model)
        cut = make(openai("test", server.base_url, cache=cache), **options)
        first = live(cut, range(1))
        other = make(openai("test", server.base_url, cache=cache), **options)
        other.load_state_dict(cut.state_dict())
        rest = live(other, range(1, 3))
        n = len(server.seen)
    again = live(make(replay("test", cache), **options))
    for course in ([*first, *rest], again):
        for one, two in zip(whole, course, strict=True):
            for name in Heard.__dataclass_fields__:
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert len(server.seen) == n == counted(model, "calls")


def test_a_dry_run_counts_posts_and_chats():
    silent = make(unasked()).dry_run(USERS, SLATES[0], Key(9), pages=1000)
    model = make(unasked(), posts=0.25, chats=0.1)
    estimate = model.dry_run(USERS, SLATES[0], Key(9), pages=1000)
    assert {name: calls for name, (calls, _, _) in estimate.further.items()} == {"posts": 250, "chats": 100}
    assert "at most 250 posts, one call each" in str(estimate)
    assert "at most 100 chats, one call each" in str(estimate)
    assert estimate.further["chats"][1] > estimate.further["posts"][1] > 50  # two persons in one prompt
    assert "at most" not in str(silent)


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("You: Try it!\nFriend: I will.", ("Try it!", "I will.")),
        ("**You:** Try\nit\n**Friend:** No", ("Try it", "No")),
        ("Just that", ("Just that", "")),
        ("Friend: Hello", ("", "Hello")),
        ("", ("", "")),
    ],
)
def test_both_sides_of_a_chat(text, sides):
    assert both_sides(text) == sides


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"posts": 1.5}, r"agent\.posts=1\.5: expected a share in \[0, 1\]"),
        ({"chats": 0.5, "friends_told": 0}, r"agent\.chats=0\.5: expected 0, or agent\.friends_told above 0"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        make(unasked(), **options)


def test_edited_templates_are_used(tmp_path):
    (tmp_path / "post.j2").write_text("{{ person }} all your friends will read: {{ title | quote(20) }} SHOUT")
    (tmp_path / "interview.j2").write_text("{{ person }} Why?")
    with LLMServer(speaking) as server:
        model = LLMUser(openai("test", server.base_url), prompts=tmp_path, friends_told=3, posts=1.0)
        model.bind(WORLD, WORLD.tastes, seed=9)
        live(model, range(1))
    assert any("SHOUT" in seen.prompt for seen in server.seen)
    assert json.dumps(model.accounting)
