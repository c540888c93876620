"""The synthetic world: calibration, what each option does, determinism, bounds."""

import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from simenv.datasets import Dataset, Interactions, load, synthetic
from simenv.datasets.marginals import ML_100K, measure
from simenv.datasets.wording import N_NICHE
from simenv.errors import ConfigError


@pytest.fixture(scope="module")
def world() -> Dataset:
    return synthetic()


@pytest.fixture(scope="module")
def twin() -> Dataset:
    """A world of MovieLens-100K's own size."""
    return synthetic(n_users=ML_100K.n_users, n_items=ML_100K.n_items)


def utility(dataset: Dataset, n_users: int = 500) -> np.ndarray:
    assert dataset.tastes is not None
    return 1 / (1 + np.exp(-dataset.tastes.choice.scores(np.arange(min(n_users, dataset.n_users)))))


def matched_auc(dataset: Dataset, n_users: int = 150) -> float:
    """Mean over users of AUC of the true choice score, consumed items against unconsumed ones of nearest popularity."""
    assert dataset.tastes is not None
    log = dataset.interactions
    by_popularity = np.argsort(log.item_counts(), kind="stable")
    place = np.empty_like(by_popularity)
    place[by_popularity] = np.arange(len(place))
    areas = []
    for user in range(n_users):
        mine = log.items[log.users == user]
        others = np.sort(place[np.setdiff1d(np.arange(dataset.n_items), mine)])
        matched = by_popularity[others[np.clip(np.searchsorted(others, place[mine]), 0, len(others) - 1)]]
        scores = dataset.tastes.choice.scores(np.array([user]))[0]
        areas.append((scores[mine][:, None] > scores[matched]).mean())
    return float(np.mean(areas))


def niche_share(dataset: Dataset, group: str) -> float:
    members = dataset.user_attributes["taste"][dataset.interactions.users] == group
    return float(dataset.catalog.genres[dataset.interactions.items[members], -N_NICHE:].any(axis=1).mean())


def test_the_default_is_500_by_1000_with_everything_known(world):
    assert (world.n_users, world.n_items) == (500, 1000)
    assert len(set(world.catalog.titles)) == world.n_items
    assert all(1 <= k <= 3 for k in world.catalog.genres.sum(axis=1))
    assert 16 <= world.catalog.n_genres <= 20
    assert len(world.catalog.texts) == world.n_items
    assert world.catalog.quality is not None
    assert abs(world.catalog.quality.mean()) < 0.01
    assert abs(world.catalog.quality.std() - 1) < 0.02
    assert world.tastes is not None
    assert world.tastes.kind == "true"
    assert world.tastes.choice.user_vectors.shape[1] % 8 == 0
    for head in (world.tastes.choice, world.tastes.rating):
        for array in (head.user_vectors, head.item_vectors, head.user_bias, head.item_bias):
            assert array.dtype == np.float32
    years = world.catalog.attributes["year"]
    assert years.min() >= 1900
    assert all(str(year) in text for year, text in zip(years[:20], world.catalog.texts))


def test_warm_start_is_in_time_order_without_repeats(world):
    log = world.interactions
    assert (np.diff(log.times) >= 0).all()
    assert len(np.unique(log.users.astype(np.int64) * world.n_items + log.items)) == len(log)
    assert set(np.unique(log.ratings)) == {1, 2, 3, 4, 5}
    for user in range(20):
        assert (np.diff(log.times[log.users == user]) > 0).all()


def test_item_popularity_has_the_long_tail_of_ml_100k(twin):
    found = measure(twin)
    assert found.item_gini == pytest.approx(ML_100K.item_gini, abs=0.02)
    assert found.top1_share == pytest.approx(ML_100K.top1_share, abs=0.01)
    assert found.top10_share == pytest.approx(ML_100K.top10_share, abs=0.02)
    assert found.head_share == pytest.approx(ML_100K.head_share, abs=0.02)
    np.testing.assert_allclose(found.item_count_quantiles[5:], ML_100K.item_count_quantiles[5:], rtol=0.12)


def test_activity_has_the_quantiles_of_ml_100k(twin):
    found = measure(twin)
    assert found.mean_activity == pytest.approx(ML_100K.mean_activity, rel=0.01)
    np.testing.assert_allclose(found.activity_quantiles, ML_100K.activity_quantiles, rtol=0.06)


