"""Choosing an indexer by name, and building an `ItemIndex` with it. The module does not know how items are coded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recommenders.p5.indexes import clustering, simple
from recommenders.p5.indexes.base import IndexSource, ItemIndex, Paths
from simenv.errors import ConfigError

Indexer = Callable[..., Paths]


def indexer(name: str) -> Indexer:
    """The indexer of this name.

    Raises:
        ConfigError: if there is none.
    """
    named: dict[str, Indexer] = {
        "random": simple.random_codes,
        "title": simple.title_codes,
        "independent": simple.independent_codes,
        "sequential": simple.sequential_codes,
        "popularity": simple.popularity_codes,
        "time": simple.time_codes,
        "file": simple.file_codes,
        "semantic": simple.semantic_codes,
        "collaborative": clustering.collaborative_codes,
        "svd": clustering.svd_codes,
        "rqvae": _rqvae_codes,
        "rkmeans": _rkmeans_codes,
    }
    if name not in named:
        raise ConfigError(f"index={name}: unknown; expected one of {', '.join(named)}, or some joined by '+'")
    return named[name]


def _rqvae_codes(source: IndexSource, rng: np.random.Generator, **options: Any) -> Paths:
    from recommenders.p5.indexes.rqvae import rqvae_codes  # torch loads here

    return rqvae_codes(source, rng, **options)


def _rkmeans_codes(source: IndexSource, rng: np.random.Generator, **options: Any) -> Paths:
    from recommenders.p5.indexes.rqvae import rkmeans_codes  # torch loads here

    return rkmeans_codes(source, rng, **options)


def build_index(
    name: str, source: IndexSource, rng: np.random.Generator, *, spare: int = 8, **options: Any
) -> ItemIndex:
    """Index the items of `source`.

    Args:
        name: `random`, `title`, `independent`, `sequential`, `popularity`, `time`, `file`, `collaborative`, `semantic`,
            `svd`, `rqvae`, `rkmeans`, or several joined by `+`: the codes of all but the last one without their last
            token, then the last one's (CID+IID is `collaborative+independent`).
        source: training prefixes and, for some indexers, the catalogue.
        rng: decides whatever is random.
        spare: free leaves at every last-level node, for items that come later.
        options: of the first indexer; of another one as a mapping under its name.
    """
    if spare < 0:
        raise ConfigError(f"spare={spare}: expected 0 or more")
    names = name.split("+")
    own: dict[str, dict[str, Any]] = {part: dict(options.pop(part, {})) for part in names[1:]}
    own[names[0]] = options
    try:
        parts = [indexer(part)(source, rng, **own[part]) for part in names]
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"index={name}: {error}") from error
    codes = np.concatenate([*(part[:, :-1] for part in parts[:-1]), parts[-1]], axis=1)
    sizes = codes.max(axis=0) + 1
    sizes[-1] += spare
    return ItemIndex(name=name, codes=codes.astype(np.int32), sizes=tuple(int(s) for s in sizes), spare=spare)
