"""Item indexes: unique, invertible, of equal length, meaningful where they should be, and blind to targets."""

import itertools
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recommenders.p5.indexes import rqvae
from recommenders.p5.indexes.base import (
    IndexSource,
    ItemIndex,
    digits,
    with_collision_token,
)
from recommenders.p5.indexes.build import build_index
from recommenders.p5.indexes.clustering import cooccurrence, nearest_by_cooccurrence, spectral_clusters
from recommenders.p5.indexes.simple import sequential_codes
from recommenders.p5.trie import Trie
from simenv.datasets.base import Catalog, Interactions
from simenv.errors import ConfigError, DataError, RunDirectoryError
from simenv.training.histories import Histories

N_USERS, N_ITEMS, N_BLOCKS = 300, 240, 6
ALL = [
    ("random", {"branching": 8}),
    ("title", {}),
    ("independent", {}),
    ("sequential", {"branching": 8}),
    ("collaborative", {"clusters": 6, "leaf_size": 50}),
    ("collaborative", {"clusters": 4, "leaf_size": 12, "window": 2}),
    ("semantic", {}),
    ("svd", {"levels": 2, "bins": 8}),
    ("rqvae", {"levels": 2, "codewords": 8, "steps": 60}),
    ("rqvae", {"levels": 2, "codewords": 8, "steps": 60, "vectors": "text"}),
    ("collaborative+independent", {"clusters": 6, "leaf_size": 50}),
    ("semantic+sequential", {}),
    ("popularity", {"branching": 8}),
    ("time", {"branching": 8}),
    ("rkmeans", {"levels": 2, "codewords": 8}),
    ("semantic+rkmeans+independent", {"depth": 2, "rkmeans": {"levels": 2, "codewords": 4}}),
]
BY_BEHAVIOUR = [ALL[4], ALL[8], ALL[10], ALL[14]]


def block_of(items):
    return np.asarray(items) % N_BLOCKS


