"""UserModel: slates in, responses out - the base class of every kind of simulated user.

It checks what passes through and lets the population absorb it; a subclass writes `_respond`. It does not know
recommenders, logs or metrics.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.population.favourites import Favourites
from agents.population.rows import Dynamics, Population
from agents.population.scoring import unaided_slates, utility
from agents.population.traits import Traits
from simenv import checks
from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, FloatArray, Interactions, LongArray, RatingScale, Tastes
from simenv.errors import ConfigError, SimenvError
from simenv.heard import Heard
from simenv.interventions import Course
from simenv.randomness import Key, Purpose, prefix
from simenv.slates import Responses


class UserModel(ABC):
    """Simulated users of one world: a Population and the rule by which it answers pages.

    Life: construct with parameters, `bind` to a world, then `respond` page by page and `end_round` after each round.
    """

    name: ClassVar[str] = ""
    population: Population
    rating_scale: RatingScale
    warm_start: Interactions
    course: Course | None = None
    _favourites: Favourites | None = None  # of the users as they are lately

    def bind(
        self, dataset: Dataset, tastes: Tastes, *, seed: int, repeat: str = "never", traits: Traits | None = None
    ) -> None:
        """Make the users of this world.

        Args:
            dataset: whose users they are; its interactions are their past.
            tastes: what they like, true or fitted.
            seed: of the world; keys every draw.
            repeat: consumption regime, ``never``, ``cooldown`` or ``always``.
            traits: profiles; computed from `dataset` by default.
        """
        self.check_dataset(dataset)
        self.seed = seed
        self.rating_scale, self.warm_start = dataset.rating_scale, dataset.interactions
        self.population = Population(
            dataset, tastes, dynamics=self.dynamics, repeat=repeat, memory_size=self.memory_size, traits=traits
        )
        self._bind(dataset, tastes)

    def bind_beside(self, other: UserModel, dataset: Dataset, tastes: Tastes) -> None:
        """Serve the very users of another model, which is bound to this world: one population, two rules of answering.

        Args:
            other: whose population, seed and past these users share from now on.
            dataset: the one `other` was bound to.
            tastes: likewise.
        """
        self.seed, self.population = other.seed, other.population
        self.rating_scale, self.warm_start = other.rating_scale, other.warm_start
        self._bind(dataset, tastes)

    @property
    def bound(self) -> bool:
        """Whether these users serve a world already."""
        return "population" in self.__dict__

    @property
    def hears_friends(self) -> bool:
        """Whether what friends do reaches these users."""
        return False

    def hear(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Heard:
        """What reaches these users before these pages, as they are now; nothing changes. Arguments as of `respond`."""
        return self._hear(*aligned(users, slates), key) if self.hears_friends else Heard.empty()

    @property
    def shardable(self) -> bool:
        """Whether a user's answers depend on other users through what `see_clicks` tells alone; subclasses vouch for
        themselves.
        """
        return False

    def see_clicks(self, counts: LongArray) -> None:
        """From now on these are the interactions with each item, (n_items,), that users can see."""
        self.population.click_counts[...] = counts

    def check_dataset(self, dataset: Dataset) -> None:
        """Refuse a world in which these users cannot live.

        Raises:
            ConfigError: they hear of their friends, and the data set knows none.
        """
        if self.hears_friends and dataset.friends is None:
            raise ConfigError(
                f"agent={self.name}: hears of friends, and {dataset.name} knows none; expected a data set with "
                "friends, such as lastfm-2k or synthetic with dataset.mean_degree=8, or word_of_mouth=0, friends_told=0"
            )

    @property
    def dynamics(self) -> Dynamics:
        """How consumption changes these users; nothing by default."""
        return Dynamics()

    @property
    def memory_size(self) -> int:
        """Events each user remembers."""
        return 32

    def respond(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses:
        """Show each user one page, and let them change by it.

        Args:
            users: (B,) distinct rows of the population.
            slates: (B, K) items, -1 = empty. Of duplicates in a row only the first copy can be examined.
            key: seed, round and page.

        Returns:
            Responses aligned with `slates`; `utility` is the one before the choice.
        """
        users, slates = aligned(users, slates)
        responses = self.answer(users, slates, key)
        if self.course:
            responses = self.course.done(users, slates, responses, key.round)
        self.population.absorb(users, slates, responses, key)
        return responses

    def follow(self, course: Course) -> None:
        """Click, and do not click, what this course says, whatever the rule of these users is."""
        self.course = course

    def answer(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses:
        """What these users would do with a page each as they are now; nothing changes. Arguments as of `respond`."""
        return self._respond(*aligned(users, slates), key)

    def excluded(self, users: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Packed bits of the items these users must not be shown now; None = nothing (see `Population.excluded`)."""
        return self.population.excluded(users)

    @property
    def activity(self) -> FloatArray:
        """(n_users,) percentile of the users' past activity."""
        return self.population.traits.activity_pct

    @property
    def satisfaction(self) -> FloatArray:
        """(n_users,) moving average of page satisfaction, in [0, 1]."""
        return self.population.satisfaction

    def end_round(self, round: int) -> None:
        """Time passes between rounds."""
        self.population.end_round(round)

    def utility(self, users: NDArray[Any]) -> FloatArray:
        """True utility of every item for these users as they are now, (B, n_items), in (0, 1)."""
        users = np.asarray(users, dtype=np.int64)
        head, population = self.population.tastes.choice, self.population
        return utility(users, population.vectors, population.items_t, head.user_bias, head.item_bias)

    def best_utility(self, users: NDArray[Any], k: int, candidates: Candidates | None = None) -> FloatArray:
        """Mean true utility of the `k` best allowed items of each user as they are now, (B,).

        Args:
            users: (B,) rows.
            k: how many; fewer where fewer are allowed.
            candidates: what is allowed; None = every item.
        """
        users, population = np.asarray(users, dtype=np.int64), self.population
        if self._favourites is None or self._favourites.population is not population:
            self._favourites = Favourites(population)
        return self._favourites.mean_utility(users, k, candidates or Candidates.of(population.n_items))

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
        """What users come across without a recommender, (B, k): a draw without replacement in which an item's
        weight is popularity^awareness * exp(taste * own choice logit) (Plackett-Luce by Gumbel top-k; the mixture of
        taste and visibility follows Chaney et al. 2018 and Aridor et al. 2020). Popularity is what users can see: warm
        start plus clicks so far, smoothed by half a count. With both exponents 0 the slates are uniformly random.

        Args:
            users: (B,) rows.
            k: how many items each.
            key: seed, round and page.
            candidates: what they can come across; None = every item.
            awareness: exponent of popularity; 0 = taste alone.
            taste: weight of the own choice logit.
        """
        users = np.asarray(users, dtype=np.int64)
        head, population = self.population.tastes.choice, self.population
        candidates = candidates or Candidates.of(population.n_items)
        visibility = (awareness * np.log(population.click_counts + 0.5)).astype(np.float32)
        return unaided_slates(
            users,
            population.vectors,
            population.items_t,
            (taste * head.item_bias + visibility).astype(np.float32),
            taste,
            candidates.bits,
            candidates.available,
            prefix(key.seed, Purpose.UNAIDED),
            key.first,
            key.round,
            key.page,
            k,
        )

    def forget(self, users: NDArray[Any], start: dict[str, NDArray[Any]]) -> None:
        """Put these users back to where they were when `state_dict` gave `start`; the others stay as they are."""
        self.population.restore(users, start)

    def twin(self) -> UserModel:
        """A shadow twin: the same users in the same state, who go their own way from now on."""
        other = copy.copy(self)
        other.course = None
        other.population, other._favourites = copy.copy(self.population), None
        for name, values in self.population.state_dict().items():
            setattr(other.population, name, values)
        return other

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of everything that changes."""
        return self.population.state_dict()

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what `state_dict` gave."""
        self.population.load_state_dict(state)

    # -- for subclasses ---------------------------------------------------------------------------------------

    def _bind(self, dataset: Dataset, tastes: Tastes) -> None:
        """Prepare whatever `_respond` needs; `self.population` exists."""

    def _hear(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Heard:
        """What friends say or have been seen to do, of users who hear of it."""
        return Heard.empty()

    @abstractmethod
    def _respond(self, users: LongArray, slates: NDArray[np.int32], key: Key) -> Responses:
        """Responses of one page, from the population as it is; must not change it."""


def aligned(users: NDArray[Any], slates: NDArray[Any]) -> tuple[LongArray, NDArray[np.int32]]:
    """Rows and their pages, as arrays of the types that kernels take.

    Raises:
        SimenvError: not one page a user.
    """
    users = np.asarray(users, dtype=np.int64)
    if slates.ndim != 2 or len(slates) != len(users):
        raise SimenvError(f"slates have shape {slates.shape}; expected ({len(users)}, K)")
    return users, np.ascontiguousarray(slates, dtype=np.int32)


def require(condition: bool, option: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names an agent's option unless `condition` holds."""
    checks.require(condition, f"agent.{option}", value, expected)
