"""A run directory made by a small feedback process of its own, so that the report is tested without the platform.

Each seed is another world: items with genres, quality and long-tailed popularity; users with a favourite genre. Arms
score items by popularity or by a noisy estimate of what this user likes; in mode `loop` the counts they score by grow
with the clicks, in `frozen` they do not, and in `organic` they grow with unaided choices.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import rankdata, t

GENRES = ("Drama", "Comedy", "Crime", "War & Peace", "Sci-Fi", "Musical", "Western", "Noir", "Documentary")
HOSTILE = "<script>alert('title')</script> & Sons"
REFERENCES = ("random", "oracle")


class World:
    """One seed's items and users."""

    def __init__(self, seed: int, n_users: int, n_items: int) -> None:
        self.seed, self.n_users, self.n_items = seed, n_users, n_items
        rng = np.random.default_rng([seed, 1])
        self.quality = rng.beta(4, 4, n_items)
        self.genre = rng.integers(len(GENRES), size=n_items)
        self.second = rng.integers(len(GENRES), size=n_items)
        self.minority = rng.random(n_users) < 0.3
        favourite = np.where(self.minority, rng.integers(5, 9, n_users), rng.integers(0, 5, n_users))
        liking = 0.35 * (favourite[:, None] == self.genre) + 0.15 * (favourite[:, None] == self.second)
        noise = 0.08 * rng.normal(size=(n_users, n_items))
        self.utility = np.clip(0.45 * self.quality + liking + noise + 0.05, 0.02, 0.98)
        draw = 300 * np.exp(1.2 * rng.normal(size=n_items)) * (0.3 + self.quality)
        self.counts = rng.poisson(draw / draw.mean() * 0.1 * n_users).astype(float)
        self.popularity_pct = (rankdata(self.counts) - 0.5) / n_items
        by_size = np.argsort(-self.counts, kind="stable")
        covered = np.cumsum(self.counts[by_size]) / self.counts.sum()
        self.head = np.zeros(n_items, bool)
        self.head[by_size[: int(np.searchsorted(covered, 0.8)) + 1]] = True
        self.history = rng.poisson(8 + 40 * rng.random(n_users) ** 3) + 1
        self.profile_pct = np.clip(0.55 + 0.3 * rng.beta(2, 2, n_users) - 0.1 * self.minority, 0.01, 0.99)


def play(world: World, arm: str, mode: str, rounds: int, k: int) -> pl.DataFrame:
    """The impressions of one job."""
    rng = np.random.default_rng([world.seed, 2])
    n_users, n_items = world.n_users, world.n_items
    counts = world.counts.copy()
    skill = rng.normal(size=(n_users, n_items))
    parts = []
    for round_ in range(rounds):
        luck = np.random.default_rng([world.seed, 3, round_])
        jitter = luck.random((n_users, n_items))
        log_counts = np.log1p(counts)
        if arm == "random":
            score = jitter
        elif arm == "oracle":
            score = world.utility
        elif arm == "popularity":
            score = log_counts + 0 * world.utility
        elif arm == "itemknn":
            score = 0.8 * log_counts + 4 * world.utility + 0.6 * skill
        else:
            score = 0.4 * log_counts + 5 * world.utility + 0.5 * skill
        slate = np.argsort(-(score + 0.25 * jitter), axis=1, kind="stable")[:, :k]
        users = np.repeat(np.arange(n_users), k)
        items = slate.ravel()
        ranks = np.tile(np.arange(k), n_users)
        utility = world.utility[users, items]
        examined = luck.random(len(users)) < 1 / np.log2(ranks + 2)
        clicked = examined & (luck.random(len(users)) < 0.5 * utility)
        stars = np.clip(np.round(1.5 + 4 * utility + 0.6 * luck.normal(size=len(users))), 1, 5)
        best = np.sort(world.utility, axis=1)[:, -k:].mean(axis=1)
        parts.append(
            pl.DataFrame(
                {
                    "seed": np.full(len(users), world.seed),
                    "arm": [arm] * len(users),
                    "mode": [mode] * len(users),
                    "round": np.full(len(users), round_, np.int32),
                    "page": np.zeros(len(users), np.int16),
                    "user": users.astype(np.int32),
                    "item": items.astype(np.int32),
                    "rank": ranks.astype(np.int16),
                    "propensity": np.ones(len(users)),
                    "examined": examined,
                    "clicked": clicked,
                    "rating": pl.Series(np.where(clicked, stars, np.nan)).fill_nan(None),
                    "true_utility": utility.astype(np.float32),
                    "best_utility": best[users].astype(np.float32),
                    "popularity0_pct": world.popularity_pct[items].astype(np.float32),
                }
            )
        )
        if mode == "loop":
            np.add.at(counts, items[clicked], 3.0)
        elif mode == "organic":
            unaided = luck.integers(n_items, size=int(clicked.sum()))
            np.add.at(counts, unaided, 3.0)
    return pl.concat(parts)


