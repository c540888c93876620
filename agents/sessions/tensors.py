"""TensorSessions: sessions of the embedded choice model as tensors on one device, for policies that never leave it.

The rule of `agents.choice.rule` and what consumption does (`agents.population.rows.live_through`), written once more
over whole batches: the same hash, hence the same luck, and the same answers up to rounding; the tests hold it against
`ChoiceSessions`. It knows no rewards, no spaces and no observations: a policy reads the state that it may see.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.choice.model import ChoiceModel
from agents.choice.rule import ACTIVITY, CHOICE_BIAS, CONFORMITY, DIVERSITY, RATING_BIAS, unpack_rule
from simenv.candidates import unpack
from simenv.errors import ConfigError
from simenv.metrics.reference import midrank_percentile
from simenv.randomness import FIRST_MIX, GOLDEN, SECOND_MIX, TO_UNIT, Purpose

_GOLDEN, _M1, _M2 = (int(np.uint64(value).astype(np.int64)) for value in (GOLDEN, FIRST_MIX, SECOND_MIX))


class Page(NamedTuple):
    """What the users of all rows did with a page each."""

    examined: Tensor  # (B, K) bool
    clicked: Tensor  # (B, K) bool
    ratings: Tensor  # (B, K) float32, NaN = none
    utility: Tensor  # (B, K) float32, before the choice; 0 at slots that act as empty
    left: Tensor  # (B,) bool


class TensorSessions:
    """Rows of sessions over one world, all of them played at once.

    Luck, duplicates, consumed items and who comes are as in `agents.sessions.base.Sessions`. A page copies
    nothing from the device or to it.

    Args:
        users: bound, answering by its rule alone; its population as it is now is where every session starts.
        seeds: (B,) int64, of the rows.
        repeat: ``never`` or ``always``.
        device: as torch names it.

    Attributes:
        user, episode, page: (B,) int64.
        vectors: (B, d) float32, the taste: what no policy can see.
        genre_counts, satiation: (B, n_genres) float32.
        fatigue, satisfaction: (B,) float32.
        click_counts: (n_items,) int64; popularity: (n_items,) float32, as users see it since `renew_popularity`.

    Raises:
        ConfigError: users who do not answer by the rule alone, or another regime.
    """

    def __init__(
        self, users: ChoiceModel, seeds: NDArray[np.int64], *, repeat: str = "never", device: str | torch.device = "cpu"
    ) -> None:
        if not (isinstance(users, ChoiceModel) and users.answers_by_rule and not users.hears_friends):
            raise ConfigError(f"agent={users.name}: answers by more than the choice rule; expected choice")
        if repeat not in ("never", "always"):
            raise ConfigError(f"repeat={repeat}: expected never or always")
        population, self.device, self.repeat = users.population, torch.device(device), repeat

        def put(values: Any) -> Tensor:
            return torch.from_numpy(np.array(values)).to(self.device)

        n_items = population.n_items
        self.n_rows, self.n_users, self.n_items = len(seeds), population.n_users, n_items
        self._home = (
            put(population.vectors),
            put(population.genre_counts),
            put(np.pad(unpack(population.clicked_bits, n_items), ((0, 0), (0, 1)))),  # and a column for no item
        )
        self.click_counts = put(population.click_counts)
        item_vectors, item_bias, rating_items, rating_bias, popularity, *_ = users.item_arrays(
            midrank_percentile(population.click_counts)
        )
        self._items = put(item_vectors), put(item_bias), put(rating_items), put(rating_bias)
        self.popularity = put(popularity)
        genres = population.catalog.genres.astype(np.float32)
        self._genres = put(genres / np.maximum(genres.sum(axis=1, keepdims=True), 1.0))  # of each item, sum 1 or 0
        self._lengths = put(np.square(item_vectors.astype(np.float32)).sum(axis=1, dtype=np.float64))
        self._traits, self._rating_users = put(users.trait_rows), put(population.tastes.rating.user_vectors)
        self._parameters, self._examination = users.parameters(), users.examination
        self._seed = _fold(torch.zeros((), dtype=torch.int64, device=self.device), put(seeds.astype(np.int64)))
        n_genres = genres.shape[1]
        self.user = torch.zeros(self.n_rows, dtype=torch.int64, device=self.device)
        self.episode, self.page = self.user - 1, self.user.clone()
        self.vectors, self.genre_counts, self._consumed = (of_all[self.user] for of_all in self._home)
        self.satiation = torch.zeros((self.n_rows, n_genres), device=self.device)
        self.fatigue = torch.zeros(self.n_rows, device=self.device)
        self.satisfaction = torch.full((self.n_rows,), 0.5, device=self.device)
        self._looks: dict[int, Tensor] = {}  # chance that a rank is examined, by slots of a page
        self._rows = torch.arange(self.n_rows, device=self.device)[:, None]

    @torch.no_grad()
    def begin(self, rows: Tensor) -> None:
        """Start the next session of the rows of a mask, (B,) bool, with users as they are at home."""
        self.episode += rows
        key = _folded(self._seed, Purpose.SESSION_USER, 0, self.episode, 0, 0)
        self.user = torch.where(rows, (_uniform(key) * self.n_users).long(), self.user)
        self.page = torch.where(rows, 0, self.page)
        which = rows[:, None]
        vectors, genre_counts, consumed = (of_all[self.user] for of_all in self._home)
        self.vectors = torch.where(which, vectors, self.vectors)
        self.genre_counts = torch.where(which, genre_counts, self.genre_counts)
        self._consumed = torch.where(which, consumed, self._consumed)
        self.satiation = torch.where(which, 0.0, self.satiation)
        self.fatigue = torch.where(rows, 0.0, self.fatigue)
        self.satisfaction = torch.where(rows, 0.5, self.satisfaction)

    def allowed(self) -> Tensor:
        """Items that do not act as empty, (B, n_items) bool."""
        return ~self.consumed if self.repeat == "never" else torch.ones_like(self.consumed)

    def logits(self) -> Tensor:
        """Affinity and biases of every item for the user of each row, (B, n_items): the oracle's view."""
        vectors, bias = self._items[:2]
        return torch.addmm(bias, self.vectors, vectors.T) + self._traits[self.user, CHOICE_BIAS, None]

    def renew_popularity(self) -> None:
        """Let everybody see the clicks so far."""
        counts = self.click_counts.cpu().numpy()
        self.popularity = torch.from_numpy(midrank_percentile(counts)).to(self.device)

    @torch.no_grad()
    def play(self, slates: Tensor) -> Page:
        """Show a page to every row, and let the users change by it.

        Args:
            slates: (B, K) int64 items of the catalogue, on the device.
        """
        page = self._answers(slates, self._served(slates))
        self._live(slates, page)
        self.page += 1
        return page

    # -- parts ------------------------------------------------------------------------------------------------

    def _served(self, slates: Tensor) -> Tensor:
        """Which slots do not act as empty, (B, K) bool."""
        k = slates.shape[1]
        earlier = torch.ones((k, k), dtype=torch.bool, device=self.device).tril(-1)
        copies = ((slates[:, :, None] == slates[:, None, :]) & earlier).any(dim=2)
        return ~copies & ~self.consumed[self._rows, slates] if self.repeat == "never" else ~copies

    def _answers(self, slates: Tensor, served: Tensor) -> Page:
        """The rule of `agents.choice.rule.answer_pages`."""
        k = slates.shape[1]
        if k not in self._looks:
            self._looks[k] = torch.from_numpy(self._examination.probabilities(k)).to(self.device)
        rating_rule, weights, exit_rule, _, cascade, go_on, *_ = unpack_rule.py_func(self._parameters, None, True, True)
        base, w_taste, w_conformity, w_novelty, w_satiation, w_fatigue = weights
        item_vectors, item_bias, rating_items, rating_item_bias = self._items
        traits, genres = self._traits[self.user].double(), self._genres[slates]  # (B, K, n_genres)

        def luck(purpose: Purpose) -> Tensor:
            return _folded(self._seed, purpose, self.user, self.episode, self.page)[:, None]

        examine_luck = _uniform(_fold(luck(Purpose.EXAMINE), slates))
        looked = served if cascade else served & (examine_luck < self._looks[k])

        affinity = torch.einsum("bd,bkd->bk", self.vectors, item_vectors[slates])
        bias = self._traits[self.user, CHOICE_BIAS, None] + item_bias[slates]
        appeal = torch.sigmoid(affinity + bias)
        consumed = self.genre_counts.sum(dim=1).double()
        familiar = torch.einsum("bg,bkg->bk", self.genre_counts, genres).double()
        familiar *= torch.where(consumed > 0, 1.0 / consumed, 0.0)[:, None]
        chance = torch.sigmoid(
            base
            + w_taste * affinity
            + bias
            + w_conformity * traits[:, CONFORMITY, None] * (self.popularity[slates] - 0.5)
            + w_novelty * traits[:, DIVERSITY, None] * (0.5 - familiar)
            - w_satiation * torch.einsum("bg,bkg->bk", self.satiation, genres)
            - w_fatigue * self.fatigue[:, None]
        )
        clicked = looked & (_uniform(_fold(luck(Purpose.CLICK), slates)) < chance)
        if cascade:
            stops = looked & (examine_luck >= torch.where(clicked, go_on[0], go_on[1]))
            before = stops.long().cumsum(dim=1) - stops.long()
            looked = looked & (before == 0)
            clicked = clicked & looked

        noise, low, high, step, rate = rating_rule
        first, second = (_fold(luck(each), slates) for each in (Purpose.RATING, Purpose.RATING_SECOND))
        normal = torch.sqrt(-2.0 * torch.log(1.0 - _uniform(first))) * torch.cos(2.0 * torch.pi * _uniform(second))
        expected = torch.einsum("bd,bkd->bk", self._rating_users[self.user], rating_items[slates])
        expected = expected + self._traits[self.user, RATING_BIAS, None] + rating_item_bias[slates]
        latent = (expected + noise * normal).clamp(low, high)
        rated = clicked if rate >= 1.0 else clicked & (_uniform(_fold(second, 1)) < rate)
        ratings = torch.where(rated, low + torch.floor((latent - low) / step + 0.5) * step, torch.nan).float()

        mood = self._mood(looked, appeal)
        exit_base, exit_page, exit_activity, exit_satisfaction = exit_rule
        hazard = exit_base + exit_page * self.page - exit_activity * traits[:, ACTIVITY] - exit_satisfaction * mood
        leaving = _folded(self._seed, Purpose.EXIT, self.user, self.episode, self.page, 0)
        left = _uniform(leaving) < torch.sigmoid(hazard)
        return Page(looked, clicked, ratings, torch.where(served, appeal, 0.0), left)

    def _mood(self, examined: Tensor, appeal: Tensor) -> Tensor:
        """Moving average of satisfaction, this page included, (B,) float64."""
        memory = float(self._parameters[22])
        missed = torch.where(examined, 1.0 - appeal.double(), 1.0).prod(dim=1)
        return memory * self.satisfaction.double() + (1.0 - memory) * (1.0 - missed)

    def _live(self, slates: Tensor, page: Page) -> None:
        """What the page does to the users of the rows, slot by slot as in `live_through`."""
        drift, drift_skip, satiation_gain, fatigue_gain = (float(rate) for rate in self._parameters[18:22])
        self.satisfaction = self._mood(page.examined, page.utility).float()
        self.fatigue += fatigue_gain * page.examined.sum(dim=1)
        if drift or drift_skip:
            for rank in range(slates.shape[1]):
                self._pull(slates[:, rank], page.clicked[:, rank], page.examined[:, rank], drift, drift_skip)
        share = torch.einsum("bk,bkg->bg", page.clicked.float(), self._genres[slates])
        self.genre_counts += share
        self.satiation += satiation_gain * share
        self._consumed.scatter_(1, torch.where(page.clicked, slates, self.n_items), True)
        self.click_counts.index_add_(0, slates.reshape(-1), page.clicked.reshape(-1).long())

    def _pull(self, items: Tensor, clicked: Tensor, examined: Tensor, drift: float, drift_skip: float) -> None:
        """Tastes move towards a clicked item and away from one that was passed over, and keep their length."""
        rate = torch.where(clicked, drift, torch.where(examined, -drift_skip, 0.0)).double()[:, None]
        towards, item_length = self._items[0][items], self._lengths[items][:, None]
        length = self.vectors.square().sum(dim=1, keepdim=True).double()
        moves = (rate != 0) & (length > 0) & (item_length > 0)
        pull = rate * torch.sqrt(length / item_length)
        moved = (1.0 - rate) * self.vectors + torch.where(moves, pull, 0.0) * towards
        scale = torch.sqrt(length / moved.square().sum(dim=1, keepdim=True)).float()
        self.vectors = torch.where(moves, moved.float() * scale, self.vectors)

    @property
    def consumed(self) -> Tensor:
        """What the user of each row has consumed, (B, n_items) bool."""
        return self._consumed[:, : self.n_items]


# -- the hash of `simenv.randomness`, on int64 ------------------------------------------------------------------------


def _fold(state: Tensor, value: Tensor | int) -> Tensor:
    x = state ^ (_wrapped(value * _GOLDEN + _GOLDEN) if isinstance(value, int) else value * _GOLDEN + _GOLDEN)
    x = (x ^ _shifted(x, 30)) * _M1
    x = (x ^ _shifted(x, 27)) * _M2
    return x ^ _shifted(x, 31)


def _folded(state: Tensor, *values: Tensor | int) -> Tensor:
    for value in values:
        state = _fold(state, value)
    return state


def _wrapped(value: int) -> int:
    """A whole number as 64 bits in two's complement hold it."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, places: int) -> Tensor:
    """The bits of x, unsigned, shifted to the right."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _uniform(state: Tensor) -> Tensor:
    """The upper 53 bits as a float64 in [0, 1)."""
    return _shifted(state, 11).double() * TO_UNIT
