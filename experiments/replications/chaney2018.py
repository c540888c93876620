"""Chaney, Stewart and Engelhardt 2018, "How algorithmic confounding in recommendation systems increases homogeneity and
decreases utility": a recommender trained on confounded data makes users more alike than ideal recommendations do.

Set-up of the paper as Lucherini et al. 2021 ("T-RECS") read it: 100 users, 10 new items a step for 100 steps, choice =
argmax(known utility * rank^-.8), no repetition. Repeated training: 10 steps of start-up, then 90 with training after
each (the run directory itself). Single training: trained once, after 50 steps (`single/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.choice.classics import RankDiscountedChoice
from experiments.replications.targets import Target, above, below, interval, reported, within, write_targets
from experiments.running import course
from experiments.running.course import Run
from experiments.running.design import Design, Spec
from simenv.datasets.base import Catalog, Dataset, Head, Interactions, Tastes
from simenv.errors import ConfigError
from simenv.numeric import DoubleArray
from simenv.randomness import Key

PUBLISHED = {  # T-RECS figures at t = 99, +-.01
    "loop": {"popularity": 0.22, "attribute-profile": 0.145, "social": 0.093, "als": 0.085, "random": 0.015},
    "frozen": {"popularity": 0.045, "attribute-profile": 0.02, "social": 0.0, "als": 0.0, "random": 0.0},
}
TRAINED = ("popularity", "attribute-profile", "social", "als")
LABELS = {"attribute-profile": "content", "als": "MF"}
IDEAL = "ideal"
PARTS = {"loop": "", "frozen": "single"}
CURVE_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Settings(course.Settings):
    """The paper's world and arms, and when the single training takes place."""

    single_startup: int

    def designs(self) -> dict[str, Design]:
        """The two designs, by sub-folder: repeated training and single training, over the same users and items."""
        base, single = self.design, self.single_startup
        if not isinstance(base.dataset, Mapping) or base.dataset.get("_target_") != f"{__name__}.world":
            raise ConfigError("chaney2018: expected dataset=chaney2018, the world of the paper")
        arms = list(dict.fromkeys(arm for arm, _ in base.arms if arm in base.recommenders))
        if IDEAL not in arms:
            raise ConfigError(f"arms={arms}: expected `{IDEAL}` among them, which all are compared with")
        start = base.dataset["startup"]
        total = start + base.rounds
        if not 1 <= start < single < total:
            raise ConfigError(
                f"single_startup={single}: expected dataset.startup={start} < single_startup < startup + rounds = "
                f"{total}"
            )
        wrapped = {
            arm: {"_target_": "recommenders.papers.NewestInterleaved", "base": base.recommenders[arm]} for arm in arms
        }
        dataset = dict(base.dataset) | {"steps": total}
        repeated = replace(base, recommenders=wrapped, arms=tuple((arm, "loop") for arm in arms), dataset=dataset)
        return {
            "": repeated,
            "single": replace(
                repeated,
                arms=tuple((arm, "frozen") for arm in arms),
                rounds=total - single,
                dataset=dataset | {"startup": single},
            ),
        }

    def recommenders(self) -> dict[str, Spec]:
        """The arms as they are configured, not as they are wrapped."""
        return self.design.used_recommenders()


def play(settings: Settings, run: Run) -> None:
    """Both training regimes."""
    run.play(settings.designs())


