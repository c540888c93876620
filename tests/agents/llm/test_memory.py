"""Memory retrieval: what is recalled, and why."""

from __future__ import annotations

import numpy as np
import pytest

from agents.llm.memory import Events, Retrieval, cosines, importance
from simenv.errors import ConfigError

PLAIN = Retrieval(importance=0, similarity=0)


def events(pages_ago, *, rounds=0) -> Events:
    n = len(pages_ago)
    return Events(
        ids=np.arange(n),
        items=np.arange(n, dtype=np.int32),
        clicked=np.ones(n, bool),
        ratings=np.full(n, np.nan, np.float32),
        rounds=np.full(n, rounds, np.int32),
        pages_ago=np.asarray(pages_ago),
    )


def test_newer_beats_older():
    scores = PLAIN.scores(np.array([9, 3, 1]), np.zeros(3), np.zeros((3, 2)), np.zeros(2))
    assert scores[0] < scores[1] < scores[2]
    np.testing.assert_allclose(scores[1], (0.9**3 - 0.9**9) / (0.9 - 0.9**9))


def test_each_part_counts_by_its_weight():
    ages, weight = np.array([2, 1]), np.array([1.0, 0.0])
    vectors, query = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0.0, 2.0])
    for name, better in (("recency", 1), ("importance", 0), ("similarity", 0)):
        only = Retrieval(**({"recency": 0, "importance": 0, "similarity": 0} | {name: 2.0}))
        scores = only.scores(ages, weight, vectors, query)
        assert scores[better] == 2.0
        assert scores[1 - better] == 0.0


def test_the_last_page_and_the_best_of_the_rest_oldest_first():
    pages_ago = [4, 4, 3, 3, 2, 2, 1, 1]
    recalled = Retrieval(recency=0, similarity=0, top=2).recall(
        events(pages_ago), np.array([0, 5, 1, 0, 9, 0, 0, 0]), np.zeros((8, 2)), np.zeros(2)
    )
    np.testing.assert_array_equal(recalled, [1, 4, 6, 7])


def test_ties_go_to_the_newer_event():
    recalled = Retrieval(recency=0, top=3).recall(events([2] * 6), np.zeros(6), np.zeros((6, 2)), np.ones(2))
    np.testing.assert_array_equal(recalled, [3, 4, 5])


def test_the_warm_start_is_no_last_page():
    recalled = Retrieval(top=1).recall(events([1] * 5, rounds=-1), np.arange(5), np.zeros((5, 2)), np.ones(2))
    np.testing.assert_array_equal(recalled, [4])


def test_nothing_to_recall():
    empty = events([])
    assert len(Retrieval().recall(empty, np.zeros(0), np.zeros((0, 2)), np.ones(2))) == 0


def test_importance_is_surprise_plus_novelty():
    found = importance(np.array([5.0, np.nan, 1.0]), 3.0, 2.0, np.array([0.25, 1.0, 0.0]))
    np.testing.assert_allclose(found, [1.0 + 0.75, 0.0, 1.0 + 1.0])


def test_cosines_without_length_are_zero():
    found = cosines(np.array([[3.0, 4.0], [0.0, 0.0], [-6.0, -8.0]]), np.array([3.0, 4.0]))
    np.testing.assert_allclose(found, [1.0, 0.0, -1.0])
    np.testing.assert_array_equal(cosines(np.ones((2, 2)), np.zeros(2)), [0.0, 0.0])


class Ring:
    """As much of a Population as Events reads: a ring of 6 for one user who has seen 8 events."""

    memory_size = 6
    memory_count = np.array([8])
    memory_items = np.array([[16, 17, 12, 13, 14, 15]], np.int32)
    memory_clicked = np.array([[True, False, True, True, True, False]])
    memory_rating = np.array([[4, np.nan, 3, np.nan, 5, np.nan]], np.float32)
    memory_round = np.array([[1, 1, -1, -1, 0, 0]], np.int32)
    memory_page = np.array([[1, 1, 0, 0, 0, 1]], np.int16)


def test_events_are_read_from_the_ring_in_order():
    found = Events.of(Ring(), 0)
    np.testing.assert_array_equal(found.ids, [2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(found.items, [12, 13, 14, 15, 16, 17])
    np.testing.assert_array_equal(found.pages_ago, [4, 4, 3, 2, 1, 1])


def test_a_long_warm_start_is_pages_of_ten():
    ring = Ring()
    ring.memory_size, ring.memory_count = 30, np.array([25])
    for name in ("items", "clicked", "rating", "page"):
        setattr(ring, f"memory_{name}", np.zeros((1, 30)))
    ring.memory_round = np.full((1, 30), -1)
    ages = Events.of(ring, 0).pages_ago
    np.testing.assert_array_equal(ages, [3] * 10 + [2] * 10 + [1] * 5)


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": 1.1}, {"top": -1}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Retrieval(**options)
