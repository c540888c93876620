"""Amazon sequences: the form, item texts, damaged files, the real Beauty."""

import gzip
import json

import numpy as np
import pytest

from simenv.datasets import amazon, command
from simenv.datasets.splits import SPLITS
from simenv.errors import DataError

TOYS = "7 3 1 3\n2 1 10\n"
ITEMS = [
    {
        "item_id": 3,
        "title": "Puzzle &amp;amp; Book ",
        "categories": [["Toys", "Games", "Puzzles"], ["Toys", "Books"]],
        "brand": None,
    },
    {"item_id": 1, "title": "Kite", "categories": [["Toys"]], "brand": "A &amp; B", "description": "It flies."},
    {"item_id": 10, "title": "Ball", "categories": None},
    {"item_id": 11, "title": "Never bought", "categories": [["Toys", "Games"]]},
]


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


REVIEWS = [
    {"reviewerID": "A2", "asin": "B01", "overall": 5.0, "unixReviewTime": 30, "reviewText": "Great shoes. They fit."},
    {"reviewerID": "A1", "asin": "B01", "overall": 4, "unixReviewTime": 20, "reviewText": "The fit is tight.",
     "summary": "Tight &amp; good", "reviewerName": "Somebody", "helpful": [0, 1]},
    {"reviewerID": "A1", "asin": "B02", "overall": 2.0, "unixReviewTime": 25, "reviewText": "the  fit is tight."},
    {"reviewerID": "A1", "asin": "B02", "overall": 1.0, "unixReviewTime": 26, "reviewText": "Again."},
    {"reviewerID": "A3", "asin": "B02", "overall": 3.0, "unixReviewTime": 10, "reviewText": None},
    {"reviewerID": "A3", "asin": "B03", "overall": 3.0, "unixReviewTime": 11, "reviewText": "I love the fit!"},
]  # fmt: skip


@pytest.mark.parametrize("name", ["reviews_Shoes_5.json.gz", "reviews.jsonl"])
def test_reviews_of_the_publisher_and_with_plain_names(write, name):
    plain = {
        "reviewerID": "user",
        "asin": "item",
        "overall": "rating",
        "unixReviewTime": "time",
        "reviewText": "review",
    }
    if name.endswith(".gz"):
        content = gzip.compress(jsonl(REVIEWS).encode())
    else:
        content = jsonl([{plain.get(key, key): value for key, value in row.items()} for row in REVIEWS]).encode()
    data = amazon(root=str(write({name: content})))
    assert data.user_ids == ("A1", "A2", "A3")
    assert data.catalog.item_ids == ("B02", "B03", "B01")  # as they first come
    log, reviews = data.interactions, data.reviews
    assert log.ratings.tolist() == [3, 3, 4, 2, 5]  # in time order; A1's second review of B02 is none
    assert log.times.tolist() == [10, 11, 20, 25, 30]
    assert reviews.users.tolist() == [2, 0, 0, 1]  # who wrote nothing has a rating alone
    assert reviews.is_copy.tolist() == [False, False, True, False]
    assert reviews.summaries == ("", "Tight & good", "", "")
    assert reviews.features == ("fit", "fit", "fit", "fit")
    assert reviews.explanations[3] == "They fit."
    assert reviews.groups(log).tolist() == [0, 1, 2, 2, 3]
    assert data.take_users(np.array([1])).reviews.texts == ("Great shoes. They fit.",)
    assert data.take_items(np.array([1, 2])).reviews.items.tolist() == [0, 1, 1]
    assert len(data.replace_interactions(log.take(slice(0, 3))).reviews) == 2


def test_told_features_are_taken_and_files_are_chosen(write):
    told = [{**row, "feature": "shoelace", "explanation": "it has a shoelace"} for row in REVIEWS]
    folder = write({"Toys.txt": TOYS, "reviews.jsonl": jsonl(told)})
    assert amazon(root=str(folder)).reviews is None
    assert set(amazon(root=str(folder), file="reviews.jsonl").reviews.features) == {"shoelace"}
    folder = write({"reviews.jsonl": jsonl(told), "a_5.json": jsonl(told)}, "two")
    with pytest.raises(DataError, match=r"two holds a_5.json, reviews.jsonl; expected dataset.file=ONE"):
        amazon(root=str(folder))
    with pytest.raises(DataError, match=r"has no \*.txt or reviews.jsonl or"):
        amazon(root=str(write({}, "empty")))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: no JSON"),
        ("[]", "line 2: list; expected an object"),
        ('{"user": 1, "item": "", "rating": 5, "time": 1}', "line 2: item is ''; expected item or asin"),
        ('{"user": 1, "item": "x", "rating": "5", "time": 1}', "line 2: rating is '5'; expected rating or overall"),
        ('{"user": 1, "item": "x", "rating": 6, "time": 1}', "line 2: rating 6; expected 1 to 5"),
    ],
)
def test_damaged_reviews_are_named(write, line, words):
    good = '{"user": 1, "item": "y", "rating": 5, "time": 1, "review": "ok"}'
    with pytest.raises(DataError, match=words):
        amazon(root=str(write({"reviews.jsonl": f"{good}\n{line}\n"})))


