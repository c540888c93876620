"""What p5 gives away about its users, before and after the counterfactually fair prompt of UP5, on ML-1M.

    python benchmarks/p5_fairness.py --data FOLDER [--dataset ml-1m] [--minutes 6] [--model FOLDER]

One backbone is trained, or read from what `python -m recommenders.p5 train --model p5` saved; for each attribute a fair
prompt is trained in front of it, on the attribute as told by four fifths of the users. Columns: AUC of a logistic
attacker on all users, and on those who never told; AUC of the same attacker on the lists themselves (shares of genres,
and mean popularity, of the top 10); HR@10 and NDCG@10 on leave-one-out, whole catalogue, seen items left out. The same
features of popularity's lists, in which only what is left out as seen is a user's own, and of the histories say
between which values the AUC of lists is to be read. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recommenders.evaluation.lists import attacker_parts
from recommenders.evaluation.offline import bootstrap_interval, rank_metrics, ranks, seen_mask
from recommenders.p5.prompted import P5
from recommenders.popularity import Popularity
from simenv import datasets
from simenv.candidates import Candidates
from simenv.datasets.splits import leave_one_out
from simenv.metrics.reference import midrank_percentile
from simenv.randomness import Key
from simenv.records import nested

TOLD = 0.8  # share of users whose attribute the fair prompt may learn from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set's files")
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training the backbone")
    parser.add_argument("--model", type=Path, help="folder of a saved p5 of this data set, instead of training one")
    parser.add_argument("--steps", type=int, default=600, help="of training each fair prompt")
    parser.add_argument("--weights", type=float, nargs="+", default=[5.0], help="of the discriminator's loss")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    dataset = datasets.load(options.dataset, root=str(options.data))
    split = leave_one_out(dataset.interactions)
    key = Key(options.seed)
    popularity = Popularity()
    popularity.fit(split.train, key=key)
    print(f"{dataset.name}, {dataset.n_users:,} users, popularity: {_accuracy(popularity, split)}", flush=True)
    recommender = _backbone(options, dataset, split, key)
    told = np.random.default_rng([options.seed, 1]).random(dataset.n_users) < TOLD
    for attribute in ("gender", "age"):
        truth = dataset.user_attributes[attribute]
        counts = dict(zip(*(part.tolist() for part in np.unique(truth, return_counts=True)), strict=True))
        print(f"\n{attribute}: {counts}", flush=True)
        recommender.fair, recommender.network.prefixed = None, False
        from_popularity = _attack(_list_features(popularity, dataset, split), truth)
        from_histories = _attack(_history_features(dataset, split), truth)
        print(f"  AUC of popularity's lists {from_popularity}, of histories {from_histories}", flush=True)
        print(f"  without            {_row(recommender, dataset, split, truth, told)}", flush=True)
        known = replace(dataset, user_attributes={attribute: np.where(told, truth, "")})
        for weight in options.weights:
            started = time.process_time()
            fair = {"attribute": attribute, "weight": weight, "steps": options.steps}
            recommender.hide(known, fair, key=key)
            seconds = time.process_time() - started
            row = _row(recommender, dataset, split, truth, told)
            print(f"  fair, weight {weight:<5g} {row} ({seconds:.0f} s)", flush=True)


def _backbone(options: argparse.Namespace, dataset: Any, split: Any, key: Key) -> P5:
    index = {"clusters": 20, "leaf_size": 50, "window": 3}
    settings = {"index.options": index, "network.layers": 1, "network.dropout": 0.0, "training.epochs": 4,
                "training.max_minutes": options.minutes}  # fmt: skip
    if options.model is not None:
        settings = json.loads((options.model / "card.json").read_text())["settings"]
    recommender = P5(**nested(settings))
    recommender.bind_dataset(dataset)
    if options.model is not None:
        recommender.load(options.model)
        return recommender
    started = time.process_time()
    recommender.fit(split.train, key=key)
    targets = recommender.progress.samples
    print(f"backbone: {targets:,} targets in {time.process_time() - started:.0f} s", flush=True)
    return recommender


def _accuracy(recommender: Any, split: Any) -> str:
    metrics = rank_metrics(ranks(recommender, split))
    low, high = bootstrap_interval(metrics["hr@10"])
    return f"HR@10 {metrics['hr@10'].mean():.4f} [{low:.4f}, {high:.4f}], NDCG@10 {metrics['ndcg@10'].mean():.4f}"


def _row(recommender: P5, dataset: Any, split: Any, truth: Any, told: Any) -> str:
    users = np.arange(dataset.n_users)
    states, lists = recommender.user_states(users), _list_features(recommender, dataset, split)
    groups = (("all", states, truth), ("untold", states[~told], truth[~told]), ("lists", lists, truth))
    parts = [f"{name} {_attack(features, known)}" for name, features, known in groups]
    return f"AUC {', '.join(parts)}; {_accuracy(recommender, split)}"


def _attack(features: Any, truth: Any) -> str:
    parts = attacker_parts(features, truth, np.random.default_rng(0))
    low, high = bootstrap_interval(parts)
    return f"{parts.mean():.3f} [{low:.3f}, {high:.3f}]"


def _list_features(recommender: Any, dataset: Any, split: Any) -> Any:
    """Shares of the genres in each user's top 10 and its mean popularity, (n_users, n_genres + 1)."""
    users = np.arange(dataset.n_users)
    candidates = Candidates.of(split.train.n_items, out=seen_mask(split.train, users))
    slates = recommender.recommend(users, 10, candidates).item_ids
    popularity = midrank_percentile(split.train.item_counts())[slates].mean(axis=1)
    return np.column_stack([dataset.catalog.genres[slates].mean(axis=1), popularity])


def _history_features(dataset: Any, split: Any) -> Any:
    """`_list_features` of what each user consumed in training, (n_users, n_genres + 1)."""
    log, n_users = split.train, dataset.n_users
    popularity = midrank_percentile(log.item_counts())
    features = np.column_stack([dataset.catalog.genres, popularity])[log.items]
    sums = np.stack([np.bincount(log.users, column, minlength=n_users) for column in features.T], axis=1)
    return sums / np.maximum(log.user_counts(), 1)[:, None]


if __name__ == "__main__":
    main()
