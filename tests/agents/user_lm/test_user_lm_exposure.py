"""Pages as they were shown: told word for word as in the run, without what came later and what was not seen."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from agents.choice.model import ChoiceModel
from agents.llm.memory import Retrieval
from agents.llm.user import LLMUser
from agents.user_lm import Example, HeldOut, LoggedPages, PromptOptions, ShownLog
from agents.user_lm.exposure import live_through_again
from recommenders.popularity import Popularity
from simenv.datasets import synthetic
from simenv.datasets.base import Dataset, RatingScale
from simenv.errors import ConfigError, DataError
from simenv.events import Events
from simenv.language_models import Completion, LanguageModel, Request
from simenv.platform import Platform, Schedule

WORLD = synthetic(n_users=30, n_items=60, seed=2)
RETRIEVAL = Retrieval(importance=0.0, similarity=0.0, top=30)
ROUNDS = 4


class Opinionated(LanguageModel):
    """Likes items by their place in the alphabet, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__("opinionated")
        self.asked: dict[str, str] = {}

    async def complete(self, request: Request) -> Completion:
        text = request.messages[-1].content
        self.asked[request.label] = text
        items = re.findall(r'^([A-Z]+): "(.)', text.split("# The page")[1], flags=re.M)
        said = {name: {"interest": 5 * (ord(start) % 20), "rating": 1 + ord(start) % 5} for name, start in items}
        text = json.dumps({"items": said, "satisfaction": 3})
        return Completion(text=text, prompt_tokens=1, completion_tokens=1)


def play(users, **schedule) -> Events:
    platform = Platform(
        WORLD, users, Popularity(), seed=5, schedule=Schedule(**({"slate_size": 6, "max_pages": 2} | schedule))
    )
    rounds = []
    for _ in range(ROUNDS):
        platform.step()
        rounds.append(platform.round_events)
    return Events.concat(rounds)


def llm_users(model: LanguageModel, **options) -> LLMUser:
    users = LLMUser(
        model,
        embedded=ChoiceModel(exit_base=-1.0, memory_size=options.pop("memory_size", 32)),
        **({"retrieval": RETRIEVAL, "attributes": (), "synopsis_length": 0} | options),
    )
    users.bind(WORLD, WORLD.tastes, seed=5)
    return users


def shown(events: Events, dataset: Dataset = WORLD) -> ShownLog:
    return ShownLog(name="a job", dataset=dataset, users=np.arange(dataset.n_users), events=events)


def all_pages(log: ShownLog, options: PromptOptions | None = None) -> list[tuple[Example, Events]]:
    pages = np.arange(len(log.starts))
    return list(live_through_again(log, pages, options or PromptOptions(), np.random.default_rng(0)))


@pytest.fixture(scope="module")
def events() -> Events:
    users = ChoiceModel(base=-0.5)
    users.bind(WORLD, WORLD.tastes, seed=5)
    return play(users, activity=0.6)


@pytest.fixture(scope="module")
def log(events) -> ShownLog:
    return shown(events)


def page_lines(text: str) -> set[str]:
    return {line.partition(": ")[2] for line in text.split("# The page")[1].split("\n") if re.match(r"[A-Z]+: ", line)}


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"digest_every": 2},
        {"digest_every": 0, "memory_size": 7, "conformity": False, "base_rate": 0.3},
        {"digest_every": 3, "attributes": ("taste",), "retrieval": Retrieval(importance=1.0, similarity=0.0, top=3)},
    ],
)
def test_a_text_is_what_the_users_of_the_run_were_told(options):
    """Memory, summary, others' ratings and page of every prompt of a run, from its log alone."""
    model = Opinionated()
    log = shown(play(llm_users(model, **options)))
    found = all_pages(log, PromptOptions(**options))
    assert len(found) == len(model.asked) > 100
    for example, page in found:
        label = f"round {page.round[0]}, page {page.page[0]}, user {page.user[0]}"
        person, _ = model.asked[label].split("\n\n# The page")
        assert example.person == person
        assert page_lines(example.page) == page_lines(model.asked[label])
    texts = "".join(model.asked.values())
    assert "- last page: " in texts
    assert "passed over" in texts
    assert ("Summary:" in texts) == bool(options["digest_every"])
    assert ("others give" in texts) == options.get("conformity", True)