def test_ratings_spread_as_in_ml_100k(twin):
    found = measure(twin)
    np.testing.assert_allclose(found.rating_shares, ML_100K.rating_shares, atol=0.035)
    assert np.abs(np.subtract(found.rating_shares, ML_100K.rating_shares)).sum() / 2 < 0.05
    assert found.rating_mean == pytest.approx(ML_100K.rating_mean, abs=0.08)
    assert found.user_mean_sd == pytest.approx(ML_100K.user_mean_sd, abs=0.05)
    assert found.item_mean_sd == pytest.approx(ML_100K.item_mean_sd, abs=0.08)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_default_world_keeps_the_shape_at_its_own_size(seed):
    found = measure(synthetic(seed=seed))
    assert found.item_gini == pytest.approx(ML_100K.item_gini, abs=0.03)
    assert found.density == pytest.approx(ML_100K.density, rel=0.02)
    assert found.rating_mean == pytest.approx(ML_100K.rating_mean, abs=0.1)


def test_utility_is_low_on_average_and_high_for_a_users_best_items(world):
    found = utility(world)
    assert 0.05 < found.mean() < 0.10
    best = np.sort(found, axis=1)[:, -10:]
    assert 0.3 < best.mean() < 0.7
    assert 0 < found.min() < found.max() < 1


def test_popularity_is_partly_deserved(world):
    counts = world.interactions.item_counts()
    assert 0.3 < spearmanr(world.catalog.quality, counts).statistic < 0.6
    assert 0.3 < spearmanr(utility(world).mean(axis=0), counts).statistic < 0.7


def test_consumption_carries_personal_taste_beyond_popularity(world):
    assert matched_auc(world) > 0.68
    assert matched_auc(synthetic(taste_strength=0)) < 0.58


def test_ratings_carry_the_rating_head(world):
    assert world.tastes is not None
    log = world.interactions
    expected = world.tastes.rating.pairs(log.users, log.items)
    assert np.corrcoef(expected, log.ratings)[0, 1] > 0.5
    assert np.sqrt(np.mean((log.ratings - expected) ** 2)) == pytest.approx(world.tastes.rating_noise, abs=0.1)


def test_the_minority_favours_what_the_majority_seldom_chooses(world):
    groups, sizes = np.unique(world.user_attributes["taste"], return_counts=True)
    assert dict(zip(groups.tolist(), sizes.tolist())) == {"majority": 400, "minority": 100}
    assert niche_share(world, "minority") > 1.7 * niche_share(world, "majority")
    minority = world.user_attributes["taste"] == "minority"
    level = utility(world).mean(axis=1)
    assert level[minority].mean() == pytest.approx(level[~minority].mean(), rel=0.25)


def test_minority_share_sets_the_group(world):
    assert set(synthetic(n_users=50, n_items=60, minority_share=0).user_attributes["taste"]) == {"majority"}
    assert (synthetic(n_users=50, n_items=60, minority_share=0.4).user_attributes["taste"] == "minority").sum() == 20


def test_mean_activity_sets_the_amount():
    small, large = (synthetic(n_users=300, n_items=400, mean_activity=mean) for mean in (8, 40))
    assert len(small.interactions) / 300 == pytest.approx(8, rel=0.05)
    assert len(large.interactions) / 300 == pytest.approx(40, rel=0.05)


def test_popularity_strength_sets_the_inequality(world):
    flat, steep = (measure(synthetic(popularity_strength=s)).item_gini for s in (0.0, 1.5))
    assert flat < 0.15
    assert steep > measure(world).item_gini + 0.05


def test_the_seed_decides_the_world():
    first, again, other = (synthetic(n_users=40, n_items=50, seed=seed) for seed in (3, 3, 4))
    assert first.catalog.titles == again.catalog.titles != other.catalog.titles
    for field in ("users", "items", "ratings", "times"):
        np.testing.assert_array_equal(getattr(first.interactions, field), getattr(again.interactions, field))
    assert first.interactions.items.tolist() != other.interactions.items.tolist()
    assert synthetic(n_users=40, n_items=50, seed=-1).n_users == 40


def test_the_catalogue_does_not_depend_on_the_number_of_users():
    assert synthetic(n_users=20, n_items=50).catalog.titles == synthetic(n_users=90, n_items=50).catalog.titles


def test_blocks_of_users_do_not_change_the_marginals(world, monkeypatch):
    # the package's attribute `synthetic` is the function, so the module is reached by its name
    monkeypatch.setattr(sys.modules["simenv.datasets.synthetic"], "_BLOCK_CELLS", 30_000)
    blocked = synthetic()
    assert blocked.interactions.items.tolist() != world.interactions.items.tolist()
    assert measure(blocked).item_gini == pytest.approx(ML_100K.item_gini, abs=0.03)
    assert matched_auc(blocked, 60) > 0.65


