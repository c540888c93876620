"""MovieLens loaders on tiny files of the publisher's form, on damaged ones, and on the real ones."""

import re

import numpy as np
import pytest

from simenv.datasets import load, ml_1m, ml_100k, ml_latest_small
from simenv.datasets.marginals import ML_100K, measure
from simenv.errors import ConfigError, DataError

GENRES = "unknown|0\nAction|1\nDrama|2\n\n"
U_ITEM = (
    "1|Café Noir (1995)|01-Jan-1995||http://x|0|1|1\n"
    "2|unknown||||1|0|0\n"
    "3|Third, The (1968)|01-Jan-1968||http://x|0|0|1\n"
    "4|Unrated (1990)|01-Jan-1990||http://x|0|1|0\n"
)
U_USER = "1|24|M|technician|85711\n2|17|F|other|94043\n3|56|M|writer|1\n"
U_DATA = "2\t3\t3\t50\n1\t1\t5\t40\n1\t3\t1\t50\n2\t2\t4\t10\n"
ML_100K_FILES = {"u.data": U_DATA, "u.item": U_ITEM, "u.user": U_USER, "u.genre": GENRES}

ML_1M_FILES = {
    "ratings.dat": "1::20::5::100\n1::10::3::90\n3::20::4::95\n",
    "movies.dat": "10::Æon (1999)::Sci-Fi|Drama\n20::B: The Return (2000)::Drama\n30::Unrated (2000)::Comedy\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n",
}

LATEST_FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\r\n1,1,4.0,100\r\n1,5,0.5,101\r\n2,5,3.5,99\r\n",
    "movies.csv": (
        "movieId,title,genres\r\n"
        '1,"American President, The (1995)",Comedy|Drama\r\n'
        "3,Unrated,Drama\r\n"
        '5,"Amélie ""Amie"" (2001–)",(no genres listed)\r\n'
    ).encode(),
    "tags.csv": 'userId,movieId,tag,timestamp\r\n2,1,funny,9\r\n1,1,"wry, warm",7\r\n2,1,funny,9\r\n',
}


def test_ml_100k_reads_the_publishers_form(write):
    data = ml_100k(root=str(write(ML_100K_FILES)))
    assert data.user_ids == ("1", "2")
    assert data.catalog.item_ids == ("1", "2", "3")
    assert data.catalog.titles == ("Café Noir (1995)", "unknown", "Third, The (1968)")
    assert data.catalog.genre_names == ("Action", "Drama")
    assert data.catalog.genres.tolist() == [[True, True], [False, False], [False, True]]
    assert data.catalog.attributes["year"].tolist() == [1995, 0, 1968]
    assert data.catalog.texts == ()
    log = data.interactions
    assert log.times.tolist() == [10, 40, 50, 50]
    assert log.users.tolist() == [1, 0, 1, 0], "ties in time keep file order"
    assert log.items.tolist() == [1, 0, 2, 2]
    assert log.ratings.tolist() == [4, 5, 3, 1]
    assert data.user_attributes["gender"].tolist() == ["M", "F"]
    assert data.user_attributes["age"].tolist() == ["18-24", "under 18"]
    assert data.user_attributes["occupation"].tolist() == ["technician", "other"]


def test_ml_1m_accepts_users_and_movies_without_ratings(write):
    data = ml_1m(root=str(write(ML_1M_FILES)))
    assert data.user_ids == ("1", "3")
    assert data.catalog.titles == ("Æon (1999)", "B: The Return (2000)")
    assert data.catalog.genre_names == ("Comedy", "Drama", "Sci-Fi")
    assert data.user_attributes["age"].tolist() == ["under 18", "25-34"]
    assert data.user_attributes["occupation"].tolist() == ["K-12 student", "scientist"]
    assert data.interactions.items.tolist() == [0, 1, 1]


def test_synopses_are_texts_by_title(write, tmp_path):
    """A file of titles and summaries, with other columns, films it alone has, and others that it lacks."""
    path = tmp_path / "movies.csv"
    path.write_text('id,title,summary\n7,"Third, The (1968)"," A spy, lost. "\n8,Elsewhere (1950),None of ours.\n')
    for data, title in ((ml_100k, "Third, The (1968)"), (ml_1m, "B: The Return (2000)")):
        files = ML_100K_FILES if data is ml_100k else ML_1M_FILES
        path.write_text(path.read_text().replace("Third, The (1968)", title))
        catalog = data(root=str(write(files)), synopses=str(path)).catalog
        texts = dict(zip(catalog.titles, catalog.texts, strict=True))
        assert texts.pop(title) == "A spy, lost."
        assert set(texts.values()) == {""}
    path.write_text("name,summary\nThird,A spy.\n")
    with pytest.raises(DataError, match="columns name, summary; expected title and summary among them"):
        ml_100k(root=str(write(ML_100K_FILES)), synopses=str(path))
    path.write_text("title,summary\nElsewhere,A spy.\n")
    with pytest.raises(DataError, match=r"no title of u\.item is there"):
        ml_100k(root=str(write(ML_100K_FILES)), synopses=str(path))


