"""The realism suite: each test turns real choices and a model's opinions of the same pages into rows of a table.

What a model chooses on a page is as many items as the user really chose, those it likes best; so no level has to be
assumed. Intervals are percentile intervals of a bootstrap over users. The module does not know how opinions come about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.population.traits import Traits, normalised_entropy
from experiments.realism.opinions import GivenRatings, base_rate_weights
from experiments.realism.pages import Pages
from simenv.conclusions.statistics import tost_p
from simenv.datasets.base import Dataset, RatingScale
from simenv.metrics.reference import genre_weights, midrank_percentile
from simenv.numeric import DoubleArray, group_auc

Statistic = Callable[[DoubleArray], DoubleArray]  # weights of users, (R, B), to values, (R,)
SLOT_MARGIN = 5.0  # points of interest (of 100) between first and last slot that count as no difference
REAL = "real"
BEST = "auc - auc of the best baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of tables/realism.csv."""

    test: str
    setting: str
    model: str
    metric: str
    value: float
    ci_low: float = float("nan")
    ci_high: float = float("nan")


class UserBootstrap:
    """Intervals over users for any statistic that can be written with a weight for each user.

    Args:
        n_users: B.
        seed: of the resamples.
        resamples: R.
        n_seeds: S. Where there are several, weights are for the users of each seed in turn, (S * B,), and users and
            seeds are both resampled, crossed (Owen 2007, "The pigeonhole bootstrap").
    """

    def __init__(self, n_users: int, seed: int = 0, resamples: int = 1000, n_seeds: int = 1) -> None:
        rng = np.random.default_rng([seed, 0xB007])
        self.weights = rng.multinomial(n_users, np.full(n_users, 1 / n_users), size=resamples).astype(np.float64)
        if n_seeds > 1:
            of_seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples)
            self.weights = (of_seeds[:, :, None] * self.weights[:, None, :]).reshape(resamples, -1)

    def row(self, test: str, setting: str, model: str, metric: str, statistic: Statistic) -> Row:
        """The statistic with its 95 % interval."""
        value = float(statistic(np.ones((1, self.weights.shape[1])))[0])
        values = statistic(self.weights)
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
        return Row(
            test=test, setting=setting, model=model, metric=metric, value=value, ci_low=float(low), ci_high=float(high)
        )


def mean(values: DoubleArray) -> Statistic:
    """Mean over users; users with NaN are left out."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0), known.astype(np.float64))


def ratio(numerator: DoubleArray, denominator: DoubleArray) -> Statistic:
    """Sum over sum, from each user's (B,) share of both."""
    return lambda weights: _divided(weights @ numerator, weights @ denominator)


def _divided(a: DoubleArray, b: DoubleArray) -> DoubleArray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)


# -- choosing ---------------------------------------------------------------------------------------------------------


def page_auc(pages: Pages, scores: DoubleArray) -> DoubleArray:
    """AUC of each page's real choices against the other items, (B,); ties count one half, NaN where unscored."""
    rows, _ = np.nonzero(pages.filled)
    auc = group_auc(rows, scores[pages.filled], pages.chosen[pages.filled], len(scores))
    return np.where((np.isnan(scores) & pages.filled).any(axis=1), np.nan, auc)


def choices(pages: Pages, scores: DoubleArray) -> NDArray[np.bool_]:
    """As many items of each page as the user really chose, those of highest score, (B, K).

    Ties go by the place on the page, which is random.
    """
    keys = np.where(pages.filled, -np.nan_to_num(scores, nan=-np.inf), np.inf)
    order = np.argsort(keys, axis=1, kind="stable")
    rank = np.empty(order.shape, np.int64)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    return np.asarray((rank < pages.chosen.sum(axis=1)[:, None]) & pages.filled)


