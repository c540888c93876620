"""SlateEnv: one user's session as a Gymnasium environment; the agent that learns is the recommender."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from simenv.envs.errors import InvalidActionError, OptionError, ResetNeededError
from simenv.envs.rewards import Page
from simenv.envs.sessions import Observed, Parts, Sessions, Who
from simenv.envs.world import (
    Visit,
    World,
    check_digest,
    check_options,
    check_size,
    luck_seed,
    observation_space,
    parted,
    user_row,
)
from simenv.errors import SimenvError
from simenv.randomness import hash64

_ALL = np.ones(1, np.bool_)
_USER, _SEED, _EPISODE, _PAGE, _ = map(int, Who)  # plain integers index faster than an enum
_LEFT = int(Parts.LEFT)
RESET_OPTIONS = ("keep_world", "user")


class SlateEnv(gym.Env[Observed, NDArray[np.int64]]):
    """One user's session: each step shows a page, the episode ends when the user leaves.

    Action: ``MultiDiscrete([n_items] * slate_size)``, items from the top of the page. Every action in the space is
    legal. Of duplicates the first copy counts; later copies, and under ``repeat=never`` items the user has consumed
    before, act as empty slots: they are never examined and have utility 0. `action_masks` says which items these are.

    Observation: a Dict of arrays. ``user`` (n_genres + 3,): shares of the genres consumed, and the three figures
    of `simenv.metrics.profile`: activity, diversity, mean rating. ``history_items``, ``history_clicks``,
    ``history_ratings`` (history_size,): impressions, newest page first and each page from the top, before them the
    warm start; -1, 0 and "no rating" where there is none. ``slate``, ``clicks``, ``ratings`` (slate_size,): the last
    page. ``page`` (1,): pages shown. "No rating" is one step below the scale, 0 on a scale of 1 to 5.

    Reward: see `simenv.envs.rewards`; clicks by default.

    Termination: the user leaves. Truncation: `max_pages` pages have been shown and the user would stay.

    Info: ``user``; after a step also ``position`` (K,), ``utility`` (K,), the true utility before the choice,
    ``examined`` (K,), ``reward_parts`` by name, ``titles`` with `texts`, and ``propensity`` (K,) where the attribute
    `propensity` was set before the step. Everything is a copy.

    Randomness: draws are keyed by (seed of the last seeded reset, user, episode since, page, item), so that two
    policies meet the same luck. The world - catalogue, users, warm start - comes from the option `seed` alone.

    Args:
        dataset, agent: see `simenv.envs.world.World`.
        slate_size: items a page.
        max_pages: pages a session at most.
        reward: a name, a mapping of names to weights, or a function of a `Page`.
        seed: of the world.
        n_users, n_items: size of the world; None = all (synthetic: 500 and 1,000).
        repeat: ``never``: what a user has consumed does not interest again; ``always``: it does.
        history_size: impressions an observation looks back.
        keep_world: whether `reset` lets the world go on - users come back as they left, popularity includes their
            clicks - or restores it. `reset` options override it.
        texts: whether `info` has the titles of the page.
        render_mode: ``ansi``, ``rgb_array`` or None.

    Reset options: ``keep_world``, and ``user``, a row or an id; without it a user is drawn. A seed restores the world,
    unless ``keep_world`` is among the options of that very `reset`.

    Raises:
        OptionError: an option out of range; a `gymnasium.error.Error`, `ValueError` and `simenv.errors.ConfigError`.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form

    def __init__(self, *, texts: bool = True, render_mode: str | None = None, **options: Any) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise OptionError(f"render_mode={render_mode!r}: expected ansi, rgb_array or None")
        world, visit = parted(options, World, Visit)
        self.sessions: Sessions
        self.dataset, self.sessions, self.reward, self._world = visit.open(world, 1, details=True)
        self.max_pages, self.keep_world = visit.max_pages, visit.keep_world
        self.render_mode, self.texts = render_mode, texts
        self.observation_space = observation_space(self.sessions)  # type: ignore[assignment]
        self.action_space = spaces.MultiDiscrete([self.dataset.n_items] * visit.slate_size)
        self.propensity: NDArray[np.float64] | None = None
        self._titles = np.array(self.dataset.catalog.titles, dtype=object)
        self._position = np.arange(visit.slate_size)
        self._action = np.zeros((1, visit.slate_size), np.int64)
        self._playing = False
        self._bind()

    # -- Gymnasium --------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin the next session; see the class for options."""
        who = self.sessions.who
        begins_anew = seed is not None or self._np_random is None
        users, keep = None, self.keep_world and not begins_anew
        if options:
            check_options(options, RESET_OPTIONS)
            keep = bool(options.get("keep_world", keep))
            if options.get("user") is not None:
                users = np.array([user_row(self.dataset, options["user"])])
        if keep:
            self.sessions.leave(_ALL)
            self.sessions.renew_popularity()
        else:
            self.sessions.restore_world()
        if begins_anew:
            super().reset(seed=seed)
            who[0, _SEED] = luck_seed(self.np_random_seed)  # of the system's making where none was given
            who[0, _EPISODE] = -1
        self.sessions.begin(_ALL, users, keep=keep)
        self._playing = True
        self.sessions.observe(out=self._rows)
        return {name: values.copy() for name, values in self._row}, {"user": int(who[0, _USER])}

    def step(self, action: Any) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        """Show one page.

        Raises:
            InvalidActionError: the action is not in the action space.
            ResetNeededError: before `reset` or after the end.
            SimenvError: of users who are asked: a spent budget, a language model out of reach. The session is over.
        """
        if not self._playing:
            raise ResetNeededError(self._why_reset())
        slate = np.asarray(action)
        if slate.dtype.kind not in "iu" or slate.shape != self._position.shape:
            raise InvalidActionError(self._why_invalid(action))
        self._action[0] = slate
        try:
            _, bad = self.sessions.play(self._action, out=self._rows)
        except SimenvError:
            self._playing = False  # a language model's user may have lived through part of the page
            raise
        if bad >= 0:
            raise InvalidActionError(self._why_invalid(action))
        sessions = self.sessions
        parts: list[float] = sessions.parts[0].tolist()
        if self.reward.function is None:
            reward = sum([weight * parts[at] for at, weight in self.reward.terms])
        else:
            reward = float(self.reward(sessions.parts, self._page)[0])
        terminated = parts[_LEFT] > 0
        truncated = not terminated and int(sessions.who[0, _PAGE]) >= self.max_pages
        self._playing = not (terminated or truncated)
        info = {
            "user": int(sessions.who[0, _USER]),
            "position": self._position.copy(),
            "utility": sessions.utility[0].copy(),
            "examined": sessions.examined[0].copy(),
            "reward_parts": {"clicks": parts[0], "rating": parts[1], "utility": parts[2], "retention": parts[3]},
        }
        if self.texts:
            info["titles"] = self._titles[slate].tolist()
        if self.propensity is not None:
            info["propensity"] = np.array(self.propensity, np.float64)
            self.propensity = None
        return {name: values.copy() for name, values in self._row}, reward, terminated, truncated, info

    def render(self) -> Any:
        """The page as the user saw it, with what was clicked: text, or an (H, W, 3) uint8 image under ``rgb_array``."""
        if self.render_mode is None:
            gym.logger.warn(
                "render() without a render_mode; make the environment with render_mode='ansi' or 'rgb_array'"
            )
            return None
        if self.sessions.who[0, _EPISODE] < 0:
            raise ResetNeededError("Cannot call env.render() before calling env.reset()")
        from simenv.envs.rendering import page_image, page_text

        draw = page_text if self.render_mode == "ansi" else page_image
        return draw(self.dataset, self.sessions, 0, self._action[0] if self.sessions.who[0, _PAGE] else None)

    # -- beyond Gymnasium -------------------------------------------------------------------------------------

    def action_masks(self) -> NDArray[np.bool_]:
        """Items that do not act as empty, (n_items,)."""
        return self.sessions.allowed()[0]

    @property
    def slate(self) -> NDArray[np.int64]:
        """The last page shown, (slate_size,), a copy."""
        return self._action[0].copy()

    def true_utility(self) -> NDArray[np.float32]:
        """Utility of every item for this user as it is now, (n_items,): what only an oracle knows."""
        return self.sessions.true_utility()[0]

    def get_state(self) -> dict[str, Any]:
        """Everything that changes, as copies; can be pickled."""
        return {
            "sessions": self.sessions.state_dict(),
            "playing": self._playing,
            "action": self._action.copy(),
            "np_random": copy.deepcopy((self._np_random, self._np_random_seed)),
            "world": self._world,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `get_state` was called, in an environment made with the same options.

        Raises:
            OptionError: world, users or sizes were others; nothing has changed.
        """
        check_digest(state, self._world)
        self.sessions.load_state_dict(state["sessions"])
        self._playing = state["playing"]
        np.copyto(self._action, state["action"])
        self._np_random, self._np_random_seed = copy.deepcopy(state["np_random"])

    def fork(self, n: int, *, luck: str = "same") -> list[SlateEnv]:
        """`n` independent copies in this very state, over the same immutable world; see `simenv.envs.world.fork` for
        one that keeps wrappers.

        Args:
            n: how many.
            luck: ``same``: all draws to come are those this environment would make; ``fresh``: each branch has its own.
        """
        if luck not in ("same", "fresh"):
            raise OptionError(f"luck={luck!r}: expected same or fresh")
        branches = []
        for branch in range(check_size("n", n, 0)):
            other = copy.copy(self)
            other.sessions = self.sessions.copy()
            other._action = self._action.copy()
            other._np_random = copy.deepcopy(self._np_random)
            other.action_space, other.observation_space = copy.deepcopy((self.action_space, self.observation_space))
            if luck == "fresh":
                other.sessions.who[:, _SEED] = fresh_seeds(self.sessions.who, branch)
            branches.append(other)
        return branches

    # -- parts ------------------------------------------------------------------------------------------------

    def _page(self) -> Page:
        return page_of(self.sessions, self._action)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def _bind(self) -> None:
        """Buffers that each page is written to before it is copied out."""
        self._rows = self.sessions.blank()
        self._row = [(name, values[0]) for name, values in self._rows._asdict().items()]

    def _why_reset(self) -> str:
        if self.sessions.who[0, _EPISODE] < 0:
            return "Cannot call env.step() before calling env.reset()"
        return "Cannot call env.step() after the episode has ended, or a page has failed: call env.reset() first"

    def _why_invalid(self, action: Any) -> str:
        return (
            f"{action!r} ({type(action).__name__}) invalid: expected {self._position.shape[0]} integers, "
            f"items 0 to {self.dataset.n_items - 1}, as in {self.action_space}"
        )


def fresh_seeds(who: NDArray[np.int64], branch: int) -> NDArray[np.int64]:
    """Seeds for a branch with luck of its own, (n_rows,), a hash of the seeds so far and the place in the session."""
    state = hash64(who[:, _SEED], -1, branch, who[:, _EPISODE], who[:, _PAGE], 0)
    return (state >> np.uint64(2)).astype(np.int64)


def page_of(sessions: Sessions, slates: NDArray[np.int64]) -> Page:
    """The last page of every row, as copies."""
    return Page(
        users=sessions.who[:, _USER].copy(),
        page=sessions.who[:, _PAGE] - 1,
        slates=slates.copy(),
        examined=sessions.examined.copy(),
        clicked=sessions.clicked.copy(),
        ratings=sessions.ratings.copy(),
        utility=sessions.utility.copy(),
        exited=sessions.parts[:, _LEFT] > 0,
    )
