"""Amazon review data: as sequences, or as the reviews themselves with their ratings and texts.

Sequences are the form of S3-Rec, P5 and their successors: in ``<Name>.txt`` a line is a user and the items in time
order, no ratings; texts of items in ``<name>_items.jsonl``. Reviews are the publisher's ``reviews_<Name>_5.json.gz``
(2014) and ``<Name>_5.json.gz`` (2018), or ``reviews.jsonl`` with plain names: one object a line. The publisher (He and
McAuley 2016, "Ups and Downs"; Ni, Li and McAuley 2019) gives no direct link, so nothing is downloaded.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from simenv.datasets.base import Catalog, Dataset, RatingScale
from simenv.datasets.files import locate, read_text
from simenv.datasets.raw import RawRatings, numbered_items, only_consumed
from simenv.datasets.reviews import written
from simenv.errors import DataError
from simenv.numeric import places

SEQUENCES = "*.txt"
REVIEWS = ("reviews.jsonl", "reviews_*.json.gz", "reviews_*.json", "*_5.json.gz", "*_5.json")
# our name of a field -> its name in reviews.jsonl and in the publisher's files
FIELDS = {
    "user": ("user", "reviewerID"),
    "item": ("item", "asin"),
    "rating": ("rating", "overall"),
    "time": ("time", "unixReviewTime"),
    "review": ("review", "reviewText"),
    "summary": ("summary",),
    "feature": ("feature",),
    "explanation": ("explanation",),
}


def amazon(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    root: str | None = None,
    file: str | None = None,
) -> Dataset:
    """One Amazon category, from sequences or from reviews.

    Sequences: times are positions in the sequence, ratings NaN. With an items file: titles with HTML entities resolved,
    genres = the second level of the category paths, text = all categories, and the description where there is one; item
    attributes: brand, and category_path, the first path with " > " between its levels ("" = unknown). Without: titles
    read ``item <id>``, no genres. Items that nobody consumed are left out.

    Reviews: ratings, times, and `Dataset.reviews`; a user's first review of an item counts, a text that a user pasted
    is marked as a copy, see `simenv.datasets.reviews.written`. Fields ``feature`` and ``explanation`` are taken where
    they are there. Titles read ``item <asin>``; names of reviewers are not read.

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-consumed items, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder with <Name>.txt or a file of reviews; None = $SIMENV_DATA/amazon, or the only
            $SIMENV_DATA/amazon-*. Of several .txt files the one with an items file beside it counts.
        file: which file of that folder; None = sequences where there are some, else the reviews.

    Raises:
        DataError: files missing or damaged. ConfigError: `n_users` or `n_items` out of range.
    """
    if file is not None:
        path = locate("amazon", (file,), root=root) / file
    else:
        folder = locate("amazon", ("|".join((SEQUENCES, *REVIEWS)),), root=root)
        path = _sequences_file(folder) if any(folder.glob(SEQUENCES)) else _reviews_file(folder)
    whole = _sequences(path) if path.suffix == ".txt" else _reviews(path)
    return whole.reduced(n_users=n_users, n_items=n_items, seed=seed)


def _sequences(path: Path) -> Dataset:
    texts = _items_file(path)
    raw = _read_sequences(path)
    catalog = _read_items(texts) if texts.is_file() else numbered_items(raw.items)
    log, users = raw.renumber([int(item) for item in catalog.item_ids], texts.name)
    catalog, log = only_consumed(catalog, log)
    return Dataset(name="amazon", catalog=catalog, interactions=log, user_ids=tuple(map(str, users.tolist())))


def _reviews_file(folder: Path) -> Path:
    found = sorted({path for pattern in REVIEWS for path in folder.glob(pattern)})
    if len(found) > 1:
        raise DataError(f"amazon: {folder} holds {', '.join(path.name for path in found)}; expected dataset.file=ONE")
    return found[0]


def _reviews(path: Path) -> Dataset:
    columns = _read_reviews(path)
    raw = RawRatings(
        path=path,
        lines=np.arange(1, len(columns["user"]) + 1),
        users=np.array(columns["user"]),
        items=np.array(columns["item"]),
        ratings=np.array(columns["rating"], np.float32),
        times=np.array(columns["time"], np.int64),
    )
    raw.check_scale(RatingScale())
    raw = raw.without_repeats("first", timed=False)
    raw = raw.take(np.argsort(raw.times, kind="stable"))  # so that of a text and its copies the first comes first
    catalog = numbered_items(raw.items)
    log, users = raw.renumber(catalog.item_ids, path.name)
    words = {
        name: [columns[name][line - 1] for line in raw.lines.tolist()]
        for name in ("review", "summary", "feature", "explanation")
    }
    reviews = written(log.users, log.items, words["review"], words["summary"], words["feature"], words["explanation"])
    return Dataset(
        name="amazon",
        catalog=catalog,
        interactions=log,
        user_ids=tuple(map(str, users.tolist())),
        reviews=reviews,
    )


def _read_reviews(path: Path) -> dict[str, list[Any]]:
    """A column for each of `FIELDS`, in the order of the file; words that are absent are empty."""
    columns: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for number, line in enumerate(read_text(path, "utf-8").rstrip().split("\n"), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: no JSON ({error.msg}); expected one review a line") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: {type(record).__name__}; expected an object, one review a line")
        found = {name: next((record[key] for key in keys if key in record), None) for name, keys in FIELDS.items()}
        for name in ("user", "item", "rating", "time"):
            kinds = str | int if name in ("user", "item") else int | float
            if not isinstance(found[name], kinds) or isinstance(found[name], bool) or found[name] == "":
                known = " or ".join(FIELDS[name])
                raise DataError(f"{path}, line {number}: {name} is {found[name]!r}; expected {known}")
        found |= {name: str(found[name]) for name in ("user", "item")}
        for name in ("review", "summary", "feature", "explanation"):
            found[name] = _plain(found[name])
        for name, value in found.items():
            columns[name].append(value)
    return columns


def _items_file(sequences: Path) -> Path:
    return sequences.with_name(f"{sequences.stem.lower()}_items.jsonl")


def _sequences_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.txt"))
    described = [path for path in found if _items_file(path).is_file()]
    if len(found) > 1 and len(described) != 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"amazon: {folder} holds {names}; expected one .txt file, or one with <name>_items.jsonl beside it"
        )
    return described[0] if described else found[0]


def _read_sequences(path: Path) -> RawRatings:
    sequences: dict[int, list[int]] = {}
    lines = []
    for number, line in enumerate(read_text(path, "utf-8").rstrip().split("\n"), 1):
        try:
            user, *items = map(int, line.split())
        except ValueError:
            wrong = next((field for field in line.split() if not field.lstrip("-").isdecimal()), "")
            raise DataError(f"{path}, line {number}: {wrong!r}; expected integers, a user and items") from None
        if not items:
            raise DataError(f"{path}, line {number}: user {user} without items; expected at least one")
        if user in sequences:
            raise DataError(f"{path}, line {number}: user {user} again; expected one line for each")
        sequences[user] = items
        lines.append(number)
    lengths = np.array([len(items) for items in sequences.values()])
    n = int(lengths.sum())
    return RawRatings(
        path=path,
        lines=np.repeat(np.array(lines), lengths),
        users=np.repeat(np.array(list(sequences)), lengths),
        items=np.array([item for items in sequences.values() for item in items]),
        ratings=np.full(n, np.nan, np.float32),
        times=places(lengths),
    )


def _read_items(path: Path) -> Catalog:
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(read_text(path, "utf-8").rstrip().split("\n"), 1):
        record = _item_record(path, number, line)
        item = record["item_id"]
        if item in records:
            raise DataError(f"{path}, line {number}: item {item} again; expected each once")
        records[item] = record
    paths = [record.get("categories") or [] for record in records.values()]
    names = sorted({path[1] for item in paths for path in item if len(path) > 1})
    column = {name: g for g, name in enumerate(names)}
    genres = np.zeros((len(records), len(names)), np.bool_)
    for row, item in enumerate(paths):
        genres[row, [column[path[1]] for path in item if len(path) > 1]] = True
    return Catalog(
        item_ids=tuple(map(str, records)),
        titles=tuple(record["title"] for record in records.values()),
        genre_names=tuple(names),
        genres=genres,
        texts=tuple(_text(record) for record in records.values()),
        attributes={
            "brand": np.array([_plain(record.get("brand")) for record in records.values()]),
            "category_path": np.array([" > ".join(map(_plain, steps[0])) if steps else "" for steps in paths]),
        },
    )


def _item_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: no JSON ({error.msg}); expected one object a line") from None
    if not isinstance(record, dict) or not isinstance(record.get("item_id"), int):
        raise DataError(f"{path}, line {number}: no integer item_id; expected one for every item")
    record["title"] = _plain(record.get("title"))
    if not record["title"]:
        raise DataError(f"{path}, line {number}: item {record['item_id']} has no title; every item needs one")
    categories = record.get("categories") or []
    if not (isinstance(categories, list) and all(isinstance(steps, list) for steps in categories)):
        raise DataError(f"{path}, line {number}: categories are {categories!r}; expected a list of paths")
    return record


def _text(record: dict[str, Any]) -> str:
    """Distinct category names below the first level, most general first, then the description."""
    names = dict.fromkeys(name for steps in record.get("categories") or [] for name in steps[1:])
    return ". ".join(part for part in (", ".join(names), _plain(record.get("description"))) if part)


def _plain(value: object) -> str:
    """Text without HTML entities (some are escaped twice) and needless spaces; null is empty."""
    return "" if value is None else " ".join(html.unescape(html.unescape(str(value))).split())
