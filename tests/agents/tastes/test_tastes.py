"""Fitted tastes: do they find what was planted, at the level that was asked for, without looking ahead."""

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from agents.tastes.structures import (
    ContentTastes,
    FactorTastes,
    NeighbourhoodTastes,
    content_features,
    fit_tastes,
    profile_matrix,
)
from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.datasets.splits import hold_out, last_share, pair_keys
from simenv.errors import ConfigError, DataError
from simenv.numeric import sigmoid

MODELS = [FactorTastes(dims=8), NeighbourhoodTastes(dims=64), ContentTastes(dims=8)]
MODEL_IDS = [model.name for model in MODELS]


def make_log(users, items, ratings=None, n_users=None, n_items=None):
    users, items = np.asarray(users, np.int32), np.asarray(items, np.int32)
    return Interactions(
        users=users,
        items=items,
        ratings=np.full(len(users), np.nan, np.float32) if ratings is None else np.asarray(ratings, np.float32),
        times=np.arange(len(users), dtype=np.int64),
        n_users=int(users.max()) + 1 if n_users is None else n_users,
        n_items=int(items.max()) + 1 if n_items is None else n_items,
    )


def make_dataset(log, genres=None):
    genres = np.zeros((log.n_items, 0), bool) if genres is None else np.asarray(genres, bool)
    return Dataset(
        name="planted",
        catalog=Catalog(
            item_ids=tuple(map(str, range(log.n_items))),
            titles=tuple(f"Item {i}" for i in range(log.n_items)),
            genre_names=tuple(f"g{k}" for k in range(genres.shape[1])),
            genres=genres,
        ),
        interactions=log,
        user_ids=tuple(map(str, range(log.n_users))),
    )


def planted(seed, n_users=300, n_items=200, groups=4, per_user=24):
    """Users who mostly choose from their own genre, within it by popularity; ratings with a low-rank part."""
    rng = np.random.default_rng(seed)
    genre = np.arange(n_items) % groups
    popularity = 1.0 / (1 + rng.permutation(n_items))
    own = rng.integers(0, groups, n_users)
    item_bias = rng.normal(0, 0.4, n_items)
    users, items, ratings = [], [], []
    for user in range(n_users):
        weight = popularity**0.5 * np.where(genre == own[user], 6.0, 1.0)
        chosen = rng.choice(n_items, per_user, replace=False, p=weight / weight.sum())
        liked = np.where(genre[chosen] == own[user], 0.8, -0.4)
        stars = 3.4 + item_bias[chosen] + liked + rng.normal(0, 0.5, per_user)
        users += [user] * per_user
        items += chosen.tolist()
        ratings += np.clip(np.round(stars), 1, 5).tolist()
    order = rng.permutation(len(users))
    log = make_log(np.array(users)[order], np.array(items)[order], np.array(ratings)[order], n_users, n_items)
    return make_dataset(log, genre[:, None] == np.arange(groups)), own, genre


