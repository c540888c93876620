"""Amazon sequences: the form, item texts, damaged files, the real Beauty."""

import json

import numpy as np
import pytest

from simenv.datasets import amazon
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
        ({"notes.md": "x"}, r"has no \*.txt; expected \*.txt there"),
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
