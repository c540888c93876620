"""The user's own tables: columns by name, kinds of time, damaged rows."""

import gzip
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simenv.datasets import RatingScale, check, load, tabular
from simenv.errors import ConfigError, DataError

EVENTS = "who,what,stars,when\nann,x,4,3\nbob,y,,1\nann,z,5,2\n"
NAMES = {"user": "who", "item": "what"}
THINGS = 'id,name,kinds,about\nz,"Zed, the Last",a;b,Long\nx,Ex,,\ny,Why,b,Short\nq,Never,c,\n'


def test_csv_with_ratings_and_times(write):
    data = tabular(root=str(write({"interactions.csv": EVENTS})), rating="stars", time="when", **NAMES)
    assert data.user_ids == ("ann", "bob")
    assert data.catalog.titles == ("item x", "item y", "item z")
    assert data.interactions.items.tolist() == [1, 2, 0]
    np.testing.assert_array_equal(data.interactions.ratings, [np.nan, 5, 4])


def test_it_is_loaded_by_name_too(tmp_path):
    (tmp_path / "log.csv").write_text("user,item\n\na,x\r\n b ,y\n   \n")
    with pytest.raises(DataError, match=r"log.csv, line 5: 1 fields; expected 2 as in the header"):
        load("tabular", interactions=str(tmp_path / "log.csv"))
    (tmp_path / "log.csv").write_text("user|item\n\na|x\r\n b |y\n")
    assert load("tabular", interactions=str(tmp_path / "log.csv")).user_ids == ("a", "b")
    with pytest.raises(ConfigError, match="dataset=tabular: unknown option 'interaction'"):
        load("tabular", interaction="log.csv")


def test_without_time_the_file_is_the_order(write):
    data = tabular(root=str(write({"e.tsv": EVENTS.replace(",", "\t")})), interactions="e.tsv", **NAMES)
    assert data.interactions.items.tolist() == [0, 1, 2]
    assert np.isnan(data.interactions.ratings).all()


def test_items_table(write):
    folder = write({"interactions.csv": EVENTS, "things.csv": THINGS})
    options = {"items": "things.csv", "item_id": "id", "title": "name", "genres": "kinds", "genre_separator": ";"}
    data = tabular(root=str(folder), text="about", **options, **NAMES)
    assert data.catalog.item_ids == ("z", "x", "y")
    assert data.catalog.titles == ("Zed, the Last", "Ex", "Why")
    assert data.catalog.genre_names == ("a", "b", "c")
    assert data.catalog.genres.astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert data.catalog.texts == ("Long", "", "Short")


@pytest.mark.parametrize(
    "times",
    [
        [3, 1, 2],
        [2.5, 0.5, 1.0],
        [date(2024, 3, 1), date(2023, 1, 1), date(2024, 1, 1)],
        [datetime(2024, 1, 1, 12), datetime(2024, 1, 1, 10), datetime(2024, 1, 1, 11)],
        ["2024-03-01", "2023-01-01", "2024-01-01"],
        ["2024-01-01T12:00:00", "2024-01-01T10:00:00", "2024-01-01 11:00:00"],
        ["2024-01-01T12:00:00Z", "2024-01-01T10:00:00Z", "2024-01-01T11:00:00Z"],
    ],
    ids=["integers", "reals", "dates", "datetimes", "date texts", "time texts", "time texts with zone"],
)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_kinds_of_time(tmp_path, times, kind):
    frame = pl.DataFrame({"user": [1, 1, 2], "item": [10, 20, 30], "when": times})
    path = tmp_path / f"events.{kind}"
    frame.write_parquet(path) if kind == "parquet" else frame.write_csv(path)
    data = tabular(interactions=str(path), time="when")
    assert [data.catalog.item_ids[i] for i in data.interactions.items] == ["20", "30", "10"]


