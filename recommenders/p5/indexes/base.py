"""Item indexing: which short code of tokens stands for an item, so that a sequence model can write it.

An indexer is a function `(source, rng, *, spare, ...) -> codes`; `build_index` names, checks and completes what it
returns. It sees an `IndexSource`, made from training interactions and item texts, and nothing else: an index
that has seen a target leaks it (Hua et al. 2023, "How to index item IDs for recommendation foundation models").
The module does not know which model reads the codes. Codes that need linear algebra or training live in `clustering`
and `rqvae`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, IntArray, LongArray
from simenv.errors import ConfigError, DataError, RunDirectoryError
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
        taken = np.zeros((len(nodes), self.sizes[-1]), np.bool_)
        taken[node_of.reshape(-1)[stays], self.codes[stays, -1]] = True
        if self._last_token_is_unique():
            taken |= taken.any(axis=0)
        for item, neighbour in zip(items, np.asarray(neighbours, np.int64), strict=True):
            load = taken.sum(axis=1)
            shared = np.zeros(len(nodes), np.int64)
            if neighbour >= 0:
                shared = np.cumprod(nodes == codes[neighbour, :-1], axis=1).sum(axis=1)
            full = load == self.sizes[-1]
            if full.all():
                raise ConfigError(f"index {self.name}: no spare leaf is left; expected a larger `spare`")
            node = np.lexsort((load, -shared, full))[0]
            token = int(np.argmin(taken[node]))
            codes[item] = [*nodes[node], token]
            taken[:, token] |= self._last_token_is_unique()
            taken[node, token] = True
        if (codes < 0).any():
            raise DataError(f"index {self.name}: new items leave gaps; expected rows from {self.n_items} on")
        return replace(self, codes=codes.astype(np.int32), version=self.version + 1)

    def _last_token_is_unique(self) -> bool:
        """Whether the last token alone names the item, as in `independent` and hybrids that end in it."""
        return len(np.unique(self.codes[:, -1])) == self.n_items

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


# -- the indexers ---------------------------------------------------------------------------------------------


def random_codes(source: IndexSource, rng: np.random.Generator, *, branching: int = 32) -> Paths:
    """RID: the digits, in base `branching`, of a random number per item."""
    return digits(rng.permutation(source.n_items), source.n_items, branching)


def sequential_codes(source: IndexSource, rng: np.random.Generator, *, branching: int = 32) -> Paths:
    """SID: items numbered as they first appear, user by user, in the training prefixes; users in random order.

    Neighbours in a history share leading digits. P5's own numbering walks whole histories, so that a target's number
    is the largest seen plus one; here targets are not in the source.
    """
    histories = source.histories
    users = rng.permutation(histories.n_users)
    lengths = histories.lengths[users]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    met = histories.items[np.repeat(histories.ptr[users], lengths) + within]
    seen, first = np.unique(met, return_index=True)
    order = np.concatenate([seen[np.argsort(first)], np.setdiff1d(np.arange(source.n_items), seen)])
    numbers = np.empty(source.n_items, np.int64)
    numbers[order] = np.arange(source.n_items)
    return digits(numbers, source.n_items, branching)


def independent_codes(source: IndexSource, rng: np.random.Generator) -> Paths:
    """IID: one token of its own per item."""
    return np.arange(source.n_items, dtype=np.int64)[:, None]


def title_codes(source: IndexSource, rng: np.random.Generator, *, max_words: int = 6) -> Paths:
    """TID: the first `max_words` words of the title, token 0 after its end, then a token that tells namesakes apart."""
    words = [re.findall(r"\w+", title.lower())[:max_words] for title in _catalog(source, "title").titles]
    numbers: dict[str, int] = {}
    paths = np.zeros((source.n_items, max(1, max(map(len, words)))), np.int64)
    for row, title in enumerate(words):
        for column, word in enumerate(title):
            paths[row, column] = numbers.setdefault(word, len(numbers) + 1)
    return with_collision_token(paths)


def semantic_codes(source: IndexSource, rng: np.random.Generator, *, depth: int = 3) -> Paths:
    """SemID: the item's categories, broadest first, then a token that tells its siblings apart.

    With `attributes["category_path"]` (strings with ' > ' between levels) that is the path, less a first level that
    all items share; else the item's genres, the most frequent of the catalogue first.
    """
    catalog = _catalog(source, "semantic")
    stored = catalog.attributes.get("category_path")
    if stored is not None:
        names = [[part for part in str(path).split(" > ") if part] for path in stored]
        if len({path[0] for path in names if path}) == 1:
            names = [path[1:] for path in names]
    else:
        order = np.argsort(-catalog.genres.sum(axis=0), kind="stable")
        names = [[catalog.genre_names[g] for g in order if row[g]] for row in catalog.genres]
    paths = np.zeros((source.n_items, depth), np.int64)
    numbers: dict[tuple[str, ...], int] = {}
    children: dict[tuple[str, ...], int] = {}
    for row, path in enumerate(names):
        for column in range(min(depth, len(path))):
            prefix = tuple(path[: column + 1])
            if prefix not in numbers:
                children[prefix[:-1]] = numbers[prefix] = children.get(prefix[:-1], 0) + 1
            paths[row, column] = numbers[prefix]
    return with_collision_token(paths)


def _catalog(source: IndexSource, name: str) -> Catalog:
    if source.catalog is None:
        raise ConfigError(f"index={name}: needs the items' titles and categories; bind a data set before fit")
    return source.catalog


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
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    number = np.empty(len(paths), np.int64)
    number[order] = np.arange(len(paths)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.concatenate([paths, number[:, None]], axis=1)


# -- choosing one ---------------------------------------------------------------------------------------------

Indexer = Callable[..., Paths]


def indexer(name: str) -> Indexer:
    """The indexer of this name.

    Raises:
        ConfigError: if there is none.
    """
    from recommenders.p5.indexes import clustering

    named: dict[str, Indexer] = {
        "random": random_codes,
        "title": title_codes,
        "independent": independent_codes,
        "sequential": sequential_codes,
        "semantic": semantic_codes,
        "collaborative": clustering.collaborative_codes,
        "svd": clustering.svd_codes,
        "rqvae": _rqvae_codes,
    }
    if name not in named:
        raise ConfigError(f"index={name}: unknown; expected one of {', '.join(named)}, or two joined by '+'")
    return named[name]


def _rqvae_codes(source: IndexSource, rng: np.random.Generator, **options: Any) -> Paths:
    from recommenders.p5.indexes.rqvae import rqvae_codes  # torch loads here

    return rqvae_codes(source, rng, **options)


def build_index(
    name: str, source: IndexSource, rng: np.random.Generator, *, spare: int = 8, **options: Any
) -> ItemIndex:
    """Index the items of `source`.

    Args:
        name: `random`, `title`, `independent`, `sequential`, `collaborative`, `semantic`, `svd`, `rqvae`, or two of
            them as `first+second`: the first code without its last token, then the second (CID+IID is
            `collaborative+independent`).
        source: training prefixes and, for some indexers, the catalogue.
        rng: decides whatever is random.
        spare: free leaves at every last-level node, for items that come later.
        options: of the (first) indexer.
    """
    if spare < 0:
        raise ConfigError(f"spare={spare}: expected 0 or more")
    first, *second = name.split("+")
    if len(second) > 1:
        raise ConfigError(f"index={name}: a hybrid joins two indexers; expected one '+'")
    try:
        codes = indexer(first)(source, rng, **options)
        if second:
            codes = np.concatenate([codes[:, :-1], indexer(second[0])(source, rng)], axis=1)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"index={name}: {error}") from error
    sizes = codes.max(axis=0) + 1
    sizes[-1] += spare
    return ItemIndex(name=name, codes=codes.astype(np.int32), sizes=tuple(int(s) for s in sizes), spare=spare)
