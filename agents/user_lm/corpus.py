"""Corpus: histories as a language model is told them - person, memory, page - with what really was picked.

Each example stands at one moment of one user's life: traits and memory are those of the interactions before it, the
page holds what the user picked soon after, among items the user never had in the training part. Each of those is
matched in popularity with one that was picked, so that popularity does not give the answer away; they are others in
every pass, so that none becomes known for being passed over. The module knows neither tokens nor networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agents.base import require
from agents.llm.memory import Retrieval
from agents.llm.prompt import OthersRatings, PagePrompt
from agents.llm.templates import Prompts
from agents.population.rows import Population
from agents.population.traits import Traits
from simenv.datasets.base import Dataset, Head, Interactions, LongArray, Tastes
from simenv.datasets.splits import last_share, match_popularity, pair_keys, sample_unseen
from simenv.errors import DataError
from simenv.language_models import Message
from simenv.language_models.quoting import opaque_ids
from simenv.numeric import places_in_groups

NEGATIVES = ("matched", "uniform")
NEARLY = 0.2  # difference in the logarithm of popularity
PAGE = "\n\n# The page"  # where a prompt goes on from the person to the page
LIVED_PAGE = 10  # most events of a page that is told as lived through


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How users are told to the model: the options of `agents.llm.LLMUser` under which it has to be asked later."""

    retrieval: Retrieval = field(default_factory=lambda: Retrieval(importance=0.0, similarity=0.0, top=30))
    memory_size: int = 32
    attributes: Sequence[str] = ()
    synopsis_length: int = 0
    conformity: bool = True
    base_rate: float = 0.1
    digest_every: int = 5
    prompts: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a model is not trained on.

    Attributes:
        users: (n_users,) users of whom it sees nothing.
        items: (n_items,) items it sees nowhere, neither on pages nor in memories.
        share: last share of each other user's interactions that it does not see.
    """

    users: NDArray[np.bool_]
    items: NDArray[np.bool_]
    share: float

    @classmethod
    def draw(cls, dataset: Dataset, *, users: float, items: float, share: float, seed: int) -> HeldOut:
        """Random users and items, and the last interactions of everybody.

        Args:
            dataset: the data.
            users, items: shares held out, in [0, 1).
            share: of each user's interactions, in (0, 1); as `holdout` of the realism experiment.
            seed: of the draws.
        """
        require(0 <= users < 1, "held_out_users", users, "a share in [0, 1)")
        require(0 <= items < 1, "held_out_items", items, "a share in [0, 1)")
        require(0 < share < 1, "holdout", share, "a share in (0, 1)")
        rng = np.random.default_rng([seed, 0x4E1D])
        return cls(users=_some(dataset.n_users, users, rng), items=_some(dataset.n_items, items, rng), share=share)

    def training_part(self, dataset: Dataset) -> Dataset:
        """The data set of the other users and items, without the last interactions."""
        log, _ = last_share(dataset.interactions, self.share)
        kept = replace(dataset, interactions=log, tastes=None, holdout=None).take_items(np.flatnonzero(~self.items))
        return kept.take_users(np.flatnonzero(~self.users & (kept.interactions.user_counts() > 0)))


def _some(n: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    chosen = np.zeros(n, np.bool_)
    chosen[rng.permutation(n)[: round(share * n)]] = True
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One page and its answer, items in the order shown."""

    user: int
    person: str  # profile and memory
    page: str  # the items
    items: NDArray[np.int32]  # (k,)
    picked: NDArray[np.bool_]  # (k,)
    examined: NDArray[np.bool_]  # (k,); of the others it is not known whether they would have been picked
    stars: NDArray[np.float32]  # (k,), 1-5, NaN = not rated


