"""Last.fm-2k of HetRec 2011 in the publisher's format: who listened to which artist how often, and who knows whom.

Source: Cantador, Brusilovsky and Kuflik 2011, "2nd Workshop on Information Heterogeneity and Fusion in Recommender
Systems", RecSys. The publisher offers the files for non-commercial use; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simenv.checks import one_of
from simenv.datasets.base import Catalog, Dataset, FloatArray, Interactions
from simenv.datasets.files import locate, read_text
from simenv.datasets.friends import Friends
from simenv.datasets.raw import RawRatings, only_consumed
from simenv.errors import DataError

FILES = ("artists.dat", "user_artists.dat", "user_friends.dat")
PLAYS = ("ratings", "counts", "none")


def lastfm_2k(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    root: str | None = None,
    plays: str = "ratings",
) -> Dataset:
    """Last.fm-2k: 1,892 users, 17,632 artists, the 50 artists each user played most, and 12,717 friendships.

    There are no times: the order is drawn, the same in every run, so that a holdout is a random share of everyone's
    artists. There are no genres and no ratings.

    Args:
        n_users: seeded sample of this many users; None = all. Friendships among them stay.
        n_items: this many artists with the most listeners, chosen before the users; None = all.
        seed: decides the sample of users.
        root: folder with artists.dat, user_artists.dat and user_friends.dat; None = $SIMENV_DATA/lastfm-2k.
        plays: what becomes of the play counts. ``ratings``: one to five stars by where in the user's plays, counted
            from the least played artist up, an artist comes to stand: 5 for those that make up the top fifth (Celma and
            Herrera 2008, "A new approach to evaluating novel recommendations"). ``counts``: an interaction for each
            doubling, 1 + floor(log2 plays), unrated. ``none``: one unrated interaction.

    Raises:
        DataError: files missing or damaged. ConfigError: an option out of range.
    """
    one_of("lastfm-2k: plays", plays, PLAYS)
    folder = locate("lastfm-2k", FILES, root=root)
    catalog = _artists(folder / "artists.dat")
    raw = _listened(folder / "user_artists.dat")
    log, users = raw.renumber([int(item) for item in catalog.item_ids], "artists.dat")
    catalog, log = only_consumed(catalog, log)
    pairs, lines = _rows(folder / "user_friends.dat", ("userID", "friendID"))
    at = np.searchsorted(users, pairs)
    unknown = users[np.minimum(at, len(users) - 1)] != pairs
    if unknown.any():
        row, side = np.argwhere(unknown)[0]
        raise DataError(
            f"{folder / 'user_friends.dat'}, line {lines[row]}: user {pairs[row, side]} is not in user_artists.dat; "
            "expected users who listened"
        )
    whole = Dataset(
        name="lastfm-2k",
        catalog=catalog,
        interactions=_weighted(log, plays),
        user_ids=tuple(map(str, users.tolist())),
        friends=Friends.of(len(users), at),
    )
    return whole.reduced(n_users=n_users, n_items=n_items, seed=seed)


def _weighted(log: Interactions, plays: str) -> Interactions:
    """The log whose ratings are play counts, with these as `lastfm_2k` wants them."""
    counts = log.ratings.astype(np.float64)
    times = np.random.default_rng(0x1A57).permutation(len(log))
    copies = 1 + np.floor(np.log2(counts)).astype(np.int64) if plays == "counts" else np.ones(len(log), np.int64)
    stars = _stars(log.users, counts) if plays == "ratings" else np.full(len(log), np.nan, np.float32)
    rows = np.repeat(np.argsort(times), copies[np.argsort(times)])
    return Interactions(
        users=log.users[rows],
        items=log.items[rows],
        ratings=stars[rows],
        times=np.arange(len(rows)),
        n_users=log.n_users,
        n_items=log.n_items,
    )


def _stars(users: NDArray[Any], counts: NDArray[np.float64]) -> FloatArray:
    """1 to 5 by the share of the user's plays that go to artists played less, (n,)."""
    order = np.lexsort((counts, users))
    sums = np.cumsum(counts[order])
    mine = users[order]
    starts = np.searchsorted(mine, mine)
    before = np.concatenate([[0.0], sums])[starts]
    totals = np.bincount(users, weights=counts)[mine]
    stars = np.empty(len(users), np.float32)
    stars[order] = np.clip(np.ceil(5 * (sums - before) / totals - 1e-9), 1, 5)
    return stars


def _artists(path: Path) -> Catalog:
    ids, names = [], []
    lines = read_text(path, "utf-8").rstrip().split("\n")
    for number, line in enumerate(lines[1:], 2):
        fields = line.rstrip("\r").split("\t")
        if len(fields) < 2 or not fields[0].isdecimal() or not fields[1].strip():
            raise DataError(f"{path}, line {number}: {line[:80]!r}; expected id and name, separated by a tab")
        ids.append(str(int(fields[0])))
        names.append(fields[1].strip())
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: an artist twice; expected each once")
    return Catalog(item_ids=tuple(ids), titles=tuple(names), genre_names=(), genres=np.zeros((len(ids), 0), np.bool_))


def _listened(path: Path) -> RawRatings:
    table, lines = _rows(path, ("userID", "artistID", "weight"))
    if (bad := np.flatnonzero(table[:, 2] < 1)).size:
        raise DataError(f"{path}, line {lines[bad[0]]}: {table[bad[0], 2]} plays; expected at least 1")
    return RawRatings(
        path=path,
        lines=lines,
        users=table[:, 0],
        items=table[:, 1],
        ratings=table[:, 2].astype(np.float32),
        times=np.zeros(len(table), np.int64),
    )


def _rows(path: Path, columns: tuple[str, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The whole numbers of a file, (n, columns), and the line of each row.

    The publisher's file begins with the columns' names; a common copy of it, with two lines of a number each, of which
    the second is that of rows.
    """
    lines = read_text(path, "utf-8").rstrip().split("\n")
    first = 1 if lines[0].split() == list(columns) else 2
    rows = []
    for number, line in enumerate(lines[first:], first + 1):
        fields = line.split()
        if len(fields) != len(columns) or not all(field.isdecimal() for field in fields):
            raise DataError(f"{path}, line {number}: {line[:80]!r}; expected whole numbers {', '.join(columns)}")
        rows.append([int(field) for field in fields])
    if not rows or (first == 2 and lines[1].strip() != str(len(rows))):
        told = f"; line 2 tells of {lines[1][:20]}" if first == 2 else ""
        raise DataError(f"{path}: {len(rows)} rows{told}; expected {', '.join(columns)} and all rows of a whole file")
    return np.array(rows, np.int64), np.arange(first + 1, first + 1 + len(rows))
