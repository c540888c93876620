"""Latent-factor recommenders: a user is a vector, an item is a vector, a score is their product.

ALS and BPR learn from what was consumed, MF from ratings. None knows content or order. The start vectors are drawn
from the key's seed alone, not its round: two refits on the same log give the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender, check_options, user_items
from simenv.datasets.base import Interactions, LongArray
from simenv.errors import RecommenderError
from simenv.randomness import Key, Purpose, generator

_TILE = 4096  # items whose scores are in memory in double precision


class FactorRecommender(Recommender):
    """Scores that are inner products; subclasses call `_keep` with both factor matrices at the end of `_fit`."""

    keeps_shortlists = True
    _exact: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None  # item factors, and they in double precision

    def _keep(self, users: NDArray[Any], items: NDArray[Any]) -> None:
        """Take (n_users, d) and (n_items, d) factors."""
        self._user_factors = np.ascontiguousarray(users, dtype=np.float32)
        self._item_factors = np.ascontiguousarray(items.T, dtype=np.float32)  # (d, n_items)

    @property
    def user_factors(self) -> NDArray[np.float32]:
        """The users' vectors, (n_users, d)."""
        self._require_fit()
        return self._user_factors

    @property
    def item_factors(self) -> NDArray[np.float32]:
        """The items' vectors, (d, n_items)."""
        self._require_fit()
        return self._item_factors

    def _score(self, users: LongArray) -> NDArray[Any]:
        # Some BLAS kernels sum a single-precision row in an order that depends on its place in the batch. Double
        # precision rounded to single hides that: a user's scores are the same in any company.
        if self._exact is None or self._exact[0] is not self._item_factors:
            self._exact = self._item_factors, self._item_factors.astype(np.float64)
        vectors, items = self._user_factors[users].astype(np.float64), self._exact[1]
        scores = np.empty((len(users), items.shape[1]), np.float32)
        for start in range(0, items.shape[1], _TILE):
            rows = slice(start, start + _TILE)
            scores[:, rows] = vectors @ items[:, rows]
        return scores

    def _state(self) -> Mapping[str, NDArray[Any]]:
        return {"user_factors": self._user_factors, "item_factors": self._item_factors}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._user_factors, self._item_factors = state["user_factors"], state["item_factors"]


class ALS(FactorRecommender):
    """Weighted matrix factorisation of implicit feedback by alternating least squares (Hu, Koren and Volinsky 2008).

    Consumed pairs have preference 1 with confidence 1 + alpha * count, all others preference 0 with confidence 1;
    `implicit` solves each side by three steps of conjugate gradient (Takacs, Pilaszy and Tikk 2011), in one thread.

    Learning: counts; repetition raises the confidence. `update` equals a refit. New users get the most popular.

    Args:
        embedding_size: length of the vectors.
        epochs: alternations.
        reg: L2 penalty of both sides.
        alpha: confidence per consumption.
    """

    name = "als"
    popularity_for_new_users = True

    def __init__(self, *, embedding_size: int = 32, epochs: int = 8, reg: float = 1.0, alpha: float = 1.0) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size, epochs=epochs)
        check_options(self.name, open_low=True, reg=reg, alpha=alpha)
        self.embedding_size = embedding_size
        self.epochs = epochs
        self.reg = reg
        self.alpha = alpha

    def _fit(self, log: Interactions, key: Key) -> None:
        from implicit.cpu.als import AlternatingLeastSquares

        confidence = user_items(log, binary=False)
        confidence.data = 1.0 + self.alpha * confidence.data
        with _one_blas_thread():
            model = AlternatingLeastSquares(
                factors=self.embedding_size,
                iterations=self.epochs,
                regularization=self.reg,
                random_state=generator(Key(key.seed), Purpose.FIT),
                num_threads=1,
            )
            model.fit(confidence, show_progress=False)
        self._keep(model.user_factors, model.item_factors)


class BPR(FactorRecommender):
    """Matrix factorisation with item biases for pairwise ranking (Rendle et al. 2009), by `implicit`, in one thread.

    Each epoch takes as many gradient steps as there are consumed pairs, each against a uniformly drawn item the user
    did not consume.

    Learning: binary; an item consumed again counts once. `update` equals a refit. New users get the most popular.

    Args:
        embedding_size: length of the vectors, without the bias.
        epochs: passes over the consumed pairs.
        learning_rate: step of the stochastic gradient.
        reg: L2 penalty.
    """

    name = "bpr"
    popularity_for_new_users = True

    def __init__(
        self, *, embedding_size: int = 16, epochs: int = 20, learning_rate: float = 0.05, reg: float = 0.002
    ) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size, epochs=epochs)
        check_options(self.name, open_low=True, learning_rate=learning_rate)
        check_options(self.name, reg=reg)
        self.embedding_size = embedding_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.reg = reg

    def _fit(self, log: Interactions, key: Key) -> None:
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        model = BayesianPersonalizedRanking(
            factors=self.embedding_size,
            iterations=self.epochs,
            learning_rate=self.learning_rate,
            regularization=self.reg,
            random_state=generator(Key(key.seed), Purpose.FIT),
            num_threads=1,
        )
        model.fit(user_items(log, binary=True), show_progress=False)
        self._keep(model.user_factors, model.item_factors)