def discrimination(
    pages: Pages, scores: Mapping[str, DoubleArray], boot: UserBootstrap, *, setting: str | None = None
) -> list[Row]:
    """AUC, F1 and accuracy of every model's choices, and of saying yes to everything."""
    test, setting = "discrimination", setting or pages.setting
    n = pages.chosen.sum(axis=1).astype(np.float64)
    size = pages.filled.sum(axis=1)
    rows = []
    for name, score in scores.items():
        auc = page_auc(pages, score)
        right = np.where(np.isnan(auc), np.nan, (choices(pages, score) & pages.chosen).sum(axis=1))
        rows += [
            boot.row(test, setting, name, "auc", mean(auc)),
            boot.row(test, setting, name, "f1", mean(right / n)),
            boot.row(test, setting, name, "accuracy", mean(1 - 2 * (n - right) / size)),
        ]
    always = {"auc": np.full(len(n), 0.5), "f1": 2 * n / (n + size), "accuracy": n / size}
    return rows + [boot.row(test, setting, "always-yes", metric, mean(value)) for metric, value in always.items()]


def differences(
    pages: Pages, scores: Mapping[str, DoubleArray], name: str, others: Sequence[str], boot: UserBootstrap
) -> list[Row]:
    """AUC of one model minus that of others, and minus that of whichever is the best, on the same pages.

    Which is best is asked anew in every resample, so that the choice is part of the interval.
    """
    aucs = {each: page_auc(pages, scores[each]) for each in (name, *others)}
    unknown = np.isnan(aucs[name])
    means = {each: mean(np.where(unknown, np.nan, auc)) for each, auc in aucs.items()}

    def against(rivals: Sequence[str]) -> Statistic:
        return lambda w: means[name](w) - np.max([means[rival](w) for rival in rivals], axis=0)

    return [boot.row("verdict", pages.setting, name, BEST, against(others))] + [
        boot.row("verdict", pages.setting, name, f"auc - auc of {other}", against([other])) for other in others
    ]


def click_calibration(
    pages: Pages, probability: DoubleArray, base_rate: float, name: str, boot: UserBootstrap
) -> list[Row]:
    """Do items that would be clicked with probability p get chosen with frequency p, at this base rate.

    The expected calibration error is the mean distance over ten bins of equal mass.
    """
    usable = pages.filled & ~np.isnan(probability)
    p, y = probability[usable], pages.chosen[usable]
    weights = base_rate_weights(y, base_rate)
    order = np.argsort(p, kind="stable")
    place = np.cumsum(weights[order]) / weights.sum()
    bins = np.empty(len(p), np.int64)
    bins[order] = np.minimum((place * 10).astype(np.int64), 9)
    users = np.nonzero(usable)[0]
    table = np.zeros((3, 10, len(pages.users)))
    for part, values in zip(table, (weights, weights * p, weights * y), strict=True):
        np.add.at(part, (bins, users), values)

    def error(w: DoubleArray) -> DoubleArray:
        mass, said, was = (w @ part.T for part in table)
        return _divided(np.abs(said - was).sum(axis=1), mass.sum(axis=1))

    total = table.sum(axis=1)
    return [
        boot.row("calibration", pages.setting, name, "expected calibration error", error),
        boot.row("calibration", pages.setting, name, "mean click probability", ratio(total[1], total[0])),
        boot.row("calibration", pages.setting, name, "choice rate at the base rate", ratio(total[2], total[0])),
    ]


# -- rating -----------------------------------------------------------------------------------------------------------


def rating_rows(pages: Pages, ratings: Mapping[str, DoubleArray], setting: str, boot: UserBootstrap) -> list[Row]:
    """RMSE and MAE of every model's expected ratings of what users really chose and rated."""
    rows = []
    for name, expected in ratings.items():
        rated = pages.chosen & ~np.isnan(pages.ratings) & ~np.isnan(expected)
        miss = np.where(rated, expected - pages.ratings, 0.0)
        n = rated.sum(axis=1).astype(np.float64)
        mse, mae = ratio(np.square(miss).sum(axis=1), n), ratio(np.abs(miss).sum(axis=1), n)
        rows.append(boot.row("ratings", setting, name, "rmse", _root(mse)))
        rows.append(boot.row("ratings", setting, name, "mae", mae))
    return rows


