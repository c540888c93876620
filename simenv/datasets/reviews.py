"""What users write about items: reviews, and in worlds with known tastes reviews made from what truly moved a rating.

The rating head of a synthetic world is a sum: quality of the item, taste for each of its genres, taste for each aspect
of its style, the user's own level. The largest terms of that sum are what a review of this world speaks of, with the
sign they have; they are kept beside the words, so that what a model says can be held against the truth
(`recommenders.evaluation.explanations`). The user's level and the noise of a rating move the stars but say nothing
about the item: they show in the verdict alone. Popularity, conformity and satiation are not in the warm start's
ratings and so in no review. The module does not know who reads the reviews.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets import wording
from simenv.datasets.base import BoolArray, Dataset, Head, Interactions, LongArray
from simenv.errors import DataError
from simenv.randomness import Purpose, hash64

MAX_ASPECTS = 3
MATERIAL = 0.1  # stars: terms smaller than this are not worth a word, unless no other is larger
_CHUNK = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspects:
    """What moved each of n ratings: numbers of `wording.terms`, the largest first, and the direction."""

    terms: LongArray  # (n, MAX_ASPECTS), -1 = none
    signs: LongArray  # (n, MAX_ASPECTS), 1 = for the item, -1 = against it, 0 = none

    def __len__(self) -> int:
        return len(self.terms)

    def take(self, rows: NDArray[Any]) -> Aspects:
        return Aspects(terms=self.terms[rows], signs=self.signs[rows])

    def pairs(self) -> list[set[tuple[int, int]]]:
        """(term, sign) of every row."""
        return [
            {(term, sign) for term, sign in zip(*row, strict=True) if term >= 0}
            for row in zip(self.terms.tolist(), self.signs.tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviews:
    """What users wrote: a text, its summary, the feature it is about, and why the user likes the item or not."""

    users: LongArray  # (n,)
    items: LongArray  # (n,)
    texts: tuple[str, ...]
    summaries: tuple[str, ...]
    features: tuple[str, ...]
    explanations: tuple[str, ...]
    aspects: Aspects | None = None  # the truth, where there is one

    def __post_init__(self) -> None:
        for name in ("items", "texts", "summaries", "features", "explanations"):
            if len(getattr(self, name)) != len(self.users):
                raise DataError(f"reviews: {len(getattr(self, name))} {name} for {len(self.users)} users")
        if self.aspects is not None and len(self.aspects) != len(self.users):
            raise DataError(f"reviews: aspects of {len(self.aspects)} reviews for {len(self.users)} users")

    def __len__(self) -> int:
        return len(self.users)

    def concat(self, other: Reviews) -> Reviews:
        """These reviews followed by the others; the truth is kept where both have it."""
        both = None
        if self.aspects is not None and other.aspects is not None:
            both = Aspects(
                terms=np.concatenate([self.aspects.terms, other.aspects.terms]),
                signs=np.concatenate([self.aspects.signs, other.aspects.signs]),
            )
        return Reviews(
            users=np.concatenate([self.users, other.users]),
            items=np.concatenate([self.items, other.items]),
            texts=self.texts + other.texts,
            summaries=self.summaries + other.summaries,
            features=self.features + other.features,
            explanations=self.explanations + other.explanations,
            aspects=both,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Writes the reviews of a world with known tastes; the same user writes the same about the same item."""

    genres: BoolArray  # (n_items, n_genres)
    rating: Head
    seed: int = 0  # of the choice among wordings

    def contributions(self, users: NDArray[Any], items: NDArray[Any]) -> NDArray[np.float32]:
        """Stars that craft, each genre and each aspect of style add for aligned pairs, (n, 1 + genres + aspects)."""
        head = self.rating
        taste = head.user_vectors[users] * head.item_vectors[items]
        craft = head.item_bias[items] - head.item_bias.mean()
        return np.column_stack([craft, taste]).astype(np.float32)

    def aspects(self, users: NDArray[Any], items: NDArray[Any]) -> Aspects:
        """The terms that moved the ratings of aligned pairs most: at least one, others if they are material."""
        n, n_genres = len(users), self.genres.shape[1]
        terms, signs = np.empty((n, MAX_ASPECTS), np.int64), np.empty((n, MAX_ASPECTS), np.int64)
        for start in range(0, n, _CHUNK):
            rows = slice(start, start + _CHUNK)
            stars = self.contributions(users[rows], items[rows])
            largest = np.argsort(-np.abs(stars), axis=1, kind="stable")[:, :MAX_ASPECTS]
            size = np.take_along_axis(stars, largest, axis=1)
            kept = np.abs(size) >= MATERIAL
            kept[:, 0] = True
            style = largest - 1 - n_genres  # each aspect of style has two terms: its low and its high word
            high = self.rating.item_vectors[items[rows, None], np.maximum(largest - 1, 0)] > 0
            number = np.where(style < 0, largest, 1 + n_genres + 2 * style + high)
            terms[rows] = np.where(kept, number, -1)
            signs[rows] = np.where(kept, np.where(size < 0, -1, 1), 0)
        return Aspects(terms=terms, signs=signs)

    def write(self, log: Interactions) -> Reviews:
        """One review per rating of the log, in its order; interactions without a rating have none."""
        rated = np.flatnonzero(~np.isnan(log.ratings))
        users, items = log.users[rated].astype(np.int64), log.items[rated].astype(np.int64)
        stars = np.clip(np.rint(log.ratings[rated]), 1, 5).astype(np.int64).tolist()
        aspects = self.aspects(users, items)
        slots = np.arange(MAX_ASPECTS + 1)
        hashes = hash64(self.seed, int(Purpose.REVIEW), users[:, None], 0, slots, items[:, None])
        draws = (hashes >> np.uint64(40)).tolist()
        texts, summaries, features, explanations = [], [], [], []
        for star, terms, signs, draw in zip(stars, aspects.terms.tolist(), aspects.signs.tolist(), draws, strict=True):
            verdicts = wording.VERDICTS[star]
            verdict = verdicts[draw[-1] % len(verdicts)]
            clauses = [
                (wording.clause(term, sign, variant), sign)
                for term, sign, variant in zip(terms, signs, draw, strict=False)
                if term >= 0
            ]
            why = _joined(clauses)
            texts.append(f"{verdict} . {why} .")
            summaries.append(f"{verdict} , {clauses[0][0]}")
            features.append(wording.feature(terms[0]))
            explanations.append(f"because {why} .")
        return Reviews(
            users=users,
            items=items,
            texts=tuple(texts),
            summaries=tuple(summaries),
            features=tuple(features),
            explanations=tuple(explanations),
            aspects=aspects,
        )


def _joined(clauses: list[tuple[str, int]]) -> str:
    text, before = clauses[0]
    for words, sign in clauses[1:]:
        text += f" , {'and' if sign == before else 'but'} {words}"
        before = sign
    return text


def reviewer_of(dataset: Dataset, *, seed: int = 0) -> Reviewer | None:
    """Who writes the reviews of this data set; None where what moves its ratings is not known in words.

    Args:
        dataset: a synthetic world, or users of one.
        seed: of the choice among wordings.
    """
    tastes, catalog = dataset.tastes, dataset.catalog
    if tastes is None or tastes.kind != "true" or catalog.genre_names != tuple(wording.GENRES):
        return None
    if tastes.rating.item_vectors.shape[1] != len(wording.GENRES) + len(wording.ASPECTS):
        return None
    return Reviewer(genres=catalog.genres, rating=tastes.rating, seed=seed)
