"""What the environments of one world share: the data set, the users bound to it, and the spaces that follow.

Environments talk to users through `Sessions`; nothing here knows how a user decides.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from simenv.checks import LARGEST, whole
from simenv.datasets import LOADERS, load
from simenv.datasets.base import Dataset, Tastes
from simenv.envs.errors import OptionError
from simenv.envs.rewards import Reward
from simenv.envs.sessions import Sessions
from simenv.errors import SimenvError
from simenv.names import paths
from simenv.randomness import Key
from simenv.registration import make, resolve
from simenv.slates import Responses, UserModel

MAX_SEED = 2**63 - 1  # of a world


@runtime_checkable
class Bindable(Protocol):
    """Users that can be given a world; what tells a user model before it has one."""

    @property
    def bound(self) -> bool: ...

    def bind(self, dataset: Dataset, tastes: Tastes, *, seed: int, repeat: str = "never") -> None: ...

    def respond(self, users: NDArray[Any], slates: NDArray[np.int32], key: Key) -> Responses: ...


class ServedUsers(UserModel, Bindable, Protocol):
    """A user model as the environments need it: `agents.base.UserModel`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Options of every environment: the data set, and the users bound to it.

    Attributes:
        dataset: a name such as ``synthetic`` or ``ml-100k``, a mapping with ``name`` and the loader's options, or a
            `Dataset`.
        agent: a name of ``conf/agent``, a mapping with ``name`` or ``_target_`` and options, or a user model that is
            not bound yet. Under ``llm``, the option ``language_model`` is such a name or mapping of ``conf/llm``.
        seed: of the world.
        n_users, n_items: as everywhere; None = all.
        repeat: ``never`` or ``always``.
    """

    dataset: Any = "synthetic"
    agent: Any = "choice"
    seed: int = 0
    n_users: int | None = None
    n_items: int | None = None
    repeat: str = "never"

    def make(self) -> tuple[Dataset, ServedUsers]:
        """The data set, and its users.

        Raises:
            OptionError: an unknown name or option, or a size that cannot be had.
        """
        seed = check_size("seed", self.seed, 0, MAX_SEED)
        if self.repeat not in ("never", "always"):
            raise OptionError(f"repeat={self.repeat!r}: expected never or always")
        try:
            data = self.dataset
            if not isinstance(data, Dataset):
                data = _load(data, seed, self.n_users, self.n_items)
            tastes = data.tastes
            if tastes is None:
                tastes = resolve("agents.tastes.structures.fit_tastes")(dataset=data, seed=seed)
            users: ServedUsers = make(self.agent, "agent")
            if not isinstance(users, Bindable):
                raise OptionError(f"agent={self.agent!r}: expected one of {', '.join(paths('agent'))}, or a user model")
            if users.bound:
                raise OptionError("agent: this user model serves a world already; expected one that is not bound yet")
            users.bind(data, tastes, seed=seed, repeat=self.repeat)
        except SimenvError as error:
            raise error if isinstance(error, OptionError) else OptionError(str(error)) from error
        return data, users


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Options of a session, see `simenv.envs.slate.SlateEnv`."""

    slate_size: int = 10
    max_pages: int = 20
    reward: Any = "clicks"
    history_size: int = 30
    keep_world: bool = False

    def open(self, world: World, n_rows: int, *, details: bool) -> tuple[Dataset, Sessions, Reward, str]:
        """The data set, rows of sessions over it, the checked reward, and a digest of what a state must fit.

        Args:
            world: whose users come.
            n_rows: sessions at once.
            details: whether the utility of every slot is wanted.
        """
        reward = Reward.of(self.reward)
        check_size("max_pages", self.max_pages)
        dataset, users = world.make()
        check_size("slate_size", self.slate_size, 1, dataset.n_items)
        check_size("history_size", self.history_size)
        settings = {"slate_size": self.slate_size, "history_size": self.history_size, "repeat": world.repeat}
        settings["every_utility"] = details or reward.needs_utility
        digest = world_digest(dataset, users, seed=world.seed, n_rows=n_rows, **settings)
        return dataset, resolve("agents.sessions.open_sessions")(users, n_rows, **settings), reward, digest


def parted(options: Mapping[str, Any], *records: type[Any]) -> list[Any]:
    """Keyword options of a constructor as records, each option in the one that knows it.

    Raises:
        TypeError: an option that none knows.
    """
    known = [{field.name for field in fields(record)} for record in records]
    for name in options:
        if not any(name in names_ for names_ in known):
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    return [
        record(**{name: value for name, value in options.items() if name in names_})
        for record, names_ in zip(records, known, strict=True)
    ]