def test_nothing_that_came_later_is_told(log):
    """Memories are of examined items of earlier pages; of the page itself nothing is told but its items."""
    titles, starts = WORLD.catalog.titles, log.starts
    ends = np.append(starts[1:], len(log.events))
    before = {user: [] for user in range(WORLD.n_users)}
    warm = WORLD.interactions
    told_past = 0
    for (example, _), first, last in zip(all_pages(log), starts, ends):
        own = log.events.take(slice(first, last))
        lines = re.findall(r'^- ([^"\n]+): "([^"\n]+)" (\w+)', example.person, flags=re.M)
        past = [
            *((titles[item], "picked") for item in warm.items[warm.users == example.user]),
            *before[example.user],
        ]
        assert [(title, what) for _, title, what in lines] == past[-len(lines) :] if lines else not past
        told_past += sum(when != "before" for when, *_ in lines)
        before[example.user] += [
            (titles[item], "picked" if click else "passed")
            for item, click in zip(own.item[own.examined], own.clicked[own.examined])
        ]
    assert told_past > 500


def test_ratings_of_others_are_those_of_the_rounds_before(log):
    """Changing what happens in the last round changes no text of a page of that round's first page."""
    events = log.events
    last = events.round == events.round.max()
    other = np.where(last & events.clicked, np.float32(1.0), events.rating)
    changed = shown(replace(events, rating=other))
    assert (other[last & events.clicked] != events.rating[last & events.clicked]).any()
    for (example, page), (again, _) in zip(all_pages(log), all_pages(changed)):
        if page.page[0] == 0:
            assert example.person + example.page == again.person + again.page
    later = np.where((events.round == 0) & events.clicked, np.float32(1.0), events.rating)
    texts = [[one.page for one, _ in all_pages(each)] for each in (log, shown(replace(events, rating=later)))]
    assert texts[0] != texts[1]


def test_the_answer_is_what_happened(log):
    for example, page in all_pages(log):
        np.testing.assert_array_equal(example.items, page.item)
        np.testing.assert_array_equal(example.picked, page.clicked)
        np.testing.assert_array_equal(example.examined, page.examined)
        np.testing.assert_array_equal(example.stars, page.rating)
    assert 0.1 < log.events.examined.mean() < 0.9


def test_stars_are_on_the_scale_of_the_prompts(events):
    scaled = replace(WORLD, rating_scale=RatingScale(low=0.0, high=10.0, step=1.0))
    found = all_pages(shown(replace(events, rating=events.rating * 0 + 5), scaled))
    stars = np.concatenate([example.stars for example, _ in found])
    assert set(stars[~np.isnan(stars)].tolist()) == {3.0}


def test_empty_slots_and_second_copies_are_not_told(events):
    """Of a page of six, one slot is empty and two hold the item of the first."""
    kept = events.take((events.round == 0) & (events.page == 0) & (events.rank != 4))
    first = np.repeat(kept.item[kept.rank == 0], 5)
    item = np.where(kept.rank >= 3, first, kept.item)
    copies = replace(kept, item=item, examined=kept.examined & (kept.rank < 3), clicked=kept.clicked & (kept.rank < 3))
    found = all_pages(shown(copies))
    assert len(found) == (kept.rank == 0).sum()
    for example, page in found:
        assert len(example.items) == len(set(example.items.tolist())) == 3
        assert sorted(page.rank.tolist()) == [0, 1, 2]


# -- what is learned --------------------------------------------------------------------------------------------------