def block_log(seed: int = 0, length: int = 12) -> Interactions:
    """Every user consumes items of one block, without repetition: item i belongs to block i % N_BLOCKS."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.arange(user % N_BLOCKS, N_ITEMS, N_BLOCKS))[:length] for user in range(N_USERS)]
    items = np.concatenate(rows).astype(np.int32)
    return Interactions(
        users=np.repeat(np.arange(N_USERS), length).astype(np.int32),
        items=items,
        ratings=np.full(len(items), np.nan, np.float32),
        times=np.tile(np.arange(length), N_USERS),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )


def catalog(n_items: int = N_ITEMS) -> Catalog:
    words = ["river", "night", "garden", "stone", "winter", "letter"]
    return Catalog(
        item_ids=tuple(str(i) for i in range(n_items)),
        titles=tuple(f"{words[i % N_BLOCKS]} {words[i // 7 % 6]} {i // 20}" for i in range(n_items)),
        genre_names=tuple("abcdef"),
        genres=np.eye(N_BLOCKS, dtype=np.bool_)[block_of(np.arange(n_items))],
    )


def source(n_held_out: int = 2) -> IndexSource:
    histories, _, _ = Histories.from_log(block_log()).without_last(n_held_out)
    return IndexSource(histories=histories, catalog=catalog())


def build(name: str, options: dict, seed: int = 0, **more) -> ItemIndex:
    return build_index(name, source(), np.random.default_rng(seed), **options, **more)


@pytest.mark.parametrize(("name", "options"), ALL)
class TestEveryIndex:
    def test_codes_are_unique_and_invertible(self, name, options):
        index = build(name, options)
        assert index.codes.shape == (N_ITEMS, index.depth)
        assert len(np.unique(index.codes, axis=0)) == N_ITEMS
        np.testing.assert_array_equal(index.items_of(index.codes), np.arange(N_ITEMS))

    def test_same_seed_same_codes(self, name, options):
        np.testing.assert_array_equal(build(name, options).codes, build(name, options).codes)

    def test_largest_seen_plus_one_is_no_recommender(self, name, options):
        assert max_plus_one_hit_rate(lambda known: build_index(name, known, np.random.default_rng(0), **options)) < 0.01

    def test_spare_leaves_take_new_items(self, name, options):
        index = build(name, options, spare=3)
        new, beside = np.arange(N_ITEMS, N_ITEMS + 3), np.array([17, 17, -1])
        grown = index.place(new, beside)
        assert (grown.version, grown.sizes, grown.n_items) == (2, index.sizes, N_ITEMS + 3)
        np.testing.assert_array_equal(grown.codes[:N_ITEMS], index.codes)
        np.testing.assert_array_equal(grown.codes[N_ITEMS : N_ITEMS + 2, :-1], index.codes[[17, 17], :-1])
        np.testing.assert_array_equal(grown.items_of(grown.codes), np.arange(N_ITEMS + 3))

    def test_round_trip(self, name, options, tmp_path: Path):
        index = build(name, options)
        index.save(tmp_path / "index.json")
        again = ItemIndex.load(tmp_path / "index.json")
        np.testing.assert_array_equal(again.codes, index.codes)
        assert (again.name, again.sizes, again.spare, again.version) == (name, index.sizes, index.spare, 1)


def aimless_log(n_users: int = 300, n_items: int = 1200, length: int = 8) -> Interactions:
    """Users who consume at random: nothing can be learned about a target, so that every hit is a leak."""
    rng = np.random.default_rng(7)
    return Interactions(
        users=np.repeat(np.arange(n_users), length).astype(np.int32),
        items=np.concatenate([rng.choice(n_items, length, replace=False) for _ in range(n_users)]).astype(np.int32),
        ratings=np.full(n_users * length, np.nan, np.float32),
        times=np.tile(np.arange(length), n_users),
        n_users=n_users,
        n_items=n_items,
    )


def max_plus_one_hit_rate(make_index) -> float:
    """HR@1 of recommending, to each user, the item whose code follows the largest code in the training prefix."""
    log = aimless_log()
    histories, users, targets = Histories.from_log(log).without_last(2)
    shelves = catalog(log.n_items)
    index = make_index(IndexSource(histories=histories, catalog=shelves))
    numbers = np.ravel_multi_index(tuple(index.codes.T), index.sizes)
    rank = numbers.argsort().argsort()
    by_rank = np.append(rank.argsort(), -1)
    guesses = np.array([by_rank[rank[histories.of(user)].max() + 1] for user in users])
    return float((guesses == targets).mean())


def test_the_leakage_check_catches_numbering_over_whole_histories():
    def leaky(known: IndexSource) -> ItemIndex:
        log = aimless_log()
        seen, first = np.unique(log.items, return_index=True)
        order = np.concatenate([seen[first.argsort()], np.setdiff1d(np.arange(log.n_items), seen)])
        codes = order.argsort()[:, None].astype(np.int32)
        return ItemIndex(name="leaky", codes=codes, sizes=(log.n_items,), spare=0)

    assert max_plus_one_hit_rate(leaky) > 0.1


def test_items_close_on_a_line_of_tastes_share_svd_tokens():
    rng = np.random.default_rng(0)
    n, length = 400, 12
    centres = rng.integers(0, N_ITEMS - 40, n)
    items = np.concatenate([c + rng.choice(40, length, replace=False) for c in centres]).astype(np.int32)
    log = Interactions(
        users=np.repeat(np.arange(n), length).astype(np.int32),
        items=items,
        ratings=np.full(n * length, np.nan, np.float32),
        times=np.arange(n * length),
        n_users=n,
        n_items=N_ITEMS,
    )
    source = IndexSource(histories=Histories.from_log(log))
    codes = build_index("svd", source, np.random.default_rng(0), levels=3, bins=8).codes[:, :3]
    shared = (codes[:, None] == codes[None, :]).sum(axis=2)
    gap = np.abs(np.arange(N_ITEMS)[:, None] - np.arange(N_ITEMS)[None, :])
    assert shared[(gap > 0) & (gap < 5)].mean() > 2 * shared[gap > 60].mean()


@pytest.mark.parametrize(("name", "options"), BY_BEHAVIOUR)
def test_items_consumed_together_share_prefixes(name, options):
    first = build(name, options).codes[:, 0]
    block = block_of(np.arange(N_ITEMS))
    same_token = first[:, None] == first[None, :]
    same_block = block[:, None] == block[None, :]
    off_diagonal = ~np.eye(N_ITEMS, dtype=np.bool_)
    assert same_token[same_block & off_diagonal].mean() > 4 * same_token[~same_block].mean()


def test_random_codes_mean_nothing():
    first = build("random", {"branching": 8}).codes[:, 0]
    block = block_of(np.arange(N_ITEMS))
    share = np.mean([np.bincount(first[block == b], minlength=8).max() for b in range(N_BLOCKS)])
    assert share < 25  # of 40 items a block; the widest digit holds 64 of 240


def test_neighbours_in_a_history_are_neighbours_in_the_sequential_index():
    index = build("sequential", {"branching": 16})
    histories = source().histories
    numbers = np.ravel_multi_index(tuple(index.codes.T), index.sizes)
    firsts = np.concatenate([np.abs(np.diff(numbers[histories.of(user)])) for user in range(N_USERS)])
    shuffled = np.abs(np.diff(np.random.default_rng(0).permutation(numbers)))
    assert np.mean(firsts == 1) > 3 * np.mean(shuffled == 1)


def test_a_category_path_is_a_prefix():
    shelves = catalog()
    paths = np.array([f"top > {'left' if i % 2 else 'right'} > {i % 5}" for i in range(N_ITEMS)])
    stocked = Catalog(
        item_ids=shelves.item_ids,
        titles=shelves.titles,
        genre_names=shelves.genre_names,
        genres=shelves.genres,
        attributes={"category_path": paths},
    )
    index = build_index(
        "semantic", IndexSource(histories=source().histories, catalog=stocked), np.random.default_rng(0)
    )
    assert len(np.unique(index.codes[:, 0])) == 2, "the level that all share tells nothing and is left out"
    assert len(np.unique(index.codes[:, :2], axis=0)) == 10
    np.testing.assert_array_equal(index.codes[0, :2], index.codes[10, :2])


def test_semantic_codes_of_item_vectors_are_their_clusters(tmp_path):
    blocks = np.eye(N_BLOCKS)[block_of(np.arange(N_ITEMS))]
    np.save(tmp_path / "vectors.npy", blocks + 0.01 * np.random.default_rng(0).normal(size=blocks.shape))
    index = build_index(
        "semantic",
        IndexSource(histories=source().histories, catalog=catalog()),
        np.random.default_rng(0),
        vectors=str(tmp_path / "vectors.npy"),
        branching=N_BLOCKS,
    )
    assert len(np.unique(np.stack([index.codes[:, 0], block_of(np.arange(N_ITEMS))]), axis=1).T) == N_BLOCKS
    assert len(np.unique(index.codes, axis=0)) == N_ITEMS


def test_namesakes_are_told_apart_by_the_last_token():
    codes = with_collision_token(np.array([[1, 2], [3, 4], [1, 2], [1, 2]]))
    assert codes.tolist() == [[1, 2, 0], [3, 4, 0], [1, 2, 1], [1, 2, 2]]


def test_digits_have_equal_length():
    assert digits(np.array([0, 5, 31]), 32, 4).tolist() == [[0, 0, 0], [0, 1, 1], [1, 3, 3]]


def test_items_without_interactions_are_indexed_too():
    log = block_log().take(block_log().items >= 30)
    cold = IndexSource(histories=Histories.from_log(log), catalog=catalog())
    for name, options in ALL:
        index = build_index(name, cold, np.random.default_rng(0), **options)
        np.testing.assert_array_equal(index.items_of(index.codes), np.arange(N_ITEMS))


def test_a_catalogue_of_mostly_cold_items_grows_by_levels():
    """No node as wide as the catalogue, no table of all items by all items when items find their place later."""
    n_items = 6_000
    log = replace(block_log(), n_items=n_items)
    cold = IndexSource(histories=Histories.from_log(log))
    clusters = {"clusters": 6, "leaf_size": 20}
    index = build_index("collaborative", cold, np.random.default_rng(0), spare=4, **clusters)
    assert max(level.child_nodes.shape[1] for level in Trie.build(index.codes).levels) <= 20
    hybrid = build_index("collaborative+independent", cold, np.random.default_rng(0), spare=400, **clusters)
    fresh = N_ITEMS + np.arange(300)
    tracemalloc.start()
    beside = nearest_by_cooccurrence(IndexSource(histories=Histories.from_log(log)), fresh)
    moved = hybrid.place(fresh, np.where(fresh % 2, fresh % N_ITEMS, beside))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n_items**2 / 4
    np.testing.assert_array_equal(moved.codes[fresh[1::2], :-1], hybrid.codes[fresh[1::2] % N_ITEMS, :-1])
    assert len(np.unique(moved.codes[:, -1])) == n_items


def test_moved_items_leave_their_old_leaf():
    index = build("collaborative+independent", {"clusters": 6, "leaf_size": 50}, spare=2)
    moved = index.place(np.array([3, 4]), np.array([100, 101]))
    np.testing.assert_array_equal(moved.codes[3, :-1], index.codes[100, :-1])
    assert index.items_of(moved.codes[[3]])[0] in (-1, 3, 4)
    np.testing.assert_array_equal(np.delete(moved.codes, [3, 4], axis=0), np.delete(index.codes, [3, 4], axis=0))


def test_no_room_is_an_error():
    with pytest.raises(ConfigError, match="no spare leaf"):
        build("independent", {}, spare=1).place(np.array([N_ITEMS, N_ITEMS + 1]), np.array([0, 0]))
    with pytest.raises(DataError, match="leave gaps"):
        build("independent", {}, spare=9).place(np.array([N_ITEMS + 1]), np.array([0]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("telepathy", {}, "index=telepathy: unknown"),
        ("random+nothing+random", {}, "index=nothing: unknown"),
        ("rkmeans", {"levels": 0}, "levels=0"),
        ("file", {"path": "/no/such.json"}, "no readable codes"),
        ("random", {"clusters": 3}, "clusters"),
        ("random", {"branching": 1}, "branching=1"),
        ("collaborative", {"leaf_size": 1}, "leaf_size=1"),
        ("rqvae", {"vectors": "sound"}, "vectors=sound"),
        ("semantic", {"vectors": "sound"}, "item_vectors=sound"),
        ("svd", {"bins": 1}, "bins=1"),
        ("random", {"spare": -1}, "spare=-1"),
    ],
)
def test_wrong_options_are_an_error(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, options)


@pytest.mark.parametrize("name", ["title", "semantic"])
def test_indexes_of_words_need_a_catalogue(name):
    with pytest.raises(ConfigError, match="bind a data set"):
        build_index(name, IndexSource(histories=source().histories), np.random.default_rng(0))


def test_damaged_or_impossible_indexes_are_an_error(tmp_path: Path):
    (tmp_path / "index.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(RunDirectoryError, match="no readable item index"):
        ItemIndex.load(tmp_path / "index.json")
    with pytest.raises(DataError, match="share 1 codes"):
        ItemIndex(name="x", codes=np.zeros((2, 1), np.int32), sizes=(1,), spare=0)
    with pytest.raises(DataError, match="outside its level"):
        ItemIndex(name="x", codes=np.array([[0], [5]], np.int32), sizes=(2,), spare=0)


# -- the parts --------------------------------------------------------------------------------------------------


def test_cooccurrence_counts_pairs_within_the_window():
    log = Interactions(
        users=np.array([0, 0, 0, 1, 1], np.int32),
        items=np.array([0, 1, 2, 1, 0], np.int32),
        ratings=np.full(5, np.nan, np.float32),
        times=np.arange(5),
        n_users=2,
        n_items=3,
    )
    near = cooccurrence(IndexSource(histories=Histories.from_log(log)), 1).toarray()
    assert near.tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    whole = cooccurrence(IndexSource(histories=Histories.from_log(log)), None).toarray()
    assert whole.tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]
    assert nearest_by_cooccurrence(IndexSource(histories=Histories.from_log(log)), np.array([2]), window=1) == [1]


def test_spectral_clustering_finds_blocks():
    labels = spectral_clusters(cooccurrence(source(), None), N_BLOCKS, np.random.default_rng(0))
    block = block_of(np.arange(N_ITEMS))
    purity = np.mean([np.bincount(block[labels == label]).max() for label in np.unique(labels)]) * N_BLOCKS / N_ITEMS
    assert purity > 0.9


def test_sequential_codes_do_not_see_what_the_source_does_not_hold():
    histories = Histories.from_log(block_log())
    short, _, _ = histories.without_last(2)
    rng = np.random.default_rng
    assert (
        sequential_codes(IndexSource(histories=short), rng(0))
        != sequential_codes(IndexSource(histories=histories), rng(0))
    ).any()


def test_windows_make_every_interaction_but_the_first_a_target_once():
    rng = np.random.default_rng(0)
    lengths = np.array([1, 2, 5, 6, 7, 23, 60])
    users = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    n = len(users)
    log = Interactions(
        users=users,
        items=np.arange(n, dtype=np.int32),
        ratings=np.full(n, np.nan, np.float32),
        times=np.arange(n),
        n_users=len(lengths),
        n_items=n,
    )
    histories = Histories.from_log(log)
    starts, ends = histories.windows(5, rng)
    assert (ends - starts <= 6).all()
    rows = histories.gather(starts, ends, 6)
    targets = rows[:, 1:][rows[:, 1:] >= 0]
    firsts = histories.ptr[:-1]
    np.testing.assert_array_equal(np.sort(targets), np.setdiff1d(np.arange(n), firsts))
    for row in rows:
        owner = users[row[row >= 0]]
        assert (owner == owner[0]).all()


def test_batches_hold_every_target_once_and_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(4_000) < 0.05, 40, rng.integers(1, 8, 4_000))
    n = int(lengths.sum())
    ptr = np.concatenate(([0], np.cumsum(lengths)))
    histories = Histories(ptr=ptr, items=np.arange(n, dtype=np.int32), ratings=np.zeros(n, np.float32), n_items=n)
    batches = list(histories.batches(50, 32, rng))
    assert all(len(batch) <= 32 for batch in batches)
    targets = np.concatenate([batch[:, 1:][batch[:, 1:] >= 0] for batch in batches])
    np.testing.assert_array_equal(np.sort(targets), np.setdiff1d(np.arange(n), ptr[:-1]))
    padding = np.mean(np.concatenate([batch.reshape(-1) for batch in batches]) < 0)
    assert padding < 0.15, "in batches of any lengths nearly three quarters would be padding"
    widths = [batch.shape[1] for batch in batches[:32]]
    assert widths != sorted(widths), "lengths come in random order"


def test_last_items_end_with_the_newest():
    histories = Histories.from_log(block_log(length=4))
    rows = histories.last(np.array([2, 0]), 3)
    np.testing.assert_array_equal(rows, [histories.of(2)[-3:], histories.of(0)[-3:]])
    np.testing.assert_array_equal(histories.last(np.array([1]), 6)[0], [*histories.of(1), -1, -1])


@pytest.mark.parametrize(("name", "options"), ALL)
def test_indexing_leaves_its_source_as_it_was(name, options):
    log = block_log().concat(block_log())  # every item twice, which a sparse matrix would sum
    histories = Histories.from_log(log)
    items, ptr = histories.items.copy(), histories.ptr.copy()
    build_index(name, IndexSource(histories=histories, catalog=catalog()), np.random.default_rng(0), **options)
    np.testing.assert_array_equal(histories.items, items)
    np.testing.assert_array_equal(histories.ptr, ptr)


def test_popularity_and_time_number_items_by_them():
    known = source()
    counts = known.item_counts()
    by_popularity = build_index("popularity", known, np.random.default_rng(0), branching=8)
    order = np.ravel_multi_index(tuple(by_popularity.codes.T), by_popularity.sizes).argsort()
    assert (np.diff(counts[order]) <= 0).all()
    by_time = build_index("time", known, np.random.default_rng(0), branching=8)
    order = np.ravel_multi_index(tuple(by_time.codes.T), by_time.sizes).argsort()
    first = np.full(N_ITEMS, 99)
    np.minimum.at(first, known.histories.items, known.histories.times)
    assert (np.diff(first[order]) >= 0).all()


def test_residual_k_means_leaves_less_at_every_level():
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rqvae, "item_vectors", lambda *unused: vectors)
        codes = rqvae.rkmeans_codes(source(), np.random.default_rng(0), levels=3, codewords=8)
    left, spread = vectors, [1.0]
    for level in range(3):
        for token in np.unique(codes[:, level]):
            rows = codes[:, level] == token
            left = np.where(rows[:, None], left - left[rows].mean(axis=0), left)
        spread.append(float((left**2).sum() / (vectors**2).sum()))
    assert all(after < 0.85 * before for before, after in itertools.pairwise(spread))


def test_codes_go_to_a_file_and_back(tmp_path: Path):
    index, ids = build("collaborative", {"clusters": 4, "leaf_size": 12}), catalog().item_ids
    np.testing.assert_array_equal(index.items_of(index.codes_of([[3, 5], [9, 0]])), [[3, 5], [9, 0]])
    index.export(tmp_path / "codes.json", ids)
    again = build("file", {"path": str(tmp_path / "codes.json")})
    np.testing.assert_array_equal(again.codes[:, :-1], index.codes)
    words = {item: [f"<a_{row % 7}>", f"<b_{row // 7}>"][: 1 + row % 2] for row, item in enumerate(ids)}
    (tmp_path / "words.json").write_text(json.dumps(words))
    named = build("file", {"path": str(tmp_path / "words.json")})
    assert named.depth == 3
    assert (named.codes[::2, 1] == 0).all()
    np.testing.assert_array_equal(named.codes[:, 0], np.arange(N_ITEMS) % 7)
    del words[ids[7]]
    (tmp_path / "words.json").write_text(json.dumps(words))
    with pytest.raises(ConfigError, match="no code of item '7'; expected one for every item"):
        build("file", {"path": str(tmp_path / "words.json")})