class MF(FactorRecommender):
    """Biased matrix factorisation of ratings by stochastic gradient descent (Koren, Bell and Volinsky 2009, eq. 5).

    rating(u, i) = mean + user bias + item bias + <p_u, q_i>, minimising squared error plus reg times the squared norms;
    `scores` are these predicted ratings, on the scale of the log and not clipped.

    Learning: rated interactions only, each as often as it was rated. `update` equals a refit. Users without ratings
    are predicted at mean + item bias.

    Args:
        embedding_size: length of the vectors.
        epochs: passes over the ratings, each in a fresh random order.
        learning_rate: step of the gradient.
        reg: L2 penalty of vectors and biases.

    Raises:
        RecommenderError: on fit, if the log holds no rating.
    """

    name = "mf"

    def __init__(
        self, *, embedding_size: int = 16, epochs: int = 20, learning_rate: float = 0.02, reg: float = 0.1
    ) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size, epochs=epochs)
        check_options(self.name, open_low=True, learning_rate=learning_rate)
        check_options(self.name, reg=reg)
        self.embedding_size = embedding_size
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.reg = reg

    def _fit(self, log: Interactions, key: Key) -> None:
        rated = log.take(~np.isnan(log.ratings))
        if len(rated) == 0:
            raise RecommenderError(f"mf: none of the {len(log)} interactions has a rating; expected at least one")
        rng = generator(Key(key.seed), Purpose.FIT)
        mean = rated.ratings.mean(dtype=np.float64)
        # Columns: the vector, then one for the user's bias and one for the item's, each against a constant 1.
        d = self.embedding_size
        users = rng.normal(0.0, 0.1, (log.n_users, d + 2)).astype(np.float32)
        items = rng.normal(0.0, 0.1, (log.n_items, d + 2)).astype(np.float32)
        users[rated.user_counts() == 0], items[rated.item_counts() == 0] = 0.0, 0.0
        users[:, d], users[:, d + 1], items[:, d], items[:, d + 1] = 0.0, 1.0, 1.0, 0.0
        centred = (rated.ratings - mean).astype(np.float32)
        rate, reg = np.float32(self.learning_rate), np.float32(self.reg)
        for _ in range(self.epochs):
            _rating_epoch(rng.permutation(len(rated)), rated.users, rated.items, centred, users, items, rate, reg)
        items[:, d + 1] += np.float32(mean)
        self._keep(users, items)

    def predict_ratings(self, users: NDArray[Any], items: NDArray[Any]) -> NDArray[np.float32]:
        """Expected ratings of aligned pairs, (n,), within the span of those learned from."""
        self._require_fit()
        rated = self._log.ratings[~np.isnan(self._log.ratings)]
        stars = np.einsum("nd,dn->n", self._user_factors[users], self._item_factors[:, items])
        return np.asarray(stars.clip(rated.min(), rated.max()), np.float32)


class PureSVD(FactorRecommender):
    """Truncated singular value decomposition of the user-item matrix, zeros taken as zeros (Cremonesi, Koren and Turrin
    2010, "Performance of recommender algorithms on top-n recommendation tasks", section 3.3).

    With R = U S Q' cut at `embedding_size` singular values, score(u, i) = R_u Q q_i.

    Learning: binary; an item consumed again counts once. `update` equals a refit. New users get the most popular.

    Args:
        embedding_size: singular values kept, fewer than users and items.
    """

    name = "puresvd"
    popularity_for_new_users = True

    def __init__(self, *, embedding_size: int = 50) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size)
        self.embedding_size = embedding_size

    def _fit(self, log: Interactions, key: Key) -> None:
        from scipy.sparse.linalg import svds

        matrix = user_items(log, binary=True).astype(np.float64)
        size = min(self.embedding_size, min(matrix.shape) - 1)
        start = generator(Key(key.seed), Purpose.FIT).random(min(matrix.shape))
        with _one_blas_thread():
            right = svds(matrix, k=size, v0=start, return_singular_vectors="vh")[2][::-1].T
        self._keep(matrix @ right, right)

    def _score(self, users: LongArray) -> NDArray[Any]:
        # Beyond six digits are rounding errors, which depend on where BLAS finds its numbers and would break ties.
        return super()._score(users).round(6)


def _one_blas_thread() -> Any:
    """A context in which BLAS uses one thread: its sums, and so the factors, do not depend on the machine's cores."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]

    return threadpool_limits(1, "blas")


@nb.njit(cache=True, nogil=True)
def _rating_epoch(
    order: Any, users: Any, items: Any, ratings: Any, user_factors: Any, item_factors: Any, rate: Any, reg: Any
) -> None:  # pragma: no cover - compiled
    d = user_factors.shape[1] - 2
    for n in order:
        p, q = user_factors[users[n]], item_factors[items[n]]
        error = ratings[n] - p[d] - q[d + 1]
        for f in range(d):
            error -= p[f] * q[f]
        p[d] += rate * (error - reg * p[d])
        q[d + 1] += rate * (error - reg * q[d + 1])
        for f in range(d):
            before = p[f]
            p[f] += rate * (error * q[f] - reg * before)
            q[f] += rate * (error * before - reg * q[f])
