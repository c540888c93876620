"""Named tasks: worlds so small that the value of any policy, the best one's included, is computed exactly.

Every task is a `SlateEnv` with one slot a page, reward clicks and ``repeat=always``: nothing in it is special but its
size. A task also says, in the closed form of its few parameters, how likely a click and a leave are in each state;
dynamic programming over these gives floor and ceiling, and the tests hold them against played episodes.

    >>> task = TASKS["ChurnTrap"]
    >>> task.value("myopic") < 0.5 * task.value("optimal")
    True
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, Dataset, Head, Interactions, Tastes
from simenv.envs.errors import OptionError
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.numeric import sigmoid

State = Hashable
Chances = tuple[NDArray[np.float64], NDArray[np.float64]]  # P(click), P(leave) of each item, (n_items,) each
Rule = Callable[[State, int], int]  # state and page to item
POLICIES = ("random", "popularity", "oracle", "myopic", "optimal")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A small world and its exact solution.

    Attributes:
        name: of the id ``simenv/<name>-v0``.
        lesson: what a policy has to find out.
        dataset: the world.
        agent: options of the choice model.
        max_pages: of a session.
        starts: (probability, state) of a new session.
        chances: of a click and of a leave, by item, in a state. What the user keeps to himself is averaged out: a
            state is what a policy can know.
        after: the state after an item was shown, and clicked or not.
        utility: true utility of each item in a state, what the recommender `oracle` goes by.
        informed: value of `oracle` where it knows of the user what no policy can; None = there is nothing hidden.
    """

    name: str
    lesson: str
    dataset: Dataset
    agent: dict[str, Any]
    max_pages: int
    starts: tuple[tuple[float, State], ...]
    chances: Callable[[State], Chances] = field(repr=False)
    after: Callable[[Any, int, bool], State] = field(repr=False)
    utility: Callable[[State], NDArray[np.float64]] = field(repr=False)
    informed: float | None = None

    def value(self, policy: str | Rule = "optimal") -> float:
        """Expected clicks of a session under a policy, exactly.

        Args:
            policy: ``random``, uniform; ``popularity``, always the most popular item; ``oracle``, the highest true
                utility; ``myopic``, the likeliest click; ``optimal``; or a function of state and page.
        """
        if isinstance(policy, str) and policy not in POLICIES:
            raise OptionError(f"policy={policy!r}: expected one of {', '.join(POLICIES)}, or a function")
        return _value(self.name, policy)

    def best_item(self, state: State, page: int) -> int:
        """What an optimal policy shows."""
        return int(np.argmax(_action_values(self.name, "optimal", state, page)))

    def options(self) -> dict[str, Any]:
        """Options of the environment."""
        return {
            "dataset": self.dataset,
            "agent": {"name": "choice"} | self.agent,
            "slate_size": 1,
            "max_pages": self.max_pages,
            "repeat": "always",
            "reward": "clicks",
        }


# -- dynamic programming --------------------------------------------------------------------------------------


def _value(name: str, policy: str | Rule) -> float:
    informed = TASKS[name].informed
    if policy == "oracle" and informed is not None:
        return informed
    return float(sum(p * _state_value(name, policy, state, 0) for p, state in TASKS[name].starts))


@cache
def _state_value(name: str, policy: str | Rule, state: State, page: int) -> float:
    task = TASKS[name]
    if page == task.max_pages:
        return 0.0
    values = _action_values(name, policy, state, page)
    if callable(policy):
        return float(values[policy(state, page)])
    if policy == "random":
        return float(values.mean())
    if policy == "popularity":
        return float(values[task.dataset.interactions.item_counts().argmax()])
    if policy == "oracle":
        return float(values[task.utility(state).argmax()])
    if policy == "myopic":
        return float(values[task.chances(state)[0].argmax()])
    return float(values.max())


def _action_values(name: str, policy: str | Rule, state: State, page: int) -> NDArray[np.float64]:
    """Expected clicks from here of showing each item now and following the policy from then on."""
    task = TASKS[name]
    clicks, leaves = task.chances(state)
    values = np.empty(len(clicks))
    for item, (click, leave) in enumerate(zip(clicks, leaves, strict=True)):
        later = [_state_value(name, policy, task.after(state, item, clicked), page + 1) for clicked in (True, False)]
        values[item] = click + (1.0 - leave) * (click * later[0] + (1.0 - click) * later[1])
    return values


# -- worlds ---------------------------------------------------------------------------------------------------