@pytest.mark.realdata
def test_the_real_fashion_reviews(real_folder, capsys):
    data = amazon(root=real_folder("amazon-fashion-5"))
    assert (len(data.interactions), data.n_users, data.n_items) == (3042, 406, 31)
    assert (~data.reviews.is_copy).sum() == 422
    split = SPLITS["random"](data)
    kept, held = ({(r.users[k], r.texts[k].lower()) for k in range(len(r))}
                  for r in (data.reviews.about(split.train), data.reviews.about(split.held)))  # fmt: skip
    assert not kept & held
    assert command.main(["check", f"{real_folder('amazon-fashion-5')}/reviews.jsonl"]) == 0
    assert "reviews: 422 texts of 404 users (2,604 more are copies" in capsys.readouterr().out


def test_sequences_without_texts(write):
    data = amazon(root=str(write({"Toys.txt": TOYS})))
    assert data.user_ids == ("2", "7")
    assert data.catalog.titles == ("item 3", "item 1", "item 10")  # as they first come
    assert data.catalog.n_genres == 0
    assert np.isnan(data.interactions.ratings).all()
    mine = data.interactions.users == 1
    assert data.interactions.items[mine].tolist() == [0, 1, 0]
    assert data.interactions.times[mine].tolist() == [0, 1, 2]


def test_item_texts(write):
    data = amazon(root=str(write({"Toys.txt": TOYS, "toys_items.jsonl": jsonl(ITEMS)})))
    assert data.catalog.item_ids == ("3", "1", "10")
    assert data.catalog.titles == ("Puzzle & Book", "Kite", "Ball")
    assert data.catalog.genre_names == ("Books", "Games")
    assert data.catalog.genres.tolist() == [[True, True], [False, False], [False, False]]
    assert data.catalog.texts == ("Games, Puzzles, Books", "It flies.", "")
    assert data.catalog.attributes["brand"].tolist() == ["", "A & B", ""]
    assert data.catalog.attributes["category_path"].tolist() == ["Toys > Games > Puzzles", "Toys", ""]


def test_the_file_with_texts_counts_among_several(write):
    files = {"Toys.txt": TOYS, "user_sequence.txt": "A1 B2\n", "toys_items.jsonl": jsonl(ITEMS)}
    assert amazon(root=str(write(files))).n_users == 2
    with pytest.raises(DataError, match=r"holds Toys.txt, user_sequence.txt; expected one .txt"):
        amazon(root=str(write({name: files[name] for name in ("Toys.txt", "user_sequence.txt")}, "other")))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"Toys.txt": TOYS + "9\n"}, "Toys.txt, line 3: user 9 without items"),
        ({"Toys.txt": TOYS + "\n\n3 1\n"}, "Toys.txt, line 3: ''; expected integers"),
        ({"Toys.txt": TOYS + "9 B00X\n"}, "Toys.txt, line 3: 'B00X'; expected integers"),
        ({"Toys.txt": TOYS + "7 1\n"}, "Toys.txt, line 3: user 7 again"),
        ({"Toys.txt": ""}, "Toys.txt: is empty"),
        ({"Toys.txt": TOYS + "9 99\n", "toys_items.jsonl": jsonl(ITEMS)}, "line 3: item 99 is not in toys_items.jsonl"),
        ({"Toys.txt": TOYS, "toys_items.jsonl": jsonl(ITEMS)[:-30]}, "toys_items.jsonl, line 4: no JSON"),
        ({"Toys.txt": TOYS, "toys_items.jsonl": jsonl([*ITEMS, ITEMS[0]])}, "line 5: item 3 again"),
        ({"Toys.txt": TOYS, "toys_items.jsonl": jsonl([{"item_id": 3, "title": None}])}, "line 1: item 3 has no title"),
        ({"Toys.txt": TOYS, "toys_items.jsonl": jsonl([{"title": "x"}])}, "line 1: no integer item_id"),
        (
            {"Toys.txt": TOYS, "toys_items.jsonl": jsonl([{"item_id": 3, "title": "x", "categories": ["Toys"]}])},
            "line 1: categories are .*; expected a list of paths",
        ),
        ({"notes.md": "x"}, r"has no \*.txt or reviews.jsonl or .*; expected \*.txt"),
    ],
)
def test_damage_names_file_line_and_what_was_expected(write, files, message):
    with pytest.raises(DataError, match=message):
        amazon(root=str(write(files)))


@pytest.mark.realdata
def test_real_beauty(real_folder):
    data = amazon(root=real_folder("amazon-beauty-2014"))
    assert (data.n_users, data.n_items, len(data.interactions)) == (22_363, 12_101, 198_502)
    assert data.interactions.user_counts().min() == 5
    assert (data.catalog.attributes["brand"] == "").sum() == 4646, "4,628 null and 18 empty"
    assert "Skin Care" in data.catalog.genre_names
    assert not any("&amp;" in title or "&quot;" in title for title in data.catalog.titles)