def test_ml_latest_small_reads_quotes_crlf_half_stars_and_tags(write):
    data = ml_latest_small(root=str(write(LATEST_FILES)))
    assert data.catalog.titles == ("American President, The (1995)", 'Amélie "Amie" (2001–)')
    assert data.catalog.genres.sum(axis=1).tolist() == [2, 0]
    assert data.catalog.attributes["year"].tolist() == [1995, 2001]
    assert data.catalog.texts == ("funny, wry, warm", "")
    assert data.rating_scale.values[[0, -1]].tolist() == [0.5, 5]
    assert data.interactions.ratings.tolist() == [3.5, 4.0, 0.5]


def test_tags_are_optional(write):
    files = {name: content for name, content in LATEST_FILES.items() if name != "tags.csv"}
    assert ml_latest_small(root=str(write(files))).catalog.texts == ()


def test_a_file_without_final_line_end_or_with_a_blank_one_is_whole(write):
    for ending in ("", "\n\n"):
        assert len(ml_100k(root=str(write(ML_100K_FILES | {"u.data": U_DATA.rstrip() + ending}))).interactions) == 4


DAMAGED = [
    (
        "ml-100k",
        {"u.data": U_DATA + "1\t2\t3"},
        "u.data, line 5: 3 fields; expected user, .* the last: the file is cut",
    ),
    ("ml-100k", {"u.data": "1\t1\t5\n" + U_DATA}, "u.data, line 1: 3 fields; expected user, item, rating, timestamp$"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\t3\t4\t5\n"}, "u.data, line 5: 5 fields; expected user"),
    ("ml-100k", {"u.data": U_DATA + "\n1\t2\t3\t4\n"}, "u.data, line 5: 1 fields; expected user"),
    ("ml-100k", {"u.data": U_DATA + "1\tx7\t3\t4\n"}, "u.data, line 5: item is 'x7'; expected an integer"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\tfive\t4\n"}, "u.data, line 5: rating is 'five'; expected a number"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\tnan\t4\n"}, "u.data, line 5: rating"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\t\t4\n"}, "u.data, line 5: rating is ''; expected a number"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\t6\t4\n"}, "u.data, line 5: rating 6; expected 1 to 5 in steps of 1"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\t0\t4\n"}, "u.data, line 5: rating 0; expected 1 to 5"),
    ("ml-100k", {"u.data": U_DATA + "1\t2\t2.5\t4\n"}, "u.data, line 5: rating 2.5; expected 1 to 5 in steps of 1"),
    ("ml-100k", {"u.data": U_DATA + "1\t9\t2\t4\n"}, "u.data, line 5: item 9 is not in u.item"),
    ("ml-100k", {"u.data": U_DATA + "9\t1\t2\t4\n"}, "u.user: user 9 has ratings but no line here"),
    (
        "ml-100k",
        {"u.data": U_DATA + "1\t1\t2\t40\n"},
        r"u.data, line 5: user 1, item 1, time 40 again \(first in line 2",
    ),
    ("ml-100k", {"u.data": ""}, "u.data: is empty"),
    ("ml-100k", {"u.data": "\n \n"}, "u.data: is empty"),
    ("ml-100k", {"u.data": U_DATA.encode("utf-16")}, "u.data, line 1: wrong encoding .*UTF-16"),
    ("ml-100k", {"u.item": U_ITEM.encode("utf-8")}, "u.item, line 1: wrong encoding .UTF-8 accents.; expected latin-1"),
    ("ml-100k", {"u.item": U_ITEM[:-20]}, r"u.item, line 4: \d fields; expected 8 separated by '\|'"),
    ("ml-100k", {"u.item": U_ITEM.replace("Third, The (1968)", " ")}, "u.item, line 3: movie 3 has no title"),
    ("ml-100k", {"u.item": U_ITEM.replace("\n4|", "\n3|")}, "u.item, line 4: movie 3 again"),
    (
        "ml-100k",
        {"u.item": U_ITEM.replace("\n4|", "\nfour|")},
        "u.item, line 4: movie id is 'four'; expected an integer",
    ),
    ("ml-100k", {"u.item": U_ITEM.replace("0|1|0", "0|2|0")}, "u.item, line 4: genre flags 0|2|0; expected 0 or 1"),
    ("ml-100k", {"u.user": U_USER.replace("17", "young")}, "u.user, line 2: age is 'young'; expected an integer"),
    ("ml-100k", {"u.user": U_USER.replace("|F|", "|X|")}, "u.user, line 2: gender is 'X'; expected F or M"),
    ("ml-100k", {"u.genre": "Action\n"}, r"u.genre, line 1: 'Action'; expected NAME\|0"),
    ("ml-1m", {"ratings.dat": ML_1M_FILES["ratings.dat"] + "3::10::4"}, "ratings.dat, line 4: 3 fields; .*cut off"),
    ("ml-1m", {"ratings.dat": "1:20:5:100\n"}, "ratings.dat, line 1: 1 fields; expected UserID"),
    ("ml-1m", {"movies.dat": "10::A (1999)\n"}, "movies.dat, line 1: 2 fields; expected 3 separated by '::'"),
    ("ml-1m", {"users.dat": "1::F::1::21::4\n"}, "users.dat, line 1: occupation is 21; expected 0 to 20"),
    (
        "ml-latest-small",
        {"ratings.csv": "user,movie\n1,2\n"},
        "ratings.csv, line 1: columns user, movie; expected userId",
    ),
    ("ml-latest-small", {"ratings.csv": "userId,movieId,rating,timestamp\n"}, "ratings.csv: no rows below the header"),
    (
        "ml-latest-small",
        {"ratings.csv": str(LATEST_FILES["ratings.csv"]) + "2,1,4.2,7\r\n"},
        "ratings.csv, line 5: rating 4.2; expected 0.5 to 5 in steps of 0.5",
    ),
    (
        "ml-latest-small",
        {"movies.csv": "movieId,title,genres\n1,A\n"},
        "movies.csv, line 2: 2 fields; expected movieId",
    ),
    (
        "ml-latest-small",
        {"movies.csv": b"movieId,title,genres\n1,Am\xe9lie,Drama\n"},
        "movies.csv, line 2: wrong encoding .byte 0xe9.; expected utf-8",
    ),
    (
        "ml-latest-small",
        {"tags.csv": "userId,movieId,tag,timestamp\n1,77,x,1\n"},
        "tags.csv, line 2: item 77 is not in",
    ),
]
WHOLE = {"ml-100k": ML_100K_FILES, "ml-1m": ML_1M_FILES, "ml-latest-small": LATEST_FILES}


