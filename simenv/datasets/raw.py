"""A publisher's rows, checked and renumbered: from ids in a file to `Interactions`.

Every loader goes through here, so that a rating outside the scale, a duplicate or an unknown item reads the same
whatever the format. The module does not know how the rows were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, FloatArray, Interactions, LongArray, RatingScale
from simenv.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRatings:
    """Rows of a ratings file in file order, under the publisher's ids."""

    path: Path
    lines: LongArray  # (n,), where each row stands in the file
    users: NDArray[Any]  # (n,), integers or strings
    items: NDArray[Any]  # (n,)
    ratings: FloatArray  # (n,), NaN = none
    times: LongArray  # (n,)
    row_name: str = "line"

    def place(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, {self.row_name} {self.lines[row]}"

    def check_scale(self, scale: RatingScale) -> None:
        """Raise DataError at the first rating that is not a value of the scale."""
        distinct = np.unique(self.ratings)  # few, where rows are many
        if not scale.holds(distinct[~np.isnan(distinct)]).all():
            wrong = ~np.isnan(self.ratings) & ~scale.holds(self.ratings)
            row = int(wrong.argmax())
            raise DataError(
                f"{self.place(row)}: rating {self.ratings[row]:g}; "
                f"expected {scale.low:g} to {scale.high:g} in steps of {scale.step:g}"
            )

    def take(self, rows: NDArray[Any]) -> RawRatings:
        """These rows, indices or a mask."""
        names = ("lines", "users", "items", "ratings", "times")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def without_repeats(self, which: str, *, timed: bool) -> RawRatings:
        """One row of each (user, item, time), or of each (user, item) where there are no times.

        Args:
            which: ``first`` or ``last`` row, or the first with the ``sum`` of the ratings.
            timed: whether times count.
        """
        parts = [np.unique(column, return_inverse=True)[1] for column in (self.users, self.items)]
        if timed:
            parts.append(np.unique(self.times, return_inverse=True)[1])
        _, first, group = np.unique(np.stack(parts), axis=1, return_index=True, return_inverse=True)
        group = group.reshape(-1)
        if which == "last":
            kept = np.zeros(len(first), np.int64)
            np.maximum.at(kept, group, np.arange(len(group)))
            return self.take(np.sort(kept))
        one = self.take(np.sort(first))
        if which == "first":
            return one
        return replace(one, ratings=_sums(self.ratings, group)[group[np.sort(first)]])

    def renumber(self, known_items: Sequence[Any], items_file: str) -> tuple[Interactions, NDArray[Any]]:
        """Interactions over all `known_items`, in time order, and the ids of the users, sorted.

        Args:
            known_items: distinct ids of the catalogue's rows, in order.
            items_file: what to call the catalogue in messages.

        Raises:
            DataError: no rows, a rated item that is not known, or a (user, item, time) that comes twice.
        """
        if len(self.users) == 0:
            raise DataError(f"{self.path}: no interactions; expected at least one")
        user_ids, users = _distinct(self.users)
        items = self._item_rows(np.asarray(known_items), items_file)
        self._check_distinct(users.astype(np.int64) * len(known_items) + items)
        order = np.argsort(self.times, kind="stable")
        log = Interactions(
            users=users[order].astype(np.int32),
            items=items[order].astype(np.int32),
            ratings=self.ratings[order],
            times=self.times[order],
            n_users=len(user_ids),
            n_items=len(known_items),
        )
        return log, user_ids

    def _item_rows(self, known: NDArray[Any], items_file: str) -> LongArray:
        if _is_dense(self.items) and _is_dense(known):
            row_of = np.zeros(max(int(self.items.max()), int(known.max())) + 1, np.int32)
            row_of[known] = np.arange(len(known))
            rows = row_of[self.items]
        else:
            by_id = np.argsort(known, kind="stable")
            rows = by_id[np.clip(np.searchsorted(known, self.items, sorter=by_id), 0, len(known) - 1)]
        unknown = known[rows] != self.items
        if unknown.any():
            row = int(unknown.argmax())
            raise DataError(
                f"{self.place(row)}: item {self.items[row]} is not in {items_file}; expected every item there"
            )
        return np.asarray(rows)

    def _check_distinct(self, pairs: LongArray) -> None:
        ordered = np.sort(pairs)
        if not (ordered[1:] == ordered[:-1]).any():
            return
        order = np.argsort(pairs, kind="stable")
        again = order[1:][pairs[order[1:]] == pairs[order[:-1]]]
        if len(again) == 0:
            return
        rows = np.flatnonzero(np.isin(pairs, pairs[again]))
        seen: dict[tuple[int, int], int] = {}
        for row in rows.tolist():
            key = int(pairs[row]), int(self.times[row])
            if key in seen:
                raise DataError(
                    f"{self.place(row)}: user {self.users[row]}, item {self.items[row]}, time {self.times[row]} again "
                    f"(first in {self.row_name} {self.lines[seen[key]]}); expected each once"
                )
            seen[key] = row


_DENSE = 100_000_000  # ids up to here are looked up in a table


def _is_dense(ids: NDArray[Any]) -> bool:
    return ids.dtype.kind in "iu" and len(ids) > 0 and int(ids.min()) >= 0 and int(ids.max()) < _DENSE


def _distinct(ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """`np.unique` with the inverse, without sorting where ids are small whole numbers."""
    if not _is_dense(ids) or int(ids.max()) > 16 * len(ids):
        found, inverse = np.unique(ids, return_inverse=True)
        return found, inverse
    known = np.zeros(int(ids.max()) + 1, np.bool_)
    known[ids] = True
    return np.flatnonzero(known).astype(ids.dtype), (np.cumsum(known, dtype=np.int32) - 1)[ids]


def _sums(ratings: FloatArray, group: LongArray) -> FloatArray:
    """Sum of each group's ratings; NaN where there is none."""
    given = ~np.isnan(ratings)
    sums = np.bincount(group, weights=np.where(given, ratings, 0.0).astype(np.float64))
    return np.where(np.bincount(group, weights=given) > 0, sums, np.nan).astype(np.float32)


def numbered_items(items: NDArray[Any]) -> Catalog:
    """A catalogue of which nothing but ids is known, titled ``item <id>``, in the order in which they first come."""
    _, first = np.unique(items, return_index=True)
    ids = [str(item) for item in items[np.sort(first)].tolist()]
    return Catalog(
        item_ids=tuple(ids),
        titles=tuple(f"item {item}" for item in ids),
        genre_names=(),
        genres=np.zeros((len(ids), 0), np.bool_),
    )


def only_consumed(catalog: Catalog, log: Interactions) -> tuple[Catalog, Interactions]:
    """Catalogue and log without the items that nobody consumed, in the same order."""
    rows = np.flatnonzero(log.item_counts())
    to_new = np.zeros(log.n_items, np.int32)
    to_new[rows] = np.arange(len(rows), dtype=np.int32)
    kept = Interactions(
        users=log.users,
        items=to_new[log.items],
        ratings=log.ratings,
        times=log.times,
        n_users=log.n_users,
        n_items=len(rows),
    )
    return catalog.take(rows), kept
