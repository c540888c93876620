"""Data sets: values, synthetic worlds and loaders of the publishers' formats.

A loader is a callable with keyword arguments ``n_users``, ``n_items``, ``seed`` and its own options that returns a
`Dataset`; any other such callable does as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simenv import checks
from simenv.datasets.amazon import amazon
from simenv.datasets.base import Catalog, Dataset, Head, Interactions, RatingScale, Tastes
from simenv.datasets.friends import Friends
from simenv.datasets.lastfm import lastfm_2k
from simenv.datasets.movielens import ml_1m, ml_100k, ml_latest_small
from simenv.datasets.synthetic import synthetic
from simenv.datasets.tabular import check, tabular
from simenv.errors import ConfigError

__all__ = [
    "Catalog",
    "Dataset",
    "Friends",
    "Head",
    "Interactions",
    "RatingScale",
    "Tastes",
    "amazon",
    "check",
    "lastfm_2k",
    "load",
    "ml_1m",
    "ml_100k",
    "ml_latest_small",
    "synthetic",
    "tabular",
]

LOADERS: dict[str, Callable[..., Dataset]] = {
    "synthetic": synthetic,
    "ml-100k": ml_100k,
    "ml-1m": ml_1m,
    "ml-latest-small": ml_latest_small,
    "amazon": amazon,
    "lastfm-2k": lastfm_2k,
    "tabular": tabular,
}


def load(name: str, **options: Any) -> Dataset:
    """The data set of this name, e.g. ``load("ml-100k", n_items=500, root="data/ml-100k")``.

    Args:
        name: a key of `LOADERS`.
        **options: keyword arguments of that loader.

    Raises:
        ConfigError: unknown name or option. DataError: files are missing or damaged.
    """
    if name not in LOADERS:
        raise ConfigError(f"dataset={name!r}; expected one of {', '.join(LOADERS)}")
    loader = LOADERS[name]
    known = checks.parameters(loader) or {}
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"dataset={name}: unknown option {unknown[0]!r}; expected one of {', '.join(known)}")
    return loader(**options)
