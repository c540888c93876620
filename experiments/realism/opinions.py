"""What a user model thinks of pages, in one form for models with tastes and models that are asked: Opinions.

Nothing here changes the users: pages are shown to twins, or scored without being lived through. The module does not
know which tests are made of the opinions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agents.base import UserModel
from agents.llm.calibration import Calibration, OwnRatings
from agents.mixed import MixedUsers
from experiments.realism.pages import Pages
from simenv.datasets.base import Dataset
from simenv.errors import ConfigError
from simenv.numeric import DoubleArray
from simenv.randomness import Key, Purpose, uniforms

BATCH = 256  # users whose utilities of the whole catalogue are held at a time


@runtime_checkable
class ScoresPages(Protocol):
    """A user model that is asked about whole pages, as `agents.llm.LLMUser` is."""

    calibration: Calibration

    def score(
        self, users: NDArray[Any], slates: NDArray[np.int32], key: Key
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenRatings:
    """Ratings that simulated users gave to items the real ones had chosen and rated."""

    rows: NDArray[np.int64]  # (n,), of the pages
    simulated: DoubleArray  # (n,)
    real: DoubleArray  # (n,)
    items: NDArray[np.int64]  # (n,)


class Opinions(ABC):
    """What one bound user model thinks of pages.

    Attributes:
        name: of the model, in every table.
        model: bound to the training part.
        sees_pages: whether an item's interest may depend on the page around it.
    """

    sees_pages: bool

    def __init__(self, name: str, model: UserModel) -> None:
        self.name, self.model = name, model

    @abstractmethod
    def interest(self, pages: Pages, luck: int = 0) -> DoubleArray:
        """How much each item appeals, (B, K), on any increasing scale; NaN where empty or unanswered.

        Args:
            pages: what is shown.
            luck: which of independent repetitions.
        """

    @abstractmethod
    def click_probability(self, pages: Pages) -> DoubleArray:
        """P(click | examined), (B, K), NaN as in `interest`."""

    @abstractmethod
    def expected_ratings(self, pages: Pages) -> DoubleArray:
        """The rating each item would get, without luck, (B, K), on the data set's scale."""

    @abstractmethod
    def given_ratings(self, pages: Pages, draws: int) -> GivenRatings:
        """Ratings as the users give them, luck included, of what the real users chose and rated."""

    @abstractmethod
    def wanted(self, pages: Pages, luck: int) -> NDArray[np.bool_]:
        """Which items are wanted on one occasion, (B, K): draws of `click_probability`."""


class Embedded(Opinions):
    """A user model whose taste is a number per user and item: interest is the true utility."""

    sees_pages = False

    def interest(self, pages: Pages, luck: int = 0) -> DoubleArray:
        found = np.full(pages.items.shape, np.nan)
        for start in range(0, len(pages.users), BATCH):
            rows = slice(start, start + BATCH)
            utility = self.model.utility(pages.users[rows])
            found[rows] = np.take_along_axis(utility, np.maximum(pages.items[rows], 0), axis=1)
        return np.where(pages.filled, found, np.nan)

    def click_probability(self, pages: Pages) -> DoubleArray:
        return self.interest(pages)

    def expected_ratings(self, pages: Pages) -> DoubleArray:
        head, scale = self.model.population.tastes.rating, self.model.rating_scale
        users = np.broadcast_to(pages.users[:, None], pages.items.shape)
        return np.asarray(head.pairs(users, np.maximum(pages.items, 0)).clip(scale.low, scale.high), np.float64)

    def given_ratings(self, pages: Pages, draws: int) -> GivenRatings:
        parts = []
        for draw in range(draws):
            twin = self.model.twin()
            responses = twin.respond(pages.users, pages.items, Key(self.model.seed, draw))
            parts.append(_given(pages, responses.ratings))
        return _concatenated(parts)

    def wanted(self, pages: Pages, luck: int) -> NDArray[np.bool_]:
        return _drawn(self.click_probability(pages), pages, self.model.seed, luck)