def test_a_table_is_found_on_the_shelf(write, monkeypatch):
    shelf = write({"interactions.csv": EVENTS}, "tabular").parent
    monkeypatch.setenv("SIMENV_DATA", str(shelf))
    assert tabular(**NAMES).n_users == 2


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        (EVENTS, {"user": "person"}, "interactions.csv: no column 'person'; expected it among who, what, stars, when"),
        (EVENTS + "bob,w,four,5\n", {"rating": "stars"}, "line 5: stars is 'four'; expected a number"),
        (EVENTS + "bob,w,7,5\n", {"rating": "stars"}, "line 5: rating 7; expected 1 to 5 in steps of 1"),
        (EVENTS + "bob,w,inf,5\n", {"rating": "stars"}, "line 5: stars is not finite"),
        (EVENTS + "bob,w,4,later\n", {"time": "when"}, "line 5: when is 'later'; expected a number"),
        (EVENTS + "bob,w,4,\n", {"time": "when"}, "line 5: no when; expected one in every row"),
        (EVENTS + "bob,,4,5\n", {}, "line 5: no what; expected one in every row"),
        (EVENTS + "bob,w\n", {}, "line 5: 2 fields; expected 4 as in the header"),
        (EVENTS + "ann,x,2,3\n", {"time": "when"}, r"line 5: user ann, item x, time 3 again \(first in line 2"),
        (EVENTS.splitlines()[0], {}, "interactions.csv: no rows"),
        ("", {}, "interactions.csv: is empty"),
        (EVENTS.encode() + b"ann,\xff,1,1\n", {}, "line 5: wrong encoding .byte 0xff."),
        ("who,what,when\na,x,2024-01-05\nb,x,2024-13-01\n", {"time": "when"}, "line 3: when is '2024-13-01'; .*ISO"),
        ("who,what,when\na,x,2024-01-05\nb,x,\n", {"time": "when"}, "line 3: no when; expected one in every row"),
        (EVENTS, {"interactions": "other.csv"}, "other.csv is no file"),
        (EVENTS, {"items": "things.csv", "item_id": "id", "title": "about"}, "things.csv, line 3: item x has no title"),
        (EVENTS + "bob,w,4,5\n", {"items": "things.csv", "item_id": "id", "title": "name"}, "line 5: item w is not in"),
    ],
)
def test_damage_names_file_line_and_what_was_expected(write, events, options, message):
    folder = write({"interactions.csv": events, "things.csv": THINGS})
    with pytest.raises(DataError, match=message):
        tabular(root=str(folder), **(NAMES | options))


def test_repeated_items_in_the_items_table_are_refused(write):
    folder = write({"interactions.csv": EVENTS, "things.csv": THINGS + "x,Again,,\n"})
    with pytest.raises(DataError, match=r"things.csv, line 6: item x again"):
        tabular(root=str(folder), items="things.csv", item_id="id", title="name", **NAMES)


def test_parquet_that_is_none_and_unknown_kinds(write):
    folder = write({"a.parquet": "no parquet", "a.xlsx": "x"})
    with pytest.raises(DataError, match=r"a.parquet: no readable Parquet file"):
        tabular(root=str(folder), interactions="a.parquet")
    with pytest.raises(DataError, match=r"unknown kind of file '.xlsx'; expected .csv, .tsv"):
        tabular(root=str(folder), interactions="a.xlsx")


@pytest.mark.parametrize("scale", [(1, 5), (5, 1, 1), (1, 5, 0)])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ConfigError, match=r"rating_scale=.*expected lowest, highest and step"):
        tabular(rating_scale=scale)


# -- times ------------------------------------------------------------------------------------------------------------


def order_of(folder, times, **options):
    """Items in the order of time; item n is in row n."""
    rows = "".join(f"u,{n},{time}\n" for n, time in enumerate(times))
    (folder / "t.csv").write_text("user,item,time\n" + rows, encoding="utf-8")
    log = tabular(interactions=str(folder / "t.csv"), **options).interactions
    return log.items.tolist(), log.times.tolist()


@pytest.mark.parametrize(
    "form",
    [
        lambda n: 1_500_000_000 + n,
        lambda n: f"{1_500_000_000 + n}.0",
        lambda n: f"{15 * 10**17 + n}.0",
        lambda n: f"1.5{n:015d}e+18",
        lambda n: 10**30 + n,
        lambda n: f"{10**20 + n}.25",
        lambda n: n - 100,
        lambda n: f"2024-{n // 28 + 1}-{n % 28 + 1}",
        lambda n: f"{n % 28 + 1}.{n // 28 + 1}.2024",
        lambda n: f"{n // 28 + 1}/{n % 28 + 1}/2024",
        lambda n: f"{n % 28 + 1}/{n // 28 + 1}/2024 7:05",
        lambda n: f"2024/01/02 03:04:{n:02d}Z",
    ],
)
def test_every_common_form_of_time_keeps_its_order(tmp_path, form):
    shuffled = np.random.default_rng(0).permutation(50)
    items, _ = order_of(tmp_path, [form(int(n)) for n in shuffled])
    assert items == np.argsort(shuffled).tolist()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**25), 10**25), min_size=1))