def world(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    steps: int = 100,
    startup: int = 10,
    n_attributes: int = 20,
    attention: float = -0.8,
    knowledge: float = 0.98,
    noise: float = 1e-5,
) -> Dataset:
    """The paper's world; its warm start are the start-up steps, in which users see the newest items in random order.

    theta_u ~ Dir(10 Dir(1)), beta_i ~ Dir(.1 Dir(100)); see `RankDiscountedChoice` for the utilities.

    Args:
        n_users: None = 100.
        n_items: None = 10 a step; released in equal parts, step by step.
        seed: of the world.
        steps: of start-up and loop together.
        startup: steps before the loop.
        n_attributes: length of theta and beta.
        attention, knowledge, noise: of the users, see `RankDiscountedChoice`.
    """
    n_users, n_items = n_users or 100, n_items or 10 * steps
    if n_items < steps or not 1 <= startup < steps:
        raise ConfigError(f"chaney2018: {n_items} items over {steps} steps, {startup} of start-up; expected one a step")
    rng = np.random.default_rng([seed, 2018])
    theta = rng.dirichlet(10 * rng.dirichlet(np.ones(n_attributes)), size=n_users)
    beta = rng.dirichlet(0.1 * rng.dirichlet(np.full(n_attributes, 100.0)), size=n_items)
    step = np.arange(n_items) * steps // n_items
    attributes = {f"attribute{k:02d}": beta[:, k].astype(np.float32) for k in range(n_attributes)}
    main = beta >= np.minimum(0.5, beta.max(axis=1, keepdims=True))
    catalog = Catalog(
        item_ids=tuple(f"i{i}" for i in range(n_items)),
        titles=tuple(f"Item {i}" for i in range(n_items)),
        genre_names=tuple(attributes),
        genres=main,
        attributes=attributes | {"release": step - startup},
    )
    zeros = np.zeros(n_users, np.float32), np.zeros(n_items, np.float32)
    head = Head(
        user_vectors=theta.astype(np.float32),
        item_vectors=beta.astype(np.float32),
        user_bias=zeros[0],
        item_bias=zeros[1],
    )
    blank = Interactions(
        users=np.zeros(1, np.int32),
        items=np.zeros(1, np.int32),
        ratings=np.full(1, np.nan, np.float32),
        times=np.zeros(1, np.int64),
        n_users=n_users,
        n_items=n_items,
    )
    dataset = Dataset(
        name="chaney2018",
        catalog=catalog,
        interactions=blank,
        user_ids=tuple(f"u{u}" for u in range(n_users)),
        tastes=Tastes(choice=head, rating=head, rating_noise=1.0, kind="true"),
    )
    users = RankDiscountedChoice(attention=attention, knowledge=knowledge, noise=noise)
    assert dataset.tastes is not None
    users.bind(dataset, dataset.tastes, seed=seed)
    return replace(dataset, interactions=_startup(users, step, startup, rng))


def _startup(
    users: RankDiscountedChoice, step: NDArray[np.int64], startup: int, rng: np.random.Generator
) -> Interactions:
    """Each user's choice among the items of each start-up step, in an order of the user's own."""
    n_users, n_items = users.table.shape
    chosen = []
    for t in range(startup):
        items = np.flatnonzero(step == t)
        order = rng.permuted(np.tile(items, (n_users, 1)), axis=1)
        known = np.take_along_axis(users.known, order, axis=1)
        ranks = np.arange(1, len(items) + 1, dtype=np.float64)
        best = np.argmax(known * ranks**users.attention, axis=1)
        chosen.append(order[np.arange(n_users), best])
    return Interactions(
        users=np.tile(np.arange(n_users, dtype=np.int32), startup),
        items=np.concatenate(chosen).astype(np.int32),
        ratings=np.full(n_users * startup, np.nan, np.float32),
        times=np.repeat(np.arange(startup, dtype=np.int64), n_users),
        n_users=n_users,
        n_items=n_items,
    )


# -- scoring ------------------------------------------------------------------------------------------------------


def score(settings: Settings, run: Run) -> None:
    """The paper's findings against ours; also writes `tables/homogeneity.csv`, the curves of the figure."""
    found: dict[str, dict[str, DoubleArray]] = {}
    worth: dict[str, dict[str, DoubleArray]] = {}
    rows: list[dict[str, Any]] = []
    for mode, design in zip(("loop", "frozen"), settings.designs().values()):
        curves, worth[mode] = _curves(run.path / PARTS[mode], design, mode)
        found[mode] = {arm: values[:, -1] for arm, values in curves.items()}
        start = _startup_of(design)
        for arm, values in curves.items():
            for place, at in enumerate(_evaluated(design)):
                ours = interval(values[:, place])
                row = {"training": "repeated" if mode == "loop" else "single", "arm": arm, "step": start + at}
                rows.append(row | {"value": ours.estimate, "ci_low": ours.low, "ci_high": ours.high})
    run.table("homogeneity", rows)
    write_targets(run, _targets(found, worth))