class Asked(Opinions):
    """A user model that scores pages: interest is what it says, clicks and ratings go through a calibration.

    The calibration is fitted here, on real choices: for the tests, users with even rows are judged by the fit on
    those with odd rows and the other way round; `calibration()` is the fit on all, for use.

    Args:
        name: of the model, in every table.
        model: bound to the training part.
        dataset: the training part.
        base_rate: share of random items that a user takes when examining them: the level no log without impressions
            can tell, the same premise as in `agents.tastes.TasteModel`.
        folder: answers are kept there, so that an interrupted run does not ask again; must be the run's own.
    """

    sees_pages = True

    def __init__(self, name: str, model: UserModel, dataset: Dataset, base_rate: float, folder: Path) -> None:
        super().__init__(name, model)
        if not isinstance(model, ScoresPages):
            raise ConfigError(f"agent: {type(model).__name__} cannot be asked about pages; it has no score()")
        self._score = model.score
        self.dataset, self.base_rate, self.folder = dataset, base_rate, folder
        traits = model.population.traits
        self._own_ratings = OwnRatings(dataset, traits.rating_mean, traits.rating_sd)
        self._folds: tuple[Calibration, Calibration] | None = None
        self._lines: tuple[tuple[float, float], ...] = ()
        self._all: Calibration | None = None

    def interest(self, pages: Pages, luck: int = 0) -> DoubleArray:
        return self._answers(pages, luck)[0]

    def calibrate(self, pages: Sequence[Pages]) -> None:
        """Fit the calibration on what the model says of pages with uniformly drawn unseen items."""
        answers = [self._answers(each, 0) for each in pages]
        self._all = self._fitted(pages, answers, None)
        self._folds = (self._fitted(pages, answers, 1), self._fitted(pages, answers, 0))
        self._lines = (_line(pages, answers, 1), _line(pages, answers, 0))

    def calibration(self) -> Calibration:
        """The fit on all users."""
        if self._all is None:
            raise ConfigError(f"{self.name}: not calibrated yet")
        return self._all

    def click_probability(self, pages: Pages) -> DoubleArray:
        interest = self.interest(pages)
        found = np.full(interest.shape, np.nan)
        for rows, calibration in self._by_fold(pages):
            found[rows] = calibration.click_probability(np.nan_to_num(interest[rows]))
        return np.where(np.isnan(interest), np.nan, found)

    def expected_ratings(self, pages: Pages) -> DoubleArray:
        """What the model says on the scale of real ratings: the least-squares line, fitted on the other fold.

        Ratings as given (`given_ratings`) are spread like the user's own; an expectation is not.
        """
        said, scale = self._answers(pages, 0)[1], self.model.rating_scale
        found = np.full(said.shape, np.nan)
        for parity, (slope, level) in enumerate(self._lines):
            rows = pages.users % 2 == parity
            found[rows] = np.clip(level + slope * said[rows], scale.low, scale.high)
        return found

    def given_ratings(self, pages: Pages, draws: int) -> GivenRatings:
        parts = []
        for draw in range(draws):
            key = Key(self.model.seed, draw)
            u = uniforms(key, Purpose.RATING, pages.users[:, None], pages.items)
            v = uniforms(key, Purpose.RATING_SECOND, pages.users[:, None], pages.items)
            parts.append(_given(pages, self._own(pages, u, v)))
        return _concatenated(parts)

    def wanted(self, pages: Pages, luck: int) -> NDArray[np.bool_]:
        return _drawn(self.click_probability(pages), pages, self.model.seed, luck)

    def slots(self, pages: Pages, luck: int) -> DoubleArray:
        """Where in the prompt each item stood, (B, K), 0 = first to 1 = last; the order `PageScorer.score` draws."""
        key = Key(self.model.seed, luck)
        order = np.where(
            pages.filled, uniforms(key, Purpose.PROMPT_ORDER, pages.users[:, None], pages.items), np.inf
        ).argsort(axis=1, kind="stable")
        places = np.empty(order.shape)
        np.put_along_axis(places, order, np.arange(order.shape[1])[None, :] * np.ones((len(order), 1)), axis=1)
        return places / np.maximum(pages.filled.sum(axis=1, keepdims=True) - 1, 1)

    def _answers(self, pages: Pages, luck: int) -> tuple[DoubleArray, DoubleArray]:
        """Interest (0-100) and rating (1-5), (B, K) each, asked once and then read from the run's folder."""
        name = f"{self.name}.{self.dataset.name}.{pages.setting}.{luck}".replace(":", "-").replace(" ", "-")
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            interest, rating, _ = self._score(pages.users, pages.items, Key(self.model.seed, luck))
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, interest=interest, rating=rating, users=pages.users, items=pages.items)
            partial.replace(path)
        with np.load(path) as stored:
            if not np.array_equal(stored["items"], pages.items) or not np.array_equal(stored["users"], pages.users):
                raise ConfigError(f"{path}: holds answers about other pages; delete it to ask again")
            return stored["interest"].astype(np.float64), stored["rating"].astype(np.float64)

    def _fitted(
        self, pages: Sequence[Pages], answers: Sequence[tuple[DoubleArray, DoubleArray]], parity: int | None
    ) -> Calibration:
        chosen, interest, ratings = [], [], []
        for each, (said, stars) in zip(pages, answers, strict=True):
            of_fold = np.ones(len(each.users), np.bool_) if parity is None else each.users % 2 == parity
            usable = ~np.isnan(said) & of_fold[:, None]
            chosen.append(each.chosen[usable])
            interest.append(said[usable])
            ratings.append(stars[usable & each.chosen])
        y = np.concatenate(chosen)
        if not 0 < y.sum() < len(y):
            raise ConfigError(f"{self.name}: too few answers to calibrate on; judge more users (judged_users)")
        weights = base_rate_weights(y, self.base_rate)
        source = f"{self.name} on {self.dataset.name}, {len(y)} items, base rate {self.base_rate:g}"
        return Calibration.fit(np.concatenate(interest), y, np.concatenate(ratings), weights=weights, source=source)

    def _by_fold(self, pages: Pages) -> list[tuple[NDArray[np.bool_], Calibration]]:
        if self._folds is None:
            raise ConfigError(f"{self.name}: not calibrated yet")
        return [(pages.users % 2 == parity, self._folds[parity]) for parity in (0, 1)]

    def _own(self, pages: Pages, u: DoubleArray, v: DoubleArray) -> DoubleArray:
        """The model's ratings on each user's own scale; NaN where unanswered."""
        said = self._answers(pages, 0)[1]
        found = np.full(said.shape, np.nan)
        for rows, calibration in self._by_fold(pages):
            quantile = calibration.rating_quantile(np.nan_to_num(said[rows], nan=3.0), u[rows], v[rows])
            users = np.broadcast_to(pages.users[rows, None], quantile.shape)
            found[rows] = self._own_ratings.at(users, quantile)
        return np.where(np.isnan(said), np.nan, found)