_STILL: dict[str, Any] = {  # every circumstance off; a task switches on what it is about
    "examination": "all",
    "conformity": 0.0,
    "novelty": 0.0,
    "satiation": 0.0,
    "fatigue": 0.0,
    "fatigue_gain": 0.0,
    "drift": 0.0,
    "satiation_gain": 0.0,
    "satisfaction_memory": 0.0,
    "exit_base": -60.0,
    "exit_page": 0.0,
    "exit_activity": 0.0,
    "exit_satisfaction": 0.0,
}


def _world(
    name: str, users: Any, items: Any, item_bias: Any, past: list[tuple[int, int]], genres: int | None = None
) -> Dataset:
    """A data set with one genre per item, and tastes as given; rating is of no matter here.

    Args:
        name: of the data set.
        users: (n_users, d) taste vectors.
        items: (n_items, d).
        item_bias: (n_items,).
        past: (user, item) pairs of the warm start.
        genres: shared genres in turn; None = one each.
    """
    users, items = np.asarray(users, np.float32), np.asarray(items, np.float32)
    n_users, n_items = len(users), len(items)
    n_genres = n_items if genres is None else genres
    log = np.array(past, np.int32).reshape(-1, 2)
    choice = Head(
        user_vectors=users,
        item_vectors=items,
        user_bias=np.zeros(n_users, np.float32),
        item_bias=np.asarray(item_bias, np.float32),
    )
    rating = Head(
        user_vectors=np.zeros_like(users),
        item_vectors=np.zeros_like(items),
        user_bias=np.full(n_users, 3.0, np.float32),
        item_bias=np.zeros(n_items, np.float32),
    )
    return Dataset(
        name=name,
        catalog=Catalog(
            item_ids=tuple(f"i{i}" for i in range(n_items)),
            titles=tuple(f"Item {i}" for i in range(n_items)),
            genre_names=tuple(f"genre {g}" for g in range(n_genres)),
            genres=np.arange(n_genres) == (np.arange(n_items) % n_genres)[:, None],
        ),
        interactions=Interactions(
            users=log[:, 0],
            items=log[:, 1],
            ratings=np.full(len(log), np.nan, np.float32),
            times=np.arange(len(log), dtype=np.int64),
            n_users=n_users,
            n_items=n_items,
        ),
        user_ids=tuple(f"u{u}" for u in range(n_users)),
        tastes=Tastes(choice=choice, rating=rating, rating_noise=0.0, kind="true"),
    )


def _satiation_trap() -> Task:
    bias = np.array([1.4, 0.6, 0.4, 0.2, 0.0])
    weight = 0.8
    past = [(0, item) for item in (0, 0, 0, 1, 1, 2, 3, 4)]

    def chances(clicks: Any) -> Chances:
        return sigmoid(bias - weight * np.array(clicks)), np.zeros(5)

    def after(clicks: Any, item: int, clicked: bool) -> State:
        return tuple(n + (clicked and i == item) for i, n in enumerate(clicks))

    return Task(
        name="SatiationTrap",
        lesson="The best item wears out: the user tires of each genre with every click on it.",
        dataset=_world("SatiationTrap", np.zeros((1, 1)), np.zeros((5, 1)), bias, past),
        agent=_STILL | {"satiation": weight, "satiation_gain": 1.0},
        max_pages=10,
        starts=((1.0, (0,) * 5),),
        chances=chances,
        after=after,
        utility=lambda clicks: sigmoid(bias),
    )


def _churn_trap() -> Task:
    affinity = np.array([-4.0, -1.0, 2.0, 3.0])  # felt after the click, little seen before it
    bias = np.array([2.6, 0.8, -0.6, -1.4])
    taste, hold = 0.3, 8.0
    past = [(0, item) for item in (0, 0, 0, 0, 1, 1, 2, 3)]
    clicks, utility = sigmoid(taste * affinity + bias), sigmoid(affinity + bias)
    leaves = sigmoid(2.0 - hold * utility)
    return Task(
        name="ChurnTrap",
        lesson="The item that is clicked most disappoints, and disappointed users leave.",
        dataset=_world("ChurnTrap", [[1.0]], affinity[:, None], bias, past),
        agent=_STILL | {"taste": taste, "exit_base": 2.0, "exit_satisfaction": hold},
        max_pages=20,
        starts=((1.0, ()),),
        chances=lambda state: (clicks, leaves),
        after=lambda state, item, clicked: (),
        utility=lambda state: utility,
    )


