"""Zero-shot: what is learned on one world is asked about another, whose items alone are ranked."""

from dataclasses import replace

import numpy as np
import pytest

from recommenders.content import Content
from recommenders.evaluation.offline import measured, slates
from recommenders.evaluation.transfer import ZeroShot, carried_over, joined
from recommenders.neighbours import ItemKNN
from recommenders.popularity import Random
from simenv.datasets import synthetic
from simenv.datasets.splits import leave_one_out
from simenv.errors import DataError
from simenv.randomness import Key

SOURCE = synthetic(n_users=50, n_items=60, seed=0)
TARGET = synthetic(n_users=80, n_items=120, seed=1)


def test_two_data_sets_become_one_that_knows_the_first_ones_interactions():
    both = joined(SOURCE, TARGET)
    assert (both.n_users, both.n_items) == (130, 180)
    np.testing.assert_array_equal(both.interactions.items, SOURCE.interactions.items)
    assert both.catalog.titles[60:] == TARGET.catalog.titles
    assert both.catalog.genre_names == SOURCE.catalog.genre_names
    np.testing.assert_array_equal(both.catalog.genres[60:], TARGET.catalog.genres)
    wordless = replace(TARGET, catalog=replace(TARGET.catalog, texts=()))
    with pytest.raises(DataError, match="learn_from: synthetic has no item texts"):
        joined(SOURCE, wordless)


def test_content_carries_over_and_counts_do_not():
    both, plain = joined(SOURCE, TARGET), leave_one_out(TARGET.interactions)
    split = carried_over(plain, SOURCE)
    np.testing.assert_array_equal(split.targets - 60, plain.targets)
    found = {}
    for recommender in (Content(), ItemKNN(), Random()):
        if isinstance(recommender, Content):
            recommender.bind_dataset(both)
        asked = ZeroShot(recommender, both.interactions)
        asked.fit(split.train, key=Key(0))
        found[recommender.name] = measured(asked, split, "ranking", True, Key(0))["hr@10"].mean()
        shown = slates(asked, split)
        assert (shown >= 60).all()
    assert found["content"] > found["random"]
    assert found["content"] > found["itemknn"]  # has never seen an item of the target
