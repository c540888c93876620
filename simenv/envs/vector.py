"""SlateVectorEnv: many sessions of one shared world, stepped in one batch."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from simenv.envs.errors import InvalidActionError, OptionError, ResetNeededError
from simenv.envs.rewards import NAMES
from simenv.envs.sessions import Observation, Observed, Parts, Sessions, Who
from simenv.envs.slate import RESET_OPTIONS, fresh_seeds, page_of
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


class SlateVectorEnv(gym.vector.VectorEnv[Observed, NDArray[np.int64], NDArray[Any]]):
    """`num_envs` sessions of one world: one catalogue, one population, one popularity.

    Row b equals a `SlateEnv` whose last seeded reset had seed s + b, draw for draw, as long as nothing shared differs:
    what is shared is the visible popularity, which follows the clicks of all rows and is renewed each time as many
    sessions have ended as there are rows. Two rows can be sessions of the same user; each has its own copy of him.

    Users of other models than ``choice`` (``rank``, ``llm``, ...) have one memory each: at most half of them are served
    at once, nobody in two rows, and all under the luck of the first row's seed.

    Spaces, reward, termination and options are those of `SlateEnv`, batched.

    Autoreset: ``metadata["autoreset_mode"]``, `gymnasium.vector.AutoresetMode.NEXT_STEP` by default: the step after
    the end of a session ignores that row's action, returns the first observation of the next session and reward 0.
    ``SAME_STEP`` puts the last observation into ``info["final_obs"]`` and the last info into ``info["final_info"]``;
    with ``DISABLED`` ended rows wait for ``reset(options={"reset_mask": mask})``.

    Info: arrays over rows with Gymnasium's masks: ``user``; with `details` also ``position``, ``utility``, ``examined``
    and ``reward_parts`` by name.

    Args:
        num_envs: sessions at once.
        autoreset_mode: one of `gymnasium.vector.AutoresetMode`, or its value.
        details: whether `info` has what needs the utility of every slot, a third of the work. A reward that needs it
            is computed all the same.
        render_mode: as in `SlateEnv`.
        options: dataset, agent, slate_size, max_pages, reward, seed, n_users, n_items, repeat, history_size and
            keep_world, as in `SlateEnv`. With `keep_world` users come back as their last session left them.

    Reset options: ``keep_world``; ``user``, one for all rows or one each; ``reset_mask``, after which rows outside it
    are observed as they were. A seed for all rows restores the world, unless ``keep_world`` is among the options too.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium's own form
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        details: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise OptionError(f"render_mode={render_mode!r}: expected ansi, rgb_array or None")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as error:
            modes = ", ".join(mode.value for mode in AutoresetMode)
            raise OptionError(f"autoreset_mode={autoreset_mode!r}: expected one of {modes}") from error
        self.num_envs = check_size("num_envs", num_envs)
        world, visit = parted(options, World, Visit)
        self.sessions: Sessions
        self.dataset, self.sessions, self.reward, self._world = visit.open(world, self.num_envs, details=details)
        self.max_pages, self.keep_world = visit.max_pages, visit.keep_world
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode, self.details = render_mode, details
        self.single_observation_space: spaces.Dict[Any] = observation_space(self.sessions)
        self.single_action_space = spaces.MultiDiscrete([self.dataset.n_items] * visit.slate_size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.propensity: NDArray[np.float64] | None = None
        self._actions = np.zeros((self.num_envs, visit.slate_size), np.int64)
        self._ended = np.ones(self.num_envs, np.bool_)  # rows whose session is over, or has not begun
        self._n_ended = 0  # since popularity was last renewed
        self._failed = False  # whether a page ended in an error
        self._keep = self.keep_world

    # -- Gymnasium --------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Begin the next session of every row, or of those in ``options["reset_mask"]``.

        Args:
            seed: s gives row b the seed s + b; a list gives each row its own; None lets rows go on with theirs.
            options: see the class.
        """
        options = check_options(options, (*RESET_OPTIONS, "reset_mask"))
        rows = self._reset_mask(options.get("reset_mask"))
        users = self._users(options.get("user"))
        self._keep = bool(options.get("keep_world", self.keep_world))
        begins_anew = rows.all() and (seed is not None or self._np_random is None)
        keep = bool(options.get("keep_world", self.keep_world and not begins_anew))
        if keep:
            self.sessions.leave(rows)
            self.sessions.renew_popularity()
        elif rows.all():
            self.sessions.restore_world()
            self._n_ended = 0
        self._failed &= not rows.all()
        self._reseed(seed, rows)
        self._begin(rows, users, keep=keep)
        self._ended[rows] = False
        self._actions[rows] = -1
        return self._seen(self.sessions.observe()), {
            "user": self.sessions.who[:, Who.USER].copy(),
            "_user": rows.copy(),
        }

    def step(
        self, actions: Any
    ) -> tuple[Observed, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Show a page to every row.

        Raises:
            InvalidActionError: the actions are not in the action space.
            ResetNeededError: before `reset`, or in mode ``DISABLED`` on rows that have ended.
            SimenvError: of users who are asked: a spent budget, a language model out of reach. All sessions are over.
        """
        if self._failed:
            raise ResetNeededError("Cannot call envs.step() after a page has failed: call envs.reset() first")
        sessions = self.sessions
        slates = np.asarray(actions)
        if slates.dtype.kind not in "iu" or slates.shape != self._actions.shape:
            raise InvalidActionError(self._why_invalid(slates))
        restarting = self._ended
        if restarting.any():
            self._check_running()
        playing = ~restarting
        np.copyto(self._actions, slates)
        answered: Observation | None
        try:
            if not restarting.any():
                answered, bad = sessions.play(self._actions)
            else:
                answered, bad = self._restart_and_play(restarting, playing)
        except SimenvError:
            self._failed = True  # some rows have been answered, others have not
            raise
        if answered is None or bad >= 0:
            raise InvalidActionError(self._why_invalid(slates[bad // slates.shape[1]]))
        parts = sessions.parts
        rewards = self.reward(parts, lambda: page_of(sessions, self._actions))
        rewards[restarting] = 0.0
        terminated = parts[:, Parts.LEFT] > 0
        truncated = (sessions.who[:, Who.PAGE] >= self.max_pages) & ~terminated
        info = self._info(playing)
        observation = self._after_page(playing, self._seen(answered), rewards, (terminated, truncated), info)
        self._ended = terminated | truncated
        self._n_ended += int(np.count_nonzero(self._ended))
        if self._n_ended >= self.num_envs:
            sessions.renew_popularity()
            self._n_ended = 0
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            observation, info = self._restart_now(observation, info)
        return observation, rewards, terminated, truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """The page of each row, see `SlateEnv.render`."""
        if self.render_mode is None:
            return None
        if (self.sessions.who[:, Who.EPISODE] < 0).any():
            raise ResetNeededError("Cannot call envs.render() before calling envs.reset()")
        from simenv.envs.rendering import page_image, page_text

        draw = page_text if self.render_mode == "ansi" else page_image
        pages = [slate if self.sessions.who[row, Who.PAGE] else None for row, slate in enumerate(self._actions)]
        return tuple(draw(self.dataset, self.sessions, row, slate) for row, slate in enumerate(pages))

    # -- beyond Gymnasium -------------------------------------------------------------------------------------

    def action_masks(self) -> NDArray[np.bool_]:
        """Items that do not act as empty, (num_envs, n_items)."""
        return self.sessions.allowed()

    def true_utility(self) -> NDArray[np.float32]:
        """Utility of every item for each row's user as it is now, (num_envs, n_items)."""
        return self.sessions.true_utility()

    def get_state(self) -> dict[str, Any]:
        """Everything that changes, as copies; can be pickled."""
        return {
            "sessions": self.sessions.state_dict(),
            "actions": self._actions.copy(),
            "ended": self._ended.copy(),
            "n_ended": self._n_ended,
            "failed": self._failed,
            "keep": self._keep,
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
        self._actions, self._ended = state["actions"].copy(), state["ended"].copy()
        self._n_ended, self._failed, self._keep = state["n_ended"], state["failed"], state["keep"]
        self._np_random, self._np_random_seed = copy.deepcopy(state["np_random"])

    def fork(self, n: int, *, luck: str = "same") -> list[SlateVectorEnv]:
        """`n` independent copies in this very state; see `SlateEnv.fork`."""
        if luck not in ("same", "fresh"):
            raise OptionError(f"luck={luck!r}: expected same or fresh")
        branches = []
        for branch in range(check_size("n", n, 0)):
            other = copy.copy(self)
            other.sessions = self.sessions.copy()
            other._actions, other._ended = self._actions.copy(), self._ended.copy()
            other._np_random = copy.deepcopy(self._np_random)
            for name in ("action_space", "observation_space", "single_action_space", "single_observation_space"):
                setattr(other, name, copy.deepcopy(getattr(self, name)))
            if luck == "fresh":
                other.sessions.who[:, Who.SEED] = fresh_seeds(self.sessions.who, branch)
            branches.append(other)
        return branches

    # -- parts ------------------------------------------------------------------------------------------------

    def _restart_and_play(
        self, restarting: NDArray[np.bool_], playing: NDArray[np.bool_]
    ) -> tuple[Observation | None, int]:
        """NEXT_STEP: begin the sessions that are due, play the others; on a bad action nothing has happened."""
        bad = self.sessions.first_unknown(self._actions, playing)
        if bad >= 0:
            return None, bad
        self._begin(restarting, keep=self._keep)
        return self.sessions.play(self._actions, playing)

    def _begin(self, rows: NDArray[np.bool_], users: NDArray[np.int64] | None = None, *, keep: bool) -> None:
        """Start the next episode of some rows."""
        self.sessions.begin(rows, users, keep=keep)

    def _seen(self, observation: Observation) -> Observed:
        """The observation of all rows as it is handed out."""
        return observation._asdict()

    def _after_page(
        self,
        playing: NDArray[np.bool_],
        observation: Observed,
        rewards: NDArray[np.float64],
        ends: tuple[NDArray[np.bool_], NDArray[np.bool_]],
        info: dict[str, Any],
    ) -> Observed:
        """What a page leads to beyond its session; may change rewards, ends (terminated, truncated), info in place."""
        return observation

    def _restart_now(self, last: Observed, info: dict[str, Any]) -> tuple[Observed, dict[str, Any]]:
        """SAME_STEP: begin the next session of the rows that ended, and keep their last observation and info."""
        ended = self._ended
        final_obs, final_info = np.full(self.num_envs, None, object), _rows_of(info, ended)
        for row in np.flatnonzero(ended):
            final_obs[row] = {name: values[row].copy() for name, values in last.items()}
        self._begin(ended, keep=self._keep)
        first = self._seen(self.sessions.observe())
        for name, values in last.items():
            values[ended] = first[name][ended]
        info = _rows_of(info, ~ended)  # what a session ended with is in final_info alone
        info |= {"user": self.sessions.who[:, Who.USER].copy(), "_user": np.ones(self.num_envs, np.bool_)}
        info |= {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": final_info,
            "_final_info": ended.copy(),
        }
        self._ended = np.zeros(self.num_envs, np.bool_)
        return last, info

    def _info(self, playing: NDArray[np.bool_]) -> dict[str, Any]:
        """Arrays over rows; ``_name`` says in which rows ``name`` means something."""
        sessions = self.sessions
        info: dict[str, Any] = {"user": sessions.who[:, Who.USER].copy(), "_user": np.ones(self.num_envs, np.bool_)}
        if self.details:
            parts = {name: sessions.parts[:, at].copy() for at, name in enumerate(NAMES)}
            info["reward_parts"] = parts | {f"_{name}": playing.copy() for name in parts}
            position = np.broadcast_to(np.arange(sessions.slate_size), self._actions.shape).copy()
            arrays = {"position": position, "utility": sessions.utility.copy(), "examined": sessions.examined.copy()}
            info |= arrays | {f"_{name}": playing.copy() for name in (*arrays, "reward_parts")}
        if self.propensity is not None:
            info |= {"propensity": np.array(self.propensity, np.float64), "_propensity": playing.copy()}
            self.propensity = None
        return info

    def _reset_mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if (
            not isinstance(mask, np.ndarray)
            or mask.dtype != np.bool_
            or mask.shape != (self.num_envs,)
            or not mask.any()
        ):
            raise OptionError(
                f"options reset_mask={mask!r}: expected a bool array of shape ({self.num_envs},), one True"
            )
        return mask.copy()

    def _reseed(self, seed: int | list[int | None] | None, rows: NDArray[np.bool_]) -> None:
        """Give rows their seeds, and rows that never had one theirs from the system."""
        who = self.sessions.who
        if seed is None or isinstance(seed, (int, np.integer)):
            if seed is not None or self._np_random is None:
                super().reset(seed=None if seed is None else int(seed))
                start = self.np_random_seed
                assert start is not None
                who[rows, Who.SEED] = [luck_seed(start + int(row)) for row in np.flatnonzero(rows)]
                who[rows, Who.EPISODE] = -1
            return
        if len(seed) != self.num_envs:
            raise OptionError(f"seed={seed!r}: expected one for each of the {self.num_envs} rows")
        super().reset(seed=next((int(s) for s in seed if s is not None), None))
        for row in np.flatnonzero(rows):
            own = seed[row]
            if own is None and who[row, Who.EPISODE] >= 0:
                continue
            who[row, Who.SEED] = self.np_random.integers(2**62) if own is None else luck_seed(_whole(own))
            who[row, Who.EPISODE] = -1

    def _users(self, users: Any) -> NDArray[np.int64] | None:
        if users is None:
            return None
        each = list(users) if isinstance(users, (list, tuple, np.ndarray)) else [users] * self.num_envs
        if len(each) != self.num_envs:
            raise OptionError(f"options user={users!r}: expected one user, or one for each of {self.num_envs} rows")
        return np.array([-1 if user is None else user_row(self.dataset, user) for user in each])

    def _check_running(self) -> None:
        if (self.sessions.who[:, Who.EPISODE] < 0).any():
            raise ResetNeededError("Cannot call envs.step() before calling envs.reset()")
        if self.autoreset_mode is AutoresetMode.DISABLED:
            rows = np.flatnonzero(self._ended)
            raise ResetNeededError(
                f"Cannot call envs.step() with ended rows {rows.tolist()} under autoreset mode Disabled: "
                "call envs.reset(options={'reset_mask': mask}) first"
            )

    def _why_invalid(self, action: NDArray[Any]) -> str:
        return (
            f"{action!r} invalid: expected integers of shape {self._actions.shape}, items 0 to "
            f"{self.dataset.n_items - 1}, as in {self.action_space!r:.60}..."
        )


def _whole(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise OptionError(f"seed={seed!r}: expected a whole number >= 0, or None")
    return int(seed)


def _rows_of(info: dict[str, Any], rows: NDArray[np.bool_]) -> dict[str, Any]:
    """The same info in `rows` alone, zeros elsewhere and masks narrowed; arrays are copies."""
    narrowed: dict[str, Any] = {}
    for name, values in info.items():
        if isinstance(values, dict):
            narrowed[name] = _rows_of(values, rows)
        else:
            narrowed[name] = values.copy()
            narrowed[name][~rows] = 0
    return narrowed
