from dataclasses import replace

import numpy as np

from recommenders.neighbours import ItemKNN, SeqKNN, UserKNN
from recommenders.testing import KEY, small_log
from simenv.datasets.base import Interactions


def history(*sequences, n_items):
    users = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    items = np.concatenate([np.array(s, int) for s in sequences])
    return Interactions(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.full(len(items), np.nan, np.float32),
        times=np.arange(len(items)),
        n_users=len(sequences),
        n_items=n_items,
    )


def test_itemknn_against_brute_force():
    log = small_log()
    recommender = ItemKNN(neighbours=7, shrinkage=3.0)
    recommender.fit(log, key=KEY)
    consumed = np.zeros((40, 60))
    consumed[log.users, log.items] = 1
    together = consumed.T @ consumed
    norms = np.sqrt(np.diag(together))
    similarity = together / (norms[:, None] * norms[None, :] + 3.0)
    np.fill_diagonal(similarity, 0)
    kept = np.zeros_like(similarity)
    for item in range(60):
        near = np.argsort(-similarity[item].astype(np.float32), kind="stable")[:7]
        kept[item, near] = similarity[item, near]
    expected = consumed @ kept
    scores = recommender.scores(np.arange(40))
    supported = expected > 0
    np.testing.assert_allclose(scores[supported], expected[supported], rtol=1e-5)
    assert (scores[~supported] < 0).all()


def test_a_large_catalogue_changes_no_neighbour():
    """Where few items were counted only these are looked at: the same neighbours, ties and all, in the same order."""
    log = small_log()
    small, large = ItemKNN(neighbours=7), ItemKNN(neighbours=7)
    small.fit(log)
    spread = replace(log, items=(97 * log.items + 5).astype(np.int32), n_items=97 * log.n_items)
    large.fit(spread)
    (ptr, near, alike), (wide_ptr, wide_near, wide_alike) = small._columns, large._columns
    np.testing.assert_array_equal(wide_near, 97 * near + 5)
    np.testing.assert_array_equal(wide_alike, alike)
    np.testing.assert_array_equal(wide_ptr[97 * np.arange(log.n_items) + 6], ptr[1:])


def test_items_without_evidence_follow_by_popularity():
    log = history([0, 1], [0, 1], [2, 3], [3, 4], [3], [], n_items=6)
    recommender = ItemKNN(neighbours=2, shrinkage=0.0)
    recommender.fit(log)
    # User 0 knows items 0 and 1, alike only to one another; then by counts 3, 1, 1, 0 of items 3, 2, 4, 5.
    np.testing.assert_array_equal(recommender.recommend(np.array([0]), 6).item_ids, [[0, 1, 3, 2, 4, 5]])
    np.testing.assert_array_equal(recommender.recommend(np.array([5]), 3).item_ids, [[3, 0, 1]])


def test_repetition_does_not_move_itemknn():
    log = small_log()
    once, twice = ItemKNN(), ItemKNN()
    once.fit(log)
    twice.fit(log.concat(log))
    evidence = once.scores(np.arange(40)) > 0
    np.testing.assert_array_equal(twice.scores(np.arange(40))[evidence], once.scores(np.arange(40))[evidence])


def test_seqknn_against_the_definition():
    log = small_log()
    recommender = SeqKNN(window=3, gap_decay=0.6, recency_decay=0.8, power=0.4, history=5)
    recommender.fit(log, key=KEY)
    sequences = [log.items[log.users == user] for user in range(40)]
    support = np.zeros((60, 60))
    for sequence in sequences:
        for place, item in enumerate(sequence):
            for gap in (1, 2, 3):
                if place + gap < len(sequence):
                    support[item, sequence[place + gap]] += 0.6 ** (gap - 1)
    expected = np.zeros((40, 60))
    for user, sequence in enumerate(sequences):
        for back, item in enumerate(sequence[::-1][:5]):
            expected[user] += 0.8**back * support[item] ** 0.4
    scores = recommender.scores(np.arange(40))
    supported = expected > 0
    np.testing.assert_allclose(scores[supported], expected[supported], rtol=1e-5)
    assert (scores[~supported] < 0).all()


def test_seqknn_is_directed_and_prefers_the_last_item():
    log = history([0, 1], [2, 3], [1, 5], [0, 2], n_items=6)
    recommender = SeqKNN()
    recommender.fit(log)
    assert recommender.recommend(np.array([0]), 1).item_ids[0, 0] == 5  # 1 -> 5, not 1 -> 0
    assert recommender.recommend(np.array([3]), 2).item_ids[0].tolist() == [3, 1]  # after 2, then after 0


def test_seqknn_fits_histories_of_one_item():
    recommender = SeqKNN()
    recommender.fit(history([4], [4], [1], n_items=6))
    np.testing.assert_array_equal(recommender.recommend(np.array([0]), 2).item_ids, [[4, 1]])


def test_userknn_by_the_formula():
    log = small_log()
    had = np.zeros((40, 60), bool)
    had[log.users, log.items] = True
    knn = UserKNN(neighbours=40, shrinkage=2.0)
    knn.fit(log)
    together = had.astype(float) @ had.T
    size = had.sum(axis=1)
    similarity = together / (np.sqrt(np.outer(size, size)) + 2.0)
    np.fill_diagonal(similarity, 0.0)
    expected = similarity @ had
    supported = expected > 0
    np.testing.assert_allclose(knn.scores(np.arange(40))[supported], expected[supported], rtol=1e-4)