def rating_gain(pages: Pages, ours: DoubleArray, other: DoubleArray, name: str, boot: UserBootstrap) -> Row:
    """RMSE of the other minus ours, on the same ratings."""
    rated = pages.chosen & ~np.isnan(pages.ratings) & ~np.isnan(ours) & ~np.isnan(other)
    n = rated.sum(axis=1).astype(np.float64)
    squares = [np.where(rated, np.square(each - pages.ratings), 0.0).sum(axis=1) for each in (ours, other)]
    own, theirs = (_root(ratio(each, n)) for each in squares)
    return boot.row("verdict", "ratings", name, "rmse of item mean - rmse", lambda w: theirs(w) - own(w))


def _root(statistic: Statistic) -> Statistic:
    return lambda weights: np.sqrt(statistic(weights))


def rating_distribution(
    given: GivenRatings, scale: RatingScale, name: str, setting: str, n_rows: int, boot: UserBootstrap
) -> list[Row]:
    """Shares of each rating, simulated and real; their Jensen-Shannon divergence (bits) and total variation."""
    simulated, real = (_histograms(given.rows, values, scale, n_rows) for values in (given.simulated, given.real))

    def shares(weights: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
        p, q = weights @ simulated, weights @ real
        return _divided(p, p.sum(axis=1, keepdims=True) * np.ones_like(p)), _divided(
            q, q.sum(axis=1, keepdims=True) * np.ones_like(q)
        )

    def jsd(weights: DoubleArray) -> DoubleArray:
        p, q = shares(weights)
        return _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2

    def variation(weights: DoubleArray) -> DoubleArray:
        p, q = shares(weights)
        return np.abs(p - q).sum(axis=1) / 2

    rows = [
        boot.row("ratings", setting, name, "jsd", jsd),
        boot.row("ratings", setting, name, "total variation", variation),
    ]
    for place, star in enumerate(scale.values):
        metric = f"share of {star:g}"
        for who, values in ((name, simulated), (REAL, real)):
            rows.append(boot.row("ratings", setting, who, metric, ratio(values[:, place], values.sum(axis=1))))
    return rows


def _histograms(rows: NDArray[np.int64], values: DoubleArray, scale: RatingScale, n_rows: int) -> DoubleArray:
    places = np.clip(np.rint((values - scale.low) / scale.step), 0, len(scale.values) - 1).astype(np.int64)
    found = np.zeros((n_rows, len(scale.values)))
    np.add.at(found, (rows, places), 1.0)
    return found


def _entropy(shares: DoubleArray) -> DoubleArray:
    return -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1)


# -- traits, differences between users, repetition --------------------------------------------------------------------


def choice_traits(
    pages: Pages, chosen: Mapping[str, NDArray[np.bool_]], dataset: Dataset, traits: Traits, boot: UserBootstrap
) -> list[Row]:
    """Does a trait do to choices what it does to real ones: highest minus lowest third of users, and favourite genres.

    Args:
        pages: users and candidates.
        chosen: (B, K) by who chose; `REAL` among them.
        dataset: the training part, for popularity and genres.
        traits: of all users.
        boot: over the pages' users.
    """
    popular = midrank_percentile(dataset.interactions.item_counts())[np.maximum(pages.items, 0)]
    outcomes: dict[str, dict[str, DoubleArray]] = {
        "popularity: percentile of choices": {},
        "diversity: genre entropy": {},
    }
    favourites: dict[str, DoubleArray] = {}
    for who, picked in chosen.items():
        n = picked.sum(axis=1)
        outcomes["popularity: percentile of choices"][who] = (popular * picked).sum(axis=1) / n
        outcomes["diversity: genre entropy"][who] = normalised_entropy(_profiles(pages, picked, dataset)).astype(float)
        favourites[who] = _favourites(pages, picked, dataset, traits)
    levels = {
        "popularity: percentile of choices": traits.popularity_pct,
        "diversity: genre entropy": traits.diversity_pct,
    }
    rows = []
    for name, by_who in outcomes.items():
        rows += _effects(name, by_who, levels[name][pages.users], boot)
    setting = "taste: share in favourite - in least liked genres"
    return rows + [boot.row("traits", setting, who, "mean", mean(values)) for who, values in favourites.items()]


