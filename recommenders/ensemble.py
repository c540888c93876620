"""An ensemble of recommenders: each learns from the same log, and their scores are mixed. It knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import ConfigError
from simenv.randomness import Key
from simenv.slates import SeesDataset

HOWS = ("softmax", "ranks")


class Ensemble(Recommender):
    """Several recommenders as one.

    `how: softmax` averages, with `weights`, the probabilities that softmax(scores / temperature) gives each item, the
    scores of each part scaled to standard deviation 1 over the catalogue first, unless `temperature` is null: then
    scores are taken as logits as they are (a mixture of experts, Jacobs et al. 1991). `how: ranks` is
    reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): weight / (60 + rank). Parts of the same kind learn
    with seeds of their own.

    `update` updates each part. New users are served as the parts serve them.

    Args:
        parts: the recommenders.
        weights: one per part; null = equal.
        how: `softmax` or `ranks`.
        temperature: of the softmax; null = scores are log-probabilities or logits already.
    """

    name = "ensemble"

    def __init__(
        self,
        *,
        parts: Sequence[Recommender],
        weights: Sequence[float] | None = None,
        how: str = "ranks",
        temperature: float | None = 0.5,
    ) -> None:
        if len(parts) < 2:
            raise ConfigError(f"ensemble: parts={len(parts)}; expected two recommenders or more")
        if how not in HOWS:
            raise ConfigError(f"ensemble: how={how}; expected one of {', '.join(HOWS)}")
        self.parts = list(parts)
        self.weights = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(parts):
            raise ConfigError(f"ensemble: {len(self.weights)} weights for {len(parts)} parts; expected as many")
        for weight in self.weights:
            check_options(self.name, open_low=True, weights=weight)
        if temperature is not None:
            check_options(self.name, open_low=True, temperature=temperature)
        self.how, self.temperature = how, temperature

    def bind_dataset(self, dataset: Dataset) -> None:
        """Show the data set to every part that wants to see it."""
        for part in self.parts:
            if isinstance(part, SeesDataset):
                part.bind_dataset(dataset)

    def _fit(self, log: Interactions, key: Key) -> None:
        for place, part in enumerate(self.parts):
            part.fit(log, key=self._key(key, place))

    def _update(self, new: Interactions, key: Key) -> None:
        for place, part in enumerate(self.parts):
            part.update(new, key=self._key(key, place))

    def remember(self, new: Interactions) -> None:
        super().remember(new)
        for part in self.parts:
            part.remember(new)

    def _key(self, key: Key, place: int) -> Key:
        """The key of a part: that of the ensemble for the first one."""
        return replace(key, seed=key.seed + 1_000_003 * place)

    def _score(self, users: LongArray) -> NDArray[Any]:
        total = np.zeros((len(users), self.n_items), np.float64)
        for part, weight in zip(self.parts, self.weights, strict=True):
            total += weight * self._votes(part.scores(users))
        return (total if self.how == "ranks" else np.log(total)).astype(np.float32)

    def _votes(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.how == "ranks":
            votes = np.empty(scores.shape)
            ranked = 1 / (60 + np.arange(1.0, scores.shape[1] + 1))
            np.put_along_axis(votes, best_first(scores), np.broadcast_to(ranked, scores.shape), axis=1)
            return votes
        logits = scores.astype(np.float64)
        if self.temperature is not None:
            logits = logits / np.maximum(logits.std(axis=1, keepdims=True), 1e-12) / self.temperature
        logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        return logits / logits.sum(axis=1, keepdims=True) + 1e-12

    def save(self, folder: Path) -> None:
        super().save(folder)
        for place, part in enumerate(self.parts):
            part.save(Path(folder) / f"part{place}")

    def load(self, folder: Path) -> None:
        self._folder = Path(folder)
        super().load(folder)

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        for place, part in enumerate(self.parts):
            part.load(self._folder / f"part{place}")


def best_first(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The columns of each row (B, n), highest score first, ties to the smaller column.

    Whole numbers that order as the scores do, with the column behind, sort three times as fast as a stable argsort.
    """
    bits = (np.float32(0) - scores.astype(np.float32)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = (bits.astype(np.int64) << 32) | np.arange(scores.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF
