"""What users are judged on: splits of real choices, and pages that put held-out choices among unseen items.

The pages follow the discrimination protocol of Agent4Rec (Zhang et al. 2024, "On Generative Agents in
Recommendation"): per user k positives and k * m negatives, k = min(available, floor(candidates / (m + 1))). Negatives
are drawn uniformly, or matched: each the unseen item of nearest training popularity, so that popularity scores one
half. The module does not know who is judged.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.datasets.splits import last_share, match_popularity
from simenv.errors import ConfigError, DataError

RATIOS = (1, 2, 3, 9)
KINDS = ("popularity-matched", "uniform")  # the hard protocol first
FEWEST_USERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit:
    """What a user model may know, and the real choices it is judged by."""

    name: str
    train: Dataset
    known: Interactions  # everything the users had: what is in it is not "unseen"
    held: Interactions  # choices of items that are not in the training part

    def judged(self, most: int | None, seed: int, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Users with held-out choices, ascending: all of those `among`, or a seeded sample of `most`.

        Raises:
            DataError: there are too few of them for anything to be said.
        """
        users = np.unique(self.held.users).astype(np.int64)
        users = users if among is None else users[among[users]]
        if len(users) < FEWEST_USERS:
            raise DataError(
                f"{self.name}: {len(users)} users have held-out choices; expected at least {FEWEST_USERS} to judge by"
            )
        if most is not None and most < len(users):
            users = np.sort(np.random.default_rng([seed, 0x0DD5]).choice(users, most, replace=False))
        return users


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """What a trained user model never saw, as its ``unseen.json`` says (see `experiments.users.train`)."""

    users: NDArray[np.bool_]  # (n_users,)
    items: NDArray[np.bool_]  # (n_items,)

    @classmethod
    def load(cls, path: Path, dataset: Dataset, holdout: float) -> Unseen:
        """Read it for a data set that is to be judged by the last `holdout` of each user's interactions.

        Raises:
            ConfigError: it is missing, of another form or data set, or the model has seen some of what would be judged.
        """
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            users, items = set(stored["users"]), set(stored["items"])
            name, share = stored["dataset"], float(stored["holdout"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"unseen={path}: {type(error).__name__} {error}; expected a model's unseen.json"
            ) from error
        if name != dataset.name or holdout > share + 1e-9:
            raise ConfigError(
                f"unseen={path}: the model was trained on {name} without the last {share:g} of each user; "
                f"expected dataset={name} and holdout={share:g} or less, not {dataset.name} and {holdout:g}"
            )
        return cls(
            users=np.array([user in users for user in dataset.user_ids]),
            items=np.array([item in items for item in dataset.catalog.item_ids]),
        )


def of_items(split: TimeSplit, items: NDArray[np.bool_]) -> TimeSplit:
    """The same split as if there were only these items, renumbered."""
    rows = np.flatnonzero(items)

    def only(log: Interactions) -> Interactions:
        return replace(split.train, interactions=log).take_items(rows).interactions

    return TimeSplit(
        name=split.name, train=split.train.take_items(rows), known=only(split.known), held=only(split.held)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """One page for each of B users: real choices among items the user had not seen, in random order."""

    setting: str  # e.g. "popularity-matched 1:1"
    users: NDArray[np.int64]  # (B,) distinct
    items: NDArray[np.int32]  # (B, K), -1 = empty
    chosen: NDArray[np.bool_]  # (B, K), the user really chose it
    ratings: NDArray[np.float32]  # (B, K), what the user gave; NaN = not chosen, or chosen without a rating

    @property
    def filled(self) -> NDArray[np.bool_]:
        """(B, K)."""
        return self.items >= 0

    def take(self, rows: NDArray[Any]) -> Pages:
        """The pages of these rows."""
        return Pages(
            setting=self.setting,
            users=self.users[rows],
            items=self.items[rows],
            chosen=self.chosen[rows],
            ratings=self.ratings[rows],
        )


def joined(parts: Sequence[Pages]) -> Pages:
    """Pages one after another, of the same width and under the first one's name; users come once in each part."""
    return Pages(
        setting=parts[0].setting,
        users=np.concatenate([part.users for part in parts]),
        items=np.concatenate([part.items for part in parts]),
        chosen=np.concatenate([part.chosen for part in parts]),
        ratings=np.concatenate([part.ratings for part in parts]),
    )


def time_split(dataset: Dataset, share: float) -> TimeSplit:
    """Each user's last `share` of interactions by time is for judging; true tastes are taken away with it."""
    train, held = last_share(dataset.interactions, share)
    known = replace(dataset, interactions=train, tastes=None, holdout=None)
    return TimeSplit(name=dataset.name, train=known, known=dataset.interactions, held=held)


def agent4rec(folder: Path) -> TimeSplit:
    """Agent4Rec's own split of 1,000 users of MovieLens-1M: its train and test files, with its titles and genres.

    Args:
        folder: of its release, with ``cf_data/{train,valid,test}.txt`` (a user and its items a line) and
            ``simulation/movie_detail.csv``. The order of the items says nothing, and there are no ratings.

    Raises:
        DataError: a file is missing or not in that form.
    """
    try:
        pairs = {part: _sequences(folder / "cf_data" / f"{part}.txt") for part in ("train", "valid", "test")}
        with open(folder / "simulation" / "movie_detail.csv", encoding="utf-8", newline="") as file:
            movies = {int(row["movie_id"]): row for row in csv.DictReader(file)}
        n_users, n_items = (1 + max(int(p[:, side].max()) for p in pairs.values()) for side in (0, 1))
        names = sorted({genre for row in movies.values() for genre in row["genres"].split("|")})
        catalog = Catalog(
            item_ids=tuple(map(str, range(n_items))),
            titles=tuple(movies[i]["title"] for i in range(n_items)),
            genre_names=tuple(names),
            genres=np.array([[name in movies[i]["genres"].split("|") for name in names] for i in range(n_items)]),
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"agent4rec={folder}: {type(error).__name__} {error}; expected cf_data/train.txt, valid.txt, test.txt and "
            "simulation/movie_detail.csv of Agent4Rec's release"
        ) from error
    logs = {part: _log(p, n_users, n_items) for part, p in pairs.items()}
    users = tuple(map(str, range(n_users)))
    return TimeSplit(
        name="agent4rec",
        train=Dataset(name="agent4rec", catalog=catalog, interactions=logs["train"], user_ids=users),
        known=logs["train"].concat(logs["valid"], logs["test"]),
        held=logs["test"],
    )


def _sequences(path: Path) -> NDArray[np.int32]:
    lines = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
    return np.array([(row[0], item) for row in lines for item in row[1:]], dtype=np.int32)


def _log(pairs: NDArray[np.int32], n_users: int, n_items: int) -> Interactions:
    return Interactions(
        users=pairs[:, 0],
        items=pairs[:, 1],
        ratings=np.full(len(pairs), np.nan, np.float32),
        times=np.zeros(len(pairs), np.int64),
        n_users=n_users,
        n_items=n_items,
    )


def draw_pages(split: TimeSplit, users: NDArray[np.int64], kind: str, ratio: int, candidates: int, seed: int) -> Pages:
    """A page for each of `users` that has enough choices and unseen items.

    Args:
        split: where choices and unseen items come from.
        users: ascending.
        kind: ``uniform`` or ``popularity-matched``.
        ratio: negatives for each positive.
        candidates: items on a page at most.
        seed: of the draws. The same seed draws the same positives for both kinds.
    """
    most = max(1, candidates // (ratio + 1))
    rng = np.random.default_rng([seed, ratio, 0xCA5D])
    positives, ratings = _positives(split.held, users, most, rng)
    n_positives = np.array([len(own) for own in positives])
    owners, flat = np.repeat(users, n_positives), np.concatenate(positives)
    if kind == "uniform":
        negatives = _uniform(split.known, users, n_positives * ratio, rng)
    else:
        matched = match_popularity(
            split.known, split.train.interactions.item_counts(), np.repeat(owners, ratio), np.repeat(flat, ratio)
        )
        negatives = np.split(matched, np.cumsum(n_positives * ratio)[:-1])
    width = most * (ratio + 1)
    items = np.full((len(users), width), -1, np.int32)
    chosen, given = np.zeros(items.shape, np.bool_), np.full(items.shape, np.nan, np.float32)
    for row, (own, stars, other) in enumerate(zip(positives, ratings, negatives, strict=True)):
        n = len(own) + len(other)
        places = rng.permutation(n)
        items[row, places] = np.concatenate([own, other])
        chosen[row, places[: len(own)]] = True
        given[row, places[: len(own)]] = stars
    whole = (items >= 0).sum(axis=1) == n_positives * (ratio + 1)  # nothing unseen was lacking
    pages = Pages(setting=f"{kind} 1:{ratio}", users=users, items=items, chosen=chosen, ratings=given)
    return pages.take(np.flatnonzero(whole & (n_positives > 0)))


def _positives(
    held: Interactions, users: NDArray[np.int64], most: int, rng: np.random.Generator
) -> tuple[list[NDArray[np.int32]], list[NDArray[np.float32]]]:
    """Up to `most` held-out items of each user, and their ratings."""
    order = rng.permutation(len(held))
    order = order[np.argsort(held.users[order], kind="stable")]
    starts = np.searchsorted(held.users[order], users, side="left")
    ends = np.minimum(np.searchsorted(held.users[order], users, side="right"), starts + most)
    rows = [order[first:last] for first, last in zip(starts, ends, strict=True)]
    return [held.items[own] for own in rows], [held.ratings[own] for own in rows]


def _uniform(
    known: Interactions, users: NDArray[np.int64], wanted: NDArray[np.int64], rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """For each user so many unseen items, drawn uniformly without replacement; fewer where there are fewer."""
    order = np.argsort(known.users, kind="stable")
    starts = np.concatenate([[0], np.cumsum(known.user_counts())])
    found = []
    for user, n in zip(users, wanted, strict=True):
        unseen = np.ones(known.n_items, np.bool_)
        unseen[known.items[order[starts[user] : starts[user + 1]]]] = False
        left = np.flatnonzero(unseen)
        found.append(rng.choice(left, min(int(n), len(left)), replace=False, shuffle=False))
    return found
