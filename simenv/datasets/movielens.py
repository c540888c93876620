"""MovieLens-100K, MovieLens-1M and ml-latest-small in the publisher's formats.

The catalogue is the movies with at least one rating, in the order of the publisher's movie file; the users are those
with at least one rating, by id. Titles stay as published, year included. Source: Harper and Konstan 2015, "The
MovieLens Datasets: History and Context", ACM TiiS 5(4); terms of use are in the publisher's README files.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.datasets.base import Catalog, Dataset, RatingScale
from simenv.datasets.files import Archive, locate, read_csv_rows, read_numbers, read_rows, read_text
from simenv.datasets.raw import RawRatings, only_consumed
from simenv.errors import DataError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"

FILES = {
    "ml-100k": ("u.data", "u.item", "u.user", "u.genre"),
    "ml-1m": ("ratings.dat", "movies.dat", "users.dat"),
    "ml-latest-small": ("ratings.csv", "movies.csv"),
}
# As the publisher prints them in ml-100k.zip.md5 and ml-1m.zip.md5; ml-latest-small changes over time.
_MD5 = {"ml-100k": "0e33842e24a9c977be4e0107933c0723", "ml-1m": "c4d9eecfca2ab87c1945afe126590906"}

_AGE_TIERS = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
_AGE_FROM = (18, 25, 35, 45, 50, 56)
_ML_1M_OCCUPATIONS = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")


def ml_100k(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    root: str | None = None,
    synopses: str | None = None,
    base_url: str = GROUPLENS,
) -> Dataset:
    """MovieLens-100K: 943 users, 1,682 movies, 100,000 ratings of 1 to 5.

    User attributes: gender, age (tiers of ML-1M), occupation. Item attribute: year (0 = unknown). The pseudo-genre
    ``unknown`` is left out.

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-rated movies, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder with u.data, u.item, u.user and u.genre; None = $SIMENV_DATA/ml-100k, else downloaded.
        synopses: a CSV file with columns title and summary: the items' texts, by title; None = no texts.
        base_url: where ml-100k.zip lies (the publisher, or a mirror).

    Raises:
        DataError: files missing or damaged. ConfigError: `n_users` or `n_items` out of range.
    """
    folder = find("ml-100k", root=root, base_url=base_url)
    ratings = _ratings(folder / "u.data", ("user", "item", "rating", "timestamp"), separator="\t")
    genre_names = _ml_100k_genres(folder / "u.genre")
    movies = _Movies(folder / "u.item", genre_names)
    for line, row in read_rows(folder / "u.item", separator="|", n_fields=5 + len(genre_names), encoding="latin-1"):
        flags = row[5:]
        if not set(flags) <= {"0", "1"}:
            raise DataError(f"{folder / 'u.item'}, line {line}: genre flags {'|'.join(flags)}; expected 0 or 1 each")
        movies.add(line, row[0], row[1], [name for name, flag in zip(genre_names, flags) if flag == "1"])
    movies.summarise(synopses)
    people = _People(folder / "u.user")
    for line, (user, age, gender, occupation, _) in read_rows(
        folder / "u.user", separator="|", n_fields=5, encoding="latin-1"
    ):
        people.add(line, user, gender, people.number(line, "age", age), occupation)
    return _dataset("ml-100k", ratings, movies, RatingScale(), people, drop="unknown").reduced(
        n_users=n_users, n_items=n_items, seed=seed
    )


def ml_1m(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    root: str | None = None,
    synopses: str | None = None,
    base_url: str = GROUPLENS,
) -> Dataset:
    """MovieLens-1M: 6,040 users, 3,706 rated movies, 1,000,209 ratings of 1 to 5; or any part of its ratings.

    ``users.dat`` and ``movies.dat`` may list more users and movies than ``ratings.dat`` uses.
    User attributes: gender, age (tiers), occupation. Item attribute: year (0 = unknown).

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-rated movies, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder with ratings.dat, movies.dat and users.dat; None = $SIMENV_DATA/ml-1m, else downloaded.
        synopses: a CSV file with columns title and summary: the items' texts, by title; None = no texts.
        base_url: where ml-1m.zip lies (the publisher, or a mirror).

    Raises:
        DataError: files missing or damaged. ConfigError: `n_users` or `n_items` out of range.
    """
    folder = find("ml-1m", root=root, base_url=base_url)
    ratings = _ratings(folder / "ratings.dat", ("UserID", "MovieID", "Rating", "Timestamp"), separator="::")
    movies = _Movies(folder / "movies.dat")
    for line, (item, title, genres) in read_rows(folder / "movies.dat", separator="::", n_fields=3, encoding="latin-1"):
        movies.add(line, item, title, genres.split("|"))
    movies.summarise(synopses)
    people = _People(folder / "users.dat")
    for line, (user, gender, age, occupation, _) in read_rows(
        folder / "users.dat", separator="::", n_fields=5, encoding="latin-1"
    ):
        code = people.number(line, "occupation", occupation, below=len(_ML_1M_OCCUPATIONS))
        people.add(line, user, gender, people.number(line, "age", age), _ML_1M_OCCUPATIONS[code])
    return _dataset("ml-1m", ratings, movies, RatingScale(), people).reduced(
        n_users=n_users, n_items=n_items, seed=seed
    )


def ml_latest_small(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    root: str | None = None,
    base_url: str = GROUPLENS,
) -> Dataset:
    """ml-latest-small: about 600 users, 9,700 movies, 100,000 ratings of 0.5 to 5 in half stars.

    An item's text is its distinct tags, where ``tags.csv`` is there. Item attribute: year (0 = unknown).

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-rated movies, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder with ratings.csv and movies.csv; None = $SIMENV_DATA/ml-latest-small, else downloaded.
        base_url: where ml-latest-small.zip and its .md5 lie (the publisher, or a mirror).

    Raises:
        DataError: files missing or damaged. ConfigError: `n_users` or `n_items` out of range.
    """
    name = "ml-latest-small"
    folder = find(name, root=root, base_url=base_url)
    ratings = _ratings(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"), separator=",", header=True)
    movies = _Movies(folder / "movies.csv")
    for line, (item, title, genres) in read_csv_rows(folder / "movies.csv", ("movieId", "title", "genres")):
        movies.add(line, item, title, [] if genres.startswith("(no genres") else genres.split("|"))
    if (folder / "tags.csv").is_file():
        for line, (_, item, tag, _) in read_csv_rows(folder / "tags.csv", ("userId", "movieId", "tag", "timestamp")):
            movies.tag(folder / "tags.csv", line, item, tag)
    return _dataset(name, ratings, movies, RatingScale(low=0.5, high=5.0, step=0.5)).reduced(
        n_users=n_users, n_items=n_items, seed=seed
    )


def find(name: str, *, root: str | None = None, base_url: str = GROUPLENS) -> Path:
    """The folder with the files of this data set; fetched from the publisher where nothing else holds them.

    Raises:
        DataError: files missing or damaged.
    """
    archive = Archive(url=f"{base_url.rstrip('/')}/{name}.zip", md5=_MD5.get(name))
    return locate(name, FILES[name], root=root, archive=archive)


def _ratings(path: Path, columns: Sequence[str], *, separator: str, header: bool = False) -> RawRatings:
    user, item, rating, time = columns
    table = read_numbers(path, columns, separator=separator, header=header, real=(rating,))
    return RawRatings(
        path=path,
        lines=np.arange(len(table[user])) + (2 if header else 1),
        users=table[user],
        items=table[item],
        ratings=table[rating].astype(np.float32),
        times=table[time],
    )


def _ml_100k_genres(path: Path) -> list[str]:
    names: list[str] = []
    for line, text in enumerate(read_text(path, "latin-1").rstrip().split("\n"), 1):
        name, bar, number = text.strip().partition("|")
        if not bar or number != str(len(names)):
            raise DataError(f"{path}, line {line}: {text.strip()!r}; expected NAME|{len(names)}")
        names.append(name)
    return names


class _Movies:
    """The rows of a movie file, as they are read."""

    def __init__(self, path: Path, genre_names: Iterable[str] = ()) -> None:
        self.path = path
        self.ids: dict[int, int] = {}  # publisher's id -> row
        self.titles: list[str] = []
        self.genres: list[list[str]] = []
        self.tags: dict[int, dict[str, None]] = {}  # row -> distinct tags in file order
        self.texts: dict[int, str] = {}  # row -> summary
        self.genre_names = list(genre_names)  # in file order; empty = the sorted union

    def add(self, line: int, item: str, title: str, genres: list[str]) -> None:
        key = _integer(self.path, line, "movie id", item)
        if key in self.ids:
            raise DataError(f"{self.path}, line {line}: movie {key} again; expected each once")
        if not title.strip():
            raise DataError(f"{self.path}, line {line}: movie {key} has no title; every item needs one")
        self.ids[key] = len(self.titles)
        self.titles.append(title.strip())
        self.genres.append([genre for genre in genres if genre])

    def tag(self, path: Path, line: int, item: str, tag: str) -> None:
        row = self.ids.get(_integer(path, line, "movieId", item))
        if row is None:
            raise DataError(f"{path}, line {line}: item {item} is not in {self.path.name}; expected every item there")
        self.tags.setdefault(row, {})[tag.strip()] = None

    def summarise(self, path: str | None) -> None:
        """Take the items' texts from a file of titles and summaries; titles that it lacks have none.

        Raises:
            DataError: it is not in that form, or has none of the titles.
        """
        if path is None:
            return
        rows = {title.strip(): row for row, title in enumerate(self.titles)}
        for line in csv.DictReader(io.StringIO(read_text(Path(path), "utf-8"), newline="")):
            if not {"title", "summary"} <= set(line):
                raise DataError(f"{path}: columns {', '.join(line)}; expected title and summary among them")
            if (row := rows.get(line["title"].strip())) is not None:
                self.texts[row] = line["summary"].strip()
        if not self.texts:
            raise DataError(f"synopses={path}: no title of {self.path.name} is there; expected titles as published")

    def catalog(self, drop: str | None) -> Catalog:
        names = self.genre_names or sorted({genre for genres in self.genres for genre in genres})
        names = [name for name in names if name != drop]
        column = {name: g for g, name in enumerate(names)}
        flags = np.zeros((len(self.titles), len(names)), np.bool_)
        for row, genres in enumerate(self.genres):
            flags[row, [column[genre] for genre in genres if genre != drop]] = True
        texts = self.texts or {row: ", ".join(tags) for row, tags in self.tags.items()}
        years = [int(found[1]) if (found := _YEAR.search(title)) else 0 for title in self.titles]
        return Catalog(
            item_ids=tuple(map(str, self.ids)),
            titles=tuple(self.titles),
            genre_names=tuple(names),
            genres=flags,
            texts=tuple(texts.get(row, "") for row in range(len(self.titles))) if texts else (),
            attributes={"year": np.array(years, np.int32)},
        )


class _People:
    """The rows of a user file, as they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[int, tuple[str, str, str]] = {}  # publisher's id -> gender, age tier, occupation

    def number(self, line: int, name: str, text: str, below: int | None = None) -> int:
        value = _integer(self.path, line, name, text)
        if value < 0 or (below is not None and value >= below):
            wanted = "at least 0" if below is None else f"0 to {below - 1}"
            raise DataError(f"{self.path}, line {line}: {name} is {value}; expected {wanted}")
        return value

    def add(self, line: int, user: str, gender: str, age: int, occupation: str) -> None:
        key = self.number(line, "user id", user)
        if key in self.rows:
            raise DataError(f"{self.path}, line {line}: user {key} again; expected each once")
        if gender not in ("F", "M"):
            raise DataError(f"{self.path}, line {line}: gender is {gender!r}; expected F or M")
        self.rows[key] = gender, _AGE_TIERS[int(np.searchsorted(_AGE_FROM, age, side="right"))], occupation

    def attributes(self, users: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        missing = [user for user in users.tolist() if user not in self.rows]
        if missing:
            raise DataError(f"{self.path}: user {missing[0]} has ratings but no line here; expected one for every user")
        gender, age, occupation = zip(*(self.rows[user] for user in users.tolist()))
        return {"gender": np.array(gender), "age": np.array(age), "occupation": np.array(occupation)}


def _integer(path: Path, line: int, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{path}, line {line}: {name} is {text!r}; expected an integer") from None


def _dataset(
    name: str,
    ratings: RawRatings,
    movies: _Movies,
    scale: RatingScale,
    people: _People | None = None,
    drop: str | None = None,
) -> Dataset:
    ratings.check_scale(scale)
    log, users = ratings.renumber(list(movies.ids), movies.path.name)
    catalog, log = only_consumed(movies.catalog(drop), log)
    return Dataset(
        name=name,
        catalog=catalog,
        interactions=log,
        user_ids=tuple(map(str, users.tolist())),
        rating_scale=scale,
        user_attributes={} if people is None else people.attributes(users),
    )
