"""llm_ranking: language models as recommenders, offline - few given candidates in order, and stars - beside plain arms.

Every arm puts the same candidates in order: the item that the user took next and items drawn uniformly from those the
user never had, four (as Dai et al. 2023 do) and 99 (P5's direct task). There is no simulated user here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from experiments.running import course
from experiments.running.course import Row, Run
from experiments.running.design import Design, Spec
from recommenders.evaluation.offline import (
    PredictsRatings,
    bootstrap_interval,
    item_means,
    rank_metrics,
    rating_metrics,
    sampled_ranks,
    seen_mask,
    table_rows,
)
from recommenders.llm import LLMRanker
from simenv.datasets.base import Dataset
from simenv.datasets.splits import Split, leave_one_out
from simenv.errors import ConfigError
from simenv.files import read_sealed, write_sealed
from simenv.randomness import Key
from simenv.slates import SeesDataset, asks_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CUTOFFS = (1, 3, 5, 10)

# Published: Dai et al. 2023, five candidates, films (500 users of ML-1M), and Liu et al. 2023, Beauty, 1 of 100.
PUBLISHED: Sequence[Row] = (
    tuple(
        {"recommender": name, "candidates": 5, "metric": metric, "value": value, "source": "Dai et al. 2023, films"}
        for name, values in {
            "random": (0.2000, 0.4262, 0.3667),
            "popularity": (0.2240, 0.4761, 0.4103),
            "gpt-3.5-turbo, point": (0.3342, 0.5912, 0.5260),
            "gpt-3.5-turbo, pair": (0.3230, 0.5827, 0.5162),
            "gpt-3.5-turbo, list": (0.3320, 0.5785, 0.5167),
        }.items()
        for metric, value in zip(("ndcg@1", "ndcg@3", "mrr@3"), values, strict=True)
    )
    + tuple(
        {"recommender": name, "candidates": 100, "metric": metric, "value": value, "source": "Liu et al. 2023, Beauty"}
        for name, values in {
            "ChatGPT, zero-shot": (0.0217, 0.0111, 0.0652, 0.0252),
            "ChatGPT, few-shot": (0.0349, 0.0216, 0.0930, 0.0398),
            "BPR-MF": (0.1426, 0.0857, 0.2573, 0.1224),
            "P5-S (5-4)": (0.2448, 0.1673, 0.3441, 0.1993),
        }.items()
        for metric, value in zip(("hr@5", "ndcg@5", "hr@10", "ndcg@10"), values, strict=True)
    )
    + tuple(
        {"recommender": name, "candidates": None, "metric": metric, "value": value, "source": "Liu et al. 2023, Beauty"}
        for name, values in {
            "ChatGPT, zero-shot": (1.4059, 1.1861),
            "ChatGPT, few-shot": (1.0751, 0.6977),
            "MF": (1.1973, 0.9461),
            "MLP": (1.3078, 0.9597),
            "P5-S (1-6)": (1.3128, 0.8428),
            "P5-B (1-6)": (1.2843, 0.8534),
        }.items()
        for metric, value in zip(("rmse", "mae"), values, strict=True)
    )
)


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """What is put in order.

    Attributes:
        candidates: sizes of the sets of candidates, the target among them.
        judged_users: how many users are asked about, drawn by the seed; None = all who have a target.
        most_candidates: arms that ask a language model are not shown larger sets.
    """

    candidates: Sequence[int]
    judged_users: int | None
    most_candidates: int

    def __post_init__(self) -> None:
        if not self.candidates or any(not isinstance(n, int) or n < 2 for n in self.candidates):
            raise ConfigError(f"candidates={list(self.candidates)}: expected whole numbers of at least 2")
        if self.judged_users is not None and self.judged_users < 2:
            raise ConfigError(f"judged_users={self.judged_users}: expected null or at least 2")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The settings that a configuration describes; modes and references do not matter."""
        return super().of({**config, "modes": ["loop"], "references": []})

    @cached_property
    def data(self) -> tuple[Dataset, Split]:
        """The data set, and the users asked about with what each took last."""
        dataset = self.design.load_dataset(self.design.seed)
        split = leave_one_out(dataset.interactions, repeats=False)
        n = len(split.users) if self.judged_users is None else min(self.judged_users, len(split.users))
        rows = np.sort(np.random.default_rng([self.design.seed, 0x11E]).choice(len(split.users), n, replace=False))
        return dataset, replace(
            split, users=split.users[rows], targets=split.targets[rows], ratings=split.ratings[rows]
        )

    def designs(self) -> dict[str, Design]:
        """Nothing is played."""
        return {}

    def recommenders(self) -> dict[str, Spec]:
        """The arms."""
        return self.design.used_recommenders()

    def check(self) -> None:
        """Make every arm, split the data, and see that every user leaves enough to choose from."""
        self.design.check(data=False)
        dataset, split = self.data
        left = dataset.n_items - seen_mask(split.train, split.users).sum(axis=1).max()
        if max(self.candidates) > left:
            raise ConfigError(
                f"candidates={list(self.candidates)}: some user has had all but {left} of {dataset.n_items} items; "
                f"expected at most {left}"
            )


