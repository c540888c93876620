"""What passes between environments and the users they serve: the protocol of sessions, and the columns of its arrays.

Declared here because the environments consume it; `agents.sessions` implements it. The module knows neither spaces nor
how a user decides.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import LongArray, RatingScale


class Who(IntEnum):
    """Columns of `Sessions.who`; EPISODE and PAGE count from 0, NEWEST is where the row's newest impression stands."""

    USER = 0
    SEED = 1
    EPISODE = 2
    PAGE = 3
    NEWEST = 4


class Parts(IntEnum):
    """Columns of `Sessions.parts`, of the last page; all but LEFT are named rewards."""

    CLICKS = 0
    RATING = 1
    UTILITY = 2
    RETENTION = 3
    LEFT = 4


class Observation(NamedTuple):
    """What is observed of rows of sessions; the fields are in the order in which compiled passes fill them."""

    user: NDArray[np.float32]  # (n_rows, n_features)
    history_items: NDArray[np.int32]  # (n_rows, history_size), newest first, -1 = none
    history_clicks: NDArray[np.int8]  # (n_rows, history_size)
    history_ratings: NDArray[np.float32]  # (n_rows, history_size)
    slate: NDArray[np.int32]  # (n_rows, K) of the last page, -1 = none yet
    clicks: NDArray[np.int8]  # (n_rows, K)
    ratings: NDArray[np.float32]  # (n_rows, K)
    page: NDArray[np.int32]  # (n_rows, 1) pages shown


Observed = dict[str, NDArray[Any]]  # the same by name, as Gymnasium's spaces have it


class Sessions(Protocol):
    """Rows of users being served, as `agents.sessions.open_sessions` opens them.

    `agents.sessions.base.Sessions` says what each name means.
    """

    n_rows: int
    n_users: int
    n_items: int
    n_features: int
    slate_size: int
    every_utility: bool
    history_size: int
    no_rating: float
    scale: RatingScale
    who: NDArray[np.int64]
    mood: NDArray[np.float32]
    popularity: NDArray[np.float32]
    examined: NDArray[np.bool_]
    clicked: NDArray[np.bool_]
    ratings: NDArray[np.float32]
    utility: NDArray[np.float32]
    parts: NDArray[np.float64]

    def begin(self, rows: NDArray[np.bool_], users: LongArray | None = None, *, keep: bool = False) -> None: ...

    def leave(self, rows: NDArray[np.bool_]) -> None: ...

    def come_back(self, rows: NDArray[np.bool_], rounds: LongArray) -> None: ...

    def satisfaction(self) -> NDArray[np.float32]: ...

    def restore_world(self) -> None: ...

    def renew_popularity(self) -> None: ...

    def first_unknown(self, slates: LongArray, playing: NDArray[np.bool_]) -> int: ...

    def play(
        self, slates: LongArray, playing: NDArray[np.bool_] | None = None, *, out: Observation | None = None
    ) -> tuple[Observation, int]: ...

    def observe(self, *, out: Observation | None = None) -> Observation: ...

    def blank(self) -> Observation: ...

    def allowed(self) -> NDArray[np.bool_]: ...

    def true_utility(self) -> NDArray[np.float32]: ...

    def copy(self) -> Sessions: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