@pytest.fixture(scope="module")
def world():
    return planted(0)


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_finds_planted_choice(world, model):
    dataset, own, genre = world
    tastes = fit_tastes(dataset, seed=0, model=model)
    assert tastes.kind == "fitted"
    assert tastes.errors["choice_auc"] > 0.7
    assert tastes.errors["choice_auc"] > tastes.errors["choice_auc_popularity"] + 0.02
    assert tastes.errors["choice_auc_popularity_matched"] > 0.65  # popularity scores one half here
    assert tastes.errors["choice_logloss"] < np.log(2)
    utility = sigmoid(tastes.choice.scores(np.arange(dataset.n_users)).astype(np.float64))
    inside = genre[None, :] == own[:, None]
    assert utility[inside].mean() > 1.5 * utility[~inside].mean()


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_noise_is_not_taken_for_taste(model):
    rng = np.random.default_rng(3)
    rows = [(u, i) for u in range(300) for i in rng.choice(200, 24, replace=False)]
    users, items = np.array(rows)[rng.permutation(len(rows))].T
    errors = fit_tastes(make_dataset(make_log(users, items), rng.random((200, 4)) < 0.3), seed=0, model=model).errors
    assert abs(errors["choice_auc_popularity_matched"] - 0.5) < 0.06
    assert errors["choice_logloss"] > 0.68  # chance is .693


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
@pytest.mark.parametrize("base_rate", [0.05, 0.3])
def test_mean_utility_is_the_base_rate(world, model, base_rate):
    dataset, _, _ = world
    tastes = fit_tastes(dataset, seed=1, model=replace(model, base_rate=base_rate))
    utility = sigmoid(tastes.choice.scores(np.arange(dataset.n_users)).astype(np.float64))
    assert utility.mean() == pytest.approx(base_rate, abs=0.005)
    assert utility.std() > 0.2 * base_rate


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_vectors_fit_the_compiled_kernel(world, model):
    dataset, _, _ = world
    tastes = fit_tastes(dataset, seed=0, model=model)
    for head, dims in ((tastes.choice, model.dims), (tastes.rating, model.rating_dims)):
        assert head.user_vectors.shape == (dataset.n_users, dims)
        assert head.item_vectors.shape == (dataset.n_items, dims)
        assert dims % 8 == 0
        for values in (head.user_vectors, head.item_vectors, head.user_bias, head.item_bias):
            assert values.dtype == np.float32
            assert np.isfinite(values).all()


def test_exposure_decides_how_much_of_popularity_is_liking(world):
    dataset, _, _ = world
    popularity = np.log1p(dataset.interactions.item_counts())
    correlations = []
    for exposure in (0.0, 0.5, 1.0):
        scores = fit_tastes(dataset, seed=0, model=FactorTastes(dims=8, exposure=exposure)).choice.scores(
            np.arange(300)
        )
        correlations.append(np.corrcoef(scores.mean(axis=0), popularity)[0, 1])
    assert correlations[0] > 0.5
    assert correlations[0] > correlations[1] > correlations[2]


def test_rating_head_beats_the_item_mean(world):
    dataset, _, _ = world
    tastes = fit_tastes(dataset, seed=0)
    errors = tastes.errors
    assert errors["rating_rmse"] < 0.95 * errors["rating_rmse_item_mean"]
    assert tastes.rating_noise == errors["rating_rmse"]
    log = dataset.interactions
    assert np.corrcoef(tastes.rating.pairs(log.users, log.items), log.ratings)[0, 1] > 0.5


def test_same_seed_same_tastes_and_other_seed_other_draws(world):
    dataset, _, _ = world
    for model in MODELS:
        one, two, other = (fit_tastes(dataset, seed=seed, model=model) for seed in (5, 5, 6))
        assert one.errors == two.errors
        for head in ("choice", "rating"):
            for field in ("user_vectors", "item_vectors", "user_bias", "item_bias"):
                np.testing.assert_array_equal(getattr(getattr(one, head), field), getattr(getattr(two, head), field))
        assert one.errors != other.errors


def test_errors_come_from_a_fit_without_the_heldout(world, monkeypatch):
    dataset, _, _ = world
    logs = []

    class Watched(FactorTastes):
        def vectors(self, catalog, log, rng):
            logs.append(log)
            return FactorTastes.vectors(self, catalog, log, rng)

    fit_tastes(dataset, seed=0, model=Watched(dims=8))
    train, held = last_share(dataset.interactions, 0.1)
    assert [len(log) for log in logs] == [len(train), len(dataset.interactions)]
    evaluated = set(pair_keys(logs[0].users, logs[0].items, dataset.n_items))
    assert evaluated.isdisjoint(pair_keys(held.users, held.items, dataset.n_items))


def test_heldout_choices_cannot_reach_their_own_judgement(world):
    """Shuffling who made the last choices destroys the signal, so it must destroy the score."""
    dataset, _, _ = world
    train, held = last_share(dataset.interactions, 0.1)
    rng = np.random.default_rng(0)
    swapped = replace(held, items=rng.permutation(held.items), times=held.times + len(dataset.interactions))
    honest = fit_tastes(dataset, seed=0).errors
    broken = fit_tastes(replace(dataset, interactions=train.concat(swapped)), seed=0).errors
    assert broken["choice_auc_popularity_matched"] < 0.56 < honest["choice_auc_popularity_matched"]