def _line(
    pages: Sequence[Pages], answers: Sequence[tuple[DoubleArray, DoubleArray]], parity: int
) -> tuple[float, float]:
    """Slope and level of real ratings over those the model says, among users of this parity."""
    said, given = [], []
    for each, (_, stars) in zip(pages, answers, strict=True):
        rated = each.chosen & ~np.isnan(each.ratings) & ~np.isnan(stars) & (each.users % 2 == parity)[:, None]
        said.append(stars[rated])
        given.append(each.ratings[rated].astype(np.float64))
    x, y = np.concatenate(said), np.concatenate(given)
    if not len(x):
        return 0.0, float("nan")
    spread = x.var()
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def opinions(name: str, model: UserModel, dataset: Dataset, *, base_rate: float, folder: Path) -> Opinions:
    """The Opinions of a bound user model, of whichever kind it is."""
    if isinstance(model, MixedUsers):
        raise ConfigError("agent=mixed: a mixture has no opinion of its own; judge its parts, e.g. agent=llm")
    if isinstance(model, ScoresPages):
        return Asked(name, model, dataset, base_rate, folder)
    return Embedded(name, model)


def base_rate_weights(chosen: NDArray[np.bool_], base_rate: float) -> DoubleArray:
    """Weights, mean 1, under which the share chosen is `base_rate`: pages hold more choices than life does."""
    share = chosen.mean()
    return np.where(chosen, base_rate / share, (1 - base_rate) / (1 - share))


def _drawn(probability: DoubleArray, pages: Pages, seed: int, luck: int) -> NDArray[np.bool_]:
    draws = uniforms(Key(seed, luck), Purpose.CLICK, pages.users[:, None], pages.items)
    return draws < np.nan_to_num(probability, nan=0.0)


def _given(pages: Pages, ratings: NDArray[Any]) -> GivenRatings:
    rows, ranks = np.nonzero(pages.chosen & ~np.isnan(pages.ratings) & ~np.isnan(ratings))
    return GivenRatings(
        rows=rows,
        simulated=ratings[rows, ranks].astype(np.float64),
        real=pages.ratings[rows, ranks].astype(np.float64),
        items=pages.items[rows, ranks].astype(np.int64),
    )


def _concatenated(parts: Sequence[GivenRatings]) -> GivenRatings:
    return GivenRatings(
        rows=np.concatenate([part.rows for part in parts]),
        simulated=np.concatenate([part.simulated for part in parts]),
        real=np.concatenate([part.real for part in parts]),
        items=np.concatenate([part.items for part in parts]),
    )