def _targets(
    found: Mapping[str, Mapping[str, DoubleArray]], worth: Mapping[str, Mapping[str, DoubleArray]]
) -> list[Target]:
    targets = []
    repeated = found["loop"]
    trained = [arm for arm in TRAINED if arm in repeated]
    for mode, word in (("loop", "repeated"), ("frozen", "single")):
        for arm, values in found[mode].items():
            target = f"homogenisation relative to ideal, {word} training (T-RECS figure)"
            targets.append(
                reported(f"jaccard:{_label(arm)}:{word}", target, values, published=PUBLISHED[mode].get(arm))
            )
    if "popularity" in repeated and len(repeated) > 1:
        rest = np.max([values for arm, values in repeated.items() if arm != "popularity"], axis=0)
        targets.append(above("popularity-highest", "popularity homogenises most: > 0", repeated["popularity"] - rest))
    if "random" in repeated:
        targets.append(within("random-near-ideal", "random within .06 of ideal", repeated["random"], bound=0.06))
    targets += [
        above(f"homogenises:{_label(arm)}", "trained repeatedly, more alike than under ideal: > 0", repeated[arm])
        for arm in trained
    ]
    targets += [
        above(
            f"repeated-over-single:{_label(arm)}",
            "repeated training homogenises more than single training: > 0",
            repeated[arm] - found["frozen"][arm],
        )
        for arm in trained
    ]
    targets += [
        below(f"utility:{_label(arm)}:{word}", "nobody beats the ideal's utility: < 0", values)
        for mode, word in (("loop", "repeated"), ("frozen", "single"))
        for arm, values in worth[mode].items()
    ]
    return targets


def _label(arm: str) -> str:
    return LABELS.get(arm, arm)


def _startup_of(design: Design) -> int:
    return int(design.dataset["startup"])


def _evaluated(design: Design) -> list[int]:
    """Rounds after which pairs are compared: every tenth, and the last."""
    return sorted({*range(CURVE_EVERY - 1, design.rounds, CURVE_EVERY), design.rounds - 1})


def _curves(folder: Path, design: Design, mode: str) -> tuple[dict[str, DoubleArray], dict[str, DoubleArray]]:
    """By arm, minus the ideal's: mean Jaccard of nearest pairs (seeds, evaluated rounds), and utility (seeds,)."""
    arms = [arm for arm, _ in design.arms if arm != IDEAL]
    at = _evaluated(design)
    alike = {arm: np.empty((design.n_seeds, len(at))) for arm in arms}
    worth = {arm: np.empty(design.n_seeds) for arm in arms}
    for row, seed in enumerate(design.seeds):
        dataset = design.make_world(seed).dataset
        ideal, ideal_worth = _consumed(folder, dataset, seed, IDEAL, mode)
        for arm in arms:
            ours, own_worth = _consumed(folder, dataset, seed, arm, mode)
            worth[arm][row] = own_worth - ideal_worth
            recommender = design.make_recommender(arm)
            recommender.bind_dataset(dataset)
            for column, t in enumerate(at):
                known = dataset.interactions
                if mode == "loop":
                    known = known.concat(_as_log(dataset, ours[:t]))
                recommender.fit(known, key=Key(seed, t if mode == "loop" else 0))
                partner = nearest(recommender.base, np.random.default_rng([seed, t]))
                mine, theirs = (_sets(dataset, consumed[: t + 1]) for consumed in (ours, ideal))
                alike[arm][row, column] = _jaccard(mine, partner) - _jaccard(theirs, partner)
    return alike, worth


def _consumed(folder: Path, dataset: Dataset, seed: int, arm: str, mode: str) -> tuple[NDArray[np.int32], float]:
    """The item each user took in each round, (rounds, n_users), and the mean true utility of all of them."""
    from simenv.events import read_events

    events = read_events(folder, seed=seed, arm=arm, mode=mode)
    taken = events.take(np.flatnonzero(events.clicked))
    items = np.full((int(events.round.max()) + 1, dataset.n_users), -1, np.int32)
    items[taken.round, taken.user] = taken.item
    return items, float(np.mean(taken.true_utility, dtype=np.float64))


