"""Shards: one population cut into parts, each played where it lies, with one recommender for all of them.

A round is: the recommender goes to every shard; each serves its own users and hears their answers; what they clicked
comes back and is learned from; then every shard is told what all users clicked. Luck is keyed by the user's row in the
whole population (`simenv.randomness.Key`), so that a run's events do not depend on how it is cut. A barrier ends each
round: it takes as long as its slowest shard.

The module does not know where a shard lies: a `Place` calls the methods of shards in this process (`Here`), from files
one after the other (`OnDisk`), or elsewhere.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simenv import checks
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.errors import ConfigError, RunDirectoryError, WorkerError
from simenv.events import Events
from simenv.interventions import Course
from simenv.metrics.reference import midrank_percentile
from simenv.platform import Mode, Platform, Schedule
from simenv.randomness import Key
from simenv.slates import LearnsCounts, Recommender, SeesTruth, Shardable, Slates, asks_model


class ShardLost(WorkerError):
    """A place has lost a shard; whoever plays can begin again from a snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Everybody:
    """What the users of one shard have to know of the whole population."""

    first: int  # row of the shard's first user
    n_users: int
    item_counts: LongArray  # (n_items,), warm-start interactions of everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What one shard says of a round."""

    pages: Any  # impressions, page by page; or whatever the shard's recorder made of them
    clicks: list[Interactions]  # what is learned from, page by page; empty where it is counted alone
    counts: LongArray  # (n_items,), the same, counted
    clicked: list[LongArray]  # (n_items,), what the users clicked; and their twins, where there are any


class _Taught:
    """The recommender as a shard has it: taught elsewhere, asked for rows of the whole population."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.name = ""
        self.teacher: Recommender | None = None

    def fit(self, log: Interactions, *, key: Key | None = None) -> None:
        """Whoever holds all feedback does that."""

    update = fit

    def recommend(self, users: NDArray[Any], k: int, candidates: Any = None, *, key: Key | None = None) -> Slates:
        assert self.teacher is not None
        key = None if key is None else key.at(first=0)
        return self.teacher.recommend(users + self.first, k, candidates, key=key)

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Shard(Platform):
    """The loop of some users of a larger population, without its learning.

    Args:
        dataset: these users' part of the world.
        users: a user model bound to it.
        everybody: what they share with the others.
        mode, schedule, options: as of `Platform`.
        recorder: (events of a round, round) -> anything, called where the users are; its value goes to whoever plays
            the shards instead of the events. None = the events themselves.
        gathers: whether clicks are handed over one by one, or counted by item.
    """

    def __init__(
        self,
        dataset: Dataset,
        users: Any,
        everybody: Everybody,
        *,
        mode: Mode | str = "loop",
        recorder: Callable[[Events, int], Any] | None = None,
        gathers: bool = True,
        **options: Any,
    ) -> None:
        mode = Mode.parse(mode) if isinstance(mode, str) else mode
        self.taught = _Taught(everybody.first)
        super().__init__(dataset, users, None if mode.feedback == "none" else self.taught, mode=mode, **options)
        self.first, self.n_users = everybody.first, everybody.n_users
        self.recorder, self.gathers = recorder, gathers
        rows = self.first + np.arange(dataset.n_users)
        self.user_arrival = self._arrivals(rows, self.schedule.arriving_users, 0)
        self.meet(everybody.item_counts)

    def consumed(self) -> LongArray:
        """What these users have consumed so far, by item, (n_items,), where they have not met the others yet."""
        counts: LongArray = self._models()[0].population.click_counts.copy()
        return counts

    def meet(self, item_counts: LongArray) -> None:
        """Before the first round: what everybody had consumed, by item, (n_items,)."""
        self.popularity0 = midrank_percentile(item_counts)
        self._known = [item_counts for _ in self._models()]  # what all users had clicked before this round
        self._tell()

    def _models(self) -> list[Any]:
        return [self.users] if self.twins is None else [self.users, self.twins]

    def _tell(self) -> None:
        for users, counts in zip(self._models(), self._known, strict=True):
            users.see_clicks(counts)

    def play(self, recommender: Any, clock: int) -> Played:
        """The sessions of a round.

        Args:
            recommender: serves them; it knows all users' rows.
            clock: the time of round 0.
        """
        self._clock0 = clock
        if isinstance(recommender, SeesTruth):
            recommender.bind_truth(self._truth)
        self.taught.teacher = recommender
        pages, clicks = self._play()
        self.taught.teacher = None
        found = Played(
            pages=pages if self.recorder is None else self.recorder(Events.concat(pages), self.round),
            clicks=clicks if self.gathers else [],
            counts=np.bincount(np.concatenate([part.items for part in clicks]), minlength=self.dataset.n_items),
            clicked=[
                users.population.click_counts - known for users, known in zip(self._models(), self._known, strict=True)
            ],
        )
        return found

    def finish(self, known: list[LongArray]) -> None:
        """End the round, now that it is known what all users, and all twins, have clicked so far, (n_items,) each."""
        self._known = known
        self._tell()
        self._end_round()
        self.round += 1

    def _truth(self, users: NDArray[Any]) -> NDArray[np.float32]:
        return self.users.utility(users - self.first)

    def state(self) -> tuple[list[dict[str, NDArray[Any]]], NDArray[np.bool_]]:
        """What changes in the users and in their twins, and who has left."""
        return [users.state_dict() for users in self._models()], self.gone

    def restore(self, states: list[dict[str, NDArray[Any]]], gone: NDArray[np.bool_], round: int) -> None:
        """Go on before `round`, where `state` was asked."""
        for users, state in zip(self._models(), states, strict=True):
            users.load_state_dict(state)
        self._known = [users.population.click_counts.copy() for users in self._models()]
        self.gone, self.round = gone, round


# -- places -------------------------------------------------------------------------------------------------------


class Place(Protocol):
    """Where shards lie."""

    def each(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every shard with the same arguments; what they answer, in the order of their users."""

    def send(self, method: str, args: Sequence[tuple[Any, ...]]) -> None:
        """Call a method that answers nothing, with arguments for each shard; at the latest before the next `each`."""