@pytest.mark.parametrize(("name", "change", "message"), DAMAGED, ids=[message for _, _, message in DAMAGED])
def test_damage_names_file_line_and_what_was_expected(write, name, change, message):
    with pytest.raises(DataError, match=message) as caught:
        load(name, root=str(write(WHOLE[name] | change)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "message"),
    [({"n_users": 3}, "n_users=3: ml-100k has 2 users"), ({"n_items": 0}, "n_items=0: ml-100k has 3 items")],
)
def test_sizes_out_of_range(write, size, message):
    with pytest.raises(ConfigError, match=message):
        ml_100k(root=str(write(ML_100K_FILES)), **size)


@pytest.mark.realdata
def test_real_ml_100k(real_folder):
    data = ml_100k(root=real_folder("ml-100k"))
    assert (data.n_users, data.n_items, len(data.interactions)) == (943, 1682, 100_000)
    counts = np.unique(data.interactions.ratings, return_counts=True)[1]
    assert counts.tolist() == [6110, 11370, 27145, 34174, 21201]
    assert data.catalog.n_genres == 18
    assert (np.diff(data.interactions.times) >= 0).all()
    gender = dict(zip(*np.unique(data.user_attributes["gender"], return_counts=True)))
    assert gender == {"F": 273, "M": 670}


@pytest.mark.realdata
def test_the_calibration_targets_are_those_of_the_real_ml_100k(real_folder):
    found = measure(ml_100k(root=real_folder("ml-100k")))
    for name in ML_100K.__slots__:
        np.testing.assert_allclose(getattr(found, name), getattr(ML_100K, name), rtol=0.003, err_msg=name)


@pytest.mark.realdata
def test_real_ml_1m(real_folder):
    data = ml_1m(root=real_folder("ml-1m-u2999"))
    assert (data.n_users, data.n_items, len(data.interactions)) == (2999, 3615, 487_650)
    assert data.catalog.n_genres == 18
    assert len(np.unique(data.user_attributes["age"])) == 7
    assert not any(re.search("[ÃÂ]", title) for title in data.catalog.titles)


@pytest.mark.realdata
def test_real_ml_latest_small(real_folder):
    data = ml_latest_small(root=real_folder("ml-latest-small"))
    assert (data.n_users, data.n_items, len(data.interactions)) == (610, 9724, 100_836)
    assert data.catalog.n_genres == 19
    assert any(data.catalog.texts)


@pytest.mark.realdata
def test_real_reduction_takes_the_head_and_a_sample(real_folder):
    data = ml_100k(root=real_folder("ml-100k"), n_users=200, n_items=300, seed=5)
    assert (data.n_users, data.n_items) == (200, 300)
    assert data.interactions.user_counts().min() > 0