def play(settings: Settings, run: Run) -> None:
    """Judge arm after arm; what is judged stays judged, and every answer is in the cache."""
    from rich.console import Console
    from rich.progress import track

    rows, asked = list[Row](), dict[str, Any]()
    arms = [arm for arm, _ in settings.design.arms]
    for arm in track(arms, "recommenders", console=Console(stderr=True), disable=not run.progress):
        done = run.directory.checkpoint / f"{arm}.json"
        judged = read_sealed(done)
        if judged is None:
            found, accounting = _judge(settings, arm, run)
            judged = {"rows": found, "llm": accounting}
            write_sealed(done, judged)
        asked[arm] = judged["llm"]
        rows += judged["rows"]
    dataset, split = settings.data
    if any(row["metric"] == "rmse" for row in rows):
        rows += _stars("item mean", item_means(split.train)[split.targets], split, Key(settings.design.seed))
    empty = {"ci_low": None, "ci_high": None, "n_users": None}
    run.table("llm_ranking", [{**row, "source": "measured"} for row in rows] + [{**empty, **row} for row in PUBLISHED])
    run.card(
        dataset=dataset.name,
        judged_users=len(split.users),
        seeds=list(settings.design.seeds),
        recommender_llm={arm: each for arm, each in asked.items() if each},
    )


def _judge(settings: Settings, arm: str, run: Run) -> tuple[list[Row], Any]:
    """One arm's rows, and what its language model was asked; it learns from the training interactions alone."""
    dataset, split = settings.data
    key = Key(settings.design.seed)
    recommender = settings.design.with_run_files(run.path).make_recommender(arm)
    if isinstance(recommender, SeesDataset):
        recommender.bind_dataset(dataset.replace_interactions(split.train))
    recommender.fit(split.train, key=key)
    asks = asks_model(recommender)
    rows: list[Row] = []
    for n in settings.candidates:
        if asks and n > settings.most_candidates:
            continue
        places = sampled_ranks(recommender, split, n_negatives=n - 1, k=n, key=key)
        for metric, values in rank_metrics(places, [k for k in CUTOFFS if k < n]).items():
            rows.append(_row(arm, n, metric, values, key))
        rows.append(_row(arm, n, "auc", 1 - np.minimum(places, n - 1) / (n - 1), key))
    if not np.isnan(split.ratings).all():
        if isinstance(recommender, LLMRanker) and recommender.form == "point":
            rows += _stars(arm, _stars_told(recommender, dataset, split, key), split, key)
        elif isinstance(recommender, PredictsRatings):
            rows += _stars(arm, recommender.predict_ratings(split.users, split.targets), split, key)
    accounting = recommender.accounting if asks_model(recommender) else None
    if accounting is not None:
        total = accounting["total"]
        usable = 1 - total["fallbacks"] / max(1, total["pages"])
        rows.append({"recommender": arm, "candidates": None, "metric": "compliance", "value": usable})
        rows[-1] = {**rows[-1], "ci_low": None, "ci_high": None, "n_users": len(split.users)}
    return rows, accounting


