"""Zero-shot to another domain: learn on one data set, ask about the users and items of another.

What carries over is content alone - titles, texts, genres, and item codes that both share because one index spells both
catalogues. The users' histories in the new domain are read and not learned from. The module does not know who
recommends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.datasets.splits import Split
from simenv.errors import DataError


def joined(source: Dataset, target: Dataset) -> Dataset:
    """Both catalogues and both populations as one data set, the source's first; its interactions are the source's.

    Genres of one name are one genre; item attributes that both have are kept; stars keep their numbers.
    """
    first, second = source.catalog, target.catalog
    names = tuple(dict.fromkeys((*first.genre_names, *second.genre_names)))
    if bool(first.texts) != bool(second.texts):
        which = (target if first.texts else source).name
        raise DataError(f"learn_from: {which} has no item texts and the other has; expected both or neither")
    shared = first.attributes.keys() & second.attributes.keys()
    catalog = Catalog(
        item_ids=(*(f"{source.name}:{item}" for item in first.item_ids), *second.item_ids),
        titles=first.titles + second.titles,
        genre_names=names,
        genres=np.concatenate([_genres(each, names) for each in (first, second)]),
        texts=first.texts + second.texts,
        attributes={name: np.concatenate([first.attributes[name], second.attributes[name]]) for name in sorted(shared)},
    )
    return Dataset(
        name=f"{source.name} for {target.name}",
        catalog=catalog,
        interactions=replace(
            source.interactions, n_users=source.n_users + target.n_users, n_items=source.n_items + target.n_items
        ),
        user_ids=(*(f"{source.name}:{user}" for user in source.user_ids), *target.user_ids),
        rating_scale=source.rating_scale,
    )


def _genres(catalog: Catalog, names: tuple[str, ...]) -> NDArray[np.bool_]:
    column = {name: place for place, name in enumerate(names)}
    wide = np.zeros((catalog.n_items, len(names)), np.bool_)
    wide[:, [column[name] for name in catalog.genre_names]] = catalog.genres
    return wide


def carried_over(split: Split, source: Dataset) -> Split:
    """A split of the target under the numbers of `joined`, in which the target's items alone are ranked.

    Its `train` is the target's: histories to `remember` after `fit` on the source.
    """

    def moved(log: Interactions) -> Interactions:
        return replace(
            log,
            users=(log.users + source.n_users).astype(np.int32),
            items=(log.items + source.n_items).astype(np.int32),
            n_users=log.n_users + source.n_users,
            n_items=log.n_items + source.n_items,
        )

    shown = np.ones(split.train.n_items, np.bool_) if split.shown is None else split.shown
    return replace(
        split,
        train=moved(split.train),
        users=split.users + source.n_users,
        targets=(split.targets + source.n_items).astype(np.int32),
        held=moved(split.held),
        shown=np.concatenate([np.zeros(source.n_items, np.bool_), shown]),
    )


class ZeroShot:
    """A recommender fitted on the source, whatever it is told to fit on, that then remembers the target's histories.

    Args:
        recommender: a fresh one, bound to `joined` data.
        source: interactions under the numbers of `joined`.
    """

    def __init__(self, recommender: Any, source: Interactions) -> None:
        self._recommender, self._source = recommender, source

    def fit(self, log: Interactions, *, key: Any) -> None:
        """Learn from the source, then know `log` as history."""
        self._recommender.fit(self._source, key=key)
        self._recommender.remember(log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recommender, name)
