"""A world made from a seed: items, users with known tastes, and the warm start these users produced.

Structure. An item is a mixture of genres and six aspects of style, and has a quality. A user has a taste for each of
these; quality and taste make the logit of choosing an item once it is examined. What gets examined is another matter:
each item has an exposure (shelf space, advertising, hype) that is only partly deserved. The warm start is a race:
user u reaches item i after Exp(1) / (exposure_i * utility_ui) and consumes the first n_u items reached, which is
Gumbel top-n sampling over log exposure + log utility (Efraimidis and Spirakis 2006; Kool, van Hoof and Welling 2019).
In a large catalogue the same race is run by thinning: items are come across at the rate of their exposure, and one is
consumed with the chance of its utility, so that a user costs what it comes across and not the catalogue.
Exposure is solved for so that item counts have the long tail of MovieLens-100K (`marginals.ML_100K`); activity and
ratings are calibrated to the same source. docs/datasets.md shows the fit.

The module does not know how slates are shown or clicked: position, conformity and fatigue belong to the user models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gamma
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simenv.checks import number, share, whole
from simenv.datasets import wording
from simenv.datasets.base import Catalog, Dataset, FloatArray, Head, Interactions, LongArray, Tastes
from simenv.datasets.friends import small_world
from simenv.datasets.marginals import ML_100K, quantile_function
from simenv.numeric import sigmoid

N_USERS, N_ITEMS = 500, 1000
MEAN_UTILITY = 0.07  # mean P(chosen | examined) over users and catalogue

_N_GENRES, _N_STYLE = len(wording.GENRES), len(wording.ASPECTS)
_NICHE = np.arange(_N_GENRES) >= _N_GENRES - wording.N_NICHE
_GENRES_PER_ITEM = (0.45, 0.38, 0.17)
_NICHE_ITEMS = 0.25  # share of items whose main genre is a niche one

# Standard deviations in the logit of choice; the total of about 1.4 puts a user's best items at .3 to .7.
_QUALITY_SD, _GENRE_SD, _STYLE_SD, _APPETITE_SD = 0.70, 0.90, 0.30, 0.25
_MAINSTREAM_SD = 0.35  # how the majority's liking differs between mainstream genres
_NICHE_LIKING = {"majority": (0.2, -1.0), "minority": (-0.6, 1.0)}  # (mainstream, niche) mean liking

_MERIT = 0.6  # copula correlation of an item's popularity with the log of its mean utility
_CALIBRATION_CELLS, _CALIBRATION_STEPS = 400_000, 12
_BLOCK_CELLS = 2_000_000
_MANY_ITEMS = 50_000  # above it a race is thinned, and the level of choice is solved on so many items
_FEW_TURNS = 50  # consumed items of a user times this are at most the catalogue where the race is thinned
_THINNED_USERS = 256  # whose draws are made together

# Rating scale: latent rating before rounding to 1..5, tuned to the marginals of ML-100K (benchmarks/synthetic_fit.py).
_LATENT_MEAN, _RATING_NOISE = 3.57, 0.90
_USER_RATING_SD, _ITEM_RATING_SD, _ITEM_RATING_OWN_SD = 0.45, 0.80, 0.08
_GENRE_IN_RATING, _STYLE_IN_RATING = 0.07, 0.32  # taste decides choice mostly by genre, ratings mostly by style

_START, _JOINING_SPAN, _MEAN_GAP = 1_600_000_000, 200 * 86_400, 86_400  # seconds
_BLOCK_STREAM, _FRIENDS_STREAM, _USERS_STREAM = 1, 2, 3


@dataclass(frozen=True, slots=True)
class _World:
    """What generates the warm start."""

    choice: Head
    rating: Head
    log_exposure: FloatArray  # (n_items,)
    activity: LongArray  # (n_users,)
    levels: tuple[np.float32, np.float32]  # of the choice head and of the rating head, added to every user's bias


def synthetic(
    *,
    n_users: int | None = None,
    n_items: int | None = None,
    seed: int = 0,
    minority_share: float = 0.2,
    mean_activity: float | None = None,
    popularity_strength: float = 1.0,
    taste_strength: float = 1.0,
    mean_degree: float = 0.0,
    rewiring: float = 0.1,
    homophily: float = 0.5,
) -> Dataset:
    """A synthetic world with known tastes.

    `Dataset.tastes` is the truth the warm start was made from; `user_attributes["taste"]` is ``majority`` or
    ``minority``, a group that favours genres the majority seldom chooses; `catalog.quality` is known and standardised.

    Args:
        n_users: users; None = 500.
        n_items: items; None = 1,000.
        seed: the world. The same arguments give the same world.
        minority_share: share of users in the minority, in [0, 1).
        mean_activity: mean warm-start interactions per user, in [1, n_items / 2]. None = the 106 of MovieLens-100K
            times n_items / 1,682 where the catalogue is smaller, but not below 10 or a quarter of the catalogue.
        popularity_strength: exponent on the popularity curve: 0 = equal, 1 = as in MovieLens-100K; at most 2.
        taste_strength: factor on what users like differently: 0 = all users agree, 1 = the default; at most 3.
        mean_degree: friends of a user on average, in a small world of its own draws (`simenv.datasets.friends`); 0 =
            nobody knows anybody, `Dataset.friends` is None. The rest of the world does not depend on it.
        rewiring: share of friendships thrown anywhere, in [0, 1].
        homophily: how far friends are chosen by taste, in [0, 1]; 0 = not at all.

    Raises:
        ConfigError: an option out of its range.
    """
    n_users, n_items = N_USERS if n_users is None else n_users, N_ITEMS if n_items is None else n_items
    whole("synthetic: n_users", n_users, 1)
    whole("synthetic: n_items", n_items, 2)
    mean_activity = _default_activity(n_items) if mean_activity is None else float(mean_activity)
    number("synthetic: mean_activity", mean_activity, 1, n_items / 2)
    share("synthetic: minority_share", minority_share, open_high=True)
    number("synthetic: popularity_strength", popularity_strength, 0, 2)
    number("synthetic: taste_strength", taste_strength, 0, 3)
    number("synthetic: mean_degree", mean_degree, 0, max(0, n_users - 2))
    share("synthetic: rewiring", rewiring)
    share("synthetic: homophily", homophily)

    rng = np.random.default_rng([seed & (2**64 - 1), 0])
    catalog, item_vectors = _make_items(n_items, rng)
    minority = rng.permutation(n_users) < round(minority_share * n_users)
    user_vectors = _make_tastes(minority, _make_profiles(rng), rng) * np.float32(taste_strength)
    activity = _make_activity(n_users, n_items, mean_activity, rng)
    world = _calibrated(catalog, item_vectors, user_vectors, activity, popularity_strength, rng)
    friends = None
    if mean_degree > 0:
        own = np.random.default_rng([seed & (2**64 - 1), _FRIENDS_STREAM])
        friends = small_world(user_vectors, mean_degree=mean_degree, rewiring=rewiring, homophily=homophily, rng=own)
    return Dataset(
        name="synthetic",
        catalog=catalog,
        interactions=_warm_start(world, seed),
        user_ids=tuple(f"u{i}" for i in range(n_users)),
        user_attributes={"taste": np.where(minority, "minority", "majority")},
        tastes=Tastes(choice=world.choice, rating=world.rating, rating_noise=_RATING_NOISE, kind="true"),
        friends=friends,
    )


def synthetic_block(
    block: int, *, block_users: int, n_items: int, seed: int = 0, mean_activity: float | None = None
) -> Dataset:
    """One block of the users of a world that is too large to be made whole.

    Block 0 is `synthetic` with `block_users` users. The users of every other block are drawn from the same world - the
    same items, groups, exposure and calibration - by a generator of the block's own, so that any block can be made
    alone. Options are those of `synthetic`, its others at their defaults.

    Raises:
        ConfigError: an option out of its range.
    """
    whole("synthetic_block: block", block, 0)
    if block == 0:
        return synthetic(n_users=block_users, n_items=n_items, seed=seed, mean_activity=mean_activity)
    whole("synthetic_block: block_users", block_users, 1)
    whole("synthetic_block: n_items", n_items, 2)
    mean_activity = _default_activity(n_items) if mean_activity is None else float(mean_activity)
    number("synthetic_block: mean_activity", mean_activity, 1, n_items / 2)
    share = 0.2
    rng, own = (np.random.default_rng([seed & (2**64 - 1), *stream]) for stream in ((0,), (_USERS_STREAM, block)))
    catalog, item_vectors = _make_items(n_items, rng)
    minority = rng.permutation(block_users) < round(share * block_users)
    profiles = _make_profiles(rng)
    vectors = _make_tastes(minority, profiles, rng)
    activity = _make_activity(block_users, n_items, mean_activity, rng)
    first = _calibrated(catalog, item_vectors, vectors, activity, 1.0, rng)

    minority = own.permutation(block_users) < round(share * block_users)
    vectors = _make_tastes(minority, profiles, own)
    appetite = own.normal(0, _APPETITE_SD, block_users).astype(np.float32)
    severity = (_USER_RATING_SD * _left_skewed(block_users, own)).astype(np.float32)
    choice, rating = (
        _head(vectors, head.item_vectors, bias + level, head.item_bias)
        for head, bias, level in zip((first.choice, first.rating), (appetite, severity), first.levels)
    )
    activity = _make_activity(block_users, n_items, mean_activity, own)
    world = _World(choice, rating, first.log_exposure, activity, first.levels)
    return Dataset(
        name="synthetic",
        catalog=catalog,
        interactions=_warm_start(world, seed, (_USERS_STREAM, block)),
        user_ids=tuple(f"u{block * block_users + i}" for i in range(block_users)),
        user_attributes={"taste": np.where(minority, "minority", "majority")},
        tastes=Tastes(choice=choice, rating=rating, rating_noise=_RATING_NOISE, kind="true"),
    )


def _default_activity(n_items: int) -> float:
    scaled = ML_100K.mean_activity * min(1.0, n_items / ML_100K.n_items)
    return max(scaled, min(10.0, n_items / 4), 1.0)


def _make_items(n_items: int, rng: np.random.Generator) -> tuple[Catalog, FloatArray]:
    """The catalogue, and item vectors (n_items, genres + style) before any head scales them."""
    mainstream = 1 / (2 + np.arange(_N_GENRES - wording.N_NICHE))
    weights = np.concatenate(
        [(1 - _NICHE_ITEMS) * mainstream / mainstream.sum(), np.full(wording.N_NICHE, _NICHE_ITEMS / wording.N_NICHE)]
    )
    race = np.log(weights) + rng.gumbel(size=(n_items, _N_GENRES))
    place = np.argsort(np.argsort(-race, axis=1), axis=1)
    genres = place < rng.choice([1, 2, 3], size=n_items, p=_GENRES_PER_ITEM)[:, None]
    style = rng.standard_normal((n_items, _N_STYLE)).astype(np.float32)
    years = (2024 - np.minimum(rng.exponential(12, n_items), 60)).astype(np.int32)
    quality = _left_skewed(n_items, rng)
    catalog = Catalog(
        item_ids=tuple(f"i{i}" for i in range(n_items)),
        titles=wording.titles(genres, rng),
        genre_names=tuple(wording.GENRES),
        genres=genres,
        texts=wording.descriptions(genres, style, years, rng),
        quality=quality.astype(np.float32),
        attributes={"year": years},
    )
    mixture = genres / np.sqrt(genres.sum(axis=1, keepdims=True))
    return catalog, np.hstack([mixture, style]).astype(np.float32)


def _left_skewed(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean 0, SD 1, skewness -1.07 (a Weibull of shape 1.5 upside down), stratified: few very low, many rather high."""
    mean, second = gamma(1 + 1 / 1.5), gamma(1 + 2 / 1.5)
    drawn = (-np.log(_stratified(n, rng))) ** (1 / 1.5)
    return np.asarray((mean - drawn) / np.sqrt(second - mean**2))


