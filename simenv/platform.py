"""Platform: the feedback loop as a `mesa.Model`; one `step` is one round.

who is active -> slates -> responses -> log -> retrain. The Platform knows its recommender and its users by their
protocols only, and nothing of files, arms or seeds beyond its own.
"""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv import checks
from simenv.candidates import Candidates, pack
from simenv.datasets.base import Dataset, Interactions
from simenv.errors import ConfigError, RunDirectoryError
from simenv.events import Events
from simenv.heard import Heard
from simenv.interventions import Course
from simenv.metrics.reference import midrank_percentile
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import Recommender, Responses, SeesDataset, SeesTruth, Slates, UserModel, hears_friends, measured

_start_method = multiprocessing.get_start_method(allow_none=True)
from mesa import Agent as Agent  # noqa: E402 - for those who need Mesa without what importing it does
from mesa import Model  # noqa: E402

multiprocessing.set_start_method(_start_method, force=True)  # Mesa sets "spawn" for the whole process when it loads

FEEDBACK = ("loop", "frozen", "organic", "exogenous", "none")
RETRAIN = ("refit", "window", "update")
TWIN_PAGES = 20


@dataclass(frozen=True, slots=True)
class Mode:
    """What a recommender learns from during the run, and how many sessions it serves.

    Attributes:
        feedback: ``loop``, its own users' clicks; ``frozen``, nothing after the warm start; ``organic``, as many clicks
            of shadow twins who choose unaided; ``exogenous``, twins' clicks on uniformly random slates, at equal
            impressions; ``none``, there is no recommender.
        adoption: probability that a session takes the recommended slate; the others choose unaided.
    """

    feedback: str = "loop"
    adoption: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Mode:
        """``loop``, ``frozen``, ``organic``, ``exogenous``, ``none``, or with adoption below one ``loop@0.5``."""
        feedback, _, share = text.partition("@")
        try:
            adoption = float(share) if share else 1.0
        except ValueError:
            adoption = -1.0
        if feedback not in FEEDBACK or not 0 <= adoption <= 1:
            raise ConfigError(f"mode={text}: expected one of {', '.join(FEEDBACK)}, or with adoption as in loop@0.5")
        return cls(feedback, adoption)

    def __str__(self) -> str:
        return self.feedback if self.adoption == 1.0 else f"{self.feedback}@{self.adoption:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the loop runs.

    Attributes:
        slate_size: items a page.
        max_pages: pages a session at most; users may leave earlier.
        retrain_every: rounds between retrainings.
        retrain: ``refit`` on everything so far; ``window``, on the warm start and the last `window` rounds; ``update``,
            the recommender's own incremental update with what is new.
        window: rounds, for ``window``.
        activity: mean share of users active in a round; a user's own chance is min(1, 2 * activity * its activity
            percentile). 1 = everyone, always.
        arriving_users, arriving_items: shares absent at first, with their past, that arrive one after the other.
        arrival_rounds: rounds over which they arrive, from round 1 on.
        attrition: chance that a wholly dissatisfied user leaves for good after a session, times (1 - satisfaction).
        awareness: exponent of popularity in unaided choice.
    """

    slate_size: int = 10
    max_pages: int = 1
    retrain_every: int = 1
    retrain: str = "refit"
    window: int = 5
    activity: float = 1.0
    arriving_users: float = 0.0
    arriving_items: float = 0.0
    arrival_rounds: int = 10
    attrition: float = 0.0
    awareness: float = 0.5

    def __post_init__(self) -> None:
        checks.check_fields(self)
        for name in ("slate_size", "max_pages", "retrain_every", "window", "arrival_rounds"):
            checks.whole(name, getattr(self, name), 1)
        for name in ("arriving_users", "arriving_items", "attrition"):
            checks.share(name, getattr(self, name))
        checks.share("activity", self.activity, open_low=True)
        checks.one_of("retrain", self.retrain, RETRAIN)


class Platform(Model):
    """A population of users, one recommender (or none), and rounds.

    Args:
        dataset: the world; its interactions are the warm start.
        users: a bound user model.
        recommender: not yet fitted; None with mode ``none``.
        seed: of the world; arrivals depend on it alone.
        fit_seed: of what is random in fitting; None = `seed`.
        luck_seed: of every draw of users and slates; None = `seed`.
        mode: see `Mode`.
        schedule: see `Schedule`.
        course: what is done to this course of the loop; None = nothing.

    Attributes:
        round: the next round to be played, from 0.
        round_events: impressions of the last round played.
        round_measures: what the recommender measured of them, see `simenv.slates.Measures`.
        round_heard: what users heard from each other in it.
        log: what the recommender has been given so far: warm start, then feedback.

    Raises:
        ConfigError: when the slate is larger than the catalogue, or mode and recommender do not fit.
    """

    def __init__(
        self,
        dataset: Dataset,
        users: UserModel,
        recommender: Recommender | None,
        *,
        seed: int,
        fit_seed: int | None = None,
        luck_seed: int | None = None,
        mode: Mode | str = "loop",
        schedule: Schedule | None = None,
        course: Course | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.dataset, self.users, self.recommender = dataset, users, recommender
        self.mode = Mode.parse(mode) if isinstance(mode, str) else mode
        self.schedule = schedule or Schedule()
        self.course = Course() if course is None else course
        if self.course:
            users.follow(self.course)
        self.world_seed = seed
        self.fit_seed = seed if fit_seed is None else fit_seed
        self.luck_seed = seed if luck_seed is None else luck_seed
        if self.schedule.slate_size > dataset.n_items:
            raise ConfigError(
                f"slate_size={self.schedule.slate_size}: the catalogue has {dataset.n_items} items; "
                f"expected 1 to {dataset.n_items}"
            )
        self.first, self.n_users = 0, dataset.n_users  # a shard's users are rows of a larger population
        if (self.mode.feedback == "none") != (recommender is None):
            raise ConfigError(f"mode={self.mode}: arm 'none' goes with mode 'none', a recommender with the other modes")
        self.round = 0
        self.round_events: Events | None = None
        self.round_measures: dict[str, float] = {}
        self.round_heard = Heard.empty()
        self.popularity0 = midrank_percentile(dataset.interactions.item_counts())
        self.user_arrival = self._arrivals(np.arange(dataset.n_users), self.schedule.arriving_users, 0)
        self.item_arrival = self._arrivals(np.arange(dataset.n_items), self.schedule.arriving_items, 1)
        self.gone = np.zeros(dataset.n_users, np.bool_)
        warm = dataset.interactions
        if self.user_arrival.any() or self.item_arrival.any():
            warm = warm.take((self.user_arrival[warm.users] == 0) & (self.item_arrival[warm.items] == 0))
        self.log = warm
        self._feedback: list[Interactions] = []  # one entry a round played
        self._clock0 = int(warm.times.max()) + 1 if len(warm) else 0
        self.twins: UserModel | None = users.twin() if self.mode.feedback in ("organic", "exogenous") else None
        if recommender is not None:
            self._serve_with(recommender)
            self._fit(Key(self.fit_seed, 0))

    def _serve_with(self, recommender: Recommender) -> None:
        self.recommender = recommender
        if isinstance(recommender, SeesDataset):
            recommender.bind_dataset(self.dataset)
        if isinstance(recommender, SeesTruth):
            recommender.bind_truth(self.users.utility)

    # -- one round ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Play one round: every active user's session, then retraining."""
        if (swapped := self.course.swapped_in(range(self.round, self.round + 1))) is not None:
            self._serve_with(swapped)
            self._fit(Key(self.fit_seed, self.round))
        pages, clicks = self._play()
        self.round_events = Events.concat(pages)
        self.round_measures = measured(self.recommender, self.round_events)
        self._feedback.append(self._no_clicks().concat(*clicks))
        self._end_round()
        self.round += 1
        if self.recommender is not None and self.mode.feedback != "frozen":
            self._retrain()

    def _play(self) -> tuple[list[Events], list[Interactions]]:
        """The round's sessions: impressions page by page, and what is learned from them."""
        key, active = self._luck(self.round), self.active_users(self.round)
        pages = self._sessions(active, key)
        clicks = [clicks for _, clicks in pages]
        if self.twins is not None:
            clicks = self._twin_clicks(active, key, sum(len(c) for c in clicks))
        self._active = active
        return [events for events, _ in pages], clicks

    def _end_round(self) -> None:
        """Time passes for the users."""
        self._attrition(self._active, self._luck(self.round))
        for users in (self.users, self.twins):
            if users is not None:
                users.end_round(self.round)

    def active_users(self, round: int) -> NDArray[np.int64]:
        """Rows of the users who have a session in `round`, ascending."""
        present = (self.user_arrival <= round) & ~self.gone
        if self.schedule.activity < 1:
            chance = np.minimum(1.0, 2 * self.schedule.activity * self.users.activity)
            everyone = np.arange(self.dataset.n_users)
            present &= uniforms(self._luck(round), Purpose.ACTIVE, everyone, 0) < chance
        return np.flatnonzero(present)

    def available_items(self, round: int) -> NDArray[np.bool_] | None:
        """Which items have arrived by `round` and are still there, (n_items,); None = all."""
        arrived = self.item_arrival <= round
        arrived[self.course.removed(round)] = False
        return None if arrived.all() else arrived

    def _luck(self, round: int) -> Key:
        return Key(self.luck_seed if round >= self.course.luck_from else self.world_seed, round, first=self.first)

    def _sessions(self, active: NDArray[np.int64], key: Key) -> list[tuple[Events, Interactions]]:
        pages = []
        heard: list[Heard] = []
        shown: NDArray[np.uint8] | None = None
        available = self.available_items(key.round)
        n_items = self.dataset.n_items
        for page in range(self.schedule.max_pages):
            page_key = key.at(page=page)
            out = self.users.excluded(active)
            if shown is not None:
                out = shown if out is None else out | shown
            candidates = Candidates.of(n_items, out=out, available=available)
            slates = self._slates(active, page_key, candidates)
            if self.course and page == 0:
                slates = replace(slates, item_ids=self.course.shown(active, slates.item_ids, candidates, key.round))
            best = self.users.best_utility(active, self.schedule.slate_size, candidates)
            if hears_friends(self.users):
                heard.append(self.users.hear(active, slates.item_ids, page_key))
            responses = self.users.respond(active, slates.item_ids, page_key)
            pages.append(self._record(active, slates, responses, best, page_key))
            staying = ~responses.exited
            if page + 1 == self.schedule.max_pages or not staying.any():
                break
            on_page = _slate_bits(slates.item_ids, self.dataset.n_items)
            shown = (on_page if shown is None else shown | on_page)[staying]
            active = active[staying]
        self.round_heard = Heard.concat(heard)
        return pages

    def _slates(self, users: NDArray[np.int64], key: Key, candidates: Candidates) -> Slates:
        """Recommended slates for adopting sessions, unaided ones (propensity NaN) for the others."""
        k = self.schedule.slate_size
        adopting = np.zeros(len(users), np.bool_)
        if self.recommender is not None and self.mode.adoption == 1:
            return self.recommender.recommend(users, k, candidates, key=key)
        if self.recommender is not None:
            adopting = uniforms(key.at(page=0), Purpose.ADOPT, users, 0) < self.mode.adoption
        item_ids = np.empty((len(users), k), np.int32)
        propensity = np.full((len(users), k), np.nan)
        for rows, serve in ((adopting, True), (~adopting, False)):
            if not rows.any():
                continue
            if serve and self.recommender is not None:
                slates = self.recommender.recommend(users[rows], k, candidates.rows(rows), key=key)
                item_ids[rows] = slates.item_ids
                propensity[rows] = 1.0 if slates.propensity is None else slates.propensity
            else:
                item_ids[rows] = self.users.unaided_slates(
                    users[rows], k, key, candidates.rows(rows), awareness=self.schedule.awareness
                )
        return Slates(item_ids=item_ids, propensity=propensity)

    def _record(
        self, users: NDArray[np.int64], slates: Slates, responses: Responses, best: NDArray[np.float32], key: Key
    ) -> tuple[Events, Interactions]:
        """The page's impressions as events, and its clicks as interactions."""
        k = slates.item_ids.shape[1]
        filled = slates.item_ids >= 0
        every = bool(filled.all())

        def column(values: NDArray[Any]) -> NDArray[Any]:
            return values.reshape(-1) if every else values[filled]

        items = column(slates.item_ids)
        n = len(items)
        propensity = slates.propensity
        user_column = column(np.repeat((users + self.first).astype(np.int32), k).reshape(-1, k))
        clicked, rating = column(responses.clicked), column(responses.ratings)
        events = Events(
            round=np.full(n, key.round, np.int32),
            page=np.full(n, key.page, np.int16),
            user=user_column,
            item=items,
            rank=column(np.tile(np.arange(k, dtype=np.int16), (len(users), 1))),
            propensity=np.ones(n) if propensity is None else column(propensity),
            examined=column(responses.examined),
            clicked=clicked,
            rating=rating,
            true_utility=column(responses.utility),
            best_utility=column(np.repeat(best, k).reshape(-1, k)),
            popularity0_pct=self.popularity0[items],
        )
        rows = np.flatnonzero(clicked)
        return events, self._interactions(user_column[rows], items[rows], rating[rows], key)

    def _interactions(
        self, users: NDArray[np.int32], items: NDArray[np.int32], ratings: NDArray[np.float32], key: Key
    ) -> Interactions:
        time = self._clock0 + key.round * (self.schedule.max_pages + TWIN_PAGES) + key.page
        return Interactions(
            users=users,
            items=items,
            ratings=ratings,
            times=np.full(len(users), time, np.int64),
            n_users=self.n_users,
            n_items=self.dataset.n_items,
        )

    # -- counterfactual feedback -------------------------------------------------------------------------------

    def _twin_clicks(self, active: NDArray[np.int64], key: Key, n_clicks: int) -> list[Interactions]:
        """Clicks of the active users' shadow twins, page by page, or all together.

        Organic twins browse unaided, page after page, until they clicked at least `n_clicks` times; exactly that many,
        chosen by a keyed draw, are kept. Exogenous twins see as many random pages as the real users could.
        """
        assert self.twins is not None
        organic = self.mode.feedback == "organic"
        available = self.available_items(key.round)
        pages: list[Interactions] = []
        n_pages = TWIN_PAGES if organic else self.schedule.max_pages
        browsing = active
        for page in range(n_pages):
            if organic and sum(len(p) for p in pages) >= n_clicks:
                break
            page_key = key.at(page=page)
            slates = self.twins.unaided_slates(
                browsing,
                self.schedule.slate_size,
                page_key,
                Candidates.of(self.dataset.n_items, out=self.twins.excluded(browsing), available=available),
                awareness=self.schedule.awareness if organic else 0.0,
                taste=1.0 if organic else 0.0,
            )
            responses = self.twins.respond(browsing, slates, page_key)
            row, rank = np.nonzero(responses.clicked)
            pages.append(
                self._interactions(
                    (browsing[row] + self.first).astype(np.int32),
                    slates[row, rank],
                    responses.ratings[row, rank],
                    page_key,
                )
            )
            if not organic:
                browsing = browsing[~responses.exited]
        if not organic:
            return pages
        clicks = self._no_clicks().concat(*pages)
        if len(clicks) <= n_clicks:
            return [clicks]
        draw = uniforms(key, Purpose.UNAIDED, clicks.users, -1 - clicks.items.astype(np.int64))
        return [clicks.take(np.sort(np.argsort(draw, kind="stable")[:n_clicks]))]

    # -- learning and leaving ----------------------------------------------------------------------------------

    def _retrain(self) -> None:
        schedule = self.schedule
        if self.round % schedule.retrain_every:
            return
        assert self.recommender is not None
        key = Key(self.fit_seed, self.round)
        if schedule.retrain == "update":
            self.recommender.update(
                self.log.take(slice(0, 0)).concat(*self._feedback[-schedule.retrain_every :]), key=key
            )
        elif schedule.retrain == "window":
            self.recommender.fit(self.log.concat(*self._feedback[-schedule.window :]), key=key)
        else:
            self._fit(key)

    def _fit(self, key: Key) -> None:
        """Let the recommender learn from everything so far."""
        assert self.recommender is not None
        self.recommender.fit(self.training_log(), key=key)

    def training_log(self) -> Interactions:
        """Warm start and all feedback so far."""
        return self.log.concat(*self._feedback)

    def _attrition(self, active: NDArray[np.int64], key: Key) -> None:
        if self.schedule.attrition == 0:
            return
        chance = self.schedule.attrition * (1.0 - self.users.satisfaction[active])
        self.gone[active] = uniforms(key, Purpose.EXIT, active, 1) < chance

    def _no_clicks(self) -> Interactions:
        return Interactions.empty(self.n_users, self.dataset.n_items)

    def _arrivals(self, rows: NDArray[np.int64], share: float, kind: int) -> NDArray[np.int32]:
        """Arrival round of each row, (n,): 0 for most, 1 to `arrival_rounds` for a share."""
        if share == 0:
            return np.zeros(len(rows), np.int32)
        draw = uniforms(Key(self.world_seed, kind), Purpose.ARRIVAL, rows, 0)
        late = 1 + np.floor(draw / share * self.schedule.arrival_rounds)
        return np.where(draw < share, late, 0).astype(np.int32)

    def restart(self, seed: int) -> None:
        """Back to round 0 of the same world, every draw under `seed`; the users' state is the caller's to restore."""
        self.world_seed = self.fit_seed = self.luck_seed = seed
        self.round = self.steps = 0
        self.round_events, self._feedback = None, []
        self.gone = np.zeros(self.dataset.n_users, np.bool_)
        if self.twins is not None:
            self.twins = self.users.twin()
        if self.recommender is not None:
            self.recommender.fit(self.log, key=Key(seed, 0))

    # -- snapshots ---------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write everything `load` needs to go on bit for bit; `folder` must not exist."""
        folder.mkdir(parents=True)
        arrays: dict[str, Any] = {f"users.{name}": values for name, values in self.users.state_dict().items()}
        if self.twins is not None:
            arrays |= {f"twins.{name}": values for name, values in self.twins.state_dict().items()}
        feedback = self.log.take(slice(0, 0)).concat(*self._feedback)
        arrays |= {f"log.{name}": getattr(feedback, name) for name in ("users", "items", "ratings", "times")}
        arrays |= {"log.lengths": np.array([len(part) for part in self._feedback], np.int64), "gone": self.gone}
        np.savez(folder / "platform.npz", **arrays)
        (folder / "platform.json").write_text(json.dumps({"round": self.round}))
        if self.recommender is not None:
            self.recommender.save(folder / "recommender")

    def load(self, folder: Path) -> None:
        """Go on where `save` stopped; the Platform must have been made with the same arguments."""
        try:
            round_ = json.loads((folder / "platform.json").read_text())["round"]
            with (folder / "platform.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RunDirectoryError(
                f"{folder}: damaged checkpoint ({error}); delete it to start this job again"
            ) from error
        self.users.load_state_dict(_section(arrays, "users."))
        if self.twins is not None:
            self.twins.load_state_dict(_section(arrays, "twins."))
        log = _section(arrays, "log.")
        lengths = log.pop("lengths")
        feedback = Interactions(n_users=self.dataset.n_users, n_items=self.dataset.n_items, **log)
        ends = np.cumsum(lengths)
        self._feedback = [feedback.take(slice(end - n, end)) for n, end in zip(lengths, ends, strict=True)]
        self.gone = arrays["gone"]
        self.round = self.steps = round_
        if (swapped := self.course.swapped_in(range(round_))) is not None:
            self._serve_with(swapped)
        if self.recommender is not None:
            self.recommender.load(folder / "recommender")


def _section(arrays: dict[str, NDArray[Any]], start: str) -> dict[str, NDArray[Any]]:
    return {name[len(start) :]: values for name, values in arrays.items() if name.startswith(start)}


def _slate_bits(item_ids: NDArray[np.int32], n_items: int) -> NDArray[np.uint8]:
    """Packed bits of the items on each page, (B, ceil(n_items / 8))."""
    mask = np.zeros((len(item_ids), n_items + 1), np.bool_)
    np.put_along_axis(mask, item_ids.astype(np.int64), True, axis=1)  # -1 lands in the spare last column
    return pack(mask[:, :n_items])
