"""What a simulated user remembers of a page's worth of events, and in which order of importance.

score = w_recency * gamma^(pages ago) + w_importance * importance + w_similarity * cos(event, query), each part min-max
normalised over the user's events (Park et al. 2023, "Generative agents", section 4.1, with recency on a step clock and
newer above older). Events are structured; the module knows neither prompts nor language models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.base import require
from agents.population.rows import Population

WARM_PAGE = 10  # events of the warm start that count as one page


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What one user remembers, oldest first."""

    ids: NDArray[np.int64]  # (n,), running number of the event in the user's life
    items: NDArray[np.int32]  # (n,)
    clicked: NDArray[np.bool_]  # (n,)
    ratings: NDArray[np.float32]  # (n,), NaN = none
    rounds: NDArray[np.int32]  # (n,), -1 = warm start
    pages_ago: NDArray[np.int64]  # (n,), 1 = the last page seen

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, population: Population, user: int) -> Events:
        """The events in a user's ring."""
        count = int(population.memory_count[user])
        ids = np.arange(max(0, count - population.memory_size), count)
        slots = ids % population.memory_size
        rounds, pages = population.memory_round[user, slots], population.memory_page[user, slots]
        return cls(
            ids=ids,
            items=population.memory_items[user, slots],
            clicked=population.memory_clicked[user, slots],
            ratings=population.memory_rating[user, slots],
            rounds=rounds,
            pages_ago=_pages_ago(rounds, pages, ids),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How memories are weighed.

    Attributes:
        gamma: share of the recency that is left after each page, in (0, 1].
        recency, importance, similarity: weights.
        top: events recalled beside the last page.
    """

    gamma: float = 0.9
    recency: float = 1.0
    importance: float = 1.0
    similarity: float = 1.0
    top: int = 5

    def __post_init__(self) -> None:
        require(0 < self.gamma <= 1, "retrieval.gamma", self.gamma, "a number in (0, 1]")
        require(self.top >= 0, "retrieval.top", self.top, "a number of events >= 0")

    def scores(
        self,
        pages_ago: NDArray[Any],
        importance: NDArray[Any],
        vectors: NDArray[Any],
        query: NDArray[Any],
    ) -> NDArray[np.float64]:
        """The score of each event.

        Args:
            pages_ago: (n,) ages.
            importance: (n,) at any scale.
            vectors: (n, d), one per event.
            query: (d,), what is on the user's mind.
        """
        scores = self.recency * _unit_range(self.gamma ** np.asarray(pages_ago, np.float64))
        if self.importance:
            scores += self.importance * _unit_range(np.asarray(importance, np.float64))
        if self.similarity:
            scores += self.similarity * _unit_range(cosines(vectors, query))
        return scores

    def recall(
        self, events: Events, importance: NDArray[Any], vectors: NDArray[Any], query: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Rows of `events` to recall, oldest first: the last page's, and the `top` best of the others."""
        if len(events) == 0:
            return np.zeros(0, np.int64)
        last = np.flatnonzero((events.pages_ago == 1) & (events.rounds >= 0))
        scores = self.scores(events.pages_ago, importance, vectors, query)
        order = np.lexsort((-events.ids, -scores))  # ties: the newer event
        older = np.ones(len(events), np.bool_)
        older[last] = False
        best = order[older[order]][: self.top]
        return np.sort(np.concatenate([last, best]))


def importance(
    ratings: NDArray[Any], rating_mean: float, half_span: float, familiarity: NDArray[Any]
) -> NDArray[np.float64]:
    """Importance by rule: |rating - own mean| / half the scale's span + novelty of the item's genres, (n,).

    Args:
        ratings: (n,), NaN = not rated, which counts as the mean.
        rating_mean: of the user.
        half_span: half of the rating scale's span; 2 for 1 to 5.
        familiarity: (n,), mean share of each item's genres in what the user consumed; novelty is 1 minus it.
    """
    surprise = np.nan_to_num(np.abs(np.asarray(ratings, np.float64) - rating_mean)) / half_span
    return np.asarray(surprise + 1.0 - np.asarray(familiarity, np.float64))


def cosines(vectors: NDArray[Any], query: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row with `query`; 0 where either has no length."""
    vectors, query = np.asarray(vectors, np.float64), np.asarray(query, np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.asarray(np.einsum("nd,d->n", vectors, query) / np.where(lengths > 0, lengths, 1.0))


def _unit_range(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Min-max normalised to [0, 1]; all zeros where nothing differs."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _pages_ago(rounds: NDArray[Any], pages: NDArray[Any], ids: NDArray[Any]) -> NDArray[np.int64]:
    """Ages in pages of events in order; the warm start is read as pages of `WARM_PAGE` events."""
    if len(ids) == 0:
        return np.zeros(0, np.int64)
    within = np.where(rounds < 0, ids // WARM_PAGE, pages)
    new_page = (np.diff(rounds) != 0) | (np.diff(within) != 0)
    number = np.concatenate([[0], np.cumsum(new_page)])
    return np.asarray(number[-1] - number + 1, np.int64)