def measure(world: World, events: pl.DataFrame) -> list[dict[str, Any]]:
    """The metrics of one job, as rows of metrics.csv."""
    seed, arm, mode = (events[name][0] for name in ("seed", "arm", "mode"))
    groups = {
        "all": np.ones(world.n_users, bool),
        "taste=minority": world.minority,
        "taste=majority": ~world.minority,
    }
    rows = []
    for (round_,), part in events.group_by("round", maintain_order=True):
        for group, members in groups.items():
            own = part.filter(pl.Series(members[part["user"].to_numpy()]))
            for metric, value in _metrics(world, own).items():
                rows.append(
                    {
                        "seed": seed,
                        "arm": arm,
                        "mode": mode,
                        "round": round_,
                        "group": group,
                        "metric": metric,
                        "value": value,
                    }
                )
    return rows


def _metrics(world: World, events: pl.DataFrame) -> dict[str, float | None]:
    items = events["item"].to_numpy()
    shown = np.bincount(items, minlength=world.n_items).astype(float)
    share = shown / shown.sum()
    ordered = np.sort(shown)
    utility, best = events["true_utility"].to_numpy(), events["best_utility"].to_numpy()
    clicked = items[events["clicked"].to_numpy()]
    genres = np.bincount(world.genre[clicked], minlength=len(GENRES)) + 0.5
    mix = genres / genres.sum()
    n = world.n_items
    return {
        "ctr": float(np.mean(events["clicked"].to_numpy())),
        "mean_rating": None if events["rating"].null_count() == len(events) else float(np.nanmean(events["rating"])),
        "true_utility": float(utility.mean()),
        "regret": float(((best - utility) / best).mean()),
        "arp_pct": float(events["popularity0_pct"].cast(pl.Float64).to_numpy().mean()),
        "tail_share": float((~world.head[items]).mean()),
        "coverage": float((shown > 0).mean()),
        "gini": float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum())),
        "jaccard": float((share**2).sum() * 8),
        "ild": float(1 - (mix**2).sum()),
        "genre_kl": float((mix * np.log(mix * len(GENRES))).sum() + 0.3),
    }


