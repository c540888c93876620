"""From an order of items to a logit of being chosen: calibration on held-out choices, and how good it is.

The result stays bilinear, so that it is a `Head`. The module does not know how the vectors came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Head, Interactions
from simenv.datasets.splits import match_popularity, sample_unseen
from simenv.numeric import DoubleArray, logistic_regression, mean_user_auc


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Vectors whose product has mean 0 and variance 1 over the catalogue for each user, and what else a logit needs."""

    users: DoubleArray  # (n_users, d); zeros for a user without a history
    items: DoubleArray  # (n_items, d)
    experience: DoubleArray  # (n_users,), log history length relative to the mean user's
    popularity: DoubleArray  # (n_items,), log count relative to the mean item's

    @classmethod
    def standardised(cls, users: DoubleArray, items: DoubleArray, log: Interactions) -> Affinity:
        items = items - items.mean(axis=0)
        spread = np.sqrt(
            np.maximum(np.einsum("ud,de,ue->u", users, items.T @ items / len(items), users, optimize=True), 0)
        )
        known = spread > 1e-9 * max(spread.max(), 1e-300)
        scaled = np.where(known[:, None], users / np.where(known, spread, 1.0)[:, None], 0.0)
        n_users, n_items = log.user_counts() + 1.0, log.item_counts() + 1.0
        return cls(
            users=scaled,
            items=items,
            experience=np.log(n_users / n_users.mean()),
            popularity=np.log(n_items / n_items.mean()),
        )

    def design(self, users: NDArray[Any], items: NDArray[Any]) -> DoubleArray:
        """Regressors of the logit, (n, 4): affinity, affinity * experience, popularity, 1."""
        affinity = np.einsum("nd,nd->n", self.users[users], self.items[items])
        ones = np.ones(len(users))
        return np.stack([affinity, affinity * self.experience[users], self.popularity[items], ones], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Held-out choices and the unseen items each is compared with; -1 = none found."""

    users: NDArray[Any]  # (n,)
    chosen: NDArray[Any]  # (n,)
    exposed: NDArray[Any]  # (n,), unseen, drawn by exposure: these calibrate the logit
    uniform: NDArray[Any]  # (n,), unseen, drawn uniformly
    matched: NDArray[Any]  # (n,), unseen, of the same popularity

    @classmethod
    def draw(
        cls, log: Interactions, train: Interactions, held: Interactions, exposure: float, rng: np.random.Generator
    ) -> Probes:
        popularity = train.item_counts()
        return cls(
            users=held.users,
            chosen=held.items,
            exposed=sample_unseen(log, held.users, rng, (popularity + 1.0) ** exposure),
            uniform=sample_unseen(log, held.users, rng),
            matched=match_popularity(log, popularity, held.users, held.items),
        )

    def folds(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The users in two halves (by parity), so that no user is judged by a logit calibrated on them."""
        odd = (self.users % 2).astype(np.bool_)
        return odd, ~odd


@dataclass(frozen=True, slots=True)
class Logit:
    """logit = (slope + slope_by_experience * experience)+ * affinity + by_popularity * popularity + intercept."""

    weights: DoubleArray  # (4,), in the order of `Affinity.design`

    @classmethod
    def fit(cls, affinity: Affinity, probes: Probes, rows: NDArray[np.bool_] | None = None) -> Logit:
        """Logistic regression of chosen against exposed unseen items (Newton), with a weak prior at slope 1."""
        usable = probes.exposed >= 0 if rows is None else rows & (probes.exposed >= 0)
        users = np.concatenate([probes.users[usable]] * 2)
        items = np.concatenate([probes.chosen[usable], probes.exposed[usable]])
        design = affinity.design(users, items)
        labels = np.repeat([1.0, 0.0], usable.sum())
        weights, _ = logistic_regression(
            design, labels, prior=np.array([1.0, 0.0, 0.0, 0.0]), precision=np.ones(4), tolerance=1e-6
        )
        return cls(weights)

    def slopes(self, affinity: Affinity) -> DoubleArray:
        return np.maximum(self.weights[0] + self.weights[1] * affinity.experience, 0.0)

    def scores(self, affinity: Affinity, users: NDArray[Any], items: NDArray[Any]) -> DoubleArray:
        """Logits of (user, item) pairs, NaN where the item is -1."""
        design = affinity.design(users, np.maximum(items, 0))
        logits = self.slopes(affinity)[users] * design[:, 0] + design[:, 2:] @ self.weights[2:]
        return np.where(items >= 0, logits, np.nan)

    def head(self, affinity: Affinity) -> Head:
        return Head(
            user_vectors=(affinity.users * self.slopes(affinity)[:, None]).astype(np.float32),
            item_vectors=affinity.items.astype(np.float32),
            user_bias=np.full(len(affinity.users), self.weights[3], dtype=np.float32),
            item_bias=(affinity.popularity * self.weights[2]).astype(np.float32),
        )


def choice_errors(affinity: Affinity, probes: Probes) -> dict[str, float]:
    """How the fit without the held-out choices tells them from unseen items, users of one half judged by the other."""
    errors = {"n_heldout": float(len(probes.users))}
    if not len(probes.users):
        return errors
    scores = {name: np.empty(len(probes.users)) for name in ("chosen", "exposed", "uniform", "matched")}
    for half, other_half in (probes.folds(), probes.folds()[::-1]):
        logit = Logit.fit(affinity, probes, other_half)
        for name, values in scores.items():
            values[half] = logit.scores(affinity, probes.users[half], getattr(probes, name)[half])
    chosen, exposed, matched = scores["chosen"], scores["exposed"], scores["matched"]
    popularity = affinity.popularity
    by_popularity = np.where(probes.uniform >= 0, popularity[probes.uniform], np.nan)
    both = ~np.isnan(exposed)
    paired = ~np.isnan(matched)
    errors |= {
        "choice_auc": mean_user_auc(probes.users, chosen, scores["uniform"]),
        "choice_auc_popularity": mean_user_auc(probes.users, popularity[probes.chosen], by_popularity),
        "choice_auc_popularity_matched": mean_user_auc(probes.users, chosen, matched),
    }
    if paired.any():
        right = np.where(chosen == matched, 0.5, chosen > matched)[paired]
        errors["choice_pairs_popularity_matched"] = float(right.mean())
    if both.any():
        losses = np.concatenate([np.logaddexp(0, -chosen[both]), np.logaddexp(0, exposed[both])])
        errors["choice_logloss"] = float(losses.mean())
    return {name: value for name, value in errors.items() if not np.isnan(value)}
