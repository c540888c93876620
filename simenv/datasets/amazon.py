"""Amazon review data as sequences: one ``<Name>.txt`` and, where texts are known, ``<name>_items.jsonl``.

The form of S3-Rec, P5 and their successors: a line is a user and the items in time order, no ratings. The publisher
(He and McAuley 2016, "Ups and Downs") gives no direct link, so nothing is downloaded.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from simenv.datasets.base import Catalog, Dataset
from simenv.datasets.files import locate, read_text
from simenv.datasets.raw import RawRatings, numbered_items, only_consumed
from simenv.errors import DataError
from simenv.numeric import places


def amazon(
    *, n_users: int | None = None, n_items: int | None = None, seed: int = 0, root: str | None = None
) -> Dataset:
    """Sequences of one Amazon category; times are positions in the sequence, ratings NaN.

    With an items file: titles with HTML entities resolved, genres = the second level of the category paths, text =
    all categories, and the description where there is one; item attributes: brand, and category_path, the first path
    with " > " between its levels ("" = unknown). Without: titles read ``item <id>``, no genres. Items that nobody
    consumed are left out.

    Args:
        n_users: seeded sample of this many users; None = all.
        n_items: this many most-consumed items, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder with <Name>.txt; None = $SIMENV_DATA/amazon, or the only $SIMENV_DATA/amazon-*. Of several .txt
            files the one with an items file beside it counts.

    Raises:
        DataError: files missing or damaged. ConfigError: `n_users` or `n_items` out of range.
    """
    path = _sequences_file(locate("amazon", ("*.txt",), root=root))
    texts = _items_file(path)
    raw = _read_sequences(path)
    catalog = _read_items(texts) if texts.is_file() else numbered_items(raw.items)
    log, users = raw.renumber([int(item) for item in catalog.item_ids], texts.name)
    catalog, log = only_consumed(catalog, log)
    whole = Dataset(name="amazon", catalog=catalog, interactions=log, user_ids=tuple(map(str, users.tolist())))
    return whole.reduced(n_users=n_users, n_items=n_items, seed=seed)


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
