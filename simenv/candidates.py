"""What each user may be shown, as packed bits, and keeping the k best of it in compiled kernels.

The module does not know why an item is out, nor what is scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.errors import RecommenderError


def pack(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(B, n_items) booleans to (B, ceil(n_items / 8)) bytes, item i at bit i % 8 (little-endian) of byte i // 8."""
    return np.packbits(mask, axis=-1, bitorder="little")


def unpack(bits: NDArray[np.uint8], n_items: int) -> NDArray[np.bool_]:
    """The inverse of `pack`."""
    return np.unpackbits(bits, axis=-1, count=n_items, bitorder="little").view(np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """The items each user of a batch may be shown: those that exist, less what is out for this user.

    Attributes:
        bits: (B, ceil(n_items / 8)) packed bits of what is out for each user; a single row holds for all of them.
        available: (n_items,) the items that exist now.
        n_items: size of the catalogue.

    Raises:
        RecommenderError: arrays of another shape or type.
    """

    bits: NDArray[np.uint8]
    available: NDArray[np.bool_]
    n_items: int

    def __post_init__(self) -> None:
        n_bytes = -(-self.n_items // 8)
        if self.bits.ndim != 2 or self.bits.shape[1] != n_bytes or self.bits.dtype != np.uint8:
            raise RecommenderError(
                f"candidates: bits are {self.bits.dtype} {self.bits.shape}; expected uint8 (n_users, {n_bytes})"
            )
        if self.available.shape != (self.n_items,) or self.available.dtype != np.bool_:
            raise RecommenderError(
                f"candidates: available is {self.available.dtype} {self.available.shape}; "
                f"expected bool ({self.n_items},)"
            )

    @classmethod
    def of(
        cls, n_items: int, *, out: NDArray[Any] | None = None, available: NDArray[np.bool_] | None = None
    ) -> Candidates:
        """Everything, less what is out.

        Args:
            n_items: size of the catalogue.
            out: a mask (B, n_items), or the bits `pack` makes of it; None = nothing.
            available: (n_items,) the items that exist; None = all.
        """
        if out is None:
            out = np.zeros((1, -(-n_items // 8)), np.uint8)
        elif out.dtype == np.bool_:
            if out.ndim != 2 or out.shape[1] != n_items:
                raise RecommenderError(f"candidates: out is {out.shape}; expected (n_users, {n_items})")
            out = pack(out)
        return cls(bits=out, available=np.ones(n_items, np.bool_) if available is None else available, n_items=n_items)

    def rows(self, rows: NDArray[Any] | slice) -> Candidates:
        """Those of some users of the batch."""
        return self if len(self.bits) == 1 else replace(self, bits=self.bits[rows])

    def count(self) -> NDArray[np.int64]:
        """Candidates of each user, (B,), or (1,) where all have the same."""
        return np.bitwise_count(pack(self.available[None, :]) & ~self.bits).sum(axis=1).astype(np.int64)

    def mask(self) -> NDArray[np.bool_]:
        """Which items are candidates, (B, n_items), or (1, n_items) where all have the same."""
        return self.available & ~unpack(self.bits, self.n_items)


@nb.njit(inline="always", cache=True)
def is_out(bits: Any, row: int, item: Any) -> Any:  # pragma: no cover - compiled
    """Whether packed bits (B or 1, ceil(n_items / 8)) hold an item in a row."""
    return (bits[row, item >> 3] >> (item & 7)) & 1


@nb.njit(inline="always", cache=True)
def insert(best: Any, items: Any, filled: int, score: Any, item: Any) -> int:  # pragma: no cover - compiled
    """Insert a score into a list kept best first; earlier insertions win ties. Returns how many places are filled.

    Args:
        best: (k,) scores, the first `filled` in descending order; a full list must have `score` > best[-1].
        items: (k,) what they belong to.
        filled: places in use.
        score: to insert.
        item: that it belongs to.
    """
    k = best.shape[0]
    place = filled if filled < k else k - 1
    while place > 0 and best[place - 1] < score:
        best[place] = best[place - 1]
        items[place] = items[place - 1]
        place -= 1
    best[place] = score
    items[place] = item
    return min(filled + 1, k)