def test_numbers_of_any_size_keep_their_order(tmp_path_factory, times):
    items, clock = order_of(tmp_path_factory.mktemp("t"), [repr(time) for time in times])
    exact = [Decimal(repr(time)) for time in times]
    assert [exact[n] for n in items] == sorted(exact)
    assert all((a < b) == (exact[i] < exact[j]) for a, b, i, j in zip(clock, clock[1:], items, items[1:]))


def test_times_of_parquet_in_nanoseconds_as_floats(tmp_path):
    times = [1.5e18 + 1024 * n for n in (3, 1, 2)]
    pl.DataFrame({"user": [1, 1, 1], "item": [0, 1, 2], "time": times}).write_parquet(tmp_path / "a.parquet")
    assert tabular(interactions=str(tmp_path / "a.parquet")).interactions.times.tolist() == sorted(map(int, times))


def test_dates_that_can_be_read_two_ways_need_a_format(tmp_path):
    with pytest.raises(DataError, match=r"line 2: time is '3/4/2024', which may be day/month or month/day"):
        order_of(tmp_path, ["3/4/2024", "4/3/2024"])
    with pytest.raises(DataError, match=r"line 3: time is '3/25/2024', which may be"):
        order_of(tmp_path, ["25/3/2024", "3/25/2024"])
    assert order_of(tmp_path, ["3/5/2024", "2/6/2024"], time_format="%d/%m/%Y")[0] == [0, 1]
    assert order_of(tmp_path, ["3/5/2024", "2/6/2024"], time_format="%m/%d/%Y")[0] == [1, 0]


def test_the_zone_of_times_that_name_none(tmp_path):
    times = ["2024-07-01 12:00", "2024-07-01 11:00Z"]
    assert order_of(tmp_path, times)[0] == [1, 0]
    assert order_of(tmp_path, times, time_zone="Europe/Berlin")[0] == [0, 1]
    with pytest.raises(ConfigError, match="time_zone=Mars"):
        order_of(tmp_path, times, time_zone="Mars")


# -- forms of files ---------------------------------------------------------------------------------------------------

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t9\t4\t2.0\n2\t8\t5\t1.0\n"


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("a.csv", "userId,movieId,rating,timestamp\n1,9,4,2\n2,8,5,1\n", {}),
        ("a.csv", "user;item;rating;time\n1;9;4;2\n2;8;5;1\n", {}),
        ("a.tsv", "uid\titem_id\trating\ttime\n1\t9\t4\t2\n2\t8\t5\t1\n", {}),
        ("a.dat", "1::9::4::2\n2::8::5::1\n", {"columns": ["user", "item", "rating", "time"]}),
        ("a.txt", "user|item|rating|time\r\n1|9|4|2\r\n\r\n2|8|5|1\r\n", {}),
        ("a.txt", "user item rating time\n1 9 4 2\n2 8 5 1\n", {}),
        ("a.inter", INTER, {}),
        ("a.data", "of June\n2\n1\t9\t4\t2\n2\t8\t5\t1\n", {"columns": ["user", "item", "rating", "time"], "skip": 2}),
        ("a.csv", "user@item@rating@time\n1@9@4@2\n2@8@5@1\n", {"separator": "@"}),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_separators_headers_and_names_are_found(tmp_path, name, text, options, packed):
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    data = tabular(interactions=str(path), **options)
    assert [data.catalog.item_ids[i] for i in data.interactions.items] == ["8", "9"]
    assert data.interactions.ratings.tolist() == [5, 4]
    assert data.user_ids == ("1", "2")


