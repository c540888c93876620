"""What is fixed at round 0 and against which every later round is measured: `Reference` and its user `Group`s.

Popularity, its percentiles and bins, genre profiles, held-out items, groups of users and the pairs compared in them.
Nothing here knows an event or a metric: it reads a `Dataset` once and never changes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simenv.datasets.base import BoolArray, Dataset, FloatArray, IntArray, LongArray
from simenv.errors import RunDirectoryError
from simenv.numeric import DoubleArray
from simenv.randomness import Key, Purpose, generator

N_PAIRS = 2_000
BIN_SHARES = (0.2, 0.8)  # cumulative shares of interactions at which the blockbusters and the head end
TOP_SHARE = 0.01
ACTIVITY_QUANTILES = (0.6, 0.9)
MAX_GROUPS_PER_ATTRIBUTE = 10  # above it an attribute (zip code, occupation) makes groups too small to read
DENSE = 16  # whole numbers up to so many times their number are ranked by counting
HALF_COUNT = 0.5

_OPTIONAL = ("quality", "holdout_starts", "holdout_items")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Users measured together, and the fixed pairs among them."""

    name: str  # "all" or "attribute=value"
    users: BoolArray  # (n_users,)
    pairs: LongArray  # (n_pairs, 2), user rows, first < second; empty when the group has one user

    @property
    def is_everyone(self) -> bool:
        return bool(self.users.all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The round-0 values of a world. Build it with `from_dataset`; `save` and `load` keep it with a run.

    Popularity counts are the warm-start interactions per item. Items of equal popularity share the mid-rank
    percentile; where a set of items must be cut out (`bins`, `top`), ties go to the lower item row, so that the
    sets are the smallest ones that reach their share.
    """

    seed: int
    counts: LongArray  # (n_items,), warm-start interactions
    share: DoubleArray  # (n_items,), counts / their sum
    percentile: FloatArray  # (n_items,), mid-rank percentile in (0, 1), mean .5
    log_lift: DoubleArray  # (n_items,), log smoothed share - log of its catalogue mean, nats
    bins: NDArray[np.int8]  # (n_items,), 0 = up to 20 % of interactions, 1 = up to 80 %, 2 = tail
    top: BoolArray  # (n_items,), the most popular 1 % of items, at least one
    genres: BoolArray  # (n_items, n_genres)
    genre_bits: NDArray[np.uint64]  # (n_items, words), the same, packed
    genre_weights: FloatArray  # (n_items, n_genres), each item's weight of one spread over its genres
    profile: FloatArray  # (n_users, n_genres), p(g | u) of the warm start; NaN rows where there is none
    history: LongArray  # (n_users,), warm-start interactions
    activity_edges: DoubleArray  # (2,), P60 and P90 of `history`
    quality: FloatArray | None  # (n_items,), None = not known
    holdout_starts: LongArray | None  # (n_users + 1,), row pointers into `holdout_items`
    holdout_items: IntArray | None  # distinct held-out items, ascending within a user
    groups: Mapping[str, Group]

    @classmethod
    def from_dataset(cls, dataset: Dataset, seed: int) -> Reference:
        """The round-0 values of this data set; `seed` decides the user pairs and nothing else.

        Groups: `all`; one per value of each text or boolean user attribute with 2 to 10 values (a missing value, ""
        or None, belongs to no group); `activity=low|mid|high`, cut at P60 and P90 of the warm-start counts, the
        edge belonging to the lower tier. Empty groups are left out.
        """
        log, catalog = dataset.interactions, dataset.catalog
        counts = log.item_counts()
        bins, top = popularity_sets(counts)
        history = log.user_counts()
        edges = np.quantile(history, ACTIVITY_QUANTILES)
        held = dataset.holdout
        starts = items = None
        if held is not None and len(held):
            starts, items = item_sets(held.users, held.items, dataset.n_users)
        masks = _group_masks(dataset.user_attributes, history, edges)
        return cls(
            seed=seed,
            counts=counts,
            share=counts / counts.sum(),
            percentile=midrank_percentile(counts),
            log_lift=log_popularity_lift(counts),
            bins=bins,
            top=top,
            genres=catalog.genres,
            genre_bits=pack_genres(catalog.genres),
            genre_weights=genre_weights(catalog.genres),
            profile=genre_profile(log.users, log.items, catalog.genres, dataset.n_users),
            history=history,
            activity_edges=edges,
            quality=catalog.quality,
            holdout_starts=starts,
            holdout_items=items,
            groups={
                name: Group(name=name, users=mask, pairs=user_pairs(mask, seed, name)) for name, mask in masks.items()
            },
        )

    @property
    def n_users(self) -> int:
        return len(self.history)

    @property
    def n_items(self) -> int:
        return len(self.counts)

    @property
    def tail(self) -> BoolArray:
        """Items outside the head, (n_items,)."""
        return np.asarray(self.bins == 2)

    def edges(self) -> dict[str, Any]:
        """The frozen bin edges for the run card: plain numbers, ready for JSON."""
        sizes = np.bincount(self.bins, minlength=3)

        def least(mask: BoolArray) -> int | None:
            return int(self.counts[mask].min()) if mask.any() else None

        return {
            "pairs_seed": self.seed,
            "popularity_bins": {
                "cumulative_shares": list(BIN_SHARES),
                "n_items": sizes.tolist(),
                "least_count": [least(self.bins == b) for b in range(3)],
            },
            "top_items": {
                "share_of_catalogue": TOP_SHARE,
                "n_items": int(self.top.sum()),
                "least_count": least(self.top),
            },
            "activity": {"quantiles": list(ACTIVITY_QUANTILES), "interactions": self.activity_edges.tolist()},
            "groups": {g.name: {"n_users": int(g.users.sum()), "n_pairs": len(g.pairs)} for g in self.groups.values()},
        }

    def save(self, path: Path) -> None:
        """Write everything to one `.npz` file; equal references give equal bytes."""
        groups = list(self.groups.values())
        arrays: dict[str, Any] = {
            name: getattr(self, name) for name in self.__slots__ if name != "groups" and getattr(self, name) is not None
        }
        arrays["group_names"] = np.array([g.name for g in groups])
        arrays["group_users"] = np.array([g.users for g in groups])
        arrays["group_pairs"] = np.concatenate([g.pairs for g in groups])
        arrays["group_ends"] = np.cumsum([len(g.pairs) for g in groups])
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            RunDirectoryError: the file is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file) as stored:
                arrays: dict[str, Any] = dict.fromkeys(_OPTIONAL) | dict(stored)
            names, users = arrays.pop("group_names"), arrays.pop("group_users")
            pairs = np.split(arrays.pop("group_pairs"), arrays.pop("group_ends")[:-1])
            arrays["seed"] = int(arrays["seed"])
            groups = {
                str(name): Group(name=str(name), users=mask, pairs=rows)
                for name, mask, rows in zip(names, users, pairs)
            }
            return cls(groups=groups, **arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RunDirectoryError(f"{path}: not a readable reference of a run ({type(error).__name__})") from error


def midranks(values: ArrayLike) -> DoubleArray:
    """Ranks from 1, ascending; equal values share the mean of their ranks. Shape (n,)."""
    values = np.asarray(values)
    if values.dtype.kind in "iu" and len(values) and values.min() >= 0 and values.max() < DENSE * len(values):
        inverse, counts = values, np.bincount(values)  # as below, without sorting
    else:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], dtype=np.float64)


def midrank_percentile(values: NDArray[Any]) -> FloatArray:
    """Mid-rank percentile of each value among all, (n,), in (0, 1), mean 1/2: (values below + half of the values equal,
    itself included) / n.
    """
    return np.asarray((midranks(values) - 0.5) / max(len(values), 1), dtype=np.float32)


def log_popularity_lift(counts: NDArray[Any]) -> DoubleArray:
    """log(smoothed share) - log(its catalogue mean), nats; half a count is added to every item."""
    smoothed = np.asarray(counts, dtype=np.float64) + HALF_COUNT
    return np.asarray(np.log(smoothed) - np.log(smoothed.mean()))


def popularity_sets(counts: NDArray[Any]) -> tuple[NDArray[np.int8], BoolArray]:
    """The popularity bin of each item (0, 1 or 2) and the mask of the top 1 %, both (n_items,).

    Items are ordered by count, ties by row. Bin 0 is the shortest prefix that holds at least 20 % of the
    interactions, bins 0 and 1 together (the head) the shortest that holds at least 80 %: the item that crosses the
    line is inside. Bin 2 is the tail. The top 1 % rounds down, to one item at least. The split into three follows
    Abdollahpouri et al. 2021, "User-centered evaluation of popularity bias".
    """
    order = np.argsort(-np.asarray(counts, dtype=np.int64), kind="stable")
    reached = np.cumsum(counts[order])
    first, second = (int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))) + 1 for share in BIN_SHARES)
    bins = np.full(len(counts), 2, np.int8)
    bins[order[:second]] = 1
    bins[order[:first]] = 0
    top = np.zeros(len(counts), np.bool_)
    top[order[: max(1, int(TOP_SHARE * len(counts) + 1e-9))]] = True
    return bins, top


def genre_weights(genres: BoolArray) -> FloatArray:
    """Each item's weight of one, spread equally over its genres, (n_items, n_genres); zero rows where it has none."""
    sizes = genres.sum(axis=1, keepdims=True)
    return np.asarray(genres / np.maximum(sizes, 1), dtype=np.float32)


def genre_counts(users: NDArray[Any], items: NDArray[Any], genres: BoolArray, n_users: int) -> DoubleArray:
    """Interactions by genre, (n_users, n_genres); an item of m genres counts 1/m in each, one of none not at all."""
    found = np.zeros((n_users, genres.shape[1]))
    for genre, column in enumerate(genre_weights(genres).T):
        found[:, genre] = np.bincount(users, column[items], n_users)
    return found


def genre_profile(users: NDArray[Any], items: NDArray[Any], genres: BoolArray, n_users: int) -> FloatArray:
    """p(g | u) over consumed items (Steck 2018, with equal weights), (n_users, n_genres); NaN where none."""
    sums = genre_counts(users, items, genres, n_users)
    totals = sums.sum(axis=1, keepdims=True)
    shares = np.divide(sums, totals, out=np.full(sums.shape, np.nan), where=totals > 0)
    return np.asarray(shares, dtype=np.float32)


def pack_genres(genres: BoolArray) -> NDArray[np.uint64]:
    """Genre sets as bits, 64 to a word: (n_items, ceil(n_genres / 64)), at least one word."""
    n_items, n_genres = genres.shape
    padded = np.zeros((n_items, 64 * max(1, -(-n_genres // 64))), np.bool_)
    padded[:, :n_genres] = genres
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def item_sets(users: NDArray[Any], items: NDArray[Any], n_users: int) -> tuple[LongArray, IntArray]:
    """The distinct items of each user: row pointers (n_users + 1,) and items, ascending within a user."""
    keys = np.sort(np.asarray(users, dtype=np.int64) << 32 | items)
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    starts = np.zeros(n_users + 1, np.int64)
    np.cumsum(np.bincount(keys >> 32, minlength=n_users), out=starts[1:])
    return starts, (keys & 0xFFFFFFFF).astype(np.int32)


def user_pairs(users: BoolArray, seed: int, name: str) -> LongArray:
    """2,000 distinct random pairs of these users, or all where there are fewer; fixed by seed and group name."""
    rows = np.flatnonzero(users)
    n_possible = len(rows) * (len(rows) - 1) // 2
    if n_possible <= N_PAIRS:
        first, second = np.triu_indices(len(rows), 1)
        return np.stack([rows[first], rows[second]], axis=1)
    rng = generator(Key(seed, page=zlib.crc32(name.encode())), Purpose.PAIRS)
    codes = np.sort(rng.choice(n_possible, size=N_PAIRS, replace=False))
    # Pair (i, j), i < j, has code j (j - 1) / 2 + i; the square root may be off by one in the last digit.
    second = np.floor((1 + np.sqrt(1 + 8 * codes.astype(np.float64))) / 2).astype(np.int64)
    second -= second * (second - 1) // 2 > codes
    second += (second + 1) * second // 2 <= codes
    first = codes - second * (second - 1) // 2
    return np.stack([rows[first], rows[second]], axis=1)


def _group_masks(
    attributes: Mapping[str, NDArray[Any]], history: LongArray, edges: DoubleArray
) -> dict[str, BoolArray]:
    masks: dict[str, BoolArray] = {"all": np.ones(len(history), np.bool_)}
    for name, values in attributes.items():
        if values.dtype.kind not in "UOb":
            continue
        labels = np.array(["" if value is None else str(value) for value in values])
        distinct = [label for label in np.unique(labels).tolist() if label]
        if 2 <= len(distinct) <= MAX_GROUPS_PER_ATTRIBUTE:
            masks |= {f"{name}={label}": labels == label for label in distinct}
    tier = np.searchsorted(edges, history, side="left")
    masks |= {f"activity={label}": tier == i for i, label in enumerate(("low", "mid", "high"))}
    return {name: mask for name, mask in masks.items() if mask.any()}
