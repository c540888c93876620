"""The round-0 reference: hand-worked popularity, bins, profiles, groups and pairs; a round trip through a file."""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from simenv.datasets.base import Catalog, Dataset, Interactions
from simenv.datasets.splits import hold_out
from simenv.errors import RunDirectoryError
from simenv.metrics.reference import (
    N_PAIRS,
    Reference,
    genre_counts,
    genre_profile,
    item_sets,
    log_popularity_lift,
    midrank_percentile,
    midranks,
    pack_genres,
    popularity_sets,
    user_pairs,
)


def make_dataset(users, items, *, n_users, n_items, genres=None, quality=None, attributes=None) -> Dataset:
    n = len(users)
    genres = np.ones((n_items, 1), np.bool_) if genres is None else np.asarray(genres, np.bool_)
    return Dataset(
        name="tiny",
        catalog=Catalog(
            item_ids=tuple(f"i{i}" for i in range(n_items)),
            titles=tuple(f"Title {i}" for i in range(n_items)),
            genre_names=tuple(f"g{g}" for g in range(genres.shape[1])),
            genres=genres,
            quality=quality,
        ),
        interactions=Interactions(
            users=np.asarray(users, np.int32),
            items=np.asarray(items, np.int32),
            ratings=np.full(n, np.nan, np.float32),
            times=np.arange(n, dtype=np.int64),
            n_users=n_users,
            n_items=n_items,
        ),
        user_ids=tuple(f"u{u}" for u in range(n_users)),
        user_attributes=attributes or {},
    )


def random_dataset(n_users=300, n_items=40, n=4_000, **options) -> Dataset:
    rng = np.random.default_rng(5)
    return make_dataset(
        rng.integers(0, n_users, n), rng.integers(0, n_items, n), n_users=n_users, n_items=n_items, **options
    )


def test_percentile_is_the_mid_rank():
    # Ascending ranks of (4, 2, 2, 0): item 3 has rank 1, items 1 and 2 share 2.5, item 0 has 4; then (rank - .5) / 4.
    np.testing.assert_allclose(midrank_percentile(np.array([4, 2, 2, 0])), [0.875, 0.5, 0.5, 0.125])


def test_uniform_popularity_puts_every_item_in_the_middle():
    np.testing.assert_array_equal(midrank_percentile(np.full(7, 3)), np.full(7, 0.5, np.float32))
    np.testing.assert_array_equal(log_popularity_lift(np.full(7, 3)), np.zeros(7))


@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 8)))
def test_midranks_agree_with_scipy_and_percentiles_average_one_half(counts):
    np.testing.assert_array_equal(midranks(counts), rankdata(counts, method="average"))
    percentile = midrank_percentile(counts)
    assert 0 < percentile.min() <= percentile.max() < 1
    assert percentile.mean(dtype=np.float64) == pytest.approx(0.5)


def test_log_lift_is_smoothed_by_half_a_count():
    # Smoothed (4.5, 2.5, 2.5, .5), catalogue mean 2.5.
    np.testing.assert_allclose(log_popularity_lift(np.array([4, 2, 2, 0])), [math.log(1.8), 0, 0, math.log(0.2)])


def test_the_item_that_crosses_the_line_is_inside():
    # Cumulated 5, 7, 8, 9, 10: 20 % of 10 is crossed by the first item, 80 % reached exactly by the third.
    bins, top = popularity_sets(np.array([1, 5, 1, 2, 1]))
    np.testing.assert_array_equal(bins, [1, 0, 2, 1, 2])  # items 0, 2, 4 tie: the lower row is in the head
    np.testing.assert_array_equal(top, [False, True, False, False, False])


def test_top_one_percent_rounds_down():
    assert popularity_sets(np.arange(299))[1].sum() == 2
    assert popularity_sets(np.arange(300))[1].sum() == 3


