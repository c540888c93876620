"""Offline evaluation: rank metrics over the whole catalogue, rating errors, and how sure one may be.

Everything goes through the public `recommend`, so that whatever fills a slate can be compared, and stars through
`predict_ratings`. The module does not know how a recommender works, nor how a log was split
(`simenv.datasets.splits`). Ranks among 100 sampled items are a task of their own, kept apart and labelled, never to be
printed beside full ranking (Krichene and Rendle 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender
from simenv.candidates import Candidates
from simenv.datasets.base import BoolArray, FloatArray, IntArray, Interactions, LongArray
from simenv.datasets.splits import Split, contains, distinct, pair_keys
from simenv.errors import ConfigError, DataError, MissingExtraError, RecommenderError
from simenv.randomness import Key, Purpose, generator

CUTOFFS = (1, 5, 10)
SAMPLED_CUTOFFS = (1, 3, 5, 10)  # of ranks among sampled items, as published
TARGETS = ("ranking", "candidates99", "rating")
RATING_PRIOR = 5.0  # ratings of the mean that an item's own are added to
MISSED = np.iinfo(np.int32).max  # the rank of a target outside the slate


@runtime_checkable
class PredictsRatings(Protocol):
    """A recommender that says how many stars a user gives an item."""

    def predict_ratings(self, users: NDArray[Any], items: NDArray[Any]) -> FloatArray:
        """Expected stars of aligned pairs, (n,)."""


# -- ranks ----------------------------------------------------------------------------------------------------


def seen_mask(log: Interactions, users: LongArray) -> BoolArray:
    """Which items each of these users consumed, (B, n_items)."""
    row_of = np.full(log.n_users, -1, np.int64)
    row_of[users] = np.arange(len(users))
    mask = np.zeros((len(users), log.n_items), np.bool_)
    rows = row_of[log.users]
    mask[rows[rows >= 0], log.items[rows >= 0]] = True
    return mask[row_of[users]]


def ranks(
    recommender: Recommender, split: Split, *, filter_seen: bool = True, k: int = max(CUTOFFS), key: Key | None = None
) -> IntArray:
    """Place of each target in the user's slate from the whole catalogue, (m,), 0 = first, `MISSED` = not in it.

    Args:
        recommender: fitted on `split.train`.
        split: what to test.
        filter_seen: leave out what the user consumed before.
        k: slate size; ranks beyond it are not known.
        key: of recommenders that draw.
    """
    return _place(slates(recommender, split, filter_seen=filter_seen, k=k, key=key), split.targets)


def slates(
    recommender: Recommender, split: Split, *, filter_seen: bool = True, k: int = max(CUTOFFS), key: Key | None = None
) -> IntArray:
    """What each test user is shown of the items that the split ranks, (m, k), best first; arguments as of `ranks`."""
    k = min(k, split.train.n_items)
    found = np.empty((len(split.users), k), np.int32)
    never = None if split.shown is None else ~split.shown
    for start in range(0, len(split.users), 1024):
        rows = slice(start, start + 1024)
        users = split.users[rows]
        out = seen_mask(split.train, users) if filter_seen else None
        if never is not None:
            out = np.tile(never, (len(users), 1)) if out is None else out | never
        found[rows] = recommender.recommend(users, k, Candidates.of(split.train.n_items, out=out), key=key).item_ids
    return found


def sampled_ranks(
    recommender: Recommender, split: Split, *, n_negatives: int = 99, k: int = max(CUTOFFS), key: Key | None = None
) -> IntArray:
    """Place of each target among itself and `n_negatives` items the user never consumed, (m,).

    P5's "direct recommendation" protocol, drawn uniformly. Not comparable with `ranks`.
    """
    rng = generator(key or Key(0), Purpose.FIT)
    n_items = split.train.n_items
    found = np.empty(len(split.users), np.int32)
    for start in range(0, len(split.users), 1024):
        rows = slice(start, start + 1024)
        users, targets = split.users[rows], split.targets[rows]
        forbidden = seen_mask(split.train, users)
        forbidden[np.arange(len(users)), targets] = True
        if ((~forbidden).sum(axis=1) < n_negatives).any():
            raise ConfigError(f"n_negatives={n_negatives}: some user has fewer items left; expected fewer")
        draw = rng.random((len(users), n_items), dtype=np.float32) + forbidden
        negatives = np.argpartition(draw, n_negatives - 1, axis=1)[:, :n_negatives]
        hidden = np.ones((len(users), n_items), np.bool_)
        np.put_along_axis(hidden, negatives, False, axis=1)
        hidden[np.arange(len(users)), targets] = False
        slates = recommender.recommend(users, min(k, n_negatives + 1), Candidates.of(n_items, out=hidden), key=key)
        found[rows] = _place(slates.item_ids, targets)
    return found


def _place(slates: IntArray, targets: IntArray) -> IntArray:
    hits = slates == targets[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), MISSED).astype(np.int32)


# -- metrics --------------------------------------------------------------------------------------------------


def rank_metrics(places: IntArray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, FloatArray]:
    """HR, NDCG and MRR at each cutoff, per user (m,), of one target each; `places` count from 0."""
    out: dict[str, FloatArray] = {}
    for cutoff in cutoffs:
        hit = places < cutoff
        position = np.where(hit, places, 0).astype(np.float64)
        out[f"hr@{cutoff}"] = hit.astype(np.float32)
        out[f"ndcg@{cutoff}"] = (hit / np.log2(position + 2)).astype(np.float32)
        out[f"mrr@{cutoff}"] = (hit / (position + 1)).astype(np.float32)
    return out


def set_metrics(
    shown: IntArray, split: Split, *, filter_seen: bool = True, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, FloatArray]:
    """Precision and recall at each cutoff, per user (m,), of all that is kept back of the user.

    With one item kept back recall is the hit rate, and precision that over the cutoff. With `filter_seen` what the user
    had before counts as not kept back: it cannot be shown.
    """
    n_items, held = split.train.n_items, split.held
    wanted = distinct(pair_keys(held.users, held.items, n_items))
    if filter_seen:
        wanted = wanted[~contains(distinct(pair_keys(split.train.users, split.train.items, n_items)), wanted)]
    of_user = np.bincount(wanted // n_items, minlength=split.train.n_users)[split.users]
    hit = (shown >= 0) & contains(wanted, pair_keys(split.users[:, None], shown.clip(min=0), n_items))
    out: dict[str, FloatArray] = {}
    for cutoff in cutoffs:
        hits = hit[:, :cutoff].sum(axis=1)
        out[f"precision@{cutoff}"] = (hits / cutoff).astype(np.float32)
        out[f"recall@{cutoff}"] = (hits / np.maximum(of_user, 1)).astype(np.float32)
    return out


def item_means(log: Interactions) -> NDArray[np.float64]:
    """Each item's mean rating, (n_items,), drawn to the mean of all by `RATING_PRIOR` ratings: the floor of any other.

    Raises:
        DataError: there is no rating.
    """
    rated = ~np.isnan(log.ratings)
    if not rated.any():
        raise DataError("rating errors: no interaction to learn from has a rating; expected some")
    items, ratings = log.items[rated], log.ratings[rated].astype(np.float64)
    total = np.bincount(items, weights=ratings, minlength=log.n_items)
    return (total + RATING_PRIOR * ratings.mean()) / (np.bincount(items, minlength=log.n_items) + RATING_PRIOR)


def rating_errors(predicted: NDArray[Any], true: NDArray[Any]) -> dict[str, float]:
    """Root mean squared and mean absolute error over the pairs with a true rating."""
    rated = ~np.isnan(true)
    if not rated.any():
        raise DataError("rating errors: no pair has a true rating; expected at least one")
    difference = np.asarray(predicted, np.float64)[rated] - np.asarray(true, np.float64)[rated]
    return {"rmse": float(np.sqrt((difference**2).mean())), "mae": float(np.abs(difference).mean())}


def text_overlap(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-4 (sacrebleu) and ROUGE-1/2/L F1 (rouge-score), both in 0 to 100."""
    found = {name: float(values.mean()) for name, values in text_scorers(predicted, references).items()}
    return {"bleu": found["bleu4"], **{f"rouge{kind}": found[f"rouge{kind}"] for kind in "12L"}}


