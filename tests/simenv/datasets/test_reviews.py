"""Reviews of synthetic worlds: true to the rating head, readable again, the same every time."""

import numpy as np
import pytest

from simenv.datasets import Interactions, synthetic, wording
from simenv.datasets.reviews import MATERIAL, MAX_ASPECTS, Aspects, Reviewer, Reviews, reviewer_of
from simenv.errors import DataError


@pytest.fixture(scope="module")
def world():
    return synthetic(n_users=60, n_items=80, seed=3)


@pytest.fixture(scope="module")
def reviewer(world) -> Reviewer:
    reviewer = reviewer_of(world)
    assert reviewer is not None
    return reviewer


def test_contributions_add_up_to_the_expected_rating(world, reviewer):
    log = world.interactions
    head = world.tastes.rating
    level = head.user_bias[log.users] + head.item_bias.mean()
    expected = head.pairs(log.users, log.items)
    np.testing.assert_allclose(
        reviewer.contributions(log.users, log.items).sum(axis=1) + level, expected, rtol=1e-4, atol=1e-4
    )


def test_aspects_are_the_largest_terms_by_hand(world, reviewer):
    """The same from the definition, a pair at a time."""
    head, n_genres = world.tastes.rating, len(wording.GENRES)
    log = world.interactions.take(slice(0, 300))
    aspects = reviewer.aspects(log.users, log.items)
    for row, (user, item) in enumerate(zip(log.users, log.items, strict=True)):
        stars = {wording.CRAFT: float(head.item_bias[item] - head.item_bias.mean())}
        for number, genre in enumerate(wording.GENRES):
            stars[genre.lower()] = float(head.user_vectors[user, number] * head.item_vectors[item, number])
        for number, (_, low, high) in enumerate(wording.ASPECTS):
            style = head.item_vectors[item, n_genres + number]
            stars[high if style > 0 else low] = float(head.user_vectors[user, n_genres + number] * style)
        largest = sorted(stars, key=lambda name: -abs(stars[name]))[:MAX_ASPECTS]
        material = [name for place, name in enumerate(largest) if place == 0 or abs(stars[name]) >= MATERIAL]
        wanted = {(wording.terms().index(name), 1 if stars[name] > 0 else -1) for name in material}
        assert aspects.take(np.array([row])).pairs() == [wanted]


def test_what_is_written_reads_back_as_the_truth(world, reviewer):
    reviews = reviewer.write(world.interactions)
    for texts in (reviews.texts, reviews.explanations):
        assert [set(wording.mentions(text)) for text in texts] == reviews.aspects.pairs()
    first = [[pair] for pair in zip(reviews.aspects.terms[:, 0], reviews.aspects.signs[:, 0], strict=True)]
    assert [wording.mentions(summary) for summary in reviews.summaries] == first
    assert set(reviews.features) <= {wording.feature(term) for term in range(len(wording.terms()))}


def test_the_verdict_follows_the_stars(world, reviewer):
    reviews = reviewer.write(world.interactions)
    for text, stars in zip(reviews.texts, world.interactions.ratings, strict=True):
        assert text.split(" . ")[0] in wording.VERDICTS[int(stars)]


def test_reviews_are_a_function_of_world_and_pair(world, reviewer):
    log = world.interactions
    all_of_them = reviewer.write(log)
    again = reviewer_of(synthetic(n_users=60, n_items=80, seed=3)).write(log.take(slice(100, 200)))
    assert again.texts == all_of_them.texts[100:200]
    assert reviewer_of(world, seed=1).write(log).texts != all_of_them.texts
    np.testing.assert_array_equal(reviewer_of(world, seed=1).write(log).aspects.terms, all_of_them.aspects.terms)
    half = len(log) // 2
    joined = reviewer.write(log.take(slice(0, half))).concat(reviewer.write(log.take(slice(half, None))))
    assert joined.texts == all_of_them.texts
    np.testing.assert_array_equal(joined.aspects.signs, all_of_them.aspects.signs)


def test_users_of_a_world_keep_their_opinions(world, reviewer):
    rows = np.array([7, 3])
    some = world.take_users(rows)
    log = some.interactions
    aspects = reviewer_of(some).aspects(log.users, log.items)
    np.testing.assert_array_equal(aspects.terms, reviewer.aspects(rows[log.users], log.items).terms)


def test_without_a_rating_no_review(world, reviewer):
    log = world.interactions.take(slice(0, 10))
    ratings = log.ratings.copy()
    ratings[::2] = np.nan
    silent = Interactions(users=log.users, items=log.items, ratings=ratings, times=log.times, n_users=60, n_items=80)
    assert reviewer.write(silent).users.tolist() == log.users[1::2].tolist()


def test_only_worlds_with_true_tastes_in_words_have_a_reviewer(world):
    from dataclasses import replace

    assert reviewer_of(replace(world, tastes=None)) is None
    assert reviewer_of(replace(world, tastes=replace(world.tastes, kind="fitted"))) is None
    renamed = replace(world.catalog, genre_names=tuple(f"g{n}" for n in range(len(wording.GENRES))))
    assert reviewer_of(replace(world, catalog=renamed)) is None


@pytest.mark.parametrize("term", range(len(wording.terms())))
@pytest.mark.parametrize("sign", [1, -1])
def test_every_clause_reads_back(term, sign):
    for variant in range(3):
        for opening in ("", "because ", "but ", "and "):
            assert wording.mentions(f"{opening}{wording.clause(term, sign, variant)} .") == [(term, sign)]


def test_reading_is_tolerant_of_spaces_and_strict_about_silence():
    slow, dark = wording.terms().index("slow-burning"), wording.terms().index("dark")
    assert wording.mentions("I enjoyed how SLOW - BURNING it is, too dark for me") == [(slow, 1), (dark, -1)]
    assert wording.mentions("dark") == [(dark, 0)]
    assert wording.mentions("nothing in particular .") == []


def test_misaligned_reviews_are_an_error():
    one = {"users": np.array([0]), "items": np.array([0]), "texts": ("a",), "summaries": ("a",), "features": ("a",)}
    with pytest.raises(DataError, match="0 explanations for 1 users"):
        Reviews(**one, explanations=())
    nothing = Aspects(terms=np.zeros((0, 3), np.int64), signs=np.zeros((0, 3), np.int64))
    with pytest.raises(DataError, match="aspects of 0 reviews for 1 users"):
        Reviews(**one, explanations=("a",), aspects=nothing)
