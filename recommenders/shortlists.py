"""Shortlists: each user's best items among the candidates of then, which answer for the candidates of now.

As long as a recommender learns nothing its scores stay as they are: in frozen arms, on the second page of a session,
between retrainings. What goes out in the meantime leaves a gap in a list; what comes back makes it worthless. The
module does not know what a score is.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.candidates import Candidates, is_out, pack
from simenv.datasets.base import BoolArray, IntArray, LongArray

SPARE = 22  # places beyond the slots of the first slate asked for, for items that go out
MOST_BYTES = 2**29  # of all lists; above it nothing is kept
_STRANGER, _ASKED = -2, -1  # instead of a length: nobody asked yet; asked once, so that a list begins to pay


class Shortlists:
    """Lists of the users of a recommender, each made when it is asked for the second time.

    Args:
        n_users, n_items: sizes of the world.
        k: slots of a slate.
    """

    def __init__(self, n_users: int, n_items: int, k: int) -> None:
        self.size = min(k + SPARE, n_items)
        n_bytes = -(-n_items // 8)
        self.keeps = n_users * (4 * self.size + n_bytes) <= MOST_BYTES and k < n_items
        n = n_users if self.keeps else 0
        self._items, self._was_out = np.zeros((n, self.size), np.int32), np.zeros((n, n_bytes), np.uint8)
        self._lengths = np.full(n, _STRANGER, np.int32)

    def answer(self, users: LongArray, candidates: Candidates, slates: IntArray) -> BoolArray:
        """Fill the slates of users whose lists can tell; True for these, (B,).

        Args:
            users: (B,) distinct rows.
            candidates: what is allowed.
            slates: (B, k), written to.
        """
        answered = np.zeros(len(users), np.bool_)
        if self.keeps:
            _answer(users, _out(candidates), self._items, self._was_out, self._lengths, slates, answered)
        return answered

    def wants(self, users: LongArray) -> BoolArray:
        """Whose best `size` items are worth ranking now, (B,): those who were asked about before."""
        if not self.keeps:
            return np.zeros(len(users), np.bool_)
        before = self._lengths[users] != _STRANGER
        self._lengths[users[~before]] = _ASKED
        return np.asarray(before)

    def keep(self, users: LongArray, candidates: Candidates, ranked: IntArray) -> None:
        """Keep the best `size` candidates of each user, (B, size), -1 where there are fewer."""
        out = _out(candidates)
        self._items[users] = ranked
        self._was_out[users] = out
        self._lengths[users] = (ranked >= 0).sum(axis=1)


def _out(candidates: Candidates) -> NDArray[np.uint8]:
    if candidates.available.all():
        return candidates.bits
    return candidates.bits | ~pack(candidates.available[None, :])


@nb.njit(cache=True, nogil=True)
def _answer(
    users: Any, out: Any, lists: Any, was_out: Any, lengths: Any, slates: Any, answered: Any
) -> None:  # pragma: no cover - compiled
    k, size = slates.shape[1], lists.shape[1]
    for row in range(len(users)):
        user = users[row]
        own = row if out.shape[0] > 1 else 0
        if lengths[user] < 0:
            continue
        back = np.uint8(0)
        for byte in range(out.shape[1]):
            back |= was_out[user, byte] & ~out[own, byte]
        if back != 0:
            continue
        filled, place = 0, 0
        while filled < k and place < lengths[user]:
            item = lists[user, place]
            if not is_out(out, own, item):
                slates[row, filled] = item
                filled += 1
            place += 1
        if filled < k and lengths[user] == size:
            continue
        for empty in range(filled, k):
            slates[row, empty] = -1
        answered[row] = True