def test_dataset_holdout_is_never_read(world):
    dataset, _, _ = world
    apart = hold_out(dataset, 0.2)
    nonsense = replace(apart, holdout=make_log([0], [0], n_users=300, n_items=200))
    assert fit_tastes(apart, seed=0).errors == fit_tastes(nonsense, seed=0).errors


def test_without_ratings(world):
    dataset, _, _ = world
    silent = replace(dataset, interactions=replace(dataset.interactions, ratings=np.full(300 * 24, np.nan, np.float32)))
    tastes = fit_tastes(silent, seed=0)
    assert tastes.errors["n_ratings"] == 0
    assert "rating_rmse" not in tastes.errors
    everyone = np.arange(300)
    expected, choice = tastes.rating.scores(everyone), tastes.choice.scores(everyone)
    assert expected.mean() == pytest.approx(3.0, abs=0.05)
    assert tastes.rating_noise == 1.0
    np.testing.assert_allclose(expected, 3.0 + 0.2 * (choice - choice.mean()), atol=0.05)


def test_some_ratings_missing(world):
    dataset, _, _ = world
    ratings = dataset.interactions.ratings.copy()
    ratings[::3] = np.nan
    tastes = fit_tastes(replace(dataset, interactions=replace(dataset.interactions, ratings=ratings)), seed=0)
    assert tastes.errors["n_ratings"] == np.isfinite(ratings).sum()
    assert tastes.errors["n_heldout"] > tastes.errors["n_ratings_heldout"] > 0
    assert np.isfinite(tastes.rating.scores(np.arange(300))).all()


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_users_and_items_with_next_to_nothing(world, model):
    dataset, _, _ = world
    wider = replace(dataset.interactions, n_users=302)  # user 301 has nothing
    log = wider.take(wider.items != 11).concat(make_log([300], [7], [4.0], n_users=302, n_items=200))
    sparse = make_dataset(log, dataset.catalog.genres)
    tastes = fit_tastes(sparse, seed=0, model=model)
    scores = tastes.choice.scores(np.array([300, 301]))
    assert np.isfinite(scores).all()
    assert not tastes.choice.user_vectors[301].any()
    assert np.isfinite(tastes.choice.scores(np.arange(300))[:, 11]).all()
    ratings = tastes.rating.scores(np.array([0, 301]))
    assert np.isfinite(ratings).all()
    assert not tastes.rating.user_vectors[301].any()
    assert not tastes.rating.item_vectors[11].any()


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_the_smallest_worlds(model):
    tiny = make_dataset(make_log([0, 1, 1], [0, 0, 1], [5, 3, 1]), np.eye(2))
    tastes = fit_tastes(tiny, seed=0, model=model)
    assert tastes.errors["n_heldout"] == 0
    assert "choice_auc" not in tastes.errors
    assert sigmoid(tastes.choice.scores(np.arange(2)).astype(float)).mean() == pytest.approx(model.base_rate, abs=0.01)
    one = make_dataset(make_log([0], [0], [4.0]), np.ones((1, 1)))
    assert np.isfinite(fit_tastes(one, seed=0, model=model).choice.scores(np.array([0]))).all()


def test_a_user_who_has_seen_everything():
    users = np.concatenate([np.zeros(8, int), np.repeat(np.arange(1, 30), 4)])
    items = np.concatenate([np.arange(8), np.tile([0, 1, 2, 3, 4, 5, 6, 7], 15)[: 29 * 4]])
    tastes = fit_tastes(make_dataset(make_log(users, items), np.eye(8)), seed=0)
    assert np.isfinite(list(tastes.errors.values())).all()