def text_scorers(predicted: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """ROUGE-1/2/L F1 of each of n texts, and BLEU-2 and BLEU-4 of all together, n times; in 0 to 100."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise MissingExtraError("scoring generated text", "torch") from error
    if len(predicted) != len(references) or not references:
        raise DataError(
            f"text overlap: {len(predicted)} texts for {len(references)} references; expected as many, >= 1"
        )
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    scored = [scorer.score(reference, text) for reference, text in zip(references, predicted, strict=True)]
    found = {kind: 100 * np.array([row[kind].fmeasure for row in scored]) for kind in kinds}
    for order in (2, 4):
        # force: texts that come in words are no mistake to warn of; it does not change the score
        bleu = BLEU(max_ngram_order=order, force=True).corpus_score(list(predicted), [list(references)]).score
        found[f"bleu{order}"] = np.full(len(references), float(bleu))
    return found


# -- intervals ------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: NDArray[Any], *, key: Key | None = None, level: float = 0.95, resamples: int = 2_000
) -> tuple[float, float]:
    """Percentile interval of the mean over users."""
    ((low, high),) = bootstrap_intervals([values], key=key, level=level, resamples=resamples)
    return low, high


def bootstrap_intervals(
    columns: Sequence[NDArray[Any]], *, key: Key | None = None, level: float = 0.95, resamples: int = 2_000
) -> list[tuple[float, float]]:
    """`bootstrap_interval` of several metrics of the same users, whose resamples are drawn once."""
    rng = generator(key or Key(0), Purpose.PAIRS)
    values, n = [np.asarray(column, np.float64) for column in columns], len(columns[0])
    drawn = (rng.multinomial(n, np.full(n, 1 / n)) for _ in range(resamples))
    means = np.array([[counts @ column / n for column in values] for counts in drawn])
    bounds = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(low), float(high)) for low, high in bounds.T]


# -- a table --------------------------------------------------------------------------------------------------


def measured(
    recommender: Recommender, split: Split, target: str, filter_seen: bool, key: Key
) -> dict[str, NDArray[np.float64]]:
    """Every metric of a target, per test user, of a fitted recommender.

    Args:
        recommender: fitted on `split.train`.
        split: what to test.
        target: ``ranking``: HR, NDCG and MRR of the target, precision and recall of all that is kept back;
            ``candidates99``: HR, NDCG and MRR of the target among itself and 99 items the user never had; ``rating``:
            squared and absolute error of the stars of all that is kept back, where there are some, as ``rmse`` and
            ``mae``.
        filter_seen: of ``ranking``.
        key: of what is drawn.

    Raises:
        RecommenderError: it predicts no stars, where they are asked for.
    """
    if target == "rating":
        if not isinstance(recommender, PredictsRatings):
            raise RecommenderError(f"{recommender.name}: predicts no ratings; expected one that does, such as mf")
        held = split.held
        return rating_metrics(recommender.predict_ratings(held.users, held.items), held.ratings)
    if target == "candidates99":
        places = sampled_ranks(recommender, split, key=key)
        return {name: values.astype(np.float64) for name, values in rank_metrics(places, SAMPLED_CUTOFFS).items()}
    shown = slates(recommender, split, filter_seen=filter_seen, key=key)
    found = rank_metrics(_place(shown, split.targets)) | set_metrics(shown, split, filter_seen=filter_seen)
    return {name: values.astype(np.float64) for name, values in found.items()}


def rating_metrics(predicted: NDArray[Any], true: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Squared errors as ``rmse`` and absolute ones as ``mae``, of the pairs with a true rating."""
    rated = ~np.isnan(true)
    if not rated.any():
        raise DataError("rating errors: no pair has a true rating; expected at least one")
    error = np.asarray(predicted, np.float64)[rated] - np.asarray(true, np.float64)[rated]
    return {"rmse": error**2, "mae": np.abs(error)}


def table_rows(
    name: str, by_seed: Sequence[Mapping[str, NDArray[np.float64]]], filter_seen: bool, key: Key | None = None
) -> list[dict[str, Any]]:
    """The rows of `tables/leaderboard.csv` of one recommender and one setting of the filter.

    Args:
        name: of the recommender.
        by_seed: what `measured` found, for each seed; a user's metric is averaged over them before users are resampled.
        filter_seen: which setting it was.
        key: of the resampling.

    Returns:
        A dict per metric: recommender, filter_seen, metric, value, ci_low, ci_high, n_users, n_seeds, seed_low,
        seed_high; the last two are the lowest and the highest value of a single seed, which the interval over users
        does not hold.
    """
    means = {metric: np.mean([found[metric] for found in by_seed], axis=0) for metric in by_seed[0]}
    bounds = bootstrap_intervals(list(means.values()), key=key)
    rows = []
    for (metric, mean), (low, high) in zip(means.items(), bounds, strict=True):
        single = [float(found[metric].mean()) for found in by_seed]
        shown = [float(mean.mean()), low, high, min(single), max(single)]
        if metric == "rmse":
            shown = [float(np.sqrt(value)) for value in shown]
        value, low, high, lowest, highest = shown
        rows.append(
            {
                "recommender": name,
                "filter_seen": filter_seen,
                "metric": metric,
                "value": value,
                "ci_low": low,
                "ci_high": high,
                "n_users": len(mean),
                "n_seeds": len(by_seed),
                "seed_low": lowest,
                "seed_high": highest,
            }
        )
    return rows
