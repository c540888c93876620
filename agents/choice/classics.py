"""User models of classic papers whose utilities are a table, not a factor model: Chaney 2018, Jiang 2019, Aridor 2020.

They exist to replicate published results (docs/replications.md); everyday work uses `agents.choice.model`. Their users
do not rate, and stay for every page. They know nothing of recommenders or of what the papers found.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.base import UserModel, require
from agents.choice.model import first_copies
from agents.population.traits import Traits
from simenv.candidates import Candidates, pack, unpack
from simenv.datasets.base import Dataset, FloatArray, LongArray, Tastes
from simenv.numeric import DoubleArray, sigmoid
from simenv.randomness import Key, Purpose, generator, uniforms
from simenv.slates import Responses


class TableUsers(UserModel):
    """Users whose utility of every item is known outright.

    A subclass sets `table` in `_bind` and writes `_choose`. Items with a catalogue attribute ``release`` (the round in
    which they appear) are out of reach before.

    Attributes:
        table: (n_users, n_items) float64 true utilities in (0, 1), as they are now.
    """

    table: DoubleArray

    def utility(self, users: NDArray[Any]) -> FloatArray:
        return self.table[users].astype(np.float32)

    def best_utility(self, users: NDArray[Any], k: int, candidates: Candidates | None = None) -> FloatArray:
        scores = _allowed(self.table[users], candidates)
        best = -np.partition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        filled = np.isfinite(best)
        total = np.where(filled, best, 0.0).sum(axis=1)
        count = filled.sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

    def unaided_slates(
        self,
        users: NDArray[Any],
        k: int,
        key: Key,
        candidates: Candidates | None = None,
        *,
        awareness: float = 0.5,
        taste: float = 1.0,
    ) -> NDArray[np.int32]:
        """As in the base class, with the logit of the table as the choice logit."""
        users = np.asarray(users, dtype=np.int64)
        value = np.clip(self.table[users], 1e-9, 1 - 1e-9)
        draw = uniforms(key, Purpose.UNAIDED, users[:, None], np.arange(self.population.n_items))
        noise = -np.log(-np.log(draw + 2.0**-54))
        visible = awareness * np.log(self.population.click_counts + 0.5)
        return self.ranked(taste * np.log(value / (1 - value)) + visible + noise, k, candidates)

    def bind(
        self, dataset: Dataset, tastes: Tastes, *, seed: int, repeat: str = "never", traits: Traits | None = None
    ) -> None:
        super().bind(dataset, tastes, seed=seed, repeat=repeat, traits=traits)
        release = dataset.catalog.attributes.get("release")
        self._release = np.full(dataset.n_items, -1) if release is None else np.asarray(release)
        self._round = 0

    def excluded(self, users: NDArray[Any]) -> NDArray[np.uint8] | None:
        """What the regime excludes, and what is not released yet."""
        later = self._release > self._round
        consumed = super().excluded(users)
        if not later.any():
            return consumed
        bits = np.tile(pack(later[None, :]), (len(users), 1))
        return bits if consumed is None else bits | consumed

    def end_round(self, round: int) -> None:
        super().end_round(round)
        self._round = round + 1

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return super().state_dict() | {"table": self.table.copy(), "round": np.array(self._round)}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        super().load_state_dict({name: values for name, values in state.items() if name not in ("table", "round")})
        self.table = state["table"].copy()
        self._round = int(state["round"])

    def forget(self, users: NDArray[Any], start: dict[str, NDArray[Any]]) -> None:
        super().forget(users, start)
        self.table[users] = start["table"][users]

    def twin(self) -> UserModel:
        other = super().twin()
        assert isinstance(other, TableUsers)
        other.table = self.table.copy()
        return other

    def ranked(self, scores: DoubleArray, k: int, candidates: Candidates | None) -> NDArray[np.int32]:
        """The `k` best allowed items of each row of scores (B, n_items), best first, -1 where they run out."""
        scores = _allowed(scores, candidates)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
        return np.where(np.isfinite(np.take_along_axis(scores, order, axis=1)), order, np.int32(-1))

    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        examined = first_copies(slates)
        values = np.take_along_axis(self.table[users], np.maximum(slates, 0).astype(np.int64), axis=1)
        return Responses(
            examined=examined,
            clicked=self._choose(users, slates, examined, key) & examined,
            ratings=np.full(slates.shape, np.nan, np.float32),
            utility=np.where(slates >= 0, values, np.nan).astype(np.float32),
            exited=np.zeros(len(users), np.bool_),
        )

    @abstractmethod
    def _choose(
        self, users: LongArray, slates: NDArray[np.int32], examined: NDArray[np.bool_], key: Key
    ) -> NDArray[np.bool_]:
        """Which slots are clicked, (B, K)."""


class RankDiscountedChoice(TableUsers):
    """Chaney, Stewart and Engelhardt 2018, "How algorithmic confounding in recommendation systems increases homogeneity
    and decreases utility", section 4.

    A user takes exactly the item that maximises known utility x (rank + 1)^attention, rank from 0, among those not
    taken before: under `repeat=always` these stay on the page and keep their ranks. True utility of a pair is Beta
    distributed around <theta_u, beta_i>, the choice vectors of the world's tastes; the user knows a Beta distributed
    share of it.

    Args:
        attention: exponent of the rank, <= 0.
        knowledge: mean share of the utility that a user knows, in (0, 1).
        noise: standard deviation of both Beta distributions.
        memory_size: events each user remembers.
    """

    name: ClassVar[str] = "rank-discounted"

    def __init__(
        self, *, attention: float = -0.8, knowledge: float = 0.98, noise: float = 1e-5, memory_size: int = 32
    ) -> None:
        require(attention <= 0, "attention", attention, "a number <= 0")
        require(0 < knowledge < 1, "knowledge", knowledge, "a number in (0, 1)")
        require(noise > 0, "noise", noise, "a number > 0")
        require(memory_size >= 1, "memory_size", memory_size, "at least 1")
        self.attention, self.knowledge, self.noise = attention, knowledge, noise
        self._memory_size = memory_size

    @property
    def memory_size(self) -> int:
        return self._memory_size

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        head = tastes.choice
        rng = generator(Key(self.seed), Purpose.RATING)
        mean = np.clip(head.user_vectors.astype(np.float64) @ head.item_vectors.astype(np.float64).T, 1e-6, 1 - 1e-6)
        self.table = np.clip(beta_around(mean, self.noise, rng), 1e-9, 1 - 1e-9)
        self.known = self.table * beta_around(np.full(mean.shape, self.knowledge), self.noise, rng)

    def _choose(
        self, users: LongArray, slates: NDArray[np.int32], examined: NDArray[np.bool_], key: Key
    ) -> NDArray[np.bool_]:
        items = np.maximum(slates, 0).astype(np.int64)
        known = np.take_along_axis(self.known[users], items, axis=1)
        consumed = unpack(self.population.clicked_bits[users], self.population.n_items)
        return chosen_by_rank(known, examined & ~np.take_along_axis(consumed, items, axis=1), self.attention)


def _allowed(scores: DoubleArray, candidates: Candidates | None) -> DoubleArray:
    """The scores, -inf where an item is not allowed."""
    return scores if candidates is None else np.where(candidates.mask(), scores, -np.inf)


def chosen_by_rank(value: DoubleArray, examined: NDArray[np.bool_], attention: float) -> NDArray[np.bool_]:
    """The one slot per row with the largest value x (rank + 1)^attention among the examined, as a mask (B, K)."""
    score = np.where(examined, value * np.arange(1, value.shape[1] + 1, dtype=np.float64) ** attention, -np.inf)
    first = np.argmax(score, axis=1)
    return np.asarray((np.arange(value.shape[1]) == first[:, None]) & examined)


def beta_around(mean: DoubleArray, sd: float, rng: np.random.Generator) -> DoubleArray:
    """Beta draws with these means in (0, 1) and one standard deviation (footnote 3 of Chaney et al. 2018)."""
    limit = 0.5 * np.sqrt(mean * (1 - mean))  # a Beta distribution cannot be wider than twice this
    spread = np.minimum(sd, limit)
    size = mean * (1 - mean) / spread**2 - 1
    return rng.beta(mean * size, (1 - mean) * size)


class DriftingInterest(TableUsers):
    """Jiang, Chiappa, Lattimore, Gyorgy and Kohli 2019, "Degenerate feedback loops in recommender systems", section 4.

    P(click) = sigmoid(interest_ui) for every item shown, whatever its rank; afterwards the interest moves by
    U[0, step], up after a click and down without one. Interests start from U[-start, start].

    Args:
        step: largest move of an interest a page.
        start: bound of the first interests.
        memory_size: events each user remembers.

    Attributes:
        interest: (n_users, n_items) float64, as it is now.
        interest0: the same at round 0.
    """

    name: ClassVar[str] = "drifting-interest"

    def __init__(self, *, step: float = 0.01, start: float = 1.0, memory_size: int = 1) -> None:
        require(step >= 0, "step", step, "a number >= 0")
        require(start >= 0, "start", start, "a number >= 0")
        require(memory_size >= 1, "memory_size", memory_size, "at least 1")
        self.step, self.start = step, start
        self._memory_size = memory_size

    @property
    def memory_size(self) -> int:
        return self._memory_size

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        users = np.arange(dataset.n_users)[:, None]
        draw = uniforms(Key(self.seed), Purpose.DRIFT, users, np.arange(dataset.n_items))
        self.interest0 = self.start * (2 * draw - 1)
        self.interest = self.interest0.copy()
        self.table = logistic(self.interest)

    @property
    def drift(self) -> DoubleArray:
        """Euclidean distance of each user's interests from those at round 0, (n_users,)."""
        return np.asarray(np.linalg.norm(self.interest - self.interest0, axis=1))

    def respond(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses:
        responses = super().respond(users, slates, key)
        rows, ranks = np.nonzero(responses.examined)
        who, items = np.asarray(users, dtype=np.int64)[rows], slates[rows, ranks]
        size = self.step * uniforms(key.at(round=key.round + 1), Purpose.DRIFT, who, items)  # round 0 made the start
        self.interest[who, items] += np.where(responses.clicked[rows, ranks], size, -size)
        self.table[who, items] = logistic(self.interest[who, items])
        return responses

    def forget(self, users: NDArray[Any], start: dict[str, NDArray[Any]]) -> None:
        super().forget(users, start)
        self.interest[users] = start["interest"][users]

    def twin(self) -> UserModel:
        other = super().twin()
        assert isinstance(other, DriftingInterest)
        other.interest = self.interest.copy()
        return other

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return super().state_dict() | {"interest": self.interest.copy()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        super().load_state_dict({name: values for name, values in state.items() if name != "interest"})
        self.interest = state["interest"].copy()

    def _choose(
        self, users: LongArray, slates: NDArray[np.int32], examined: NDArray[np.bool_], key: Key
    ) -> NDArray[np.bool_]:
        items = np.maximum(slates, 0)
        chance = np.take_along_axis(self.table[users], items.astype(np.int64), axis=1)
        return np.asarray(uniforms(key, Purpose.CLICK, users[:, None], items) < chance)


def logistic(x: DoubleArray) -> DoubleArray:
    """1 / (1 + e^-x), kept inside (0, 1)."""
    return np.clip(sigmoid(x), 1e-12, 1 - 1e-12)
