"""What passes between recommender and users: Slates and Responses, and the protocols.

The protocols live here because the loop consumes them; `recommenders.base` and `agents.base` hold the checked
base classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simenv.candidates import Candidates
from simenv.datasets.base import Dataset, Interactions
from simenv.randomness import Key

if TYPE_CHECKING:
    from simenv.events import Events
    from simenv.heard import Heard
    from simenv.interventions import Course


@dataclass(frozen=True, slots=True, kw_only=True)
class Slates:
    """One slate per user of a batch."""

    item_ids: NDArray[np.int32]  # (B, K), best first, -1 = empty
    propensity: NDArray[np.float64] | None = None  # (B, K), P(item at rank | state, ranks before); None = all 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """What a batch of users did with their slates; every array is aligned with the slates."""

    examined: NDArray[np.bool_]  # (B, K)
    clicked: NDArray[np.bool_]  # (B, K)
    ratings: NDArray[np.float32]  # (B, K), NaN = no rating
    utility: NDArray[np.float32]  # (B, K), in (0, 1), before the choice; NaN at empty slots
    exited: NDArray[np.bool_]  # (B,), the session ended after this page
    satisfaction: NDArray[np.float32] | None = None  # (B,), in [0, 1] as stated; NaN, None = follows from the utility


@runtime_checkable
class Recommender(Protocol):
    """Log in, slates out. `recommenders.base.Recommender` is the base class to subclass."""

    name: str

    def fit(self, log: Interactions, *, key: Key | None = None) -> None: ...

    def update(self, new: Interactions, *, key: Key | None = None) -> None: ...

    def recommend(
        self,
        users: NDArray[Any],
        k: int,
        candidates: Candidates | None = None,
        *,
        key: Key | None = None,
    ) -> Slates: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Measures(Protocol):
    """What a recommender may have beside: metrics of its own, for `metrics.csv`."""

    def measures(self, events: Events) -> Mapping[str, float]:
        """Name and value of each, of the impressions of a round; asked before it learns from them."""


def measured(recommender: object, events: Events) -> dict[str, float]:
    """What a recommender measures of the impressions of a round; nothing, if it measures nothing."""
    # Each round asks: `isinstance` of a protocol takes a fifth of a millisecond.
    return dict(recommender.measures(events)) if hasattr(recommender, "measures") else {}


class UserModel(Protocol):
    """Slates in, responses out. `agents.base.UserModel` is the base class to subclass; its docstrings hold."""

    @property
    def activity(self) -> NDArray[np.float32]: ...

    @property
    def satisfaction(self) -> NDArray[np.float32]: ...

    def respond(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses: ...

    def follow(self, course: Course) -> None: ...

    def end_round(self, round: int) -> None: ...

    def excluded(self, users: NDArray[Any]) -> NDArray[np.uint8] | None: ...

    def utility(self, users: NDArray[Any]) -> NDArray[np.float32]: ...

    def best_utility(
        self, users: NDArray[Any], k: int, candidates: Candidates | None = None
    ) -> NDArray[np.float32]: ...

    def unaided_slates(
        self,
        users: NDArray[Any],
        k: int,
        key: Key,
        candidates: Candidates | None = None,
        *,
        awareness: float = 0.5,
        taste: float = 1.0,
    ) -> NDArray[np.int32]: ...

    def twin(self) -> UserModel: ...

    def state_dict(self) -> dict[str, NDArray[Any]]: ...

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None: ...


@runtime_checkable
class SeesTruth(Protocol):
    """A recommender that is shown the users' true utilities: the oracle."""

    def bind_truth(self, utility: Callable[[NDArray[Any]], NDArray[np.float32]]) -> None: ...


class Hears(Protocol):
    """Users who may hear from each other; `hears_friends` tells whether they do."""

    @property
    def hears_friends(self) -> bool: ...

    def hear(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Heard: ...


def hears_friends(users: object) -> TypeGuard[Hears]:
    """Whether these users hear from each other."""
    return bool(getattr(users, "hears_friends", False))


@runtime_checkable
class SeesDataset(Protocol):
    """A recommender that reads item content or user attributes beside the log."""

    def bind_dataset(self, dataset: Dataset) -> None: ...


@runtime_checkable
class Scores(Protocol):
    """A recommender that has a score for every item."""

    def scores(self, users: NDArray[Any]) -> NDArray[np.float32]: ...


@runtime_checkable
class LearnsCounts(Protocol):
    """A recommender to which a log is nothing but how often each item was consumed."""

    name: str

    def fit_counts(self, counts: NDArray[np.int64], n_users: int) -> None:
        """As `fit` on any log of these users with these counts, (n_items,)."""


@runtime_checkable
class Shardable(Protocol):
    """Users who can be served in parts (`simenv.shards`), or say that they cannot."""

    name: str

    @property
    def shardable(self) -> bool:
        """Whether a user's answers depend on other users through what `see_clicks` tells alone."""

    def see_clicks(self, counts: NDArray[np.int64]) -> None:
        """From now on these are the interactions with each item, (n_items,), that users can see."""


@runtime_checkable
class AsksModel(Protocol):
    """Users, or a recommender, for which a language model may answer; `asks_model` tells whether one does."""

    @property
    def accounting(self) -> dict[str, Any] | None:
        """What names the model, and what it was asked and cost, for the run card; None = there is no model."""

    def dry_run(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key, *, pages: int) -> object:
        """What `pages` pages like these would take, to be printed; nothing is asked.

        Args:
            users: (B,) rows, a sample.
            slates: (B, K) items such as the users choose among unaided.
            key: seed, round and page.
            pages: of the whole run.
        """


@runtime_checkable
class Rehearses(Protocol):
    """Who asks a language model already while learning, and can do without one in a dry run."""

    def rehearse(self) -> None:
        """From now on a stand-in answers, which costs nothing."""


def asks_model(one: object) -> TypeGuard[AsksModel]:
    """Whether a language model answers for these users, or for this recommender."""
    return isinstance(one, AsksModel) and one.accounting is not None