class Here:
    """Shards in this process, one after the other."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)

    def each(self, method: str, *args: Any) -> list[Any]:
        return [getattr(shard, method)(*args) for shard in self.shards]

    def send(self, method: str, args: Sequence[tuple[Any, ...]]) -> None:
        for shard, own in zip(self.shards, args, strict=True):
            getattr(shard, method)(*own)


class OnDisk:
    """Shards that come and go: each lies in a file and is in memory for its turn alone.

    Every call leaves each shard's answer in a file too, so that whoever makes the same calls again after an
    interruption gets these answers and goes on where it was.

    Args:
        folder: for the files; made if absent.
        makers: what makes each shard.
        after: called with the number of a shard whose turn is over.
    """

    def __init__(
        self, folder: Path, makers: Sequence[Callable[[], Shard]], after: Callable[[int], None] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.makers, self.after = folder, list(makers), after
        self.calls = 0
        self._waiting: list[list[tuple[str, tuple[Any, ...]]]] = [[] for _ in makers]

    def each(self, method: str, *args: Any) -> list[Any]:
        self.calls += 1
        return [self._turn(number, method, args) for number in range(len(self.makers))]

    def send(self, method: str, args: Sequence[tuple[Any, ...]]) -> None:
        for waiting, own in zip(self._waiting, args, strict=True):
            waiting.append((method, own))

    def _turn(self, number: int, method: str, args: tuple[Any, ...]) -> Any:
        waiting, self._waiting[number] = self._waiting[number], []
        answer = self._path("answer", number, self.calls)
        if answer.exists():
            return _unpickled(answer)
        before = self._path("shard", number, self.calls - 1)
        shard = _unpickled(before) if self.calls > 1 else self.makers[number]()
        for name, own in waiting:
            getattr(shard, name)(*own)
        found = getattr(shard, method)(*args)
        _pickle(shard, self._path("shard", number, self.calls))
        _pickle(found, answer)  # the last thing to appear: until then the turn can be taken again
        before.unlink(missing_ok=True)
        if self.after is not None:
            self.after(number)
        return found

    def _path(self, what: str, number: int, calls: int) -> Path:
        return self.folder / f"{what}-{number:04d}.{calls:06d}.pickle"


def _pickle(value: Any, path: Path) -> None:
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            pickle.dump(value, file, protocol=5)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunDirectoryError(f"{path}: cannot be written ({error}); the same calls go on from here") from error


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return pickle.load(file)


# -- all of them --------------------------------------------------------------------------------------------------


class ShardedPlatform(Platform):
    """The feedback loop of a population in shards; the events, the log and what is saved are those of a `Platform`.

    Args:
        dataset: the whole world; with `counts` its interactions are not read.
        place: the shards, made with the same mode, schedule and seeds.
        bounds: (n_shards + 1,) rows at which the population is cut.
        recommender: not yet fitted; None with mode ``none``.
        counts: warm-start interactions by item, (n_items,), where there is no log of all users: the recommender must
            then learn from counts alone. None = it learns from the log, which is gathered here.
        options: as of `Platform`.

    Attributes:
        records: what the shards' recorders made of the last round; None where events are gathered.

    Raises:
        ConfigError: see `check_shards`; a recommender that does not learn from counts, with `counts`.
    """

    def __init__(
        self,
        dataset: Dataset,
        place: Place,
        bounds: Sequence[int],
        recommender: Any,
        *,
        counts: LongArray | None = None,
        **options: Any,
    ) -> None:
        self.place, self.bounds = place, list(bounds)
        self.counts = None if counts is None else counts.copy()
        self.records: list[Any] | None = None
        if counts is not None and recommender is not None and not isinstance(recommender, LearnsCounts):
            raise ConfigError(
                f"recommender {recommender.name}: learns from the log of all users; expected one that learns from "
                "counts of items (popularity, random), or fewer users"
            )
        users: Any = _ShardedUsers(self)
        super().__init__(dataset, users, recommender, **options)
        check_shards(self.mode, self.schedule, self.course)
        if counts is not None and self.schedule.retrain != "refit":
            raise ConfigError(f"retrain={self.schedule.retrain}: counts tell no rounds apart; expected refit")
        log = dataset.interactions
        start = log.item_counts() if counts is None else counts
        self.known = [start.copy() for _ in ([0] if self.twins is None else [0, 1])]

    def _fit(self, key: Key) -> None:
        if self.counts is None:
            super()._fit(key)
        else:
            recommender: Any = self.recommender
            recommender.fit_counts(self.counts, self.n_users)

    def _play(self) -> tuple[list[Events], list[Interactions]]:
        found: list[Played] = self.place.each("play", self.recommender, self._clock0)
        for place, known in enumerate(self.known):
            self.known[place] = known + sum(part.clicked[place] for part in found)
        if self.counts is not None:
            self.counts += sum(part.counts for part in found)
            self.records = [part.pages for part in found]
            return [Events.empty()], []
        return _page_by_page([part.pages for part in found]), _page_by_page([part.clicks for part in found])

    def _end_round(self) -> None:
        self.place.send("finish", [(self.known,) for _ in self.bounds[1:]])

    def save(self, folder: Path) -> None:
        self.states, gone = _joined(self.place.each("state"))
        self.gone = gone
        super().save(folder)

    def load(self, folder: Path) -> None:
        self.states = [{} for _ in self.known]
        super().load(folder)
        self.known = [state["click_counts"].copy() for state in self.states]
        parts = [
            ([_cut(state, first, last) for state in self.states], self.gone[first:last], self.round)
            for first, last in pairwise(self.bounds)
        ]
        self.place.send("restore", parts)


class _ShardedUsers:
    """The users of all shards, as far as a Platform asks for them itself: what is saved, and what is loaded."""

    def __init__(self, platform: ShardedPlatform, number: int = 0) -> None:
        self.platform, self.number = platform, number

    def twin(self) -> _ShardedUsers:
        return _ShardedUsers(self.platform, 1)

    def utility(self, users: NDArray[Any]) -> NDArray[np.float32]:
        raise ConfigError(
            "shards: the truth is known where the users are; expected a recommender that learns from logs"
        )

    def state_dict(self) -> dict[str, NDArray[Any]]:
        return self.platform.states[self.number]

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        self.platform.states[self.number] = state


def bounds_of(n_users: int, n_shards: int) -> list[int]:
    """Rows at which a population is cut into equal parts, (n_shards + 1,).

    Raises:
        ConfigError: there are more shards than users.
    """
    checks.whole("shards", n_shards, 1, n_users)
    return [n_users * number // n_shards for number in range(n_shards + 1)]


def check_shards(mode: Mode | str, schedule: Schedule, course: Course | None = None, *others: Any) -> None:
    """Refuse what users in shards cannot do.

    Args:
        mode, schedule, course: of a run.
        others: users, and recommenders.

    Raises:
        ConfigError: one shard's users would have to know within a round what the others do in it.
    """
    mode = Mode.parse(mode) if isinstance(mode, str) else mode
    if mode.feedback == "organic":
        raise ConfigError(
            "mode=organic: twins stop when they have clicked as often as all users together, which no shard knows; "
            "expected shards=1, or loop, frozen, exogenous, none"
        )
    if schedule.max_pages > 1 and (mode.adoption < 1 or mode.feedback == "none"):
        raise ConfigError(
            f"max_pages={schedule.max_pages}: users without a recommender see on a second page what all users clicked "
            "on the first; expected shards=1, or max_pages=1"
        )
    if course:
        raise ConfigError("shards: what is done to the course of a loop names users; expected shards=1")
    for one in others:
        if asks_model(one):
            raise ConfigError(f"{getattr(one, 'name', one)}: asks a language model; expected shards=1")
        if isinstance(one, Shardable) and not one.shardable:
            raise ConfigError(f"agent={one.name}: needs all users in one place; expected shards=1, or agent=choice")


def _page_by_page(parts: Sequence[list[Any]]) -> list[Any]:
    """What shards say of each page, first pages first, users in order."""
    longest = max(len(pages) for pages in parts)
    return [pages[page] for page in range(longest) for pages in parts if page < len(pages)]


_AXES = {"recent_bits": 1, "click_counts": None, "popularity": None}  # of users in a state; None = everybody's


def _joined(
    parts: Sequence[tuple[list[dict[str, NDArray[Any]]], NDArray[np.bool_]]],
) -> tuple[list[dict[str, NDArray[Any]]], NDArray[np.bool_]]:
    joined: list[dict[str, NDArray[Any]]] = []
    for states in zip(*(models for models, _ in parts), strict=True):
        axes: Mapping[str, int | None] = {name: _AXES.get(name, 0) for name in states[0]}
        joined.append(
            {
                name: states[0][name] if axis is None else np.concatenate([state[name] for state in states], axis)
                for name, axis in axes.items()
            }
        )
    return joined, np.concatenate([gone for _, gone in parts])


def _cut(state: Mapping[str, NDArray[Any]], first: int, last: int) -> dict[str, NDArray[Any]]:
    rows = slice(first, last)
    found = {}
    for name, values in state.items():
        axis = _AXES.get(name, 0)
        found[name] = values if axis is None else values[rows] if axis == 0 else values[:, rows]
    return found
