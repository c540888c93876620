"""The values a data set is made of: Catalog, Interactions, tastes, Dataset.

Nothing here knows a file format or a random number; the loaders and the synthetic world fill these in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.friends import Friends
from simenv.errors import ConfigError, DataError
from simenv.numeric import BoolArray as BoolArray
from simenv.numeric import FloatArray as FloatArray
from simenv.numeric import IntArray as IntArray
from simenv.numeric import LongArray as LongArray

if TYPE_CHECKING:
    from simenv.datasets.reviews import Reviews


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """The items. Row i of everything is item i; `item_ids` leads back to the publisher's ids."""

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    genre_names: tuple[str, ...]
    genres: BoolArray  # (n_items, n_genres)
    texts: tuple[str, ...] = ()  # descriptions; empty tuple = none known
    quality: FloatArray | None = None  # (n_items,), known in synthetic worlds only
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # name -> (n_items,)

    def __post_init__(self) -> None:
        n = len(self.item_ids)
        if n == 0:
            raise DataError("catalog: no items; expected at least one")
        if len(self.titles) != n:
            raise DataError(f"catalog: {len(self.titles)} titles for {n} items; expected one title per item")
        if self.genres.shape != (n, len(self.genre_names)):
            raise DataError(f"catalog: genres have shape {self.genres.shape}; expected ({n}, {len(self.genre_names)})")
        blank = next((i for i, title in enumerate(self.titles) if not title.strip()), None)
        if blank is not None:
            raise DataError(f"catalog: item {self.item_ids[blank]} has no title; every item needs one")

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def n_genres(self) -> int:
        return len(self.genre_names)

    def take(self, rows: LongArray) -> Catalog:
        """The catalogue of these item rows, in this order."""
        return Catalog(
            item_ids=tuple(self.item_ids[i] for i in rows),
            titles=tuple(self.titles[i] for i in rows),
            genre_names=self.genre_names,
            genres=self.genres[rows],
            texts=tuple(self.texts[i] for i in rows) if self.texts else (),
            quality=None if self.quality is None else self.quality[rows],
            attributes={name: values[rows] for name, values in self.attributes.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """Who consumed what, with which rating, when; in time order, ties in file order."""

    users: IntArray  # (n,), rows of the population
    items: IntArray  # (n,), rows of the catalogue
    ratings: FloatArray  # (n,), NaN where consumed without a rating
    times: LongArray  # (n,), any monotone clock
    n_users: int
    n_items: int

    def __post_init__(self) -> None:
        n = len(self.users)
        for name in ("items", "ratings", "times"):
            if len(getattr(self, name)) != n:
                raise DataError(f"interactions: {len(getattr(self, name))} {name} for {n} users; expected {n}")
        for name, size in (("users", self.n_users), ("items", self.n_items)):
            values = getattr(self, name)
            if n and (values.min() < 0 or values.max() >= size):
                raise DataError(
                    f"interactions: {name} lie in [{values.min()}, {values.max()}]; expected [0, {size - 1}]"
                )

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def empty(cls, n_users: int, n_items: int) -> Interactions:
        return cls(
            users=np.zeros(0, np.int32),
            items=np.zeros(0, np.int32),
            ratings=np.zeros(0, np.float32),
            times=np.zeros(0, np.int64),
            n_users=n_users,
            n_items=n_items,
        )

    def take(self, rows: NDArray[Any] | slice) -> Interactions:
        """These rows (indices or a boolean mask), in this order."""
        return replace(
            self, users=self.users[rows], items=self.items[rows], ratings=self.ratings[rows], times=self.times[rows]
        )

    def concat(self, *others: Interactions) -> Interactions:
        """This log followed by the others."""
        parts = (self, *others)
        return replace(
            self,
            users=np.concatenate([p.users for p in parts]),
            items=np.concatenate([p.items for p in parts]),
            ratings=np.concatenate([p.ratings for p in parts]),
            times=np.concatenate([p.times for p in parts]),
        )

    def item_counts(self) -> LongArray:
        """Interactions per item, (n_items,)."""
        return np.bincount(self.items, minlength=self.n_items)

    def user_counts(self) -> LongArray:
        """Interactions per user, (n_users,)."""
        return np.bincount(self.users, minlength=self.n_users)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingScale:
    """Ratings from `low` to `high` in steps of `step`."""

    low: float = 1.0
    high: float = 5.0
    step: float = 1.0

    @property
    def values(self) -> FloatArray:
        """Every rating there is, ascending."""
        n = round((self.high - self.low) / self.step) + 1
        return (self.low + self.step * np.arange(n)).astype(np.float32)

    def round(self, values: NDArray[Any]) -> FloatArray:
        """The nearest ratings, of two equally near the higher; beyond the ends, the ends."""
        inside = np.clip(np.asarray(values, np.float64), self.low, self.high)
        steps = np.floor((inside - self.low) / self.step + 0.5)
        return np.asarray(self.low + steps * self.step, dtype=np.float32)

    def holds(self, values: NDArray[Any]) -> BoolArray:
        """Which values are ratings of the scale, as far as 32 bits tell them apart; NaN is none."""
        near = self.round(values).astype(np.float64)
        slack = np.maximum(1e-4 * self.step, 2 * np.spacing(np.abs(near).astype(np.float32)))
        return np.asarray(np.abs(np.asarray(values, np.float64) - near) <= slack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A bilinear predictor: score(u, i) = <user_vectors[u], item_vectors[i]> + user_bias[u] + item_bias[i]."""

    user_vectors: FloatArray  # (n_users, d)
    item_vectors: FloatArray  # (n_items, d)
    user_bias: FloatArray  # (n_users,)
    item_bias: FloatArray  # (n_items,)

    def scores(self, users: NDArray[Any]) -> FloatArray:
        """Scores of every item for these users, (B, n_items)."""
        return np.asarray(
            self.user_vectors[users] @ self.item_vectors.T + self.user_bias[users, None] + self.item_bias[None, :],
            dtype=np.float32,
        )

    def pairs(self, users: NDArray[Any], items: NDArray[Any]) -> FloatArray:
        """Scores of aligned (user, item) pairs, same shape as `users`."""
        dots = np.einsum("...d,...d->...", self.user_vectors[users], self.item_vectors[items])
        return np.asarray(dots + self.user_bias[users] + self.item_bias[items], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tastes:
    """What users like: one head for choice, one for ratings.

    `choice` scores are logits of being chosen when examined, free of position, popularity and fatigue; the true
    utility of an item is their sigmoid, in (0, 1). `rating` scores are expected ratings on the data set's scale
    before rounding; `rating_noise` is the SD around them.
    """

    choice: Head
    rating: Head
    rating_noise: float
    kind: str  # "true" in synthetic worlds, "fitted" on real data
    errors: Mapping[str, float] = field(default_factory=dict)  # held-out errors of a fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A catalogue, warm-start interactions and what is known of the users."""

    name: str
    catalog: Catalog
    interactions: Interactions  # the warm start
    user_ids: tuple[str, ...]
    rating_scale: RatingScale = field(default_factory=RatingScale)
    user_attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # e.g. "gender" -> (n_users,) of str
    tastes: Tastes | None = None  # the truth, where there is one
    holdout: Interactions | None = None  # kept from everyone; feeds ndcg@10 and recall@10
    friends: Friends | None = None  # who knows whom, where that is known
    reviews: Reviews | None = None  # what users wrote of items of the interactions, where that is known

    def __post_init__(self) -> None:
        log = self.interactions
        if log.n_items != self.catalog.n_items:
            raise DataError(f"{self.name}: interactions know {log.n_items} items, the catalogue {self.catalog.n_items}")
        if log.n_users != len(self.user_ids):
            raise DataError(f"{self.name}: interactions know {log.n_users} users, user_ids {len(self.user_ids)}")
        if len(log) == 0:
            raise DataError(f"{self.name}: no interactions; expected at least one")
        for name, values in self.user_attributes.items():
            if len(values) != self.n_users:
                raise DataError(f"{self.name}: {len(values)} values of {name} for {self.n_users} users")
        if self.friends is not None and self.friends.n_users != self.n_users:
            raise DataError(f"{self.name}: friends know {self.friends.n_users} users, user_ids {self.n_users}")

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return self.catalog.n_items

    def replace_interactions(self, log: Interactions) -> Dataset:
        """The same data set with another log of the same users and items, and nothing held out; reviews of pairs that
        are not in it go.
        """
        reviews = None if self.reviews is None else self.reviews.about(log)
        return replace(self, interactions=log, holdout=None, reviews=reviews)

    def take_users(self, rows: LongArray) -> Dataset:
        """The same data set with these users only, renumbered in this order."""
        to_new = np.full(self.n_users, -1, np.int32)
        to_new[rows] = np.arange(len(rows), dtype=np.int32)

        def keep(log: Interactions) -> Interactions:
            kept = log.take(to_new[log.users] >= 0)
            return replace(kept, users=to_new[kept.users], n_users=len(rows))

        tastes = self.tastes
        if tastes is not None:
            tastes = replace(tastes, choice=_take_users(tastes.choice, rows), rating=_take_users(tastes.rating, rows))
        return replace(
            self,
            interactions=keep(self.interactions),
            holdout=None if self.holdout is None else keep(self.holdout),
            user_ids=tuple(self.user_ids[i] for i in rows),
            user_attributes={name: values[rows] for name, values in self.user_attributes.items()},
            tastes=tastes,
            friends=None if self.friends is None else self.friends.take(rows),
            reviews=None if self.reviews is None else self.reviews.renumbered(users=to_new),
        )

    def sample_users(self, n: int, seed: int) -> Dataset:
        """A seeded sample of `n` users, in their original order."""
        if not 1 <= n <= self.n_users:
            raise ConfigError(f"n_users={n}: {self.name} has {self.n_users} users; expected 1 to {self.n_users}")
        rows = np.sort(
            np.random.default_rng([seed & 0xFFFFFFFFFFFFFFFF, 0xDA7A]).choice(self.n_users, size=n, replace=False)
        )
        return self.take_users(rows)

    def most_rated_items(self, n: int) -> Dataset:
        """The same data set with its `n` most-rated items (ties by row); users left with nothing are dropped."""
        if self.tastes is not None:
            raise ConfigError(f"{self.name}: items of a world with known tastes are chosen when it is made")
        if not 1 <= n <= self.n_items:
            raise ConfigError(f"n_items={n}: {self.name} has {self.n_items} items; expected 1 to {self.n_items}")
        smaller = self.take_items(np.sort(np.argsort(-self.interactions.item_counts(), kind="stable")[:n]))
        return smaller.take_users(np.flatnonzero(smaller.interactions.user_counts() > 0))

    def take_items(self, rows: LongArray) -> Dataset:
        """The same users with these items only, renumbered in this order; without tastes and holdout."""
        to_new = np.full(self.n_items, -1, np.int32)
        to_new[rows] = np.arange(len(rows), dtype=np.int32)
        kept = self.interactions.take(to_new[self.interactions.items] >= 0)
        return replace(
            self,
            catalog=self.catalog.take(rows),
            interactions=replace(kept, items=to_new[kept.items], n_items=len(rows)),
            tastes=None,
            holdout=None,
            reviews=None if self.reviews is None else self.reviews.renumbered(items=to_new),
        )

    def reduced(self, *, n_users: int | None, n_items: int | None, seed: int) -> Dataset:
        """The `n_items` most-rated items, then a seeded sample of `n_users` of the users left; None = all.

        Items come first, so that the catalogue does not depend on the seed.
        """
        for name, value in (("n_users", n_users), ("n_items", n_items)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ConfigError(f"{name}={value!r}; expected an integer, or null for all")
        smaller = self if n_items is None else self.most_rated_items(n_items)
        return smaller if n_users is None else smaller.sample_users(n_users, seed)


def _take_users(head: Head, rows: LongArray) -> Head:
    return replace(head, user_vectors=head.user_vectors[rows], user_bias=head.user_bias[rows])