class Corpus:
    """Examples of a data set, drawn anew in every pass.

    Args:
        dataset: the training part; nothing else is ever looked at.
        options: of the prompts.
        moments: points of each user's life per pass, spread over it.
        window: share of a user's interactions in which a page's picks lie.
        candidates: items on a page at most.
        ratios: how many items a page holds for one that was picked; each page draws one of these.
        negatives: ``matched`` in popularity, or ``uniform`` (then popular items are picked more, as in life).
        lived: share of examples whose latest events are told as pages, items passed over among them, as a running
            simulation tells them; the others' memories are all "before", as at its start.
        seed: of all draws.

    Raises:
        DataError: no user has three interactions.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: PromptOptions | None = None,
        *,
        moments: int = 9,
        window: float = 0.1,
        candidates: int = 20,
        ratios: Sequence[int] = (1,),
        negatives: str = "matched",
        lived: float = 0.3,
        seed: int = 0,
    ) -> None:
        require(moments >= 1, "moments", moments, "at least 1")
        require(0 < window < 1, "window", window, "a share in (0, 1)")
        require(2 <= candidates <= 100, "candidates", candidates, "2 to 100 items")
        require(
            len(ratios) > 0 and all(1 <= ratio < candidates for ratio in ratios),
            "ratios",
            list(ratios),
            f"whole numbers from 1 to {candidates - 1}, less than candidates",
        )
        require(negatives in NEGATIVES, "negatives", negatives, f"one of {', '.join(NEGATIVES)}")
        require(0 <= lived <= 1, "lived", lived, "a share in [0, 1]")
        self.dataset, self.options = dataset, options or PromptOptions()
        self.moments, self.window, self.candidates, self.ratios = moments, window, candidates, tuple(ratios)
        self.negatives, self.lived, self.seed = negatives, lived, seed
        self.prompts = Prompts(self.options.prompts)
        log = dataset.interactions
        counts = log.user_counts()
        if counts.max(initial=0) < 3:
            raise DataError(f"{dataset.name}: no user has three interactions to learn from")
        self._rank = places_in_groups(log.users)  # place of each interaction in its user's life
        self._counts = counts
        self._popularity = log.item_counts()

    def examples(self, number: int) -> Iterator[Example]:
        """The examples of one pass; the same number gives the same ones."""
        rng = np.random.default_rng([self.seed, number, 0xC0F5])
        for moment in range(self.moments):
            share = (moment + rng.random()) / self.moments
            yield from self._at(share, rng)

    # -- one moment -----------------------------------------------------------------------------------------------

    def _at(self, share: float, rng: np.random.Generator) -> Iterator[Example]:
        """Pages of everybody at the same share of each life."""
        log, counts = self.dataset.interactions, self._counts
        cut = np.clip(np.round(share * counts).astype(np.int64), np.minimum(2, counts), np.maximum(counts - 1, 0))
        end = cut + np.maximum(1, np.floor(counts * self.window)).astype(np.int64)
        past = self._rank < cut[log.users]
        soon = ~past & (self._rank < end[log.users])
        if not past.any() or not soon.any():
            return
        before = replace(self.dataset, interactions=log.take(past))
        prompt = self._prompt(before)
        pages = self._pages(log.take(soon), rng)
        passed_over = self._passed_over([user for user, *_ in pages], rng)
        warm = _Memory(prompt.population)
        for (user, items, picked, stars), passed in zip(pages, passed_over, strict=True):
            if passed is not None:  # nothing of the page: to have been passed over would say "never picked"
                passed = np.setdiff1d(passed, items)
            lived = passed is not None and _live(prompt.population, user, passed, rng)
            if lived and self.options.digest_every:
                prompt.digests[user] = prompt.digest(user)
            person, page = in_two(prompt.page(user, items, opaque_ids(len(items))))
            yield Example(
                user=user,
                person=person,
                page=page,
                items=items,
                picked=picked,
                examined=np.ones(len(items), np.bool_),
                stars=stars,
            )
            if lived:
                warm.put_back(prompt.population, user)
                prompt.digests.pop(user, None)

    def _prompt(self, before: Dataset) -> PagePrompt:
        options = self.options
        population = Population(
            before, blank_tastes(before), memory_size=options.memory_size, traits=Traits.from_dataset(before)
        )
        prompt = PagePrompt(
            self.prompts,
            before,
            population,
            retrieval=options.retrieval,
            conformity=options.conformity,
            masked=False,
            attributes=options.attributes,
            synopsis_length=options.synopsis_length,
            base_rate=options.base_rate,
        )
        prompt.others = OthersRatings(before).means()
        return prompt

    def _pages(
        self, soon: Interactions, rng: np.random.Generator
    ) -> list[tuple[int, NDArray[np.int32], NDArray[np.bool_], NDArray[np.float32]]]:
        """(user, items, picked, stars) of pages that between them hold all of `soon`, in random order."""
        scale = self.dataset.rating_scale
        shuffled = rng.permutation(len(soon))
        order = shuffled[np.argsort(soon.users[shuffled], kind="stable")]
        users, items = soon.users[order].astype(np.int64), soon.items[order].astype(np.int64)
        stars = 1.0 + 4.0 * (soon.ratings[order] - scale.low) / (scale.high - scale.low)
        parts, ratios = self._parts(users, rng)
        times = np.repeat(ratios, [part.stop - part.start for part in parts])
        others = self._unpicked(np.repeat(users, times), np.repeat(items, times), rng)
        beside = np.split(others, np.cumsum(times)[:-1])
        pages = []
        for part in parts:
            picks = [row for row in range(part.start, part.stop) if (beside[row] >= 0).all()]
            if picks:
                shown = np.concatenate([items[picks], *(beside[row] for row in picks)]).astype(np.int32)
                unrated = np.full(len(shown) - len(picks), np.nan)
                given = np.concatenate([stars[picks], unrated]).astype(np.float32)
                mixed = rng.permutation(len(shown))
                pages.append((int(users[part.start]), shown[mixed], mixed < len(picks), given[mixed]))
        return [pages[row] for row in rng.permutation(len(pages))]

    def _parts(self, users: LongArray, rng: np.random.Generator) -> tuple[list[slice], list[int]]:
        """Which picks, ordered by user, share a page, and how many items each page has for one that was picked."""
        starts: list[int] = np.flatnonzero(np.diff(users, prepend=-1)).tolist()
        parts, ratios = [], []
        for first, last in zip(starts, [*starts[1:], len(users)], strict=True):
            while first < last:
                ratios.append(int(rng.choice(self.ratios)))
                parts.append(slice(first, min(first + max(1, self.candidates // (1 + ratios[-1])), last)))
                first = parts[-1].stop
        return parts, ratios

    def _unpicked(self, users: LongArray, items: LongArray, rng: np.random.Generator) -> LongArray:
        """For each pick an item that its user does not have in the training part; -1 = there is none."""
        log = self.dataset.interactions
        if self.negatives == "matched":
            return match_popularity(log, self._popularity, users, self._neighbours(items, rng))
        found = sample_unseen(log, users, rng, (self._popularity > 0).astype(np.float64))
        _, first = np.unique(pair_keys(users, np.maximum(found, 0), log.n_items), return_index=True)
        once = np.zeros(len(found), np.bool_)
        once[first] = True
        return np.where(once, found, -1)

    def _neighbours(self, items: LongArray, rng: np.random.Generator) -> LongArray:
        """Items nearly as popular as these, as often a little less as a little more, others in every pass.

        Were it always the nearest one, the same few items would be passed over again and again, and be known for it.
        """
        by_popularity = np.argsort(self._popularity, kind="stable")
        rank = np.empty_like(by_popularity)
        rank[by_popularity] = np.arange(len(rank))
        logs = np.log1p(self._popularity)
        below = rank - np.searchsorted(logs[by_popularity], logs - NEARLY)
        above = np.searchsorted(logs[by_popularity], logs + NEARLY, side="right") - 1 - rank
        reach = np.minimum(below, above)[items]
        return by_popularity[rank[items] + rng.integers(-reach, reach + 1)]

    def _passed_over(self, users: list[int], rng: np.random.Generator) -> list[LongArray | None]:
        """For each page the items its user is told to have passed over lately; None = all is told as "before"."""
        lived = rng.random(len(users)) < self.lived
        n = np.where(lived, rng.integers(0, self.options.memory_size, len(users)), 0)
        weights = self._popularity.astype(np.float64)
        drawn = sample_unseen(self.dataset.interactions, np.repeat(np.array(users, np.int64), n), rng, weights)
        parts = np.split(drawn, np.cumsum(n)[:-1])
        return [part[part >= 0] if told else None for part, told in zip(parts, lived, strict=True)]


def _live(population: Population, user: int, passed: LongArray, rng: np.random.Generator) -> bool:
    """Rewrite a user's latest memories as pages of a running simulation, with items that were passed over.

    Returns:
        Whether there was enough to rewrite.
    """
    size, count = population.memory_size, int(population.memory_count[user])
    kept = min(count, size)
    if kept < 2:
        return False
    slots = np.arange(count - kept, count) % size
    n_picked = int(rng.integers(1, max(2, kept // 2)))
    older, latest = slots[: kept - n_picked], slots[kept - n_picked :]
    passed = passed[: size - n_picked].astype(np.int32)
    order = rng.permutation(n_picked + len(passed))
    older = older[max(0, len(older) - (size - len(order))) :]
    pages = np.sort(rng.integers(0, -(-len(order) // LIVED_PAGE), len(order)))
    events = {
        "memory_items": np.concatenate([population.memory_items[user, latest], passed])[order],
        "memory_clicked": order < n_picked,
        "memory_rating": np.concatenate(
            [population.memory_rating[user, latest], np.full(len(passed), np.nan, np.float32)]
        )[order],
        "memory_round": pages,
        "memory_page": np.zeros(len(order), np.int16),
    }
    told = len(older) + len(order)
    for name, values in events.items():
        ring = getattr(population, name)
        ring[user, :told] = np.concatenate([ring[user, older], values])
    population.memory_count[user] = told
    return True


class _Memory:
    """The memories of a population as they were, so that one user's can be put back."""

    NAMES = ("memory_items", "memory_clicked", "memory_rating", "memory_round", "memory_page", "memory_count")

    def __init__(self, population: Population) -> None:
        self._kept = {name: getattr(population, name).copy() for name in self.NAMES}

    def put_back(self, population: Population, user: int) -> None:
        for name, values in self._kept.items():
            getattr(population, name)[user] = values[user]


def in_two(messages: Sequence[Message]) -> tuple[str, str]:
    """What a prompt says of the person, and what of the page."""
    person, page = messages[-1].content.split(PAGE, 1)
    return person, PAGE + page


def blank_tastes(dataset: Dataset) -> Tastes:
    """Tastes that say nothing; the prompts of a corpus must not know more than its interactions tell."""
    n, m = dataset.n_users, dataset.n_items
    blank = Head(
        user_vectors=np.zeros((n, 1), np.float32),
        item_vectors=np.zeros((m, 1), np.float32),
        user_bias=np.zeros(n, np.float32),
        item_bias=np.zeros(m, np.float32),
    )
    return Tastes(choice=blank, rating=blank, rating_noise=0.0, kind="none")