def write_run(
    folder: Path,
    *,
    arms: Iterable[str] = ("random", "popularity", "itemknn", "als", "oracle"),
    controls: Iterable[str] = ("frozen", "organic"),
    n_seeds: int = 3,
    rounds: int = 6,
    n_users: int = 40,
    n_items: int = 80,
    k: int = 5,
    claims: bool = True,
    regimes: Iterable[str] = (),
    shared_world: bool = False,
) -> Path:
    """A finished run directory at `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    items, users = [], []
    for seed in range(n_seeds):
        world = World(0 if shared_world else seed, n_users, n_items)
        world.seed = seed
        for arm in arms:
            for mode in ("loop", *(() if arm in REFERENCES else controls)):
                events = play(world, arm, mode, rounds, k)
                events.write_parquet(folder / "events" / f"seed={seed}-{arm}-{mode}.parquet")
                rows += measure(world, events)
        items.append(_items(world))
        users.append(_users(world))
    pl.DataFrame(rows).write_csv(folder / "metrics.csv")
    drop = ["seed"] if shared_world else []
    (items[0].drop(drop) if shared_world else pl.concat(items)).write_parquet(folder / "items.parquet")
    pl.concat(users).write_parquet(folder / "users.parquet")
    (folder / "config.yaml").write_text(f"seed: 0\nn_seeds: {n_seeds}\nrounds: {rounds}\nrepeat: never\n")
    (folder / "run_card.json").write_text(json.dumps(_card(n_seeds), indent=1))
    metrics = pl.DataFrame(rows)
    if claims:
        (folder / "claims.json").write_text(json.dumps(_claims(metrics, list(arms), list(controls)), indent=1))
    (folder / "tables").mkdir(exist_ok=True)
    pl.DataFrame(
        {
            "recommender": ["popularity", "als"],
            "filter_seen": [True, True],
            "metric": ["ndcg@10", "ndcg@10"],
            "value": [0.0312, 0.0711],
            "ci_low": [0.0288, 0.0667],
            "ci_high": [0.0336, 0.0755],
            "n_users": [943, 943],
        }
    ).write_csv(folder / "tables" / "leaderboard.csv")
    for regime in regimes:
        write_run(
            folder / "regimes" / regime,
            arms=arms,
            controls=controls,
            n_seeds=2,
            rounds=max(rounds - 2, 2),
            n_users=n_users,
            n_items=n_items,
            k=k,
        )
    return folder


def _items(world: World) -> pl.DataFrame:
    titles = [f"The {GENRES[g]} of {i}" for i, g in enumerate(world.genre)]
    titles[int(np.argmax(world.utility.mean(axis=0)))] = HOSTILE
    return pl.DataFrame(
        {
            "seed": np.full(world.n_items, world.seed),
            "item": np.arange(world.n_items, dtype=np.int32),
            "item_id": [f"i{i}" for i in range(world.n_items)],
            "title": titles,
            "genres": [list(dict.fromkeys((GENRES[a], GENRES[b]))) for a, b in zip(world.genre, world.second)],
            "quality": world.quality,
            "popularity0": world.counts.astype(int),
            "popularity0_pct": world.popularity_pct,
            "head": world.head,
        }
    )


def _users(world: World) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "seed": np.full(world.n_users, world.seed),
            "user": np.arange(world.n_users, dtype=np.int32),
            "user_id": [f"u{i}" for i in range(world.n_users)],
            "activity": world.history,
            "popularity": world.profile_pct,
            "taste": np.where(world.minority, "minority", "majority"),
        }
    )


def _card(n_seeds: int) -> dict[str, Any]:
    return {
        "question": "Does retraining on its own feedback make a recommender show more popular items?",
        "command": "python run.py +experiment=bias_loop n_seeds=3",
        "seeds": list(range(n_seeds)),
        "regime": "never",
        "versions": {"python": "3.11.2", "numpy": "2.4.0"},
        "git_commit": "0123456789abcdef",
        "wall_time_s": 41.3,
        "tastes": {"kind": "true", "errors": {}},
        "gates": [
            {"name": "mansoury_identity", "passed": True, "detail": "largest error 2.2e-16"},
            {"name": "loop_equals_frozen_at_round_0", "passed": True, "detail": "bit for bit"},
        ],
    }


def _claims(metrics: pl.DataFrame, arms: list[str], controls: list[str]) -> list[dict[str, Any]]:
    """Claims with estimates and t intervals measured on the fake metrics."""
    kinds = {"arp_pct": "amplification", "gini": "exposure", "true_utility": "users"}
    claims = []
    for metric, kind in kinds.items():
        for arm, control in product([arm for arm in arms if arm not in REFERENCES], controls):
            change = _change(metrics, metric, arm, "loop") - _change(metrics, metric, arm, control)
            n, mean = len(change), float(change.mean())
            half = float(t.ppf(0.975, n - 1) * change.std(ddof=1) / np.sqrt(n)) if n > 1 else None
            sure = half is not None and abs(mean) > half
            claims.append(
                {
                    "name": f"{kind}:{arm}:{metric}:{control}",
                    "arm": arm,
                    "metric": metric,
                    "control": f"{arm}/{control}",
                    "estimate": mean,
                    "ci_low": None if half is None else mean - half,
                    "ci_high": None if half is None else mean + half,
                    "p": 2.0 ** (1 - n),
                    "p_adjusted": 2.0 ** (1 - n),
                    "n_seeds": n,
                    "test": "supported" if sure else "inconclusive",
                    "verdict": ("raised" if mean > 0 else "lowered") if sure else "unclear",
                    "primary": metric == "arp_pct" and arm == "als" and control == "organic",
                    "regime": "never",
                    "sentence": f"Feedback changed {metric} of {arm} by {mean:+.3f} against {control}.",
                    "mde": 0.01,
                    "margin": 0.005 if metric == "arp_pct" else None,
                }
            )
    return claims


def _change(metrics: pl.DataFrame, metric: str, arm: str, mode: str) -> NDArray[np.float64]:
    own = metrics.filter(
        (pl.col("metric") == metric) & (pl.col("arm") == arm) & (pl.col("mode") == mode) & (pl.col("group") == "all")
    ).sort("seed", "round")
    wide = own["value"].to_numpy().reshape(own["seed"].n_unique(), -1)
    return np.asarray(wide[:, -1] - wide[:, 0])
