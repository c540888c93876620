"""Histories: each user's interactions in time order, as one flat array, and the windows a sequence model trains on.

The module does not know what a model is, nor which interactions may be trained on: the caller passes the right log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import FloatArray, IntArray, Interactions, LongArray
from simenv.numeric import places

BUCKETED_BATCHES = 32  # batches whose rows are sorted by length together


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """The interactions of user u are `items[ptr[u]:ptr[u + 1]]`, oldest first; ties in time keep the log's order."""

    ptr: LongArray  # (n_users + 1,)
    items: IntArray  # (n,)
    ratings: FloatArray  # (n,), NaN where there is none
    n_items: int
    times: LongArray | None = None  # (n,), None where nobody asked for them

    @classmethod
    def from_log(cls, log: Interactions) -> Histories:
        order = np.lexsort((log.times, log.users))
        ptr = np.concatenate(([0], np.cumsum(log.user_counts())))
        times = log.times[order]
        return cls(ptr=ptr, items=log.items[order], ratings=log.ratings[order], n_items=log.n_items, times=times)

    @property
    def n_users(self) -> int:
        return len(self.ptr) - 1

    @property
    def lengths(self) -> LongArray:
        """Interactions per user, (n_users,)."""
        return np.diff(self.ptr)

    def of(self, user: int) -> IntArray:
        """The items of one user, oldest first."""
        return self.items[self.ptr[user] : self.ptr[user + 1]]

    def without_last(self, n: int = 1, *, minimum: int = 3) -> tuple[Histories, LongArray, IntArray]:
        """Hold out one interaction of every user who has at least `minimum`, and drop what follows it.

        Args:
            n: which one, counted from the end: 1 is the last, 2 the one before it (the last is then dropped).
            minimum: users with fewer interactions keep everything.

        Returns:
            The shortened histories, the users who gave one (m,), and the items they gave (m,).
        """
        givers = np.flatnonzero(self.lengths >= max(minimum, n + 1))
        keep = np.ones(len(self.items), np.bool_)
        for back in range(1, n + 1):
            keep[self.ptr[givers + 1] - back] = False
        lengths = self.lengths.copy()
        lengths[givers] -= n
        shortened = Histories(
            ptr=np.concatenate(([0], np.cumsum(lengths))),
            items=self.items[keep],
            ratings=self.ratings[keep],
            n_items=self.n_items,
            times=None if self.times is None else self.times[keep],
        )
        return shortened, givers, self.items[self.ptr[givers + 1] - n]

    def last(self, users: NDArray[Any], length: int) -> LongArray:
        """The last `length` items of these users, (B, length), oldest first from column 0, -1 after the end."""
        users = np.asarray(users, np.int64)
        ends = self.ptr[users + 1]
        return self.gather(np.maximum(self.ptr[users], ends - length), ends, length)

    def gather(self, starts: LongArray, ends: LongArray, length: int) -> LongArray:
        """`items[starts:ends]` as rows of width `length`, -1 after the end."""
        positions = starts[:, None] + np.arange(length)
        inside = positions < ends[:, None]
        rows = np.full(positions.shape, -1, np.int64)
        rows[inside] = self.items[positions[inside]]
        return rows

    def windows(self, length: int, rng: np.random.Generator) -> tuple[LongArray, LongArray]:
        """Cut every history into stretches of at most `length` + 1 items, anew for each epoch.

        Neighbouring stretches share one item, so that every interaction but a user's first is a target exactly once;
        where a long history is cut is random, so that each target is seen after contexts of many lengths.

        Returns:
            starts and ends (m,) into `items`, for `gather`; stretches of one item are left out.
        """
        lengths = self.lengths
        cut = np.where(lengths > length + 1, rng.integers(1, length + 1, size=self.n_users), length)
        n_windows = np.where(lengths > 1, 1 + -(-np.maximum(lengths - 1 - cut, 0) // length), 0)
        user = np.repeat(np.arange(self.n_users), n_windows)
        nth = places(n_windows)
        first = self.ptr[user]
        starts = np.where(nth == 0, first, first + cut[user] + (nth - 1) * length)
        ends = np.minimum(first + cut[user] + nth * length + 1, self.ptr[user + 1])
        return starts, ends

    def batches(self, length: int, batch_size: int, rng: np.random.Generator) -> Iterator[LongArray]:
        """One pass over the windows of at most `length` + 1 items, in rows (<= batch_size, T), -1 after the end.

        Windows are shuffled and then sorted by length within pools of some batches, so that a batch holds windows
        of about one length and little of it is padding; the batches of a pool come in random order.
        """
        for rows, _ in self.user_batches(length, batch_size, rng):
            yield rows

    def user_batches(
        self, length: int, batch_size: int, rng: np.random.Generator
    ) -> Iterator[tuple[LongArray, LongArray]]:
        """`batches`, each with the users (<= batch_size,) whose windows its rows are."""
        starts, ends = self.windows(length, rng)
        order = rng.permutation(len(starts))
        pool = BUCKETED_BATCHES * batch_size
        for first in range(0, len(order), pool):
            rows = order[first : first + pool]
            rows = rows[np.argsort((ends - starts)[rows], kind="stable")]
            cuts = np.arange(0, len(rows), batch_size)
            for cut in rng.permutation(cuts):
                batch = rows[cut : cut + batch_size]
                users = np.searchsorted(self.ptr, starts[batch], side="right") - 1
                yield self.gather(starts[batch], ends[batch], int((ends - starts)[batch].max())), users

    def matrix(self) -> Any:
        """The users x items matrix of counts, a scipy CSR array."""
        from scipy import sparse

        values = np.ones(len(self.items), np.float32)
        matrix = sparse.csr_array((values, self.items, self.ptr), shape=(self.n_users, self.n_items), copy=True)
        matrix.sum_duplicates()
        return matrix