def _stratified(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Uniforms in (0, 1), one in each of n equal strata, shuffled: small worlds keep their marginals."""
    return np.asarray((rng.permutation(n) + rng.uniform(0.01, 0.99, n)) / n)


def _make_profiles(rng: np.random.Generator) -> FloatArray:
    """What the majority and the minority like, (2, genres + style)."""
    profiles = np.zeros((2, _N_GENRES + _N_STYLE), np.float32)
    spread = rng.normal(0, _MAINSTREAM_SD, _N_GENRES) * ~_NICHE
    for row, group in enumerate(("majority", "minority")):
        mainstream, niche = _NICHE_LIKING[group]
        profiles[row, :_N_GENRES] = np.where(_NICHE, niche, mainstream) + spread
    return profiles


def _make_tastes(minority: NDArray[np.bool_], profiles: FloatArray, rng: np.random.Generator) -> FloatArray:
    """User vectors (n_users, genres + style): the group's liking of genres plus one's own."""
    vectors = rng.standard_normal((len(minority), profiles.shape[1]), dtype=np.float32)
    vectors[:, :_N_GENRES] *= np.float32(_GENRE_SD)
    vectors[:, _N_GENRES:] *= np.float32(_STYLE_SD)
    vectors += profiles[minority.astype(np.int8)]
    return vectors


def _make_activity(n_users: int, n_items: int, mean: float, rng: np.random.Generator) -> LongArray:
    """Interactions per user, (n_users,): the quantiles of ML-100K scaled to `mean`."""
    drawn = quantile_function(_stratified(n_users, rng), ML_100K.activity_quantiles)
    drawn *= mean / drawn.mean()
    return np.clip(np.rint(drawn), 1, max(1, 3 * n_items // 4)).astype(np.int64)


def _calibrated(
    catalog: Catalog,
    item_vectors: FloatArray,
    user_vectors: FloatArray,
    activity: LongArray,
    popularity_strength: float,
    rng: np.random.Generator,
) -> _World:
    """Both heads, with their levels, and the exposure that gives the wanted popularity curve.

    Everything is solved on the first users, at most `_CALIBRATION_CELLS` user-item cells, so that the cost does not
    grow with the world; users are exchangeable, so the first are a random sample.
    """
    n_users, n_items = len(user_vectors), catalog.n_items
    quality = catalog.quality
    assert quality is not None
    sample = np.arange(min(n_users, max(64, _CALIBRATION_CELLS // n_items)))

    appetite = rng.normal(0, _APPETITE_SD, n_users).astype(np.float32)
    choice = _head(user_vectors, item_vectors, appetite, np.float32(_QUALITY_SD) * quality)
    logits = choice.scores(sample)
    choice_level = np.float32(_level(logits[:, :: max(1, n_items // _MANY_ITEMS)], MEAN_UTILITY))
    del logits
    choice = replace(choice, user_bias=choice.user_bias + choice_level)
    utility = sigmoid(choice.scores(sample))
    popularity = _popularity_curve(np.log(utility.mean(axis=0)), popularity_strength, rng)
    log_exposure, consumed = _solve_exposure(utility, popularity, activity[sample])

    scales = np.repeat([_GENRE_IN_RATING, _STYLE_IN_RATING], [_N_GENRES, _N_STYLE]).astype(np.float32)
    own = rng.normal(0, _ITEM_RATING_OWN_SD, n_items).astype(np.float32)
    severity = (_USER_RATING_SD * _left_skewed(n_users, rng)).astype(np.float32)
    rating = _head(user_vectors, item_vectors * scales, severity, np.float32(_ITEM_RATING_SD) * quality + own)
    level = _LATENT_MEAN - float(np.average(rating.scores(sample), weights=consumed))
    rating = replace(rating, user_bias=rating.user_bias + np.float32(level))
    return _World(choice, rating, log_exposure, activity, (choice_level, np.float32(level)))


def _head(user_vectors: FloatArray, item_vectors: FloatArray, user_bias: FloatArray, item_bias: FloatArray) -> Head:
    """A head in which no user scores the average item higher for having stronger tastes."""
    centred = user_bias - user_vectors @ item_vectors.mean(axis=0)
    return Head(user_vectors=user_vectors, item_vectors=item_vectors, user_bias=centred, item_bias=item_bias)


def _level(logits: FloatArray, mean: float) -> float:
    """The constant to add to the logits so that their sigmoid has this mean (bisection)."""
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logits + np.float32(middle)).mean() < mean else (low, middle)
    return (low + high) / 2


def _popularity_curve(merit: FloatArray, strength: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Wanted share of interactions per item, (n_items,): ML-100K's curve, dealt out partly by merit."""
    spread = merit.std()
    deserved = (merit - merit.mean()) / spread if spread > 0 else np.zeros(len(merit))
    luck = rng.standard_normal(len(merit))
    rank = np.argsort(np.argsort(_MERIT * deserved + np.sqrt(1 - _MERIT**2) * luck))
    curve = quantile_function((rank + 0.5) / len(merit), ML_100K.item_count_quantiles) ** strength
    return np.asarray(curve / curve.sum())


def _solve_exposure(
    utility: FloatArray, popularity: NDArray[np.float64], activity: LongArray
) -> tuple[FloatArray, FloatArray]:
    """Log exposure that gives items their popularity and users their activity, and the consumption it implies.

    By alternate scaling of P(u consumes i) = 1 - exp(-pace_u * exposure_i * utility_ui), after Sinkhorn: pace to the
    row sums, exposure to the column sums.

    Returns:
        log exposure (n_items,) and P (n_sampled_users, n_items).
    """
    wanted = np.minimum(popularity * activity.sum(), 0.95 * len(activity))
    exposure = wanted / utility.sum(axis=0)
    pace = np.ones(len(activity))
    many = utility.shape[1] > _MANY_ITEMS
    for _ in range(_CALIBRATION_STEPS):
        paces, exposures = pace.astype(np.float32), exposure.astype(np.float32)
        if many:
            consumed = _consumed(utility, paces, exposures)
        else:
            consumed = -np.expm1(-utility * paces[:, None] * exposures)
        pace *= activity / consumed.sum(axis=1)
        exposure *= wanted / np.maximum(consumed.sum(axis=0), 1e-6)
        exposure /= exposure.mean()
    return np.log(exposure).astype(np.float32), consumed


@nb.njit(cache=True, nogil=True)
def _consumed(utility: Any, pace: Any, exposure: Any) -> Any:  # pragma: no cover - compiled
    """1 - exp(-pace * exposure * utility), (n_users, n_items), for chances that are mostly small."""
    found = np.empty_like(utility)
    for user in range(utility.shape[0]):
        for item in range(utility.shape[1]):
            x = utility[user, item] * pace[user] * exposure[item]
            few = x * (1 - x / 2 * (1 - x / 3 * (1 - x / 4)))
            found[user, item] = few if x < 0.02 else 1 - np.exp(-x)
    return found


def _warm_start(world: _World, seed: int, stream: tuple[int, ...] = (_BLOCK_STREAM,)) -> Interactions:
    """The interactions of all users, block by block; a block has its own generator, so order does not matter."""
    n_users, n_items = len(world.activity), len(world.log_exposure)
    ends = np.cumsum(world.activity)
    total = int(ends[-1])
    users = np.repeat(np.arange(n_users, dtype=np.int32), world.activity)
    items, ratings, times = np.empty(total, np.int32), np.empty(total, np.float32), np.empty(total, np.int64)
    thinned = n_items > max(_MANY_ITEMS, _FEW_TURNS * int(world.activity.max()))
    size = _THINNED_USERS if thinned else max(1, _BLOCK_CELLS // n_items)
    reach = np.cumsum(np.exp(world.log_exposure, dtype=np.float64)) if thinned else None
    for block, first in enumerate(range(0, n_users, size)):
        rng = np.random.default_rng([seed & (2**64 - 1), *stream, block])
        rows = np.arange(first, min(first + size, n_users))
        span = slice(int(ends[first] - world.activity[first]), int(ends[rows[-1]]))
        items[span] = _race(world, rows, rng) if reach is None else _thinned_race(world, rows, reach, rng)
        ratings[span] = _rate(world, users[span], items[span], rng)
        times[span] = _clock(world.activity[rows], rng)
    order = np.argsort(times, kind="stable")
    return Interactions(
        users=users[order],
        items=items[order],
        ratings=ratings[order],
        times=times[order],
        n_users=n_users,
        n_items=n_items,
    )


def _race(world: _World, rows: LongArray, rng: np.random.Generator) -> NDArray[np.int32]:
    """Each user's first `activity` items in the order in which they are reached, users one after another."""
    wait = np.exp(-world.choice.scores(rows))
    wait += 1  # 1 / utility
    wait *= np.exp(-world.log_exposure)
    wait *= rng.standard_exponential(wait.shape, dtype=np.float32)
    counts = world.activity[rows]
    longest = int(counts.max())
    if longest < wait.shape[1]:
        nearest = np.argpartition(wait, longest - 1, axis=1)[:, :longest]
    else:
        nearest = np.broadcast_to(np.arange(wait.shape[1]), wait.shape)
    ranked = np.take_along_axis(nearest, np.argsort(np.take_along_axis(wait, nearest, 1), axis=1), 1)
    return ranked[np.arange(longest) < counts[:, None]].astype(np.int32)


def _thinned_race(
    world: _World, rows: LongArray, reach: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int32]:
    """What `_race` returns, in law: items met one after the other by exposure, consumed with the chance of utility.

    `reach` (n_items,) is the running sum of exposure.
    """
    counts = world.activity[rows]
    ends = np.cumsum(counts)
    items, filled = np.empty(int(ends[-1]), np.int32), ends - counts
    while len(open_ := np.flatnonzero(filled < ends)):
        users = np.repeat(open_, 8 * (ends - filled)[open_] + 32)
        met = np.searchsorted(reach, reach[-1] * rng.random(len(users)), side="right")
        met = np.minimum(met, len(reach) - 1)
        wanted = rng.random(len(users), np.float32) < sigmoid(world.choice.pairs(rows[users], met))
        _consume(users[wanted], met[wanted], ends - counts, ends, filled, items)
    return items


@nb.njit(cache=True, nogil=True)
def _consume(users: Any, met: Any, starts: Any, ends: Any, filled: Any, items: Any) -> None:  # pragma: no cover
    """Add to each user's items, from `starts` to `ends`, what is not among them yet; `filled` moves on."""
    for i in range(len(users)):
        user = users[i]
        new = filled[user] < ends[user]
        for place in range(starts[user], filled[user]):
            new = new and items[place] != met[i]
        if new:
            items[filled[user]] = met[i]
            filled[user] += 1


def _rate(world: _World, users: NDArray[np.int32], items: NDArray[np.int32], rng: np.random.Generator) -> FloatArray:
    """Ratings of aligned pairs: expectation plus normal noise, rounded and clipped, as in the loop."""
    noise = rng.standard_normal(len(users), dtype=np.float32) * np.float32(_RATING_NOISE)
    return np.clip(np.rint(world.rating.pairs(users, items) + noise), 1, 5)


def _clock(counts: LongArray, rng: np.random.Generator) -> LongArray:
    """Increasing times in seconds for each user, (sum of counts,): a day of joining, then gaps of a day on average."""
    gaps = rng.exponential(_MEAN_GAP, int(counts.sum())).astype(np.int64) + 1
    reached = np.cumsum(gaps)
    starts = np.cumsum(counts) - counts
    joined = _START + rng.integers(0, _JOINING_SPAN, len(counts))
    return np.asarray(reached - np.repeat(reached[starts] - joined, counts))
