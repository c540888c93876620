"""Catalog, Interactions, Dataset: selecting, reducing, holding out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simenv.datasets import Catalog, Dataset, Head, Interactions, RatingScale, Tastes
from simenv.errors import ConfigError, DataError


def catalog_of(n: int) -> Catalog:
    return Catalog(
        item_ids=tuple(f"i{i}" for i in range(n)),
        titles=tuple(f"title {i}" for i in range(n)),
        genre_names=("a", "b"),
        genres=np.arange(2 * n).reshape(n, 2) % 3 == 0,
        texts=tuple(f"text {i}" for i in range(n)),
        quality=np.arange(n, dtype=np.float32),
        attributes={"year": np.arange(n)},
    )


def log_of(rows: list[tuple[int, int, int]], n_users: int, n_items: int) -> Interactions:
    """Interactions from (user, item, time), in this order."""
    users, items, times = (np.array(column) for column in zip(*rows))
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=(1 + items % 5).astype(np.float32),
        times=times.astype(np.int64),
        n_users=n_users,
        n_items=n_items,
    )


def dataset_of(rows: list[tuple[int, int, int]], n_users: int, n_items: int, **fields: object) -> Dataset:
    return Dataset(
        name="made",
        catalog=catalog_of(n_items),
        interactions=log_of(rows, n_users, n_items),
        user_ids=tuple(f"u{u}" for u in range(n_users)),
        user_attributes={"gender": np.array(["F", "M"] * n_users)[:n_users]},
        **fields,  # type: ignore[arg-type]
    )


def triples(dataset: Dataset, log: Interactions | None = None) -> list[tuple[str, str, int]]:
    log = dataset.interactions if log is None else log
    names = zip(log.users.tolist(), log.items.tolist(), log.times.tolist())
    return [(dataset.user_ids[u], dataset.catalog.item_ids[i], t) for u, i, t in names]


logs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=40)


@given(rows=logs, chosen=st.permutations(range(6)), n=st.integers(1, 6))
@settings(deadline=None)
def test_take_users_keeps_exactly_their_interactions_and_facts(rows, chosen, n):
    dataset = dataset_of(rows, 6, 7)
    kept = np.array(chosen[:n])
    wanted = [row for row in triples(dataset) if int(row[0][1:]) in kept]
    if not wanted:
        with pytest.raises(DataError, match="no interactions"):
            dataset.take_users(kept)
        return
    smaller = dataset.take_users(kept)
    assert triples(smaller) == wanted
    assert smaller.user_ids == tuple(f"u{u}" for u in kept)
    assert smaller.user_attributes["gender"].tolist() == dataset.user_attributes["gender"][kept].tolist()


@given(rows=logs, n=st.integers(1, 7))
@settings(deadline=None)
def test_most_rated_items_keeps_the_largest_counts_and_drops_users_without_any(rows, n):
    dataset = dataset_of(rows, 6, 7)
    smaller = dataset.most_rated_items(n)
    counts = dataset.interactions.item_counts()
    assert smaller.n_items == n
    assert sorted(smaller.interactions.item_counts(), reverse=True) == sorted(counts, reverse=True)[:n]
    assert smaller.interactions.user_counts().min() > 0
    kept = {int(item[1:]) for item in smaller.catalog.item_ids}
    assert triples(smaller) == [row for row in triples(dataset) if int(row[1][1:]) in kept]
    assert smaller.catalog.quality.tolist() == sorted(kept)


def test_ties_in_popularity_go_to_the_earlier_item():
    smaller = dataset_of([(0, 3, 0), (0, 1, 1), (1, 2, 2)], 2, 4).most_rated_items(2)
    assert smaller.catalog.item_ids == ("i1", "i2")


def test_sample_users_is_seeded_and_in_order():
    dataset = dataset_of([(u, u % 3, u) for u in range(40)], 40, 3)
    sample = dataset.sample_users(15, seed=1)
    assert sample.user_ids == dataset.sample_users(15, seed=1).user_ids
    assert sample.user_ids != dataset.sample_users(15, seed=2).user_ids
    rows = [int(user[1:]) for user in sample.user_ids]
    assert rows == sorted(set(rows))
    assert len(dataset.sample_users(15, seed=-3).user_ids) == 15


def test_reduced_takes_items_first_so_the_catalogue_does_not_depend_on_the_seed():
    rng = np.random.default_rng(0)
    rows = [(u, int(i), u) for u in range(30) for i in rng.choice(10, 4, replace=False)]
    dataset = dataset_of(rows, 30, 10)
    first, second = (dataset.reduced(n_users=8, n_items=4, seed=seed) for seed in (0, 1))
    assert first.catalog.item_ids == second.catalog.item_ids
    assert first.user_ids != second.user_ids
    assert (first.n_users, first.n_items) == (8, 4)
    assert dataset.reduced(n_users=None, n_items=None, seed=0) is dataset


@pytest.mark.parametrize("size", [{"n_users": 0}, {"n_users": -1}, {"n_users": 3}, {"n_items": 0}, {"n_items": 5}])
def test_sizes_out_of_range_name_the_option_and_the_range(size):
    (name, value), *_ = size.items()
    with pytest.raises(ConfigError, match=rf"{name}={value}: made has .* expected 1 to"):
        dataset_of([(0, 0, 0), (1, 1, 1)], 2, 4).reduced(**{"n_users": None, "n_items": None, "seed": 0} | size)


@pytest.mark.parametrize("value", [2.5, True, "7"])
def test_sizes_that_are_no_integers_are_refused(value):
    with pytest.raises(ConfigError, match=r"n_items=.*expected an integer"):
        dataset_of([(0, 0, 0)], 1, 1).reduced(n_users=None, n_items=value, seed=0)


def test_taking_users_takes_their_tastes_and_holdout():
    def head() -> Head:
        return Head(
            user_vectors=np.arange(6, dtype=np.float32).reshape(3, 2),
            item_vectors=np.ones((2, 2), np.float32),
            user_bias=np.array([0, 10, 20], np.float32),
            item_bias=np.array([0, 1], np.float32),
        )

    dataset = dataset_of(
        [(0, 0, 0), (2, 1, 1)],
        3,
        2,
        tastes=Tastes(choice=head(), rating=head(), rating_noise=0.5, kind="true"),
        holdout=log_of([(2, 0, 5), (0, 1, 6)], 3, 2),
    )
    smaller = dataset.take_users(np.array([2]))
    assert smaller.tastes is not None
    assert smaller.holdout is not None
    assert smaller.tastes.choice.scores(np.array([0])).tolist() == [[29.0, 30.0]]
    assert smaller.tastes.rating.pairs(np.array([0]), np.array([1])).tolist() == [30.0]
    assert triples(smaller, smaller.holdout) == [("u2", "i0", 5)]
    with pytest.raises(ConfigError, match="chosen when it is made"):
        dataset.most_rated_items(1)


def test_concat_appends_in_order():
    first, second = log_of([(0, 1, 5)], 2, 3), log_of([(1, 2, 1), (0, 0, 2)], 2, 3)
    both = first.concat(second, Interactions.empty(2, 3))
    assert both.users.tolist() == [0, 1, 0]
    assert both.times.tolist() == [5, 1, 2]
    assert len(Interactions.empty(2, 3)) == 0


def test_rating_scales_list_their_values():
    assert RatingScale().values.tolist() == [1, 2, 3, 4, 5]
    assert len(RatingScale(low=0.5, high=5, step=0.5).values) == 10


def test_values_that_do_not_fit_together_are_refused():
    with pytest.raises(DataError, match=r"items lie in \[0, 3\]; expected \[0, 2\]"):
        log_of([(0, 0, 0), (0, 3, 1)], 1, 3)
    with pytest.raises(DataError, match="item i1 has no title"):
        Catalog(item_ids=("i0", "i1"), titles=("a", " "), genre_names=(), genres=np.zeros((2, 0), np.bool_))
    with pytest.raises(DataError, match="1 values of age for 2 users"):
        Dataset(
            name="made",
            catalog=catalog_of(1),
            interactions=log_of([(0, 0, 0)], 2, 1),
            user_ids=("a", "b"),
            user_attributes={"age": np.array([1])},
        )