def rating_traits(
    pages: Pages, given: GivenRatings, item_mean: Callable[..., Any], traits: Traits, name: str, boot: UserBootstrap
) -> list[Row]:
    """Do users who rate low, and conformists, rate so: third against third, on the same ratings."""
    rows, usual = [], item_mean(pages.users[given.rows], given.items)
    values = {name: given.simulated, REAL: given.real}
    stars = {who: _by_row(given.rows, v, len(pages.users)) for who, v in values.items()}
    apart = {who: _by_row(given.rows, np.square(v - usual), len(pages.users)) for who, v in values.items()}
    rows += _effects("rating mean: mean rating", stars, midrank_percentile(traits.rating_mean)[pages.users], boot)
    setting = "conformity: squared distance to the item mean"
    return rows + _effects(setting, apart, traits.conformity_pct[pages.users], boot)


def _effects(setting: str, by_who: Mapping[str, DoubleArray], level: NDArray[Any], boot: UserBootstrap) -> list[Row]:
    """High third minus low third for everyone, and the size of the models' effects relative to the real one."""
    groups = (level > 2 / 3, level < 1 / 3)

    def effect(values: DoubleArray) -> Statistic:
        high, low = (mean(np.where(group, values, np.nan)) for group in groups)
        return lambda weights: high(weights) - low(weights)

    rows = [boot.row("traits", setting, who, "high - low", effect(values)) for who, values in by_who.items()]
    real = effect(by_who[REAL])
    for who, values in by_who.items():
        if who != REAL:
            own = effect(values)
            size = boot.row("traits", setting, who, "relative to real", lambda w, own=own: _divided(own(w), real(w)))  # type: ignore[misc]
            rows.append(size)
    return rows


def _by_row(rows: NDArray[np.int64], values: DoubleArray, n: int) -> DoubleArray:
    counts = np.bincount(rows, minlength=n)
    sums = np.bincount(rows, weights=values, minlength=n).astype(np.float64)
    return _divided(sums, counts.astype(np.float64))


def _profiles(pages: Pages, picked: NDArray[np.bool_], dataset: Dataset) -> DoubleArray:
    """Genres of what was picked, (B, n_genres); an item of m genres counts 1/m in each."""
    genres = genre_weights(dataset.catalog.genres)
    return np.einsum("bk,bkg->bg", picked.astype(np.float64), genres[np.maximum(pages.items, 0)])


def _favourites(pages: Pages, picked: NDArray[np.bool_], dataset: Dataset, traits: Traits) -> DoubleArray:
    """Share of what was picked that has a genre the user likes most, minus least, (B,)."""
    genres = dataset.catalog.genres[np.maximum(pages.items, 0)]  # (B, K, n_genres)
    found = []
    for own in (traits.top_genres[pages.users], traits.bottom_genres[pages.users]):
        has = np.zeros(picked.shape, np.bool_)
        for column in own.T:
            one = np.take_along_axis(genres, np.maximum(column, 0)[:, None, None].astype(np.int64), axis=2)[:, :, 0]
            has |= one & (column >= 0)[:, None]
        found.append((has & picked).sum(axis=1) / picked.sum(axis=1))
    return np.asarray(found[0] - found[1])