def _popularity_trap() -> Task:
    tastes = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    groups = np.array([0, 0, 1, 1, 2, 2])
    bias, weight = np.full(6, -2.0), 3.0
    items = np.repeat(weight * tastes, 2, axis=0)
    # Everybody has been shown the hits of group 0; each group's own history is what tells it apart.
    past = [(u, item) for u, g in enumerate(groups) for item in (0, 2 * g, 2 * g + 1)]
    clicks = sigmoid(tastes @ items.T + bias)

    def after(group: Any, item: int, clicked: bool) -> State:
        return int(group)

    return Task(
        name="PopularityTrap",
        lesson="What is popular suits one group; what suits the others is in their history.",
        dataset=_world("PopularityTrap", tastes[groups], items, bias, past),
        agent=_STILL,
        max_pages=10,
        starts=tuple((1 / 3, group) for group in range(3)),
        chances=lambda group: (clicks[int(str(group))], np.zeros(6)),
        after=after,
        utility=lambda group: clicks[int(str(group))],
    )


def _cold_start() -> Task:
    n = 4
    low, high = -1.7, 1.7
    tastes = np.eye(n)
    bias = np.full(n, low)
    by_type = sigmoid((high - low) * tastes + bias)  # (type, item)

    everything = [(user, item) for user in range(n) for item in range(n)]

    def posterior(counts: Any) -> NDArray[np.float64]:
        clicks, misses = np.array(counts).reshape(2, n)
        log = (np.log(by_type) * clicks + np.log1p(-by_type) * misses).sum(axis=1)
        weights = np.exp(log - log.max())
        return np.asarray(weights / weights.sum())

    def after(counts: Any, item: int, clicked: bool) -> State:
        place = item if clicked else n + item
        return tuple(c + (i == place) for i, c in enumerate(counts))

    def expected(counts: State) -> NDArray[np.float64]:
        return np.asarray(posterior(counts) @ by_type)

    # Everybody has consumed everything once, so that histories are there and say nothing.
    return Task(
        name="ColdStart",
        lesson="Nobody has a history: find out what this user likes while it still pays.",
        dataset=_world("ColdStart", tastes, (high - low) * tastes, bias, everything),
        agent=_STILL,
        max_pages=8,
        starts=((1.0, (0,) * (2 * n)),),
        chances=lambda counts: (expected(counts), np.zeros(n)),
        after=after,
        utility=expected,
        informed=8 * float(by_type.max()),
    )


def _drift() -> Task:
    items = np.array([[2.0, 0.0], [0.0, 5.0]])
    bias, rate = np.array([-2.0, -2.2]), 0.3
    start = np.array([np.cos(0.35), np.sin(0.35)])
    past = [(0, item) for item in (0, 0, 0, 1)]

    @cache
    def taste(clicked: tuple[int, ...]) -> NDArray[np.float64]:
        if not clicked:
            return start
        vector, item = taste(clicked[:-1]), items[clicked[-1]]
        moved = (1 - rate) * vector + rate * item / np.linalg.norm(item) * np.linalg.norm(vector)
        return np.asarray(moved * np.linalg.norm(vector) / np.linalg.norm(moved))

    def utility(clicked: Any) -> NDArray[np.float64]:
        return sigmoid(items @ taste(clicked) + bias)

    return Task(
        name="Drift",
        lesson="Taste follows what is clicked: lead it to where there is more to like.",
        dataset=_world("Drift", start[None], items, bias, past),
        agent=_STILL | {"drift": rate},
        max_pages=12,
        starts=((1.0, ()),),
        chances=lambda clicked: (utility(clicked), np.zeros(2)),
        after=lambda clicked, item, click: (*clicked, item) if click else clicked,
        utility=utility,
    )


TASKS: dict[str, Task] = {
    task.name: task for task in (_satiation_trap(), _churn_trap(), _popularity_trap(), _cold_start(), _drift())
}


# -- environments ---------------------------------------------------------------------------------------------


def make_task(name: str, **options: Any) -> SlateEnv:
    """The environment ``simenv/<name>-v0``; further options are those of `SlateEnv` that do not define the task."""
    return SlateEnv(**_checked(name, options), **options)


def make_task_vec(name: str, num_envs: int = 1, **options: Any) -> SlateVectorEnv:
    """The same as a vector of sessions."""
    return SlateVectorEnv(num_envs, **_checked(name, options), **options)


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    own = TASKS[name].options()
    for option in options:
        if option in own:
            raise OptionError(f"{option}: simenv/{name}-v0 sets it; make simenv/Slate-v0 for another")
    return own
