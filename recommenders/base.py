"""Recommender: the checked base class every recommender here inherits, and the top-K kernel.

A subclass writes `_fit` and either `_score` (scores of every item) or `_recommend` (slates directly). It does not
know what a round of the platform is, nor whether its log came from real or simulated users.
"""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numba as nb
import numpy as np
from numpy.typing import NDArray

from recommenders.shortlists import Shortlists
from simenv import checks
from simenv.candidates import Candidates, insert, is_out
from simenv.datasets.base import FloatArray, Interactions, LongArray
from simenv.errors import ConfigError, RecommenderError, RunDirectoryError
from simenv.randomness import Key
from simenv.slates import Slates

_BATCH_CELLS = 256 * 65_536  # scores that are in memory together


class NaNScoreError(RecommenderError):
    """A row of scores holds NaN."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} of the scores holds NaN; expected numbers")
        self.row = row


class Recommender(ABC):
    """Learns from a log of interactions and fills slates.

    Scores are computed in batches of exactly `score_batch` users (the last one padded), fewer where the catalogue is
    larger than 65,536 items, so that a slate does not depend on who else is asked for in the same call; ties go to the
    smaller item row.

    Attributes:
        name: what configurations, logs and errors call it.
        score_batch: users per call of `_score`.
        pads_batches: False promises that a row of `_score` never depends on the other rows of its batch, as in
            sparse sums (a matrix product makes no such promise); short batches are then not padded.
        popularity_for_new_users: True gives users without any interaction the item counts as scores.
        keeps_shortlists: True promises that scores change by learning alone, so that a user's best items need not be
            looked for again until then.
    """

    name: str = ""
    score_batch: ClassVar[int] = 256
    pads_batches: ClassVar[bool] = True
    popularity_for_new_users: ClassVar[bool] = False
    keeps_shortlists: ClassVar[bool] = False
    _shortlists: Shortlists | None = None  # since it last learned something

    n_users: int = 0
    n_items: int = 0
    _popularity: NDArray[np.float32]  # (n_items,) interactions learned from

    # -- public -----------------------------------------------------------------------------------------------

    def fit(self, log: Interactions, *, key: Key | None = None) -> None:
        """Learn from `log` alone, forgetting what was known. `key` seeds whatever is random in it."""
        if len(log) == 0:
            raise RecommenderError(f"{self.name}: fit on an empty log; expected at least one interaction")
        self._learnt(log)
        self._fit(log, key or Key(0))

    def update(self, new: Interactions, *, key: Key | None = None) -> None:
        """Learn from further interactions. Equal to `fit` on everything so far unless the subclass says otherwise."""
        self._check_sizes(new, "update")
        self._learnt(self._log.concat(new))
        self._update(new, key or Key(0))

    def remember(self, new: Interactions) -> None:
        """Read further interactions as their users' histories from now on, without learning from them.

        Published protocols do so with validation items. Weights, counts and neighbours stay; a recommender to which
        a user is what was learned, as of factors, recommends as before.
        """
        self._check_sizes(new, "remember")
        popularity = self._popularity
        self._learnt(self._log.concat(new))
        self._popularity = popularity
        self._remember()

    def _check_sizes(self, new: Interactions, what: str) -> None:
        self._require_fit()
        for each, fitted, got in (("users", self.n_users, new.n_users), ("items", self.n_items, new.n_items)):
            if got != fitted:
                raise RecommenderError(f"{self.name}: {what} with a log of {got} {each}; expected {fitted}, as fitted")

    def recommend(
        self,
        users: NDArray[Any],
        k: int,
        candidates: Candidates | None = None,
        *,
        key: Key | None = None,
    ) -> Slates:
        """Slates of `k` items for a batch of users.

        Args:
            users: (B,) rows of the population.
            k: slate size, 1 to n_items.
            candidates: what each user may be shown, see `simenv.candidates.Candidates.of`; None = every item.
            key: seed, round and page, for recommenders that draw.

        Returns:
            Slates; where fewer than `k` candidates are left, the rest of the row is -1.

        Raises:
            ConfigError: if `k` is not 1 to n_items.
            RecommenderError: before `fit`, on unknown users or candidates of others, or when the subclass returns a
                wrong shape, an unknown item or NaN.
        """
        self._require_fit()
        key = key or Key(0)
        users = np.asarray(users, dtype=np.int64)
        if not 1 <= k <= self.n_items:
            raise ConfigError(f"slate_size={k}: the catalogue has {self.n_items} items; expected 1 to {self.n_items}")
        if users.ndim != 1 or (users.size and (users.min() < 0 or users.max() >= self.n_users)):
            bad = users[(users < 0) | (users >= self.n_users)] if users.ndim == 1 else users.shape
            raise RecommenderError(f"{self.name}: unknown users {bad}; expected rows 0 to {self.n_users - 1}")
        candidates = candidates or Candidates.of(self.n_items)
        if candidates.n_items != self.n_items or len(candidates.bits) not in (1, len(users)):
            raise RecommenderError(
                f"{self.name}: candidates of {len(candidates.bits)} users among {candidates.n_items} items; "
                f"expected {len(users)} users and {self.n_items} items"
            )
        return self._checked(self._recommend(users, k, candidates, key), users, k, key)

    @property
    def log(self) -> Interactions:
        """Everything learned from so far."""
        self._require_fit()
        return self._log

    def scores(self, users: NDArray[Any]) -> FloatArray:
        """Scores of every item for these users, (B, n_items), the same whatever else is in the batch."""
        self._require_fit()
        users = np.asarray(users, dtype=np.int64)
        out = np.empty((len(users), self.n_items), np.float32)
        for rows, scores in self._score_batches(users):
            out[rows] = scores
        return out

    def save(self, folder: Path) -> None:
        """Write everything `load` needs into `folder` (made if absent)."""
        self._require_fit()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        log = self._log
        arrays = {f"log.{name}": getattr(log, name) for name in ("users", "items", "ratings", "times")}
        arrays |= {f"state.{name}": value for name, value in self._state().items()}
        np.savez(folder / "arrays.npz", **arrays)
        meta = {"recommender": self.name, "n_users": self.n_users, "n_items": self.n_items}
        (folder / "recommender.json").write_text(json.dumps(meta))

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote; the next slates and updates equal those of the saved recommender."""
        folder = Path(folder)
        try:
            meta = json.loads((folder / "recommender.json").read_text())
            # Opened here, because np.load leaves a file it cannot read open.
            with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise RunDirectoryError(f"{folder}: no readable saved recommender ({error})") from error
        if meta.get("recommender") != self.name:
            raise RunDirectoryError(f"{folder}: holds recommender '{meta.get('recommender')}'; expected '{self.name}'")
        try:
            log = {name: arrays[f"log.{name}"] for name in ("users", "items", "ratings", "times")}
            self._learnt(Interactions(n_users=meta["n_users"], n_items=meta["n_items"], **log))
        except KeyError as error:
            raise RunDirectoryError(f"{folder}: no readable saved recommender ({error} is missing)") from error
        self._restore({name[6:]: value for name, value in arrays.items() if name.startswith("state.")})

    # -- for subclasses ---------------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, log: Interactions, key: Key) -> None:
        """Learn from `log` alone."""

    def _update(self, new: Interactions, key: Key) -> None:
        """Learn from `new`; `self._log` already contains it. Default: refit on everything."""
        self._fit(self._log, key)

    def _remember(self) -> None:
        """Read the histories of `self._log` anew. Default: nothing, for recommenders that read none."""

    def _score(self, users: LongArray) -> NDArray[Any]:
        """Scores of every item, (B, n_items); higher is better, -inf never."""
        raise RecommenderError(f"{self.name}: defines neither _score nor _recommend; a subclass needs one of them")

    def _recommend(self, users: LongArray, k: int, candidates: Candidates, key: Key) -> Slates:
        """Slates from scores: the k best allowed items."""
        item_ids = np.empty((len(users), k), np.int32)
        if not self.keeps_shortlists:
            for rows, scores in self._score_batches(users, key):
                item_ids[rows] = self._best(scores, k, candidates.rows(rows), users[rows], key)
            return Slates(item_ids=item_ids)
        if self._shortlists is None or self._shortlists.size < min(k + 1, self.n_items):
            self._shortlists = Shortlists(self.n_users, self.n_items, k)
        lists = self._shortlists
        open_ = np.flatnonzero(~lists.answer(users, candidates, item_ids))
        wanted = lists.wants(users[open_])
        for asked, keep in ((open_[~wanted], False), (open_[wanted], True)):
            for batch, scores in self._score_batches(users[asked], key):
                now = asked[batch]
                mine = candidates.rows(now)
                ranked = self._best(scores, lists.size if keep else k, mine, users[now], key)
                item_ids[now] = ranked[:, :k]
                if keep:
                    lists.keep(users[now], mine, ranked)
        return Slates(item_ids=item_ids)

    def _state(self) -> Mapping[str, NDArray[Any]]:
        """Arrays that `_restore` needs beside the log. Default: none, and `_restore` refits."""
        return {}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Rebuild from `_state()`. Default: refit on the log, for recommenders that draw nothing while fitting."""
        self._fit(self._log, Key(0))

    # -- common to all ----------------------------------------------------------------------------------------

    def _learnt(self, log: Interactions) -> None:
        """Keep the log and what every recommender may ask of it."""
        self._log, self._shortlists = log, None
        self.n_users, self.n_items = log.n_users, log.n_items
        self._has_history = log.user_counts() > 0  # (n_users,)
        self._popularity = log.item_counts().astype(np.float32)  # (n_items,)

    def _learnt_counts(self, counts: LongArray, n_users: int) -> None:
        """Keep what a log with these item counts would leave, the log apart."""
        self._log = Interactions.empty(n_users, len(counts))
        self.n_users, self.n_items = n_users, len(counts)
        self._has_history = np.ones(n_users, np.bool_)
        self._popularity = counts.astype(np.float32)

    def _score_batches(self, users: LongArray, key: Key | None = None) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Rows of `users` with their scores, batch by batch: a batch fits the cache, the whole matrix does not."""
        size = max(1, min(self.score_batch, _BATCH_CELLS // self.n_items))
        for start in range(0, len(users), size):
            chunk = users[start : start + size]
            asked = np.resize(chunk, size) if self.pads_batches and len(chunk) < size else chunk
            scores = self._checked_scores(self._score(asked), asked, key)[: len(chunk)]
            if self.popularity_for_new_users and not self._has_history[chunk].all():
                scores = np.where(self._has_history[chunk, None], scores, self._popularity)
            yield slice(start, start + len(chunk)), scores

    def _best(
        self, scores: NDArray[Any], k: int, candidates: Candidates, users: LongArray, key: Key
    ) -> NDArray[np.int32]:
        """`top_k`, with an error that names the user whose scores hold NaN."""
        try:
            return top_k(scores, k, candidates)
        except NaNScoreError as error:
            where = self._where(users[error.row : error.row + 1], key)
            raise RecommenderError(f"{where}: NaN among the scores; expected numbers") from error

    # -- checks -----------------------------------------------------------------------------------------------

    def _require_fit(self) -> None:
        if self.n_items == 0:
            raise RecommenderError(f"{self.name}: used before fit(log)")

    def _where(self, users: LongArray, key: Key | None) -> str:
        """For the beginning of an error: who, when, about whom."""
        round_ = "" if key is None else f", round {key.round}"
        about = "" if len(users) == 0 else f", user {users[0]}"
        return f"{self.name}{round_}{about}" + (f" and {len(users) - 1} more" if len(users) > 1 else "")

    def _checked_scores(self, scores: Any, users: LongArray, key: Key | None) -> NDArray[Any]:
        if other := _other_than("fiub", scores):
            raise RecommenderError(
                f"{self._where(users, key)}: scores are {other}; expected an array of real numbers, "
                "-inf where an item is not wanted"
            )
        if scores.shape != (len(users), self.n_items):
            raise RecommenderError(
                f"{self._where(users, key)}: scores have shape {scores.shape}; expected ({len(users)}, {self.n_items})"
            )
        return scores

    def _checked(self, slates: Any, users: LongArray, k: int, key: Key) -> Slates:
        where = f"{self.name}, round {key.round}"
        if not isinstance(slates, Slates):
            raise RecommenderError(f"{where}: slates are {type(slates).__name__}; expected simenv.slates.Slates")
        items, propensity = slates.item_ids, slates.propensity
        if other := _other_than("iu", items):
            raise RecommenderError(
                f"{self._where(users, key)}: slates hold {other}; expected an array of whole numbers"
            )
        if items.shape != (len(users), k):
            raise RecommenderError(f"{where}: slates have shape {items.shape}; expected ({len(users)}, {k})")
        if propensity is not None and np.shape(propensity) != items.shape:
            raise RecommenderError(f"{where}: propensity has shape {np.shape(propensity)}; expected {items.shape}")
        bad = (items < -1) | (items >= self.n_items)
        if bad.any():
            row = int(np.flatnonzero(bad.any(axis=1))[0])
            raise RecommenderError(
                f"{where}, user {users[row]}: unknown item {items[row][bad[row]][0]}; "
                f"expected -1 (empty) or 0 to {self.n_items - 1}"
            )
        return slates if items.dtype == np.int32 else replace(slates, item_ids=items.astype(np.int32))


def _other_than(kinds: str, values: Any) -> str | None:
    """What `values` are, unless a plain array of one of these kinds of numbers."""
    if not isinstance(values, np.ndarray):
        return type(values).__name__
    fits = values.dtype.kind in kinds and not isinstance(values, np.ma.MaskedArray)
    return None if fits else f"{type(values).__name__} of {values.dtype}"


def check_options(
    name: str,
    *,
    low: float = 0.0,
    high: float = np.inf,
    open_low: bool = False,
    open_high: bool = False,
    whole: bool = False,
    **options: Any,
) -> None:
    """Check the options of a constructor.

    Args:
        name: the recommender, for the message.
        low, high: bounds, both included; with `open_low` or `open_high` the bound itself is out.
        whole: True for whole numbers.
        **options: the values by their names.

    Raises:
        ConfigError: if a value is no number or out of bounds.
    """
    for option, value in options.items():
        if whole:
            checks.whole(f"{name}: {option}", value, int(low), checks.LARGEST if high == np.inf else int(high))
        else:
            checks.number(f"{name}: {option}", value, low, high, open_low=open_low, open_high=open_high)


def user_items(log: Interactions, *, binary: bool) -> Any:
    """The log as a (n_users, n_items) float32 CSR matrix of counts, or of ones with `binary`; indices sorted."""
    from scipy import sparse

    ones = np.ones(len(log), np.float32)
    matrix = sparse.csr_matrix((ones, (log.users, log.items)), shape=(log.n_users, log.n_items))
    matrix.sum_duplicates()
    if binary:
        matrix.data[:] = 1.0
    return matrix


def top_k(scores: NDArray[Any], k: int, candidates: Candidates | None = None) -> NDArray[np.int32]:
    """The k best items of each row, best first; ties by item row; -1 where candidates run out.

    Args:
        scores: (B, n_items); -inf counts as not allowed.
        k: how many.
        candidates: what is allowed; None = every item.

    Raises:
        NaNScoreError: if a score is NaN.
    """
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    n_rows, n_items = scores.shape
    candidates = candidates or Candidates.of(n_items)
    out = np.empty((n_rows, k), np.int32)
    bad_row = _top_k(scores, candidates.bits, candidates.available, out)
    if bad_row >= 0:
        raise NaNScoreError(bad_row)
    return out


@nb.njit(cache=True, nogil=True)
def _top_k(scores: Any, bits: Any, allowed: Any, out: Any) -> int:  # pragma: no cover - compiled
    n_rows, n_items = scores.shape
    k = out.shape[1]
    best = np.empty(k, np.float32)
    for row in range(n_rows):
        own = row if bits.shape[0] > 1 else 0
        filled = 0
        floor = np.float32(-np.inf)  # what a candidate must exceed; NaN fails the comparison and so is looked at
        for item in range(n_items):
            score = scores[row, item]
            if score <= floor:
                continue
            if score != score:
                return row
            if not allowed[item] or is_out(bits, own, item):
                continue
            filled = insert(best, out[row], filled, score, item)
            if filled == k:
                floor = best[k - 1]
        for place in range(filled, k):
            out[row, place] = -1
    return -1
