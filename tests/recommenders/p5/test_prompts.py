"""Prompt files and the arrays they become."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recommenders.p5.language.prompts import FAMILIES, load_prompts, parse
from recommenders.p5.language.text import END, MAX_SAID, OwnWords, Reviews, Rows, TextData, Vocabulary, own_words
from recommenders.testing import small_dataset, small_log
from simenv.errors import ConfigError, DataError
from simenv.training.histories import Histories

REVIEWS = Reviews(
    users=np.array([8, 34]),  # these pairs are in `small_log`
    items=np.array([26, 44]),
    texts=("a long night by the river", "too much stone"),
    summaries=("long night", "stony"),
    features=("river", "stone"),
    explanations=("because of the river", "in spite of the stone"),
)


def data(*, reviews: Reviews | None = None, with_catalog: bool = True, ratings: bool = True) -> TextData:
    log = small_log()
    if not ratings:
        log = type(log)(
            users=log.users,
            items=log.items,
            ratings=np.full(len(log), np.nan, np.float32),
            times=log.times,
            n_users=40,
            n_items=60,
        )
    catalog = small_dataset(log).catalog if with_catalog else None
    people = ["gender F" if user % 2 else "gender M , age 25-34" for user in range(log.n_users)]
    words = own_words(load_prompts(), catalog, reviews, people)
    return TextData(Histories.from_log(log), Vocabulary(words, (4, 70)), catalog, 5, reviews, people=people)


def rows(text: TextData, users=(0, 3)) -> Rows:
    users = np.array(users)
    ends = text.histories.ptr[users] + 3
    return Rows(
        users=users,
        ends=ends,
        items=text.histories.items[ends].astype(np.int64),
        ratings=np.array([4.0, 2.0], np.float32),
        liked=np.array([True, False]),
        reviews=np.array([0, 1]),
    )


def read(text: TextData, tokens) -> str:
    """A rendered row in words."""
    vocabulary, out = text.vocabulary, []
    for token in tokens[tokens >= 0]:
        if token >= vocabulary.size:
            out.append(f"<item {token - vocabulary.size}>")
        elif token >= vocabulary.user_offset:
            out.append(f"<user {token - vocabulary.user_offset}>")
        else:
            out.append("<end>" if token == END else vocabulary.words.decode([int(token)]))
    return " ".join(out)


def test_every_family_has_several_prompts_and_one_unseen():
    book = load_prompts()
    assert book.families == FAMILIES
    for family in FAMILIES:
        assert len(book.seen(family)) >= 3
        assert book.unseen(family) not in book.seen(family)
    texts = [(prompt.source, prompt.target) for prompt in book.prompts]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_prompt_can_be_rendered(family):
    text, rng = data(reviews=REVIEWS), np.random.default_rng(0)
    text.catalog = replace(text.catalog, texts=("a night by the river",) * text.catalog.n_items)
    for prompt in (*load_prompts().seen(family), load_prompts().unseen(family)):
        source, target = text.render(prompt, rows(text), rng)
        assert len(source) == len(target) == 2
        for side in (source, target):
            assert (side[:, 0] >= 0).all()
            assert side.max() < text.vocabulary.size + 60
            assert not (np.diff((side >= 0).astype(int), axis=1) > 0).any()  # gaps lie at the end


def test_texts_are_asked_for_where_the_catalogue_has_some():
    text, book = data(reviews=REVIEWS), load_prompts()
    without = text.usable(book.seen("explanation"))
    text.catalog = replace(text.catalog, texts=("a night by the river",) * text.catalog.n_items)
    with_texts = text.usable(book.seen("explanation"))
    assert len(with_texts) == len(without) + 2
    source, _ = text.render(parse("{text} -> {item}", "explanation", 0, "x"), rows(text), np.random.default_rng(0))
    assert read(text, source[0]).endswith("night by the river")


def test_a_rendered_prompt_reads_as_written():
    text, rng = data(), np.random.default_rng(0)
    prompt = parse("after {history} , {user} rates {item} -> {rating}", "rating", 0, "here")
    some = rows(text)
    source, target = text.render(prompt, some, rng)
    items = text.histories.of(3)
    history = " ".join(f"<item {item}>" for item in items[:3])
    assert read(text, source[1]) == f"after {history} , <user 0> <user 0> <user 3> ? <item {items[3]}>"
    assert read(text, target[0]) == "4 <end>"


def test_the_history_ends_before_the_target_and_keeps_the_newest_items():
    text = data()
    user = 0
    some = rows(text, (user, user))
    some = Rows(some.users, text.histories.ptr[[0, 0]] + [9, 0], some.items, some.ratings, some.liked, some.reviews)
    source, _ = text.render(parse("{history} -> {item}", "sequential", 0, "x"), some, np.random.default_rng(0))
    np.testing.assert_array_equal(source[0] - text.vocabulary.size, text.histories.of(0)[4:9])
    assert (source[1] == -1).all()


def test_the_right_item_is_among_the_candidates():
    text = data()
    some = rows(text)
    source, target = text.render(parse("{candidates} -> {item}", "direct", 0, "x"), some, np.random.default_rng(0))
    assert source.shape == (2, 20)
    assert (source == target).any(axis=1).all()
    np.testing.assert_array_equal(target[:, 0] - text.vocabulary.size, some.items)


def test_titles_genres_and_reviews_are_text():
    text = data(reviews=REVIEWS)
    prompt = parse("{title} {genres} {review} -> {explanation}", "explanation", 0, "x")
    source, target = text.render(prompt, rows(text), np.random.default_rng(0))
    item = rows(text).items[1]
    assert text.catalog is not None
    genres = " ".join(np.array(text.catalog.genre_names)[text.catalog.genres[item]])
    assert read(text, source[1]) == f"{text.catalog.titles[item]} {genres} too much stone"
    assert read(text, target[1]) == "in spite of the stone <end>"


def test_users_are_described_where_something_is_told_of_them():
    text = data()
    prompt = parse("{user_desc} : {item} -> {item}", "sequential", 0, "x")
    source, _ = text.render(prompt, rows(text), np.random.default_rng(0))
    assert [read(text, row).partition(" :")[0] for row in source] == ["gender m , age 25 - 34", "gender f"]
    assert replace(text, people=()).usable([prompt]) == []
    assert load_prompts().without("user_desc").seen("sequential") == load_prompts().seen("sequential")[:-1]
    with pytest.raises(ConfigError, match=r"fewer than two of family 'sequential' do without \{history\}"):
        load_prompts().without("history")


def test_other_reviews_are_quoted_but_never_the_one_in_question():
    log, rng = small_log(), np.random.default_rng(0)
    log = log.take(np.unique(log.users * 60 + log.items, return_index=True)[1])
    n = len(log)
    words = tuple(f"u{user}i{item}" for user, item in zip(log.users, log.items, strict=True))
    every = Reviews(
        users=log.users.astype(np.int64), items=log.items.astype(np.int64),
        texts=words, summaries=words, features=words, explanations=words,
    )  # fmt: skip
    text = data(reviews=every)
    ask = {
        field: parse(f"{{{field}}} -> {{explanation}}", "explanation", 0, "x")
        for field in ("said_of_item", "said_by_user")
    }
    some = Rows(every.users, np.zeros(n, np.int64), every.items, log.ratings, np.ones(n, bool), np.arange(n))
    said = {name: [read(text, row).split() for row in text.source(prompt, some, rng)] for name, prompt in ask.items()}
    for user, item, of_item, by_user in zip(log.users, log.items, said["said_of_item"], said["said_by_user"]):
        assert all(word.endswith(f"i{item}") for word in of_item)
        assert all(word.startswith(f"u{user}i") for word in by_user)
        assert f"u{user}i{item}" not in (*of_item, *by_user)
        assert len(set(of_item)) == len(of_item) <= MAX_SAID
    many = (
        np.bincount(log.users[~np.isnan(log.ratings)], minlength=log.n_users)[log.users] > MAX_SAID
    )  # what has no stars is not quoted
    assert {len(row) for row, often in zip(said["said_by_user"], many) if often} == {MAX_SAID - 1, MAX_SAID}
    again = [read(text, row).split() for row in text.source(ask["said_of_item"], some, rng)]
    assert again != said["said_of_item"]  # others are drawn the next time


def test_without_reviews_nothing_is_quoted():
    prompt = parse("{item} , {said_of_item} , {said_by_user} -> {explanation}", "explanation", 0, "x")
    assert data().usable([prompt]) == []
    elsewhere = data(reviews=replace(REVIEWS, items=np.array([27, 45])))  # not in the log
    assert elsewhere.usable([prompt]) == [prompt]
    (source,) = elsewhere.source(prompt, rows(elsewhere, (3,)).take([0]), np.random.default_rng(0))
    assert "river" not in read(elsewhere, source)


def test_families_without_data_are_skipped_and_said_so():
    book = load_prompts()
    families, skipped = data().available_families(book)
    assert families == ("rating", "sequential", "direct")
    assert skipped == {"explanation": "no reviews", "review": "no reviews"}
    assert data(ratings=False).available_families(book)[1]["rating"] == "no ratings"
    assert data(reviews=REVIEWS).available_families(book)[1] == {}


def test_without_a_catalogue_no_prompt_asks_for_titles():
    usable = data(with_catalog=False).usable(load_prompts().seen("rating"))
    assert 0 < len(usable) < len(load_prompts().seen("rating"))
    assert not any(prompt.fields & {"title", "genres"} for prompt in usable)


def test_own_words_round_trip():
    words = OwnWords(["stars", "give", "4"])
    assert words.decode(words.encode("Give 4 stars")) == "give 4 stars"
    assert words.decode(words.encode("unheard")) == "?"


def test_a_folder_of_ones_own(tmp_path: Path):
    lines = "# mine\n{history} then -> {item}\nunseen: {history} , {user} -> {item}\n\nso far {history} -> {item}\n"
    (tmp_path / "sequential.txt").write_text(lines)
    book = load_prompts(tmp_path, ["sequential"])
    assert [prompt.number for prompt in book.seen("sequential")] == [0]
    assert book.unseen("sequential", "user").number == 1
    with pytest.raises(ConfigError, match=r"no sequential prompt with \{title\} is kept unseen; expected one in"):
        book.unseen("sequential", "title")
    assert [piece.text for piece in book.unseen("sequential").source] == ["so", "far", "history"]
    with pytest.raises(ConfigError, match="no family 'rating'"):
        book.seen("rating")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no arrow here", "expected 'input -> target'"),
        ("-> {item}", "expected 'input -> target'"),
        ("a -> b -> c", "expected 'input -> target'"),
        ("{colour} -> {item}", "unknown field {colour}"),
    ],
)
def test_lines_that_cannot_be_read_are_an_error(tmp_path: Path, line, message):
    (tmp_path / "sequential.txt").write_text(f"{{history}} -> {{item}}\n{line}\n")
    with pytest.raises(DataError, match=rf"sequential.txt:2.*{message}"):
        load_prompts(tmp_path, ["sequential"])


def test_missing_and_short_files_are_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no readable prompts"):
        load_prompts(tmp_path, ["sequential"])
    (tmp_path / "sequential.txt").write_text("{history} -> {item}\n")
    with pytest.raises(DataError, match="at least two"):
        load_prompts(tmp_path, ["sequential"])


def test_reviews_are_aligned():
    with pytest.raises(DataError, match="1 summaries for 2 users"):
        Reviews(
            users=np.array([0, 1]),
            items=np.array([5, 6]),
            texts=("a", "b"),
            summaries=("a",),
            features=("a", "b"),
            explanations=("a", "b"),
        )