def test_what_was_found_is_said(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("userId,movieId,timestamp\n1,9,1500000000\n\n1,8,1500090000\n")
    said = check(path)
    assert "a.csv: blank lines skipped: 1" in said
    assert {"a.csv: time = timestamp", "a.csv: user = userId", "a.csv: item = movieId"} < set(said)
    assert "2 interactions of 1 users with 2 items, 100 % of all pairs" in said
    assert "time: 2017-07-14 to 2017-07-15" in said
    with pytest.raises(ConfigError, match=r"dataset\.usr: unknown option \(did you mean 'user'\?\)"):
        check(path, usr="a")


def test_line_ends_of_unicode_are_no_line_ends(write):
    things = 'id,name\nx,"one\u2028two\x85three\x0cfour\nfive"\ny,Why\nz,\n'
    folder = write({"interactions.csv": EVENTS, "things.csv": things.encode()})
    options = {"items": "things.csv", "item_id": "id", "title": "name", **NAMES}
    with pytest.raises(DataError, match=r"things.csv, line 5: item z has no title"):
        tabular(root=str(folder), **options)
    (folder / "things.csv").write_text(things.replace("z,\n", "z,Zed\n"), encoding="utf-8")
    assert tabular(root=str(folder), **options).catalog.titles[0] == "one\u2028two\x85three\x0cfour\nfive"


def test_quotes_are_kept_where_tabs_separate_and_refused_where_they_are_damaged(write):
    files = {
        "interactions.csv": EVENTS,
        "a.tsv": 'id\tname\nx\t"Weird Al" Yankovic\ny\t12" mix\nz\t"\n',
        "b.csv": 'id,name\nx,"say \\"hi\\" now"\ny,b\nz,c\n',
        "c.csv": 'id,name\nx,a\ny,"never\nended\n',
    }
    options = {"root": str(write(files)), "item_id": "id", "title": "name", **NAMES}
    assert tabular(items="a.tsv", **options).catalog.titles == ('"Weird Al" Yankovic', '12" mix', '"')
    with pytest.raises(DataError, match=r"b.csv, line 2: a quote inside a quoted field; expected .* doubled"):
        tabular(items="b.csv", **options)
    with pytest.raises(DataError, match=r"c.csv, line 3: a quoted field does not end"):
        tabular(items="c.csv", **options)


def test_long_fields_and_columns_that_come_twice(write):
    files = {
        "interactions.csv": EVENTS,
        "a.csv": f"id,name,about\nx,a,{'w' * 200_000}\ny,b,\nz,c,\n",
        "b.csv": "user,item,user\n1,2,3\n",
    }
    folder = write(files)
    data = tabular(root=str(folder), items="a.csv", item_id="id", title="name", text="about", **NAMES)
    assert len(data.catalog.texts[0]) == 200_000
    with pytest.raises(DataError, match=r"b.csv, line 1: column 'user' comes twice"):
        tabular(root=str(folder), interactions="b.csv")


@pytest.mark.parametrize(
    "values",
    [[[1], [2]], [b"a", b"b"], [datetime(2024, 1, 2) - datetime(2024, 1, 1)] * 2, [datetime(2024, 1, 1).time()] * 2],
    ids=["list", "binary", "duration", "time of day"],
)
@pytest.mark.parametrize("option", ["user", "time", "rating"])
def test_parquet_columns_of_other_kinds_are_refused(tmp_path, values, option):
    pl.DataFrame({"user": [1, 2], "item": [1, 2], "odd": values}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'odd' holds .*; expected text, numbers, dates or times"):
        tabular(interactions=str(tmp_path / "a.parquet"), **{option: "odd"})


# -- ratings, repeats, graded feedback, users -------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(-10, 10, 0.01), (0, 100, 0.01), (0.1, 0.7, 0.1), (1, 5, 1), (0, 1, 0.001)])
def test_every_rating_of_a_scale_is_taken_and_those_between_are_not(tmp_path, scale):
    n = round((scale[1] - scale[0]) / scale[2]) + 1
    values = [f"{scale[0] + k * scale[2]:.4f}" for k in range(n)]
    path = tmp_path / "a.csv"
    path.write_text("user,item,rating\n" + "".join(f"u,{k},{value}\n" for k, value in enumerate(values)))
    data = tabular(interactions=str(path), rating_scale=scale)
    np.testing.assert_allclose(data.interactions.ratings, np.array(values, np.float32), atol=1e-6)
    np.testing.assert_allclose(data.rating_scale.values, np.array(values, np.float32), atol=1e-6)
    np.testing.assert_array_equal(data.rating_scale.round(data.rating_scale.values), data.rating_scale.values)
    path.write_text(f"user,item,rating\nu,1,{scale[0] + 1.5 * scale[2]:.5f}\n")
    with pytest.raises(DataError, match="line 2: rating"):
        tabular(interactions=str(path), rating_scale=scale)


def test_halves_are_rounded_up():
    assert RatingScale().round(np.array([2.5, 3.5, 0.2, 9.0])).tolist() == [3, 4, 1, 5]
    assert RatingScale(low=0.5, high=5, step=0.5).round(np.array([2.25, 2.7])).tolist() == [2.5, 2.5]


@pytest.mark.parametrize("scale", [(0, 1, 0.3), (0, 1e9, 1)])
def test_scales_whose_steps_do_not_fit_are_refused(scale):
    with pytest.raises(ConfigError, match="expected a step"):
        tabular(rating_scale=scale)


def test_repeats(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item,rating,time\nu,x,1,5\nu,y,2,5\nu,x,3,5\nu,x,4,6\n")
    with pytest.raises(DataError, match=r"line 4: user u, item x, time 5 again \(first in line 2\)"):
        tabular(interactions=str(path))
    for which, ratings in (("first", [1, 2, 4]), ("last", [2, 3, 4]), ("sum", [4, 2, 4])):
        log = tabular(interactions=str(path), duplicates=which).interactions
        assert log.ratings.tolist() == ratings
        assert f"duplicate rows left out (duplicates={which}): 1" in check(path, duplicates=which)
    assert len(tabular(interactions=str(path), duplicates="last", time=None).interactions) == 2
    assert len(tabular(interactions=str(path), time=None).interactions) == 4
    with pytest.raises(ConfigError, match=r"dataset.duplicates=mean: expected one of error, first, last, sum"):
        tabular(interactions=str(path), duplicates="mean")


def test_reviews_are_read_beside_the_ratings(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        'user,item,rating,time,reviewText,summary\na,x,5,3,"Good laces, nice.",short\nb,y,1,2,laces broke,\n'
        'a,y,4,9,"good laces, nice.",\nc,x,3,1,,\nc,y,3,4,the laces,\n'
    )
    reviews = tabular(interactions=str(path)).reviews
    assert reviews.texts == ("laces broke", "Good laces, nice.", "the laces", "good laces, nice.")
    assert reviews.summaries == ("", "short", "", "")
    assert reviews.is_copy.tolist() == [False, False, False, True]
    assert set(reviews.features) == {"laces"}
    lines = check(path)
    assert "reviews: 3 texts of 3 users (1 more are copies of one that the user wrote before)" in lines
    assert "review = reviewText" in " ".join(lines)
    assert tabular(interactions=str(path), review=None).reviews is None
    with pytest.raises(DataError, match="no column 'words'"):
        tabular(interactions=str(path), review="words")


def test_graded_feedback_has_a_threshold_and_a_scale(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user_id,video_id,watch_ratio\n1,7,0.2\n1,8,1.26\n2,7,573.4\n")
    options = {"signal": "watch_ratio", "threshold": 1.0, "rating": "watch_ratio", "rating_scale": [0, 3, 0.5]}
    with pytest.raises(DataError, match=r"line 3: rating 1.26; expected 0 to 3 in steps of 0.5"):
        tabular(interactions=str(path), **options)
    log = tabular(interactions=str(path), fit_ratings=True, **options).interactions
    assert log.ratings.tolist() == [1.5, 3.0]
    assert "rows left out, watch_ratio below 1: 1 of 3" in check(path, fit_ratings=True, **options)
    with pytest.raises(DataError, match="no row with watch_ratio of 1000 or more"):
        tabular(interactions=str(path), fit_ratings=True, **options | {"threshold": 1000})


def test_a_table_of_users_gives_groups(write):
    many = "".join(f"u{n},F,{n}\n" for n in range(30))
    folder = write({"interactions.csv": EVENTS, "people.csv": "user_id,gender,name\nbob,M,Bob\nann,,Ann\n" + many})
    data = tabular(root=str(folder), users="people.csv", **NAMES)
    groups = {name: values.tolist() for name, values in data.user_attributes.items()}
    assert groups == {"gender": ["unknown", "M"], "name": ["Ann", "Bob"]}
    assert list(tabular(root=str(folder), users="people.csv", groups=["gender"], **NAMES).user_attributes) == ["gender"]
    with pytest.raises(DataError, match="no column 'age'"):
        tabular(root=str(folder), users="people.csv", groups=["age"], **NAMES)
    (folder / "people.csv").write_text("user_id,gender\nann,F\nann,M\n")
    with pytest.raises(DataError, match=r"people.csv, line 3: user ann again"):
        tabular(root=str(folder), users="people.csv", **NAMES)
