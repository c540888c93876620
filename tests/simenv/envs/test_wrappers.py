"""Wrappers: spaces, what they pass on, batches, logs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from simenv.datasets import Dataset
from simenv.envs import vector_wrappers
from simenv.envs.slate import SlateEnv
from simenv.envs.vector import SlateVectorEnv
from simenv.envs.wrappers import (
    ActionMask,
    CandidateSlates,
    EventRecorder,
    FlatObservation,
    HiddenState,
    ProtoAction,
    SingleItem,
    SlotMasks,
    flat_features,
    item_embedding,
    nearest_items,
)
from simenv.errors import ConfigError

STAYS = {"name": "choice", "exit_base": -50.0}


def make(world: Dataset, **options: Any) -> SlateEnv:
    return SlateEnv(**({"dataset": world, "slate_size": 4, "history_size": 8, "texts": False} | options))


@pytest.mark.parametrize(
    "wrap",
    [
        FlatObservation,
        ProtoAction,
        ActionMask,
        HiddenState,
        EventRecorder,
        CandidateSlates,
        lambda env: CandidateSlates(env, 7, features=True),
        lambda env: FlatObservation(ProtoAction(env)),
        gym.wrappers.FlattenObservation,
    ],
)
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
def test_gymnasiums_own_check_passes_with_every_wrapper(small_world: Dataset, wrap: Any) -> None:
    check_env(wrap(make(small_world, agent=STAYS)), skip_render_check=True)


def test_flat_features_name_what_was_shown_and_clicked(small_world: Dataset) -> None:
    env = FlatObservation(make(small_world, agent=STAYS | {"base": 60.0, "examination": "all"}, max_pages=10))
    env.reset(seed=0)
    slate = np.flatnonzero(env.unwrapped.action_masks())[:4]  # type: ignore[attr-defined]
    vector, *_ = env.step(np.r_[slate[:3], slate[0]])
    genres = small_world.catalog.genres.astype(float)
    genres /= np.maximum(genres.sum(axis=1, keepdims=True), 1)
    g = small_world.catalog.n_genres
    page = vector[-5 - 2 * g : -5].reshape(2, g)
    np.testing.assert_allclose(page[0], genres[[*slate[:3], slate[0]]].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(page[1], genres[slate[:3]].sum(axis=0) / 4, rtol=1e-5)
    assert vector[-5:].tolist() == pytest.approx([1, 1, 1, 0, 0.1])


def test_flat_features_of_a_batch_are_those_of_its_rows(small_world: Dataset) -> None:
    envs = SlateVectorEnv(5, dataset=small_world, slate_size=4, history_size=8)
    envs.reset(seed=0)
    batch = envs.step(np.random.default_rng(0).integers(0, 60, (5, 4)))[0]
    rows = [flat_features({n: v[b] for n, v in batch.items()}, small_world, max_pages=20) for b in range(5)]
    np.testing.assert_array_equal(flat_features(batch, small_world, max_pages=20), rows)


def test_single_item(small_world: Dataset) -> None:
    env = SingleItem(make(small_world, slate_size=1))
    assert env.action_space == gym.spaces.Discrete(60)
    env.reset(seed=0)
    for action in (7, np.int64(7), np.array(7)):
        env.reset()
        assert env.step(action)[0]["slate"].tolist() == [7]
    with pytest.raises(gym.error.InvalidAction):
        env.step(60)
    with pytest.raises(gym.error.InvalidAction):
        env.step(1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="slate_size=1"):
        SingleItem(make(small_world))


def test_candidates_are_the_best_allowed_items(small_world: Dataset) -> None:
    env = CandidateSlates(make(small_world, agent=STAYS), 6, retrieve=lambda e: e.true_utility())
    _, info = env.reset(seed=0)
    inner = env.unwrapped
    utility = np.where(inner.action_masks(), inner.true_utility(), -1)  # type: ignore[attr-defined]
    assert info["candidates"].tolist() == np.argsort(-utility, kind="stable")[:6].tolist()
    observation, *_ = env.step(np.array([3, 0, 5, 1]))
    assert observation["slate"].tolist() == info["candidates"][[3, 0, 5, 1]].tolist()
    for bad in (np.array([6, 0, 0, 0]), np.array([0, 0, 0]), np.zeros(4)):
        with pytest.raises(gym.error.InvalidAction):
            env.step(bad)
    with pytest.raises(ConfigError, match="n=61"):
        CandidateSlates(make(small_world), 61)


def test_proto_actions_show_the_nearest_distinct_allowed_items(small_world: Dataset) -> None:
    env = ProtoAction(make(small_world, agent=STAYS))
    env.reset(seed=0)
    mask = env.unwrapped.action_masks()  # type: ignore[attr-defined]
    item = int(np.flatnonzero(mask)[5])
    point = np.tile(env.embedding[item], (4, 1))
    observation, *_ = env.step(point)
    order = np.argsort(-np.where(mask, env.embedding @ env.embedding[item], -np.inf), kind="stable")
    assert observation["slate"].tolist() == order[:4].tolist()
    with pytest.raises(gym.error.InvalidAction):
        env.step(point[:3])
    with pytest.raises(ConfigError, match="embedding has shape"):
        ProtoAction(make(small_world), np.zeros((3, 2)))


def test_nearest_items_takes_batches(small_world: Dataset) -> None:
    embedding = item_embedding(small_world)
    rng = np.random.default_rng(0)
    proto, allowed = rng.standard_normal((5, 4, embedding.shape[1])), rng.random((5, 60)) < 0.5
    batch = nearest_items(proto, embedding, allowed)
    for row in range(5):
        assert batch[row].tolist() == nearest_items(proto[row], embedding, allowed[row]).tolist()
        assert allowed[row, batch[row]].all()
        assert len(set(batch[row])) == 4


def test_masks_and_hidden_state(small_world: Dataset) -> None:
    env = HiddenState(ActionMask(make(small_world, agent=STAYS | {"fatigue_gain": 1.0, "examination": "all"})))
    observation, _ = env.reset(seed=0)
    inner: Any = env.unwrapped
    assert observation["mood"].tolist() == [0.0, 0.5]
    np.testing.assert_array_equal(observation["observation"]["action_mask"], inner.action_masks())
    observation, *_ = env.step(np.flatnonzero(inner.action_masks())[:4])
    assert observation["mood"][0] == pytest.approx(0.8)
    np.testing.assert_array_equal(observation["utility"], inner.true_utility())
    image = env.image()
    assert image.shape == (120, 60, 3)
    filled = (image != 255).any(axis=2).sum(axis=0)
    np.testing.assert_array_equal(filled, np.ceil(inner.true_utility() * 120))


def test_recorded_events_are_what_was_played(small_world: Dataset) -> None:
    env = EventRecorder(make(small_world, agent=STAYS, max_pages=3))
    assert len(env.events()) == 0
    rng, reward = np.random.default_rng(0), 0.0
    for _ in range(2):
        env.reset(seed=0)
        for page in range(3):
            if page == 1:
                env.unwrapped.propensity = np.full(4, 0.5)  # type: ignore[attr-defined]
            step = env.step(rng.integers(0, 60, 4))
            reward += float(step[1])
    events = env.events()
    assert len(events) == 24
    assert events.clicked.sum() == reward
    assert events.round.tolist() == [0] * 12 + [1] * 12
    assert events.page.tolist() == np.repeat([0, 1, 2, 0, 1, 2], 4).tolist()
    np.testing.assert_array_equal(np.isnan(events.propensity), events.page != 1)
    assert len(np.unique(events.user)) == 1


def test_a_platform_cannot_be_wrapped() -> None:
    with pytest.raises(ConfigError, match="expected a SlateEnv inside"):
        FlatObservation(gym.make("CartPole-v1"))


# -- specifications and ids -----------------------------------------------------------------------------------


def places(env: SlateEnv) -> np.ndarray:
    """A retriever of its own: later items first."""
    return np.arange(env.dataset.n_items)


@pytest.mark.parametrize(
    "wrap",
    [
        FlatObservation,
        ActionMask,
        HiddenState,
        EventRecorder,
        SlotMasks,
        lambda env: CandidateSlates(env, 7, retrieve=places, features=True),
        lambda env: ProtoAction(FlatObservation(env), np.eye(60, 5, dtype=np.float32)),
    ],
)
def test_a_specification_makes_the_wrapped_environment_again(wrap: Any) -> None:
    env = wrap(gym.make("simenv/Slate-v0", n_users=20, n_items=60, slate_size=4, texts=False))
    assert env.spec is not None
    again = gym.make(env.spec)
    assert type(again) is type(env)
    assert (again.observation_space, again.action_space) == (env.observation_space, env.action_space)
    env.action_space.seed(0)
    assert same(again.reset(seed=1), env.reset(seed=1))
    action = env.action_space.sample()
    assert same(again.step(action), env.step(action))


@pytest.mark.parametrize("form", ["Flat", "Proto", "Masked"])
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_registered_forms_are_their_wrappers(form: str) -> None:
    options: dict[str, Any] = {"n_users": 20, "n_items": 60, "slate_size": 4, "max_pages": 3, "agent": ALONE}
    env = gym.make(f"simenv/Slate{form}-v0", texts=False, **options)
    check_env(env, skip_render_check=True)
    assert env.spec is not None
    assert gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).spec == env.spec
    envs = gym.make_vec(f"simenv/Slate{form}-v0", num_envs=3, vectorization_mode="vector_entry_point", **options)
    assert envs.single_observation_space == env.observation_space
    assert envs.single_action_space == env.action_space
    assert same(envs.reset(seed=4)[0][0], env.reset(seed=4)[0])
    env.action_space.seed(0)
    action = env.action_space.sample()
    assert same(envs.step(np.stack([action] * 3))[0][0], env.step(action)[0])
    if form == "Masked":
        assert same(envs.action_masks()[0], env.get_wrapper_attr("action_masks")())  # type: ignore[attr-defined]


# -- vectors --------------------------------------------------------------------------------------------------

ALONE = {"name": "choice", "conformity": 0.0}
PAIRS: dict[str, tuple[Any, Any]] = {
    "flat": (vector_wrappers.FlatObservation, FlatObservation),
    "proto": (vector_wrappers.ProtoAction, ProtoAction),
    "masked": (vector_wrappers.SlotMasks, SlotMasks),
    "candidates": (
        lambda envs: vector_wrappers.CandidateSlates(envs, 9, retrieve=lambda e: e.true_utility(), features=True),
        lambda env: CandidateSlates(env, 9, retrieve=lambda e: e.true_utility(), features=True),
    ),
    "both": (
        lambda envs: vector_wrappers.CandidateSlates(
            vector_wrappers.FlatObservation(envs), 9, retrieve=lambda e: e.true_utility()
        ),
        lambda env: CandidateSlates(FlatObservation(env), 9, retrieve=lambda e: e.true_utility()),
    ),
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return np.array_equal(left, right, equal_nan=isinstance(left, np.ndarray) and left.dtype.kind == "f")


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_wrapped_vectors_equal_wrapped_environments(small_world: Dataset, name: str, mode: str) -> None:
    wrap_vector, wrap = PAIRS[name]
    options: dict[str, Any] = {"dataset": small_world, "slate_size": 4, "max_pages": 3, "agent": ALONE}
    envs = wrap_vector(SlateVectorEnv(3, autoreset_mode=mode, **options))
    sync = gym.vector.SyncVectorEnv(
        [lambda: wrap(make(small_world, **options, history_size=30))] * 3,
        autoreset_mode=gym.vector.AutoresetMode(mode),
    )
    assert same(envs.reset(seed=2)[0], sync.reset(seed=2)[0])
    envs.action_space.seed(0)
    seen = 0
    for _ in range(12):
        actions = envs.action_space.sample()
        got, expected = envs.step(actions), sync.step(actions)
        assert same(got[:4], expected[:4])
        assert got[0] in envs.observation_space
        for row in np.flatnonzero(got[4].get("_final_obs", np.zeros(3))):
            seen += 1
            left, right = got[4]["final_obs"][row], expected[4]["final_obs"][row]
            if name == "candidates":  # of the last page: what comes after it is not retrieved
                left, right = left["observation"], right["observation"]
            assert same(left, right)
        if name in ("masked", "candidates", "both"):
            masks = envs.action_masks()
            assert same(list(masks), list(sync.call("action_masks")))
    assert seen > 3 or mode == "NextStep"


def test_vectors_refuse_what_single_environments_refuse(small_world: Dataset) -> None:
    envs = SlateVectorEnv(3, dataset=small_world, slate_size=4)
    proto, candidates = vector_wrappers.ProtoAction(envs), vector_wrappers.CandidateSlates(envs, 9)
    proto.reset(seed=0)
    for wrapped, action in (
        (proto, np.full(proto.action_space.shape, np.nan)),
        (proto, np.zeros((3, 4, 2))),
        (candidates, np.full((3, 4), 9)),
        (candidates, np.zeros((3, 4))),
    ):
        with pytest.raises(gym.error.InvalidAction, match="expected"):
            wrapped.step(action)
    with pytest.raises(ConfigError, match="slate_size=1"):
        vector_wrappers.SingleItem(envs)
    with pytest.raises(ConfigError, match="embedding has shape"):
        vector_wrappers.ProtoAction(envs, np.zeros((3, 2), np.float32))
    with pytest.raises(ConfigError, match="n=61"):
        vector_wrappers.CandidateSlates(envs, 61)
    with pytest.raises(ConfigError, match="expected a SlateVectorEnv"):
        vector_wrappers.FlatObservation(gym.make_vec("CartPole-v1", num_envs=2))


def test_slots_may_hold_anything_where_nothing_is_allowed(small_world: Dataset) -> None:
    from simenv.envs.wrappers import slot_masks

    allowed = np.array([[True, False, True], [False, False, False]])
    expected = [[True, False, True] * 2, [True] * 6]
    assert slot_masks(allowed, 2).tolist() == expected
    assert slot_masks(allowed[0], 2).tolist() == expected[0]