def _as_log(dataset: Dataset, items: NDArray[np.int32]) -> Interactions:
    rounds, users = np.nonzero(items >= 0)
    return Interactions(
        users=users.astype(np.int32),
        items=items[rounds, users],
        ratings=np.full(len(users), np.nan, np.float32),
        times=rounds.astype(np.int64) + int(dataset.interactions.times.max()) + 1,
        n_users=dataset.n_users,
        n_items=dataset.n_items,
    )


def _sets(dataset: Dataset, items: NDArray[np.int32]) -> NDArray[np.bool_]:
    """What each user consumed, start-up included, (n_users, n_items)."""
    had = np.zeros((dataset.n_users, dataset.n_items), np.bool_)
    had[dataset.interactions.users, dataset.interactions.items] = True
    rounds, users = np.nonzero(items >= 0)
    had[users, items[rounds, users]] = True
    return had


def _jaccard(had: NDArray[np.bool_], partner: NDArray[np.int64]) -> float:
    """Mean Jaccard similarity of every user and the partner."""
    both = (had & had[partner]).sum(axis=1)
    return float(np.mean(both / (had | had[partner]).sum(axis=1)))


def nearest(recommender: Any, rng: np.random.Generator) -> NDArray[np.int64]:
    """Each user's most similar other user in the recommender's own eyes (cosine), ties at random, (n_users,)."""
    from recommenders.factors import FactorRecommender
    from recommenders.papers import AttributeProfile, SocialFiltering

    if isinstance(recommender, AttributeProfile):
        vectors = recommender.profiles()
    elif isinstance(recommender, SocialFiltering):
        vectors = recommender.network.astype(np.float64)
    elif isinstance(recommender, FactorRecommender):
        vectors = recommender.user_factors.astype(np.float64)
    else:  # sees no difference between users
        vectors = np.ones((recommender.n_users, 1))
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1.0)
    similarity = np.round(unit @ unit.T, 9)
    np.fill_diagonal(similarity, -np.inf)
    best = similarity == similarity.max(axis=1, keepdims=True)
    return np.argmax(best * rng.random(similarity.shape), axis=1)


# -- figure -------------------------------------------------------------------------------------------------------


def plot(settings: Settings, run: Run) -> None:
    """The curves, the published end points."""
    import polars as pl

    from simenv.figures.style import LABEL, arm_styles, key_line, legend_below, new_figure, round_axis, sort_arms

    table = run.read_table("homogeneity")
    arms = sort_arms(table["arm"].unique().to_list())
    styles = arm_styles(arms)
    figure, grid = new_figure(1, 2, (11.0, 4.6), sharey=True)
    for panel, (mode, training) in zip(grid[0], (("loop", "repeated"), ("frozen", "single"))):
        for arm in arms:
            rows = table.filter((pl.col("arm") == arm) & (pl.col("training") == training)).sort("step")
            steps, style = rows["step"].to_numpy(), styles[arm]
            panel.plot(steps, rows["value"], color=style.color, marker=style.marker, linewidth=2)
            low, high = (rows[side].cast(pl.Float64).to_numpy() for side in ("ci_low", "ci_high"))
            panel.fill_between(steps, low, high, color=style.color, alpha=0.18, linewidth=0)
            if arm in PUBLISHED[mode]:
                panel.plot(steps[-1] * 1.03, PUBLISHED[mode][arm], "_", color=style.color, markersize=18, clip_on=False)
        panel.axhline(0.0, color="0.3", linewidth=1)
        panel.set_title(f"{training} training", fontsize=LABEL + 1, loc="left")
        panel.set_xlabel("step", fontsize=LABEL)
        round_axis(panel, np.array([0, int(table["step"].max())]))  # type: ignore[arg-type]
    grid[0, 0].set_ylabel("Jaccard of nearest users minus ideal's", fontsize=LABEL)
    legend_below(figure, [key_line(_label(arm), color=styles[arm].color, marker=styles[arm].marker) for arm in arms])
    run.figure(
        "replication",
        figure,
        title="Chaney et al. 2018: users become more alike than under ideal recommendations",
        caption=(
            "Mean Jaccard similarity of what each user and the user most similar in the recommender's eyes consumed, "
            "minus that of the same pairs under ideal recommendations; bands are 95 % intervals over seeds. Short bars "
            "at the right: the figures of Lucherini et al. 2021 at the last step."
        ),
    )