def _row(arm: str, candidates: int | None, metric: str, values: Any, key: Key) -> Row:
    low, high = bootstrap_interval(values, key=key)
    return {
        "recommender": arm,
        "candidates": candidates,
        "metric": metric,
        "value": float(np.mean(values)),
        "ci_low": low,
        "ci_high": high,
        "n_users": len(values),
    }


def _stars_told(ranker: LLMRanker, dataset: Dataset, split: Split, key: Key) -> NDArray[np.float64]:
    """The stars that the model gives to what each user took last, on the data's scale; the mean of all where none."""
    scale = dataset.rating_scale
    stars = ranker.judge(split.users, split.targets[:, None].astype(np.int32), key)[:, 0]
    told = scale.low + (stars - 1) / 4 * (scale.high - scale.low)
    mean = split.train.ratings[~np.isnan(split.train.ratings)].astype(np.float64).mean()
    return np.where(np.isnan(told), mean, told)


def _stars(name: str, predicted: NDArray[Any], split: Split, key: Key) -> list[Row]:
    """RMSE and MAE of predicted stars of what each user took last."""
    kept = ("recommender", "metric", "value", "ci_low", "ci_high", "n_users")
    found = table_rows(name, [rating_metrics(predicted, split.ratings)], True, key)
    return [{"candidates": None, **{column: row[column] for column in kept}} for row in found]


def score(settings: Settings, run: Run) -> None:
    """No claims: the table says it."""


def plot(settings: Settings, run: Run) -> None:
    """NDCG of each arm and published row, a panel for each number of candidates."""
    run.figure(
        "llm_ranking",
        plot_ranking(run.read_table("llm_ranking").to_dicts()),
        title="Who finds the item that was taken next among given candidates",
        caption="NDCG with 95 % bootstrap intervals over users; crosses are published rows, of other data and other "
        "users, and not to be compared with ours in their last digits. Chance is the dashed line.",
    )


def plot_ranking(rows: Sequence[Row]) -> Figure:
    """NDCG@1 for up to 10 candidates, NDCG@10 above that, by arm."""
    from simenv.figures.style import arm_styles, small_multiples

    sizes = sorted({row["candidates"] for row in rows if row["candidates"] and row["source"] == "measured"})
    panels = {n: "ndcg@1" if n <= 10 else "ndcg@10" for n in sizes}
    ours = list(dict.fromkeys(row["recommender"] for row in rows if row["source"] == "measured"))
    styles = arm_styles(ours)
    tallest = max(len({row["recommender"] for row in rows if row["candidates"] == n}) for n in sizes)
    figure, axes = small_multiples(len(sizes), height=1.5 + 0.35 * tallest, columns=1, share=False)
    for (n, metric), panel in zip(panels.items(), axes, strict=True):
        chosen = [row for row in rows if row["candidates"] == n and row["metric"] == metric]
        chosen.sort(key=lambda row: (row["source"] == "measured", row["value"]))
        for place, row in enumerate(chosen):
            if row["source"] != "measured":
                panel.plot([row["value"]], [place], "x", color="#888888")
                continue
            style = styles[row["recommender"]]
            panel.plot([row["ci_low"], row["ci_high"]], [place, place], color=style.color, linewidth=2)
            panel.plot([row["value"]], [place], color=style.color, marker=style.marker)
        cutoff = int(metric.partition("@")[2])
        panel.axvline(float(np.sum(1 / np.log2(np.arange(min(cutoff, n)) + 2))) / n, color="#888888", linestyle="--")
        names = [
            row["recommender"] if row["source"] == "measured" else f"{row['recommender']} (published)" for row in chosen
        ]
        panel.set_yticks(range(len(chosen)), names)
        panel.set_xlabel(f"{metric}, 1 of {n}")
    return figure