def test_passes_take_other_pages_until_all_were_had(log):
    corpus = LoggedPages([log, log], pages=60, seed=1)
    assert corpus.candidates == 6
    passes = [[example.person + example.page for example in corpus.examples(number)] for number in range(3)]
    assert all(30 < len(each) <= 60 for each in passes)
    assert [example.person + example.page for example in corpus.examples(1)] == passes[1]
    assert passes[0] != passes[1]
    n = -(-corpus.n_pages // 60)
    every = sum(len(list(corpus.examples(number))) for number in range(n))
    assert every == corpus.n_pages == 2 * sum(example.examined.any() for example, _ in all_pages(log))
    other = LoggedPages([log, log], pages=60, seed=2)
    assert [example.person + example.page for example in other.examples(0)] != passes[0]


def test_of_what_was_not_examined_nothing_is_learned(log):
    """Neither answer nor line of an item that the log does not call examined is part of what is wanted."""
    pytest.importorskip("torch")
    from agents.user_lm.batches import Reader, answer_texts, digits_wanted
    from agents.user_lm.vocabulary import learn_vocabulary

    corpus = LoggedPages([log], pages=30)
    examples = list(corpus.examples(0))
    some = next(each for each in examples if 0 < each.examined.sum() < len(each.items))
    wanted = digits_wanted(some)
    k = len(some.items)
    np.testing.assert_array_equal(wanted[0 : 2 * k : 2].sum(axis=1) > 0, some.examined)
    satisfaction = wanted[2 * k] @ np.arange(10) / wanted[2 * k].sum()
    assert satisfaction == pytest.approx(1 + 4 * some.picked.sum() / some.examined.sum())
    system = corpus.prompts.render("system")
    texts = (each.person + each.page for each in examples)
    tokenizer = learn_vocabulary(texts, size=1000, system=system, answers=answer_texts(26), max_length=2048)
    reader = Reader(tokenizer, system)
    batch = reader.batch(examples, reader.encode(examples))
    assert batch.picked.tolist() == np.concatenate([each.picked[each.examined] for each in examples]).tolist()
    assert len(batch.lines) == len(batch.picked) < len(batch.titles)
    altered = replace(some, picked=some.picked | ~some.examined)
    np.testing.assert_array_equal(digits_wanted(altered), wanted)


# -- what is held out -------------------------------------------------------------------------------------------------


def test_nothing_held_out_is_in_any_text(log):
    held = HeldOut.draw(WORLD, users=0.2, items=0.2, share=0.3, seed=4)
    part = log.training_part(held)
    assert not held.users[part.users].any()
    assert part.dataset.n_items == (~held.items).sum()
    gone = [WORLD.catalog.titles[item] for item in np.flatnonzero(held.items)]
    texts = [example.person + example.page for example, _ in all_pages(part)]
    assert len(texts) > 50
    assert not any(f'"{title}"' in text for title in gone for text in texts)
    events, late = part.events, np.repeat(log.late(0.3), np.diff(log.starts, append=len(log.events)))
    allowed = {
        (int(r), int(p), int(u), int(i))
        for r, p, u, i in zip(*(getattr(log.events, name)[~late] for name in ("round", "page", "user", "item")))
    }
    items = np.flatnonzero(~held.items)[events.item]
    for r, p, u, i in zip(events.round, events.page, part.users[events.user], items):
        assert (int(r), int(p), int(u), int(i)) in allowed


def test_the_last_pages_of_everybody_are_late(log):
    late, owners = log.late(0.3), log.events.user[log.starts]
    assert late.any()
    for user in range(WORLD.n_users):
        own = late[owners == user]
        n = max(1, int(0.3 * len(own))) if len(own) >= 3 else 0
        assert own.tolist() == [False] * (len(own) - n) + [True] * n


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_log_out_of_order_is_refused(events):
    with pytest.raises(DataError, match=r"a job: events are out of order"):
        shown(events.take(np.arange(len(events))[::-1]))


def test_a_log_of_other_items_is_refused(events):
    with pytest.raises(DataError, match=r"a job: items \d+ to 60; expected 0 to 59"):
        shown(replace(events, item=np.where(events.item == events.item.max(), 60, events.item).astype(np.int32)))


def test_a_log_in_which_nobody_looked_is_refused(events):
    nothing = np.zeros(len(events), np.bool_)
    with pytest.raises(DataError, match="no page with an examined item"):
        LoggedPages([shown(replace(events, examined=nothing, clicked=nothing))])
    with pytest.raises(ConfigError, match="pages=0"):
        LoggedPages([shown(events)], pages=0)
