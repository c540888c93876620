"""What users heard from each other: a table of the event log, one row for each thing that reached a user on a page.

It is written where users hear of friends at all, beside the events (`heard/*.parquet`), in the same files of a fixed
number of rounds. The module does not know what hearing does to anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from simenv.events import EventWriter, read_rows, scan_rows

if TYPE_CHECKING:
    import polars as pl

KINDS = ("pick", "post", "chat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What users of one (seed, arm, mode) heard; all arrays are (n,)."""

    round: NDArray[np.int32]
    page: NDArray[np.int16]  # before which it was heard
    user: NDArray[np.int32]  # who heard it
    speaker: NDArray[np.int32]  # from whom: a friend, or whoever stands in a friend's place
    kind: NDArray[np.int8]  # place in `KINDS`: that the speaker picked an item, a post to all friends, a chat of two
    item: NDArray[np.int32]  # it is about; -1 = none
    rating: NDArray[np.float32]  # the speaker's, NaN = none
    text: NDArray[np.str_]  # in the speaker's words; "" = none

    def __len__(self) -> int:
        return len(self.round)

    def take(self, rows: NDArray[Any]) -> Heard:
        """These rows (indices or a mask)."""
        return Heard(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def of(cls, rows: Sequence[tuple[int, str, int, int, float, str]], round: int, page: int) -> Heard:
        """The table of rows (user, kind, speaker, item, rating, text) that were heard on one page of a round."""
        users, kinds, speakers, items, ratings, texts = zip(*rows, strict=True) if rows else ((),) * 6
        return cls(
            round=np.full(len(rows), round, np.int32),
            page=np.full(len(rows), page, np.int16),
            user=np.array(users, np.int32),
            speaker=np.array(speakers, np.int32),
            kind=np.array([KINDS.index(kind) for kind in kinds], np.int8),
            item=np.array(items, np.int32),
            rating=np.array(ratings, np.float32),
            text=np.array(texts, np.str_),
        )

    @classmethod
    def concat(cls, parts: Sequence[Heard]) -> Heard:
        """All parts, one after the other."""
        parts = [*parts, cls.empty()]
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    @classmethod
    def empty(cls) -> Heard:
        """Nothing heard."""
        return cls.of([], 0, 0)


class HeardWriter(EventWriter):
    """Appends what was heard to a run directory's ``heard``; see `EventWriter`. Kinds are written as words."""

    rows: ClassVar[Any] = Heard
    few_values: ClassVar[list[str]] = ["seed", "arm", "mode", "round", "page", "speaker", "kind", "item", "rating"]

    def _columns(self, events: Any) -> dict[str, Any]:
        import pyarrow as pa

        columns = super()._columns(events)
        columns["kind"] = pa.DictionaryArray.from_arrays(pa.array(events.kind), pa.array(KINDS))
        columns["item"] = pa.array(events.item, mask=events.item < 0)
        columns["text"] = pa.array(events.text.astype(object), pa.string(), mask=events.text == "")
        return columns


def scan_heard(run: Path) -> pl.LazyFrame:
    """Everything that was heard in a run, as a polars LazyFrame: seed, arm, mode and the columns of `Heard`, kinds as
    words.

    Raises:
        RunDirectoryError: its users hear of nobody.
    """
    return scan_rows(Path(run) / "heard")


def read_heard(run: Path, *, seed: int, arm: str, mode: str) -> Heard:
    """What was heard in one (seed, arm, mode), in the order of round, page and user."""
    names = [f.name for f in fields(Heard)]
    table = read_rows(run, "heard", names, seed=seed, arm=arm, mode=mode)
    columns = {name: table.column(name).combine_chunks() for name in names}
    kinds = columns["kind"].dictionary_decode().to_pylist()
    empty = Heard.empty()
    return Heard(
        kind=np.array([KINDS.index(kind) for kind in kinds], np.int8),
        item=columns["item"].fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False),
        text=np.array(columns["text"].fill_null("").to_pylist(), np.str_),
        **{
            name: columns[name].to_numpy(zero_copy_only=False).astype(getattr(empty, name).dtype, copy=False)
            for name in ("round", "page", "user", "speaker", "rating")
        },
    )
