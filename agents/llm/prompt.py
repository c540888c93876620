"""PagePrompt: what a language model is told about a user and a page.

It reads profile, memory and catalogue, and fills the templates; it draws nothing, calls nothing, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.llm.memory import Events, Retrieval, importance
from agents.llm.templates import Prompts
from agents.population.hearsay import said
from agents.population.rows import Population
from simenv.datasets.base import Dataset
from simenv.language_models import Message as ChatMessage
from simenv.language_models.quoting import plain, quote

OTHERS_PRIOR = 5.0  # an item's mean rating counts as if this many ratings of the population's mean came with it


class OthersRatings:
    """What others gave each item so far, from the warm start on.

    Attributes:
        sums, counts: (n_items,) of ratings, on the data set's scale.
    """

    def __init__(self, dataset: Dataset) -> None:
        log, n = dataset.interactions, dataset.n_items
        rated = ~np.isnan(log.ratings)
        self.counts = np.bincount(log.items[rated], minlength=n).astype(np.float64)
        self.sums = np.bincount(log.items[rated], weights=log.ratings[rated], minlength=n)
        total = self.counts.sum()
        self.scale = dataset.rating_scale
        self._prior = float(self.sums.sum() / total) if total else float(self.scale.low)

    def add(self, items: NDArray[Any], ratings: NDArray[Any]) -> None:
        """Count further ratings, (n,) items and what they were given."""
        np.add.at(self.counts, items, 1.0)
        np.add.at(self.sums, items, ratings.astype(np.float64))

    def means(self) -> NDArray[np.float64]:
        """Every item's mean rating, on 1-5, shrunk to the mean of all, (n_items,)."""
        mean = (self.sums + OTHERS_PRIOR * self._prior) / (self.counts + OTHERS_PRIOR)
        return np.asarray(1.0 + 4.0 * (mean - self.scale.low) / (self.scale.high - self.scale.low))


_HEARD = {"pick": "picked", "post": "posted", "chat": "said"}


class Message(NamedTuple):
    """What one user hears from another."""

    kind: str  # one of `simenv.heard.KINDS`
    speaker: int
    item: int  # it is about
    rating: float  # the speaker's, NaN = none
    text: str  # "" = the fact alone


class Told(NamedTuple):
    """An item of a page, as the template `slate` sees it."""

    id: str
    title: str
    genres: list[str]
    others: float | None
    synopsis: str


class Recalled(NamedTuple):
    """An event of the past, as the template `person` sees it."""

    when: str
    title: str
    what: str


