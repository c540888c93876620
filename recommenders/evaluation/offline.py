"""Offline evaluation: rank metrics over the whole catalogue, rating errors, and how sure one may be.

Everything goes through the public `recommend`, so that whatever fills a slate can be compared. The module does not know
how a recommender works. Protocols: leave-one-out by time with the validation item in the input (the published
one), and a global-time split (what a deployed system faces). Ranks among 100 sampled items are a task of their own,
kept apart and labelled, never to be printed beside full ranking (Krichene and Rendle 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recommenders.base import Recommender
from simenv.candidates import Candidates
from simenv.datasets.base import BoolArray, FloatArray, IntArray, Interactions, LongArray
from simenv.datasets.splits import Split
from simenv.errors import ConfigError, DataError, MissingExtraError
from simenv.randomness import Key, Purpose, generator

CUTOFFS = (1, 5, 10)
MISSED = np.iinfo(np.int32).max  # the rank of a target outside the slate


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
    k = min(k, split.train.n_items)
    found = np.empty(len(split.users), np.int32)
    for start in range(0, len(split.users), 1024):
        rows = slice(start, start + 1024)
        users = split.users[rows]
        candidates = Candidates.of(split.train.n_items, out=seen_mask(split.train, users) if filter_seen else None)
        found[rows] = _place(recommender.recommend(users, k, candidates, key=key).item_ids, split.targets[rows])
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


def rating_errors(predicted: NDArray[Any], true: NDArray[Any]) -> dict[str, float]:
    """Root mean squared and mean absolute error over the pairs with a true rating."""
    rated = ~np.isnan(true)
    if not rated.any():
        raise DataError("rating errors: no pair has a true rating; expected at least one")
    difference = np.asarray(predicted, np.float64)[rated] - np.asarray(true, np.float64)[rated]
    return {"rmse": float(np.sqrt((difference**2).mean())), "mae": float(np.abs(difference).mean())}


def text_overlap(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-4 (sacrebleu) and ROUGE-1/2/L F1 (rouge-score), both in 0 to 100."""
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("scoring generated text", "torch") from error
    if len(predicted) != len(references) or not references:
        raise DataError(
            f"text overlap: {len(predicted)} texts for {len(references)} references; expected as many, >= 1"
        )
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    scored = [scorer.score(reference, text) for reference, text in zip(references, predicted, strict=True)]
    rouge = {kind: 100 * float(np.mean([row[kind].fmeasure for row in scored])) for kind in kinds}
    # force: texts that come in words are no mistake to warn of; it does not change the score
    return {"bleu": float(sacrebleu.corpus_bleu(list(predicted), [list(references)], force=True).score), **rouge}


# -- intervals ------------------------------------------------------------------------------------------------


def bootstrap_interval(
    values: NDArray[Any], *, key: Key | None = None, level: float = 0.95, resamples: int = 2_000
) -> tuple[float, float]:
    """Percentile interval of the mean over users."""
    means = _resampled_means(np.asarray(values, np.float64), key, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(values: NDArray[np.float64], key: Key | None, resamples: int) -> NDArray[np.float64]:
    rng = generator(key or Key(0), Purpose.PAIRS)
    n = len(values)
    counts = (rng.multinomial(n, np.full(n, 1 / n)) for _ in range(resamples))
    return np.array([count @ values / n for count in counts])


# -- a table --------------------------------------------------------------------------------------------------


def leaderboard(
    recommenders: Mapping[str, Callable[[], Recommender]],
    split: Split,
    *,
    keys: Sequence[Key] = (Key(0),),
    filters: Sequence[bool] = (True, False),
    after_fit: Callable[[str, Recommender], None] | None = None,
) -> list[dict[str, Any]]:
    """Fit every recommender once per key on the split and score it, with and without the seen-item filter.

    Args:
        recommenders: name -> a factory of a fresh, bound recommender.
        split: the same for all.
        keys: seeds; a user's metric is averaged over them before users are resampled.
        filters: which settings of the seen-item filter to report.
        after_fit: called with name and fitted recommender, e.g. to save it.

    Returns:
        One dict per row of `tables/leaderboard.csv`: recommender, filter_seen, metric, value, ci_low, ci_high, n_users,
        n_seeds, seed_low, seed_high; the last two are the lowest and the highest value of a single seed, which the
        interval over users does not hold.
    """
    rows: list[dict[str, Any]] = []
    for name, make in recommenders.items():
        found: dict[tuple[bool, str], list[NDArray[np.float64]]] = {}
        for key in keys:
            recommender = make()
            recommender.fit(split.train, key=key)
            if after_fit is not None:
                after_fit(name, recommender)
            for filter_seen in filters:
                places = ranks(recommender, split, filter_seen=filter_seen, key=key)
                for metric, values in rank_metrics(places).items():
                    found.setdefault((filter_seen, metric), []).append(values.astype(np.float64))
        for (filter_seen, metric), by_seed in found.items():
            mean = np.mean(by_seed, axis=0)
            low, high = bootstrap_interval(mean)
            single = [float(values.mean()) for values in by_seed]
            rows.append(
                {
                    "recommender": name,
                    "filter_seen": filter_seen,
                    "metric": metric,
                    "value": float(mean.mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "n_users": len(split.users),
                    "n_seeds": len(keys),
                    "seed_low": min(single),
                    "seed_high": max(single),
                }
            )
    return rows
