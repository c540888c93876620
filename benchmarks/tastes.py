"""How well fitted tastes tell held-out choices from unseen items, beside the usual recommenders.

    python benchmarks/tastes.py [--data FOLDER] [--out FILE.json] [--seed N]

Splits: on ml-100k and ml-1m the last tenth of each user's interactions by time; on Agent4Rec's 1,000 users of
MovieLens-1M its own train and test files. Every row is fitted on the training part alone and judged on the same
pairs: against uniform unseen items, and against unseen items of nearest training popularity (the hard protocol).
Seconds are processor time of the fit, compiled code already loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.tastes.structures import (
    ContentTastes,
    FactorTastes,
    NeighbourhoodTastes,
    TasteModel,
    content_features,
    fit_tastes,
    profile_matrix,
)
from experiments.realism.baselines import Scores, baselines, item_mean, itemknn
from experiments.realism.pages import TimeSplit, agent4rec, time_split
from simenv.datasets import load
from simenv.datasets.base import Dataset
from simenv.datasets.splits import match_popularity, sample_unseen
from simenv.numeric import mean_user_auc

MOVIELENS = {"ml-100k": ("ml-100k",), "ml-1m": ("ml-1m", "ml-1m-u2999")}
MODELS: tuple[TasteModel, ...] = (FactorTastes(), NeighbourhoodTastes(), ContentTastes())


def movielens(folder: Path, name: str) -> TimeSplit:
    root = next((folder / n for n in MOVIELENS[name] if (folder / n).is_dir()), folder / name)
    return time_split(load(name, root=str(root)), 0.1)


# -- what is compared -------------------------------------------------------------------------------------------------


def untruncated(model: TasteModel, dataset: Dataset) -> Scores:
    """The orders of the neighbourhood and content models before their matrices are cut to `dims` columns."""
    log = dataset.interactions
    if isinstance(model, NeighbourhoodTastes):
        scores = np.asarray((profile_matrix(log, model.recency) @ model.weights(log).T).todense())
    elif isinstance(model, ContentTastes):
        features = content_features(dataset.catalog, model.min_items)
        users, items = replace(model, dims=8 * (features.shape[1] // 8 + 1)).vectors(
            dataset.catalog, log, np.random.default_rng(0)
        )
        scores = users @ items.T
    else:
        raise TypeError(f"{model.name} has no untruncated form")
    return lambda users, items: scores[users, items]


def judge(split: TimeSplit, seed: int) -> Iterator[dict[str, Any]]:
    held, log = split.held, split.train.interactions
    uniform = sample_unseen(split.known, held.users, np.random.default_rng(seed))
    matched = match_popularity(split.known, log.item_counts(), held.users, held.items)

    def row(name: str, scores: Scores, seconds: float, ratings: Scores | None = None) -> dict[str, Any]:
        chosen, hard = (scores(held.users, items).astype(np.float64) for items in (held.items, matched))
        return {
            "split": split.name,
            "model": name,
            "auc": mean_user_auc(held.users, chosen, scores(held.users, uniform).astype(np.float64)),
            "auc_matched": mean_user_auc(held.users, chosen, hard),
            "pairs_matched": float(np.where(chosen == hard, 0.5, chosen > hard).mean()),
            "rating_rmse": rmse(ratings) if ratings else float("nan"),
            "seconds": seconds,
        }

    rated = held.take(~np.isnan(held.ratings))
    scale = split.train.rating_scale

    def rmse(ratings: Scores) -> float:
        if not len(rated):
            return float("nan")
        miss = ratings(rated.users, rated.items).clip(scale.low, scale.high) - rated.ratings
        return float(np.sqrt(np.mean(np.square(miss, dtype=np.float64))))

    for name, make in (*baselines(log), ("itemknn, all neighbours", lambda: itemknn(log, None))):
        start = time.process_time()
        scores = make()
        ratings = item_mean(log) if name == "popularity" else None
        yield row(name + (" (rating: item mean)" if ratings else ""), scores, time.process_time() - start, ratings)
    for model in MODELS:
        start = time.process_time()
        tastes = fit_tastes(split.train, seed=seed, model=model)
        yield row(f"tastes: {model.name}", tastes.choice.pairs, time.process_time() - start, tastes.rating.pairs)
        if not isinstance(model, FactorTastes):
            yield row(f"  {model.name}, full rank, no popularity term", untruncated(model, split.train), float("nan"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SIMENV_DATA", shared)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for model in MODELS:  # load the compiled code
        fit_tastes(load("synthetic", n_users=60, n_items=100), seed=0, model=model)
    rows = []
    print(f"{'split':10} {'model':44} {'auc':>6} {'matched':>8} {'pairs':>6} {'rmse':>6} {'s':>6}")
    for make in (
        lambda: movielens(options.data, "ml-100k"),
        lambda: movielens(options.data, "ml-1m"),
        lambda: agent4rec(options.data / "agent4rec-ml1m"),
    ):
        for row in judge(make(), options.seed):
            print(
                f"{row['split']:10} {row['model']:44} {row['auc']:6.3f} {row['auc_matched']:8.3f} "
                f"{row['pairs_matched']:6.3f} {row['rating_rmse']:6.3f} {row['seconds']:6.2f}",
                flush=True,
            )
            rows.append(row)
    if options.out:
        known = [{name: None if value != value else value for name, value in row.items()} for row in rows]
        options.out.write_text(json.dumps({"seed": options.seed, "rows": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