@given(arrays(np.int64, st.integers(1, 50), elements=st.integers(0, 30)).filter(lambda c: c.sum() > 0))
def test_the_head_is_the_smallest_set_with_its_share(counts):
    bins, top = popularity_sets(counts)
    head = bins < 2
    assert counts[head].sum() >= 0.8 * counts.sum() - 1e-9
    assert counts[head].sum() - counts[head].min() < 0.8 * counts.sum()
    if (~head).any():
        assert counts[~head].max() <= counts[head].min()
    assert counts[top].min() >= counts[~top].max(initial=0)


def test_profile_spreads_an_item_over_its_genres():
    genres = np.array([[1, 0], [1, 1], [0, 0]], np.bool_)
    # User 0: item 0 (A) and item 1 (half A, half B) -> 3/4, 1/4. User 1: only the item without genres. User 2: nothing.
    profile = genre_profile(np.array([0, 0, 1]), np.array([0, 1, 2]), genres, 3)
    np.testing.assert_allclose(profile, [[0.75, 0.25], [np.nan, np.nan], [np.nan, np.nan]])


def test_packed_genres_keep_every_bit_beyond_one_word():
    genres = np.random.default_rng(1).random((5, 130)) < 0.3
    bits = pack_genres(genres)
    assert bits.shape == (5, 3)
    unpacked = [[bool(int(bits[i, g // 64]) >> (g % 64) & 1) for g in range(130)] for i in range(5)]
    np.testing.assert_array_equal(unpacked, genres)


def test_item_sets_are_distinct_and_ascending():
    starts, items = item_sets(np.array([2, 0, 2, 2]), np.array([3, 1, 0, 3]), n_users=3)
    np.testing.assert_array_equal(starts, [0, 1, 1, 3])
    np.testing.assert_array_equal(items, [1, 0, 3])


@pytest.mark.parametrize("n", [64, 65, 1_000, 100_000])
def test_pairs_are_distinct_ordered_and_fixed(n):
    everyone = np.ones(n, np.bool_)
    pairs = user_pairs(everyone, 7, "all")
    assert len(pairs) == min(N_PAIRS, n * (n - 1) // 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert pairs.min() >= 0
    assert pairs.max() < n
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    np.testing.assert_array_equal(pairs, user_pairs(everyone, 7, "all"))
    if len(pairs) == N_PAIRS and n > 64:
        assert not np.array_equal(pairs, user_pairs(everyone, 8, "all"))


def test_pair_codes_decode_exactly_where_floats_round():
    # With 65 users almost every pair is drawn (2,000 of 2,080): a wrong decoding would repeat or lose some.
    pairs = user_pairs(np.ones(65, np.bool_), 0, "all")
    codes = pairs[:, 1] * (pairs[:, 1] - 1) // 2 + pairs[:, 0]
    assert len(np.unique(codes)) == N_PAIRS
    assert codes.max() < 65 * 64 // 2


def test_groups_hold_their_own_users_and_pairs():
    gender = np.array(["F", "M", "M"] * 100)
    data = random_dataset(
        attributes={
            "gender": gender,
            "age": np.arange(300),  # a number is no group
            "zip": np.array([f"z{u}" for u in range(300)]),  # too many values
            "country": np.array(["x"] * 300),  # one value is everyone
            "plan": np.array(["free", None, "paid"] * 100, dtype=object),  # missing belongs nowhere
        }
    )
    reference = Reference.from_dataset(data, 3)
    assert list(reference.groups) == [
        "all",
        "gender=F",
        "gender=M",
        "plan=free",
        "plan=paid",
        "activity=low",
        "activity=mid",
        "activity=high",
    ]
    women = reference.groups["gender=F"]
    np.testing.assert_array_equal(women.users, gender == "F")
    assert women.users[women.pairs].all()
    assert reference.groups["all"].is_everyone
    assert not women.is_everyone


def test_activity_tiers_cut_at_p60_and_p90():
    # Counts 1..10: numpy's P60 is 6.4 and P90 is 9.1, so six users are low, three mid, one high.
    users = np.repeat(np.arange(10), np.arange(1, 11))
    reference = Reference.from_dataset(make_dataset(users, users * 0, n_users=10, n_items=1), 0)
    np.testing.assert_allclose(reference.activity_edges, [6.4, 9.1])
    assert [int(reference.groups[f"activity={t}"].users.sum()) for t in ("low", "mid", "high")] == [6, 3, 1]
    assert len(reference.groups["activity=high"].pairs) == 0


@pytest.mark.parametrize("rich", [True, False])
def test_a_saved_reference_comes_back_and_is_byte_identical(tmp_path, rich):
    data = random_dataset(
        quality=np.linspace(0, 1, 40, dtype=np.float32) if rich else None,
        attributes={"job": np.array(["a/b", "c d", "é"] * 100)},
    )
    reference = Reference.from_dataset(hold_out(data, 0.2) if rich else data, 3)
    reference.save(tmp_path / "reference.npz")
    reference.save(tmp_path / "again.npz")
    assert (tmp_path / "reference.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    back = Reference.load(tmp_path / "reference.npz")
    assert back.seed == 3
    assert list(back.groups) == list(reference.groups)
    for name, group in reference.groups.items():
        np.testing.assert_array_equal(back.groups[name].users, group.users)
        np.testing.assert_array_equal(back.groups[name].pairs, group.pairs)
    for field in dataclasses.fields(Reference):
        if field.name not in ("groups", "seed"):
            before, after = getattr(reference, field.name), getattr(back, field.name)
            assert (before is None) == (after is None)
            if before is not None:
                np.testing.assert_array_equal(after, before)
                assert after.dtype == before.dtype


def test_a_damaged_or_missing_reference_is_named(tmp_path):
    path = tmp_path / "reference.npz"
    with pytest.raises(RunDirectoryError, match=r"reference\.npz: not a readable reference"):
        Reference.load(path)
    Reference.from_dataset(random_dataset(), 3).save(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a zip"):
        path.write_bytes(damaged)
        with pytest.raises(RunDirectoryError):
            Reference.load(path)


def test_edges_are_plain_json():
    reference = Reference.from_dataset(make_dataset([0, 0, 1, 1], [0, 1, 0, 0], n_users=2, n_items=3), 9)
    edges = json.loads(json.dumps(reference.edges()))
    assert edges["pairs_seed"] == 9
    # Counts (3, 1, 0): 20 % of 4 is crossed by item 0 (3), 80 % = 3.2 by item 1.
    assert edges["popularity_bins"]["n_items"] == [1, 1, 1]
    assert edges["popularity_bins"]["least_count"] == [3, 1, 0]
    assert edges["groups"]["all"] == {"n_users": 2, "n_pairs": 1}


@pytest.mark.realdata
def test_what_random_slates_show_on_ml_100k():
    """The mean percentile of unseen items is .478, not .5: users have already consumed the popular ones."""
    root = Path(os.environ.get("SIMENV_DATA", Path(__file__).parents[4] / "shared" / "data"))
    file = root / "ml-100k" / "u.data"
    if not file.exists():
        pytest.skip(f"{file} is absent; put MovieLens-100K there or set SIMENV_DATA")
    users, items = np.loadtxt(file, dtype=np.int64, usecols=(0, 1)).T - 1
    percentile = midrank_percentile(np.bincount(items))
    seen = np.zeros((users.max() + 1, items.max() + 1), np.bool_)
    seen[users, items] = True
    assert np.mean([percentile[~row].mean(dtype=np.float64) for row in seen]) == pytest.approx(0.478, abs=5e-4)


def test_a_catalogue_without_genres() -> None:
    counts = genre_counts(np.array([0, 1]), np.array([0, 1]), np.zeros((3, 0), np.bool_), 2)
    assert counts.shape == (2, 0)