def heterogeneity(
    pages: Pages, scores: Mapping[str, DoubleArray | None], dataset: Dataset, boot: UserBootstrap
) -> list[Row]:
    """How much further apart two users' choices are than two halves of one user's, in genres (total variation).

    Args:
        pages: split by odd and even places.
        scores: by model; None = the real choices.
        dataset: for the genres.
        boot: over the pages' users.
    """
    even = np.arange(pages.items.shape[1]) % 2 == 0
    halves = [_only(pages, side) for side in (even, ~even)]
    whole = np.logical_and.reduce([half.chosen.sum(axis=1) >= 2 for half in halves])
    rows = []
    for name, score in scores.items():
        shares = []
        for half in halves:
            picked = half.chosen if score is None else choices(half, score)
            profile = _profiles(half, picked, dataset)
            shares.append(_divided(profile, profile.sum(axis=1, keepdims=True) * np.ones_like(profile)))
        first, second = shares
        within = np.abs(first - second).sum(axis=1) / 2
        between = np.abs(first - np.roll(second, 1, axis=0)).sum(axis=1) / 2
        use = whole & np.roll(whole, 1) & ~np.isnan(within) & ~np.isnan(between)
        rows.append(
            boot.row(
                "heterogeneity",
                f"genres of choices, {pages.setting}",
                name,
                "between / within users",
                ratio(np.where(use, between, 0.0), np.where(use, within, 0.0)),
            )
        )
    return rows


def _only(pages: Pages, side: NDArray[np.bool_]) -> Pages:
    return Pages(
        setting=pages.setting,
        users=pages.users,
        items=np.where(side, pages.items, -1).astype(np.int32),
        chosen=pages.chosen & side,
        ratings=pages.ratings,
    )


def page_correlation(first: DoubleArray, second: DoubleArray) -> DoubleArray:
    """Pearson correlation of two sets of scores within each page, (B,); NaN where one does not vary."""
    known = ~np.isnan(first) & ~np.isnan(second)
    n = np.maximum(known.sum(axis=1), 1)
    a, b = (np.where(known, v - (np.where(known, v, 0.0).sum(axis=1) / n)[:, None], 0.0) for v in (first, second))
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.where(scale > 1e-12, (a * b).sum(axis=1) / np.maximum(scale, 1e-12), np.nan)


def kappa(pages: Pages, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Statistic:
    """Cohen's kappa of two occasions' yes and no, over all items of all pages."""
    filled, n = pages.filled, pages.filled.sum(axis=1).astype(np.float64)
    same = ((first == second) & filled).sum(axis=1).astype(np.float64)
    yes = [(said & filled).sum(axis=1).astype(np.float64) for said in (first, second)]

    def statistic(weights: DoubleArray) -> DoubleArray:
        total = weights @ n
        agreed, a, b = weights @ same / total, weights @ yes[0] / total, weights @ yes[1] / total
        chance = a * b + (1 - a) * (1 - b)
        return _divided(agreed - chance, 1 - chance)

    return statistic


def slot_effect(first: DoubleArray, second: DoubleArray, slots: tuple[DoubleArray, DoubleArray]) -> DoubleArray:
    """What moving from the first to the last slot does to an item's interest, per page (B,), in points.

    The slope, within a page, of the change of interest between two orders on the change of place.
    """
    moved = slots[1] - slots[0]
    change = second - first
    known = ~np.isnan(change)
    moved, change = np.where(known, moved, 0.0), np.where(known, change, 0.0)
    spread = np.square(moved).sum(axis=1)
    return _divided((moved * change).sum(axis=1), spread)


def slot_rows(effect: DoubleArray, setting: str, name: str, boot: UserBootstrap) -> list[Row]:
    """Slot-shuffle invariance: the effect of the slot, and the P of two one-sided tests within the margin."""
    known = effect[~np.isnan(effect)]
    p = tost_p(known, SLOT_MARGIN) if len(known) > 1 else float("nan")
    return [
        boot.row("slot-shuffle", setting, name, "interest, last - first slot", mean(effect)),
        Row(test="slot-shuffle", setting=setting, model=name, metric=f"tost p, margin {SLOT_MARGIN:g}", value=p),
    ]