def test_a_thinned_race_has_the_law_of_the_race(monkeypatch):
    raced = synthetic(n_users=1500, n_items=300, seed=3, mean_activity=30)
    module = sys.modules["simenv.datasets.synthetic"]
    monkeypatch.setattr(module, "_MANY_ITEMS", 200)
    monkeypatch.setattr(module, "_FEW_TURNS", 1)
    thinned = synthetic(n_users=1500, n_items=300, seed=3, mean_activity=30)
    logs = raced.interactions, thinned.interactions
    assert len(np.unique(logs[1].users.astype(np.int64) * 300 + logs[1].items)) == len(logs[1])  # nothing twice
    np.testing.assert_array_equal(*(log.user_counts() for log in logs))
    assert logs[0].items.tolist() != logs[1].items.tolist()
    liked = [raced.tastes.choice.pairs(log.users, log.items) for log in logs]
    assert liked[0].mean() == pytest.approx(liked[1].mean(), abs=4 * liked[0].std() / np.sqrt(len(liked[0])))
    first, second = (log.item_counts() for log in logs)
    distance = np.square(first - second) / np.maximum(first + second, 1)
    assert 0.4 < distance.mean() < 1.2  # chi-squared of one degree, less as a user takes an item once


def test_titles_are_distinct_in_a_large_catalogue():
    large = synthetic(n_users=5, n_items=100_000, mean_activity=5)
    assert len(set(large.catalog.titles)) == 100_000


@pytest.mark.parametrize("size", [(1, 2), (3, 5), (60, 80)])
def test_tiny_worlds_work(size):
    n_users, n_items = size
    tiny = synthetic(n_users=n_users, n_items=n_items)
    assert (tiny.n_users, tiny.n_items) == size
    assert tiny.interactions.user_counts().min() >= 1


@pytest.mark.parametrize("strength", [0, 3])
def test_the_ends_of_the_options_give_finite_worlds(strength):
    extreme = synthetic(n_users=200, n_items=300, taste_strength=strength, popularity_strength=2, mean_activity=150)
    assert np.isfinite(utility(extreme)).all()
    assert utility(extreme).mean() == pytest.approx(0.07, abs=0.01)
    assert extreme.interactions.user_counts().max() <= 225


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_users": 0}, "n_users=0: expected a whole number, at least 1"),
        ({"n_items": 1}, "n_items=1: expected a whole number, at least 2"),
        ({"n_items": -5}, "n_items=-5"),
        ({"n_users": 2.5}, "n_users=2.5: expected a whole number"),
        ({"minority_share": 1.0}, "minority_share=1.0"),
        ({"mean_activity": 600}, r"mean_activity=600.0: expected a number in \[1, 500"),
        ({"popularity_strength": -1}, r"popularity_strength=-1: expected a number in \[0, 2"),
        ({"taste_strength": float("nan")}, "taste_strength=nan"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        synthetic(**options)


def test_load_knows_names_and_options():
    assert load("synthetic", n_users=10, n_items=20).n_users == 10
    with pytest.raises(ConfigError, match="dataset='movies'; expected one of synthetic, ml-100k"):
        load("movies")
    with pytest.raises(ConfigError, match="unknown option 'n_user'; expected one of n_users"):
        load("synthetic", n_user=10)


def test_marginals_on_a_hand_worked_log(world):
    small = Dataset(
        name="made",
        catalog=world.catalog.take(np.arange(4)),
        interactions=Interactions(
            users=np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2], np.int32),
            items=np.array([0, 1, 2, 0, 1, 3, 0, 0, 0, 1], np.int32),
            ratings=np.array([5, 3, 1, 5, 3, np.nan, 5, 5, 5, 3], np.float32),
            times=np.arange(10),
            n_users=3,
            n_items=4,
        ),
        user_ids=("a", "b", "c"),
    )
    found = measure(small)  # items: 5, 3, 1, 1
    assert found.density == pytest.approx(10 / 12)
    assert found.item_gini == pytest.approx((2 * (1 + 2 * 1 + 3 * 3 + 4 * 5) - 5 * 10) / (4 * 10))
    assert found.top1_share == 0.5
    assert found.head_share == 0.5
    assert found.activity_quantiles[-1] == 4
    np.testing.assert_allclose(found.rating_shares, [1 / 9, 0, 3 / 9, 0, 5 / 9])
    assert found.user_mean_sd == pytest.approx(np.std([3, 13 / 3, 13 / 3]))
    assert np.isnan(found.item_mean_sd), "no item has twenty ratings"


@pytest.mark.slow
def test_a_million_users():
    large = synthetic(n_users=1_000_000, n_items=1000, mean_activity=10)
    assert len(large.interactions) / 1_000_000 == pytest.approx(10, rel=0.02)
    assert measure(large).item_gini == pytest.approx(ML_100K.item_gini, abs=0.03)