class PagePrompt:
    """Writes prompts, in the order static rules, user, memory, page, so that servers can cache the common prefix.

    Args:
        prompts: the templates.
        dataset: whose users and items they are.
        population: the users as they are now.
        retrieval: how memories are weighed.
        conformity: show others' mean rating to conformist users.
        masked: show items without their titles, to see what a model knows by heart.
        attributes: names of user attributes to tell, where the data set has them.
        synopsis_length: characters of an item's description; 0 = none.
        base_rate: share of items shown that a user picks, as told to the model.

    Attributes:
        others: (n_items,) mean rating by other people, on 1-5.
        digests, notes: summary and reflections by user.
        friends_told: what friends picked or said in the last round that is told at most; 0 = nothing.
        messages: what friends said in words in the last round, by who hears it.
        round: the one being played.
    """

    def __init__(
        self,
        prompts: Prompts,
        dataset: Dataset,
        population: Population,
        *,
        retrieval: Retrieval,
        conformity: bool,
        masked: bool,
        attributes: Sequence[str],
        synopsis_length: int,
        base_rate: float,
    ) -> None:
        self.prompts = prompts
        self.dataset = dataset
        self.population = population
        self.retrieval = retrieval
        self.conformity = conformity
        self.masked = masked
        self.attributes = tuple(attributes)
        self.synopsis_length = synopsis_length
        self.base_rate = base_rate
        self.system = ChatMessage("system", prompts.render("system"))
        self.others: NDArray[np.float64] = np.full(dataset.n_items, np.nan)
        self.digests: dict[int, str] = {}
        self.notes: dict[int, list[str]] = {}
        self.friends_told = 0
        self.messages: dict[int, list[Message]] = {}
        self.round = 0
        self._genres: dict[int, list[str]] = {}

    def page(
        self, user: int, items: NDArray[np.int32], ids: Sequence[str], *, brief: bool = False
    ) -> tuple[ChatMessage, ...]:
        """The messages that ask one user about one page.

        Args:
            user: row of the population.
            items: (k,) in the order shown.
            ids: what the items are called, k opaque names.
            brief: without memory and synopses, for models with a short context.
        """
        shows_others = self.conformity and self.population.traits.conformity_tier[user] == 0
        slate = self.prompts.render(
            "slate",
            items=[self._item(int(item), name, shows_others, brief) for item, name in zip(items, ids, strict=True)],
            synopsis_length=self.synopsis_length,
        )
        return (self.system, ChatMessage("user", f"{self.person(user, items, brief=brief)}\n\n{slate}"))

    def person(self, user: int, items: NDArray[np.int32], *, brief: bool = False) -> str:
        """Profile and memory of one user; `items` are what is on the user's mind, and decide what is recalled."""
        traits, scale = self.population.traits, self.dataset.rating_scale
        return self.prompts.render(
            "person",
            attributes=self._attributes(user),
            activity_tier=int(traits.activity_tier[user]),
            n_consumed=int(np.bitwise_count(self.population.clicked_bits[user]).sum()),
            liked_genres=self._genre_names(traits.top_genres[user]),
            disliked_genres=self._genre_names(traits.bottom_genres[user]),
            diversity=float(traits.diversity_pct[user]),
            popularity=float(traits.popularity_pct[user]),
            conformity_tier=int(traits.conformity_tier[user]),
            rating_mean=self.stars(float(traits.rating_mean[user])),
            rating_sd=float(traits.rating_sd[user]) * 4.0 / (scale.high - scale.low),
            base_rate=self.base_rate,
            digest="" if brief else self.digests.get(user, ""),
            notes=[] if brief else self.notes.get(user, []),
            events=[] if brief else [*self._memories(user, items), *self._heard(user)],
        )

    def digest(self, user: int) -> str:
        """A summary by rule of what a user remembers: how much was picked, and how which genre was rated."""
        events = Events.of(self.population, user)
        if len(events) == 0:
            return ""
        rated = ~np.isnan(events.ratings)
        parts = [f"picked {int(events.clicked.sum())} of the last {len(events)} items looked at"]
        genres = self.dataset.catalog.genres[events.items]
        most_rated = np.argsort(-genres[rated].sum(axis=0), kind="stable")[:4]
        for genre in most_rated:
            ratings = events.ratings[rated & genres[:, genre]]
            if len(ratings) >= 2:
                name = plain(self.dataset.catalog.genre_names[genre], 24)
                parts.append(f"{name} rated {self.stars(float(ratings.mean())):.1f}")
        return ", ".join(parts) + "."

    def stars(self, rating: float) -> float:
        """A rating on the data set's scale as one from 1 to 5, the scale of every prompt."""
        scale = self.dataset.rating_scale
        return 1.0 + 4.0 * (rating - scale.low) / (scale.high - scale.low)

    def title(self, item: int) -> str:
        """What an item is called in prompts."""
        return f"Item {item}" if self.masked else self.dataset.catalog.titles[item]

    def _attributes(self, user: int) -> list[tuple[str, str]]:
        known = self.dataset.user_attributes
        return [(name, str(known[name][user])) for name in self.attributes if name in known]

    def _genre_names(self, genres: NDArray[Any]) -> list[str]:
        return [self.dataset.catalog.genre_names[genre] for genre in genres if genre >= 0]

    def _item(self, item: int, name: str, shows_others: bool, brief: bool) -> Told:
        catalog = self.dataset.catalog
        if item not in self._genres:
            self._genres[item] = [catalog.genre_names[genre] for genre in np.flatnonzero(catalog.genres[item])]
        told = catalog.texts and self.synopsis_length and not brief and not self.masked
        return Told(
            id=name,
            title=self.title(item),
            genres=self._genres[item],
            others=float(self.others[item]) if shows_others else None,
            synopsis=catalog.texts[item] if told else "",
        )

    def _memories(self, user: int, items: NDArray[np.int32]) -> list[Recalled]:
        events = Events.of(self.population, user)
        rows = slice(None) if len(events) <= self.retrieval.top else self._recalled(user, events, items)
        return [
            Recalled(
                when="before" if round < 0 else "last page" if ago == 1 else f"{ago} pages ago",
                title=self.title(item),
                what=("picked" if clicked else "passed over")
                + ("" if math.isnan(rating) else f", rated {self.stars(rating):.2g}"),
            )
            for round, ago, item, clicked, rating in zip(
                events.rounds[rows].tolist(),
                events.pages_ago[rows].tolist(),
                events.items[rows].tolist(),
                events.clicked[rows].tolist(),
                events.ratings[rows].tolist(),
                strict=True,
            )
        ]

    def told(self, user: int, round: int) -> list[Message]:
        """What a user hears in a round, `friends_told` messages at most: what was said to it first, chats before posts,
        then what friends picked, the newest first and friends in turn."""
        friends = self.dataset.friends
        if not self.friends_told or friends is None:
            return []
        picks = said(self.population, friends, user, round, 1)
        messages = [*self.messages.get(user, ()), *(Message("pick", *pick, "") for pick in picks)]
        return messages[: self.friends_told]

    def _heard(self, user: int) -> list[Recalled]:
        """What friends say: lines of the memory, marked as theirs."""
        return [
            Recalled(
                when="heard since",
                title=message.text or self.title(message.item),
                what=f"{_HEARD[message.kind]} by a friend"
                + (f" about {quote(self.title(message.item), 80)}" if message.text else "")
                + ("" if math.isnan(message.rating) else f", who rated it {self.stars(message.rating):.2g}"),
            )
            for message in self.told(user, self.round)
        ]

    def _recalled(self, user: int, events: Events, items: NDArray[np.int32]) -> NDArray[np.int64]:
        """Rows of the events to tell."""
        vectors = self.population.tastes.choice.item_vectors
        weight = self._importance(user, events) if self.retrieval.importance else np.zeros(len(events))
        return self.retrieval.recall(events, weight, vectors[events.items], vectors[items].mean(axis=0))

    def _importance(self, user: int, events: Events) -> NDArray[np.float64]:
        scale = self.dataset.rating_scale
        return importance(
            events.ratings,
            float(self.population.traits.rating_mean[user]),
            (scale.high - scale.low) / 2,
            self._familiarity(user, events.items),
        )

    def _familiarity(self, user: int, items: NDArray[np.int32]) -> NDArray[np.float64]:
        """Mean share of each item's genres in what the user consumed, (n,)."""
        counts = self.population.genre_counts[user].astype(np.float64)
        share = counts / max(counts.sum(), 1.0)
        genres = self.dataset.catalog.genres[items]
        return np.asarray((genres @ share) / np.maximum(genres.sum(axis=1), 1))
