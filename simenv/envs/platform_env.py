"""PlatformEnv: the whole population as a Gymnasium environment; the agent that learns sets the platform's policy."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from simenv.checks import number
from simenv.envs.errors import InvalidActionError, OptionError, ResetNeededError
from simenv.envs.world import World, check_digest, check_options, check_size, parted, world_digest
from simenv.errors import SimenvError
from simenv.events import Events
from simenv.metrics.formulas import coverage, gini
from simenv.metrics.reference import Group, Reference
from simenv.metrics.table import METRICS
from simenv.randomness import hash64
from simenv.registration import make, resolve
from simenv.slates import Scores

KNOBS = ("exploration", "popularity_penalty", "calibration")
OBSERVED = ("ctr", "true_utility", "satisfaction", "gini", "coverage", "tail_share", "genre_kl", "present")
ENGAGEMENT = ("clicks", "utility", "satisfaction")
HARMS = ("gini", "calibration", "group_gap")
_METRICS = {metric.name: metric for metric in METRICS}


class PlatformEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One step is one round: every active user's session under the knobs chosen, then retraining on the clicks.

    Action: ``Box(0, 1, (3,))``, or with `per_group` ``Box(0, 1, (groups, 3))``, knobs for each group of the user
    attribute `group` in the order of `groups`; users of no group are served as under zeros. ``exploration`` is the
    share of slots filled at random; ``popularity_penalty``, times `max_penalty`, the standard deviations of score that
    a unit of log popularity costs; ``calibration`` the weight of matching each user's genres in the slate. All zeros
    serve the base recommender's own slates.

    Observation: ``Box(0, 1, (12,))``, longer by three for each group beyond the first: of the last round click rate,
    mean true utility, mean satisfaction of the users, Gini of impressions per item, coverage, share of the tail,
    divergence of the clicked genres from the users' profile (clipped at 1), share of users still there; the share of
    rounds played; the last action. Zeros where nothing has happened yet.

    Reward: engagement - harm_weight * harm. Engagement is one of ``clicks`` (per session), ``utility`` (mean true
    utility of the impressions) and ``satisfaction`` (mean over users, so that it has the future in it). Harm is one of
    ``gini``, ``calibration`` (the divergence, not clipped) and ``group_gap`` (largest difference in mean true utility
    between groups of the user attribute `group`), or a function of the round's `Events`.

    Termination: nobody is left. Truncation: `rounds` have been played.

    Info: every metric of the round by name, ``engagement``, ``harm``, ``round``.

    Args:
        recommender: base recommender: a name of ``conf/recommender``, a mapping with ``name`` or ``_target_`` and
            options, or an unfitted recommender with scores.
        rounds: rounds of an episode.
        engagement, harm, harm_weight, group: see the reward; harm None = none.
        per_group: whether each group has knobs of its own.
        max_penalty: popularity penalty at action 1.
        options: those of `simenv.envs.world.World` (dataset, agent, seed, n_users, n_items, repeat), and of the loop
            those of `simenv.platform.Schedule` (slate_size, max_pages, retrain_every, activity, attrition, ...).

    Attributes:
        groups: names of the groups of users that `group` makes, such as ``taste=minority``.

    Raises:
        OptionError: an option that is unknown or out of range.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        *,
        recommender: Any = "itemknn",
        rounds: int = 20,
        engagement: str = "clicks",
        harm: str | Callable[[Events], float] | None = "gini",
        harm_weight: float = 0.5,
        group: str = "taste",
        per_group: bool = False,
        max_penalty: float = 1.0,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        from simenv.platform import Platform, Schedule  # Mesa loads here

        if render_mode not in (None, "ansi"):
            raise OptionError(f"render_mode={render_mode!r}: expected ansi or None")
        if engagement not in ENGAGEMENT:
            raise OptionError(f"engagement={engagement!r}: unknown; expected one of {', '.join(ENGAGEMENT)}")
        if not (harm is None or callable(harm) or harm in HARMS):
            raise OptionError(f"harm={harm!r}: unknown; expected one of {', '.join(HARMS)}, None, or a function")
        for name, value in (("harm_weight", harm_weight), ("max_penalty", max_penalty)):
            number(name, value, 0, error=OptionError)
        self.rounds = check_size("rounds", rounds)
        try:
            world, schedule = parted(options, World, Schedule)
            self.dataset, self.users = world.make()
            self.reference = Reference.from_dataset(self.dataset, world.seed)
            self._groups = [g for name, g in self.reference.groups.items() if name.startswith(f"{group}=")]
            if (harm == "group_gap" or per_group) and len(self._groups) < 2:
                raise OptionError(f"group={group!r}: {self.dataset.name} has no such attribute with groups to compare")
            base = make(recommender, "recommender")
            if not isinstance(base, Scores):
                raise OptionError(f"recommender={recommender!r}: expected one with scores, which the knobs can re-rank")
            self._penalty = resolve("recommenders.rerank.PopularityPenalty")(base, strength=0.0)
            self._calibrated = resolve("recommenders.rerank.Calibrated")(self._penalty, strength=0.0)
            self._explorer = resolve("recommenders.rerank.EpsilonGreedy")(self._calibrated, epsilon=0.0)
            # One model for all episodes: Mesa never lets go of one that has had agents.
            self.platform = Platform(self.dataset, self.users, self._explorer, seed=world.seed, schedule=schedule)
        except SimenvError as error:
            raise error if isinstance(error, OptionError) else OptionError(str(error)) from error
        self.engagement, self.harm, self.harm_weight = engagement, harm, harm_weight
        self.max_penalty, self.render_mode = max_penalty, render_mode
        kind = type(base).__qualname__
        settings = {"seed": world.seed, "repeat": world.repeat, "recommender": kind, "loop": schedule}
        if per_group:
            settings["groups"] = self.groups
        self._world = world_digest(self.dataset, self.users, **settings)
        self._start = self.users.state_dict()
        self._action = np.zeros((len(self._groups), len(KNOBS)) if per_group else len(KNOBS), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, self._action.shape, np.float32)
        self.observation_space = spaces.Box(0.0, 1.0, (len(OBSERVED) + 1 + self._action.size,), np.float32)
        self._measured: dict[str, float] = {}
        self._playing = False
        self._seed: int | None = None  # of the episode; None before the first

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Round 0 of the same world; with a new seed, or without one, under other luck."""
        super().reset(seed=seed)
        check_options(options, ())
        self.users.load_state_dict(self._start)
        self._set_knobs(np.zeros_like(self._action))
        self._seed = int(self.np_random.integers(2**62))
        self.platform.restart(self._seed)
        self._measured, self._playing = {}, True
        return self._observation(), {"round": 0}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Play one round under these knobs.

        Raises:
            InvalidActionError: the action is not in the action space.
            ResetNeededError: before `reset` or after the end.
        """
        if not self._playing:
            when = "after the episode has ended: call env.reset() first" if self._measured else "before env.reset()"
            raise ResetNeededError(f"Cannot call env.step() {when}")
        self._set_knobs(self._checked(action))
        self.platform.step()
        events = self.platform.round_events
        assert events is not None
        info = self._measure(events)
        reward = info["engagement"] - self.harm_weight * info["harm"]
        everyone_left = bool(self.platform.gone.all())
        truncated = not everyone_left and self.platform.round >= self.rounds
        self._playing = not (everyone_left or truncated)
        return self._observation(), float(reward), everyone_left, truncated, info

    def render(self) -> str | None:
        """The last round in figures, under ``ansi``."""
        if self.render_mode is None:
            return None
        rows = [
            ", ".join(f"{name} {value:.2f}" for name, value in zip(KNOBS, row, strict=True))
            for row in np.atleast_2d(self._action)
        ]
        knobs = rows[0] if self._action.ndim == 1 else "; ".join(map("{}: {}".format, self.groups, rows))
        figures = ", ".join(f"{name} {self._measured[name]:.3f}" for name in OBSERVED if name in self._measured)
        return f"round {self.platform.round} of {self.rounds}: {knobs}\n{figures or 'nothing played yet'}\n"

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(group.name for group in self._groups)

    # -- beyond Gymnasium -------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything that changes, as copies; can be pickled. Population, feedback and recommender are the files of a
        run's checkpoint, by name.

        Raises:
            ResetNeededError: before `reset`.
        """
        if self._seed is None:
            raise ResetNeededError("Cannot call env.get_state() before calling env.reset()")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "platform"
            self.platform.save(root)
            files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        return {
            "files": files,
            "seed": self._seed,
            "round_events": self.platform.round_events,
            "action": self._action.copy(),
            "measured": self._measured.copy(),
            "playing": self._playing,
            "np_random": copy.deepcopy((self._np_random, self._np_random_seed)),
            "world": self._world,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `get_state` was called, in an environment made with the same options.

        Raises:
            OptionError: world, users or loop were others, and nothing has changed; or the recommender's options were,
                and then only `reset` or another `set_state` helps.
        """
        check_digest(state, self._world)
        self._playing = False
        with tempfile.TemporaryDirectory() as folder:
            for name, content in state["files"].items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                self.platform.load(Path(folder))
            except SimenvError as error:
                raise OptionError(f"state: not of an environment with these options ({error})") from error
        self._set_knobs(state["action"].copy())
        self._set_seed(state["seed"])
        self.platform.round_events = state["round_events"]
        self._measured, self._playing = state["measured"].copy(), state["playing"]
        self._np_random, self._np_random_seed = copy.deepcopy(state["np_random"])

    def fork(self, n: int, *, luck: str = "same") -> list[PlatformEnv]:
        """`n` independent environments in this very state, over the same data set; see `simenv.envs.world.fork` for one
        that keeps wrappers.

        Args:
            n: how many.
            luck: ``same``: all draws to come are those this environment would make; ``fresh``: each branch has its own.

        Raises:
            ResetNeededError: before `reset`.
        """
        if luck not in ("same", "fresh"):
            raise OptionError(f"luck={luck!r}: expected same or fresh")
        if self._seed is None:
            raise ResetNeededError("Cannot call env.fork() before calling env.reset()")
        branches = []
        for branch in range(check_size("n", n, 0)):
            other = copy.deepcopy(self, {id(self.dataset): self.dataset})
            if luck == "fresh":
                other._set_seed(int(hash64(self._seed, -1, branch, 0, self.platform.round, 0) >> np.uint64(2)))
            branches.append(other)
        return branches

    # -- parts ------------------------------------------------------------------------------------------------

    def _set_seed(self, seed: int) -> None:
        self._seed = seed
        self.platform.world_seed = self.platform.fit_seed = self.platform.luck_seed = seed

    def _checked(self, action: Any) -> NDArray[np.float32]:
        values = np.asarray(action)
        shape = self._action.shape
        if values.shape != shape or values.dtype.kind not in "fiu" or not ((values >= 0) & (values <= 1)).all():
            whose = "" if len(shape) == 1 else f" for each of {', '.join(self.groups)}"
            raise InvalidActionError(
                f"{action!r} ({type(action).__name__}) invalid: expected {len(KNOBS)} numbers in [0, 1], "
                f"{', '.join(KNOBS)}{whose}, as in {self.action_space}"
            )
        return values.astype(np.float32)

    def _set_knobs(self, action: NDArray[np.float32]) -> None:
        self._action = action
        knobs = action.astype(np.float64)
        if knobs.ndim == 2:  # of each user
            masks = np.stack([group.users for group in self._groups])
            knobs = masks.T @ knobs
        self._explorer.epsilon, self._calibrated.strength = knobs[..., 0], knobs[..., 2]
        self._penalty.strength = self.max_penalty * knobs[..., 1]

    def _measure(self, events: Events) -> dict[str, Any]:
        everyone = self.reference.groups["all"]
        values: dict[str, Any] = {"round": self.platform.round}
        for name, metric in _METRICS.items():
            value = metric(events, self.reference, everyone) if metric.window == 1 else None
            if value is not None:
                values[name] = float(np.nan_to_num(value))  # a round without clicks has no genres to diverge
        impressions = np.bincount(events.item, minlength=self.dataset.n_items)
        values |= {"gini": gini(impressions), "coverage": coverage(impressions)}
        here = self.users.satisfaction[~self.platform.gone]
        values["satisfaction"] = float(here.mean()) if len(here) else 0.0
        values["present"] = float((~self.platform.gone).mean())
        sessions = max(len(np.unique(events.user)), 1)
        by_name = {"clicks": events.clicked.sum() / sessions, "utility": values["true_utility"]}
        values["engagement"] = float((by_name | values)[self.engagement])
        values["harm"] = self._harm(events, values)
        self._measured = values
        return values.copy()

    def _harm(self, events: Events, values: dict[str, Any]) -> float:
        if self.harm is None:
            return 0.0
        if callable(self.harm):
            return float(self.harm(events))
        if self.harm == "group_gap":
            means = [self._utility_of(events, group) for group in self._groups]
            return float(np.nanmax(means) - np.nanmin(means)) if not np.isnan(means).all() else 0.0
        return float(values.get({"calibration": "genre_kl"}.get(self.harm, self.harm), 0.0))

    def _utility_of(self, events: Events, group: Group) -> float:
        seen = events.true_utility[group.users[events.user]]
        return float(seen.mean()) if len(seen) else np.nan

    def _observation(self) -> NDArray[np.float32]:
        figures = [self._measured.get(name, 0.0) for name in OBSERVED]
        values = [*figures, self.platform.round / self.rounds, *self._action.ravel()]
        return np.clip(np.array(values, np.float32), 0.0, 1.0)
