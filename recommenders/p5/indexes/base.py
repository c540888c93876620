"""What an item index is: which short code of tokens stands for an item, so that a sequence model can write it.

An indexer is a function `(source, rng, *, spare, ...) -> codes`; `build.build_index` names, checks and completes what
it returns. It sees an `IndexSource`, made from training interactions and item texts, and nothing else: an index
that has seen a target leaks it (Hua et al. 2023, "How to index item IDs for recommendation foundation models").
The module does not know which indexers there are, nor which model reads the codes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, IntArray, LongArray
from simenv.errors import ConfigError, DataError, RunDirectoryError
from simenv.numeric import places_in_groups
from simenv.training.histories import Histories

Paths = NDArray[np.int64]  # (n_items, depth), level-local tokens from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSource:
    """What an indexer may look at: training prefixes, and the catalogue if it is known."""

    histories: Histories
    catalog: Catalog | None = None

    @property
    def n_items(self) -> int:
        return self.histories.n_items

    def item_counts(self) -> LongArray:
        """Training interactions per item, (n_items,)."""
        return np.bincount(self.histories.items, minlength=self.n_items)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemIndex:
    """A frozen, versioned map from items to codes of equal length, and back.

    At every last level `spare` tokens more exist than any node uses, so that a new item finds a leaf beside the
    items it resembles and no weight changes its shape. `version` grows by one whenever items are added.
    """

    name: str
    codes: IntArray  # (n_items, depth), level-local tokens
    sizes: tuple[int, ...]  # tokens that exist at each level, spare ones included
    spare: int
    version: int = 1

    def __post_init__(self) -> None:
        n_items, depth = self.codes.shape
        if depth != len(self.sizes):
            raise DataError(f"index {self.name}: codes have {depth} levels, sizes {len(self.sizes)}; expected as many")
        if (self.codes < 0).any() or (self.codes >= np.asarray(self.sizes)).any():
            raise DataError(f"index {self.name}: a code lies outside its level; expected 0 to {self.sizes}")
        distinct = len(np.unique(self.codes, axis=0))
        if distinct != n_items:
            raise DataError(f"index {self.name}: {n_items} items share {distinct} codes; expected one code per item")

    @property
    def n_items(self) -> int:
        return len(self.codes)

    @property
    def depth(self) -> int:
        return len(self.sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each level starts in one vocabulary that holds all levels one after the other."""
        return tuple(int(x) for x in np.concatenate(([0], np.cumsum(self.sizes)[:-1])))

    def items_of(self, codes: NDArray[Any]) -> LongArray:
        """The items of these codes (..., depth); -1 where no item has the code."""
        keys = np.ravel_multi_index(tuple(np.moveaxis(self.codes, -1, 0)), self.sizes)
        wanted = np.ravel_multi_index(tuple(np.moveaxis(np.asarray(codes), -1, 0)), self.sizes)
        order = np.argsort(keys)
        place = np.clip(np.searchsorted(keys[order], wanted), 0, len(keys) - 1)
        return np.where(keys[order][place] == wanted, order[place], -1)

    def codes_of(self, items: NDArray[Any]) -> IntArray:
        """The codes (..., depth) of these items: the way back from `items_of`."""
        return self.codes[np.asarray(items, np.int64)]

    def export(self, path: Path, item_ids: Sequence[str]) -> None:
        """Write item id -> code as JSON, the form in which others share semantic ids and `index=file` reads them."""
        if len(item_ids) != self.n_items:
            raise DataError(f"index {self.name}: {len(item_ids)} ids for {self.n_items} items; expected as many")
        codes = dict(zip(item_ids, self.codes.tolist(), strict=True))
        Path(path).write_text(json.dumps(codes))

    def place(self, items: NDArray[Any], neighbours: NDArray[Any]) -> ItemIndex:
        """A new version in which each of `items` stands on a spare leaf, beside an item it resembles.

        Args:
            items: (m,) rows; known ones move, rows from `n_items` upwards are added and must continue the numbering.
            neighbours: (m,) rows of known items outside `items`; -1 = nothing is known, and the emptiest node is taken.

        Raises:
            ConfigError: where the spare leaves do not suffice.
        """
        items = np.asarray(items, np.int64)
        total = max(self.n_items, int(items.max(initial=-1)) + 1)
        stays = np.setdiff1d(np.arange(self.n_items), items)
        codes = np.full((total, self.depth), -1, np.int64)
        codes[stays] = self.codes[stays]
        nodes, node_of = np.unique(self.codes[:, :-1], axis=0, return_inverse=True)
        unique, size = len(np.unique(self.codes[:, -1])) == self.n_items, self.sizes[-1]
        # Where the last token alone names an item, as in `independent`, all nodes share one set of free tokens.
        table_of = np.zeros(len(nodes), np.int64) if unique else np.arange(len(nodes))
        taken = np.zeros((1 if unique else len(nodes), size), np.bool_)
        taken[table_of[node_of.reshape(-1)[stays]], self.codes[stays, -1]] = True
        load = taken.sum(axis=1)
        for item, neighbour in zip(items, np.asarray(neighbours, np.int64), strict=True):
            if load.min() == size:
                raise ConfigError(f"index {self.name}: no spare leaf is left; expected a larger `spare`")
            shared = np.zeros(len(nodes), np.int64)
            if neighbour >= 0:
                shared = np.cumprod(nodes == codes[neighbour, :-1], axis=1).sum(axis=1)
            free = size - load[table_of]
            node = int(np.where(free > 0, shared * (size + 1) + free, -1).argmax())  # nearest, then emptiest
            token = int(np.argmin(taken[table_of[node]]))
            codes[item] = [*nodes[node], token]
            taken[table_of[node], token] = True
            load[table_of[node]] += 1
        if (codes < 0).any():
            raise DataError(f"index {self.name}: new items leave gaps; expected rows from {self.n_items} on")
        return replace(self, codes=codes.astype(np.int32), version=self.version + 1)

    def save(self, path: Path) -> None:
        """Write the index as one JSON file."""
        fields = {"name": self.name, "version": self.version, "spare": self.spare, "sizes": self.sizes}
        Path(path).write_text(json.dumps({**fields, "codes": self.codes.tolist()}))

    @classmethod
    def load(cls, path: Path) -> ItemIndex:
        try:
            stored = json.loads(Path(path).read_text())
            codes, sizes = np.asarray(stored.pop("codes"), np.int32), tuple(stored.pop("sizes"))
            return cls(codes=codes, sizes=sizes, **stored)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path}: no readable item index ({error})") from error


def digits(numbers: NDArray[Any], n: int, branching: int) -> Paths:
    """Numbers below `n` written in base `branching`, most significant digit first, (len(numbers), depth)."""
    if branching < 2:
        raise ConfigError(f"branching={branching}: expected at least 2")
    depth = 1
    while branching**depth < n:
        depth += 1
    powers = branching ** np.arange(depth - 1, -1, -1)
    return np.asarray(numbers)[:, None] // powers % branching


def with_collision_token(paths: Paths) -> Paths:
    """Append the number of each item among the items of the same path, (n_items, depth + 1)."""
    _, group = np.unique(paths, axis=0, return_inverse=True)
    return np.concatenate([paths, places_in_groups(group.reshape(-1))[:, None]], axis=1)