def _load(dataset: Any, seed: int, n_users: int | None, n_items: int | None) -> Dataset:
    options = {"name": dataset} if isinstance(dataset, str) else dataset
    if not isinstance(options, Mapping) or options.get("name") not in LOADERS:
        raise OptionError(
            f"dataset={dataset!r}: expected one of {', '.join(LOADERS)}, a mapping with name, or a Dataset"
        )
    sizes = {"n_users": n_users, "n_items": n_items, "seed": seed}
    return _cached_load(tuple(sorted({**{k: v for k, v in sizes.items() if v is not None}, **options}.items())))


@lru_cache(maxsize=4)
def _cached_load(options: tuple[tuple[str, Any], ...]) -> Dataset:
    """Data sets never change, so that environments side by side can share one."""
    return load(**dict(options))


def observation_space(sessions: Sessions) -> spaces.Dict:
    """The fixed-shape numeric observation of one session; every bound is finite."""
    h, k, n = sessions.history_size, sessions.slate_size, sessions.n_items

    def items(size: int) -> spaces.Box:
        return spaces.Box(-1, n - 1, (size,), np.int32)

    def ratings(size: int) -> spaces.Box:
        return spaces.Box(np.float32(sessions.no_rating), np.float32(sessions.scale.high), (size,), np.float32)

    def flags(size: int) -> spaces.Box:
        return spaces.Box(0, 1, (size,), np.int8)

    return spaces.Dict(
        {
            "user": spaces.Box(0.0, 1.0, (sessions.n_features,), np.float32),
            "history_items": items(h),
            "history_clicks": flags(h),
            "history_ratings": ratings(h),
            "slate": items(k),
            "clicks": flags(k),
            "ratings": ratings(k),
            "page": spaces.Box(0, np.iinfo(np.int32).max, (1,), np.int32),
        }
    )


def world_digest(dataset: Dataset, users: Any, **settings: Any) -> str:
    """What a state must fit: a digest of data, tastes, the users' own options and the settings of an environment."""
    digest = hashlib.blake2b(digest_size=16)
    log, tastes = dataset.interactions, dataset.tastes
    arrays = [dataset.catalog.genres, log.users, log.items, log.ratings, log.times]
    for head in () if tastes is None else (tastes.choice, tastes.rating):
        arrays += [head.user_vectors, head.item_vectors, head.user_bias, head.item_bias]
    for values in arrays:
        digest.update(repr(values.shape).encode() + np.ascontiguousarray(values).view(np.uint8).data)
    own = {name: value for name, value in vars(users).items() if isinstance(value, (bool, int, float, str, tuple))}
    digest.update(repr((type(users).__qualname__, sorted(own.items()), users.dynamics, settings)).encode())
    return digest.hexdigest()


def check_digest(state: Mapping[str, Any], digest: str) -> None:
    """Raise an OptionError unless a state was taken where `world_digest` was the same."""
    if state.get("world") != digest:
        raise OptionError("state: not of an environment with these options; expected one over the same world and users")


def luck_seed(seed: int) -> int:
    """A seed of `reset` as 63 bits: itself where it fits, a hash of the larger ones that Gymnasium allows."""
    if seed < 2**63:
        return seed
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fork(env: Any, n: int, *, luck: str = "same") -> list[Any]:
    """`n` independent copies of an environment in this very state, with all its wrappers, over the same world.

    Args:
        env: an environment or vector of simenv, wrapped or not.
        n: how many.
        luck: ``same``: all draws to come are those this environment would make; ``fresh``: each branch has its own.
    """
    base = env.unwrapped
    shared = {id(base.dataset): base.dataset}
    return [copy.deepcopy(env, shared | {id(base): branch}) for branch in base.fork(n, luck=luck)]


def check_size(name: str, value: Any, low: int = 1, high: int = LARGEST) -> int:
    """`value` as an int.

    Raises:
        OptionError: unless it is a whole number in [low, high].
    """
    whole(name, value, low, high, error=OptionError)
    return int(value)


def user_row(dataset: Dataset, user: Any) -> int:
    """The row of a user given by row or by the data set's own id.

    Raises:
        OptionError: there is no such user.
    """
    if isinstance(user, str):
        if user not in dataset.user_ids:
            raise OptionError(f"options user={user!r}: {dataset.name} has no such user id")
        return dataset.user_ids.index(user)
    return check_size("user", user, 0, dataset.n_users - 1)


def check_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options of a `reset`, as a dict.

    Raises:
        OptionError: an option that is not known.
    """
    options = {} if options is None else options
    for name in options:
        if name not in known:
            raise OptionError(f"reset option {name!r}: unknown; expected some of {', '.join(known)}")
    return options