def test_what_came_last_weighs_most_and_one_moment_weighs_alike():
    log = make_log([0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 0], n_users=4, n_items=5)
    log = replace(log, times=np.array([0, 5, 9, 7, 7, 3]))
    profile = profile_matrix(log, 1.0).toarray()
    weights = np.array([1 / 3, 1 / 2, 1])
    np.testing.assert_allclose(profile[0, :3], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(profile[1, 3:], [0.5, 0.5])
    np.testing.assert_allclose(profile.sum(axis=1), [1, 1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(profile_matrix(log, 0.0).toarray()[0, :3], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_recency_follows_users_whose_tastes_moved(model):
    """Users who liked one genre and then another: whoever weighs the past less knows their next choice better."""
    rng = np.random.default_rng(8)
    genre = np.arange(200) % 4
    rows = []
    for user in range(300):
        before, now = rng.choice(4, 2, replace=False)
        for own in (before, now):
            weight = np.where(genre == own, 8.0, 1.0)
            rows += [(user, item) for item in rng.choice(200, 12, replace=False, p=weight / weight.sum())]
    users, items = np.array(rows).T
    dataset = make_dataset(make_log(users, items, n_users=300, n_items=200), genre[:, None] == np.arange(4))
    blind, aware = (
        fit_tastes(dataset, seed=0, model=replace(model, recency=r)).errors["choice_auc_popularity_matched"]
        for r in (0.0, 0.6)
    )
    assert aware > blind + 0.02


def test_content_without_content():
    with pytest.raises(DataError, match="no genres, attributes or words"):
        fit_tastes(make_dataset(make_log([0, 0, 1], [0, 1, 2])), seed=0, model=ContentTastes())


def test_content_features_of_each_kind():
    catalog = Catalog(
        item_ids=tuple(map(str, range(40))),
        titles=tuple(f"Red{i} car" if i < 5 else f"Blue{i} car" for i in range(40)),
        genre_names=("a", "b"),
        genres=np.stack([np.arange(40) < 20, np.arange(40) < 10], axis=1),
        texts=tuple("quiet story" if i < 6 else "" for i in range(40)),
        attributes={"year": np.arange(1960, 2000), "brand": np.array(["x"] * 35 + ["rare"] * 5)},
    )
    features = content_features(catalog, 4).toarray()
    assert features.shape == (40, 2 + 10 + 2 + 2)  # genres; tenths of year; brands; quiet, story ("car" is everywhere)
    assert features[0, :2].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(features[:, 2:14].sum(axis=1), 1.0)
    assert features[7, 14:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("option", "value"),
    [("dims", 12), ("rating_dims", 0), ("base_rate", 0.0), ("heldout", 1.0), ("exposure", -0.1), ("recency", -1.0)],
)
def test_bad_options(option, value):
    with pytest.raises(ConfigError, match=f"tastes.{option}={value}"):
        FactorTastes(**{option: value})


def test_bad_options_of_one_structure():
    with pytest.raises(ConfigError, match=r"tastes\.neighbours=0: expected at least 1"):
        NeighbourhoodTastes(neighbours=0)
    with pytest.raises(ConfigError, match=r"tastes\.min_items=0: expected at least 1"):
        ContentTastes(min_items=0)


@pytest.mark.parametrize("model", MODELS, ids=MODEL_IDS)
def test_configurations_spell_out_the_defaults(model):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(__file__).resolve().parents[3] / "conf" / "tastes" / f"{model.name}.yaml")
    assert set(config) - {"_target_"} == {field.name for field in fields(model)}
    assert instantiate(config) == type(model)()


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("model", "auc", "matched"),
    [(FactorTastes(), 0.85, 0.71), (NeighbourhoodTastes(), 0.85, 0.71), (ContentTastes(), 0.82, 0.66)],
    ids=MODEL_IDS,
)
def test_movielens_100k(model, auc, matched):
    from simenv.datasets import load

    shared = Path(__file__).resolve().parents[4] / "shared" / "data"
    root = Path(os.environ.get("SIMENV_DATA", shared)) / "ml-100k"
    if not root.is_dir():
        pytest.skip("no ml-100k: set SIMENV_DATA to a folder that holds it")
    tastes = fit_tastes(load("ml-100k", root=str(root)), seed=0, model=model)
    errors = tastes.errors
    assert errors["choice_auc"] > auc > errors["choice_auc_popularity"]
    assert errors["choice_auc_popularity_matched"] > matched
    assert errors["choice_logloss"] < 0.65
    assert errors["rating_rmse"] < 1.0 < errors["rating_rmse_item_mean"]
