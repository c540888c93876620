"""Networks of a user and an item: NeuMF, BPR-MLP, SimpleX and Wide & Deep, and what they share.

A user and an item each become a state, and a network tells how well two states fit; it is asked about the pairs of a
batch while learning and about all items of some users when recommending. The module does not know order, nor texts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.base import Recommender, check_options, user_items
from simenv import checks
from simenv.datasets.base import BoolArray, Dataset, FloatArray, Interactions, LongArray
from simenv.datasets.splits import contains
from simenv.errors import RecommenderError
from simenv.randomness import Key, Purpose, generator
from simenv.records import record
from simenv.training.histories import Histories
from simenv.training.loop import Progress, Training, TrainingOptions, pick_device

TRAINING = TrainingOptions(epochs=20, batch_size=256, learning_rate=1e-3)


class PairNetwork(nn.Module):
    """States of users and items, and how well they fit."""

    @abstractmethod
    def user_states(self, users: Tensor) -> Tensor:
        """(n,) rows of users to (n, d)."""

    @abstractmethod
    def item_states(self, items: Tensor) -> Tensor:
        """(n,) rows of items to (n, d)."""

    @abstractmethod
    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """How well aligned states (..., d) fit, (...)."""

    @abstractmethod
    def grid(self, users: Tensor, items: Tensor) -> Tensor:
        """How well states (B, d) of users fit states (n, d) of items, each with each, (B, n)."""

    def pair_loss(self, kind: str, users: Tensor, items: Tensor, stars: Tensor, others: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            kind: `bce`, `bpr` or `mse`.
            users, items: (n,) rows of consumed pairs.
            stars: (n,) their ratings, for `mse`.
            others: (n, negatives) items drawn for each pair; none for `mse`.
        """
        away = self.item_states(others.flatten())
        drawn = away.view(*others.shape, away.shape[-1])
        return self.loss_of(kind, self.user_states(users), self.item_states(items), stars, drawn)

    def loss_of(self, kind: str, user: Tensor, item: Tensor, stars: Tensor, drawn: Tensor) -> Tensor:
        """`pair_loss` from states: (n, d) of users and items, (n, negatives, d) of the drawn items."""
        own = self.score(user, item).float()
        if kind == "mse":
            return F.mse_loss(own, stars)
        away = self.score(user[:, None], drawn).float()
        if kind == "bpr":
            return -F.logsigmoid(own[:, None] - away).mean()
        return -(F.logsigmoid(own).sum() + F.logsigmoid(-away).sum()) / len(own)


class PairMLP(nn.Module):
    """A feed-forward network on two vectors side by side. Of all pairs the first layer is computed once per vector."""

    def __init__(self, size: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.of_user, self.of_item = nn.Linear(size, hidden[0]), nn.Linear(size, hidden[0], bias=False)
        layers: list[nn.Module] = [nn.ReLU(), nn.Dropout(dropout)]
        for before, after in pairwise(hidden):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.rest = nn.Sequential(*layers)
        for layer in (self.of_user, self.of_item, *self.rest):
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """(..., size) and (..., size) that broadcast to (..., hidden[-1])."""
        return cast(Tensor, self.rest(self.of_user(users) + self.of_item(items)))


class PairRecommender(Recommender):
    """Learns from pairs of the log, scores all items. `update` refits.

    Args:
        embedding_size: width of the vectors.
        dropout: share of features dropped.
        loss: `bce` (consumed against drawn items), `bpr` (consumed before drawn items), or `mse` (stars; then scores
            are predicted stars, and only rated interactions are learned from).
        negatives: items drawn for each pair, uniformly among those that the user never consumed.
        training: see `simenv.training.loop.TrainingOptions`; a mapping changes the defaults of `TRAINING`.
        device: `auto`, or as torch names it.
        show_progress: print a bar while fitting.
    """

    popularity_for_new_users: ClassVar[bool] = True
    keeps_shortlists: ClassVar[bool] = True
    score_batch: ClassVar[int] = 64
    losses: ClassVar[tuple[str, ...]] = ("bce", "bpr", "mse")
    default_loss: ClassVar[str] = "bce"
    network: PairNetwork

    def __init__(
        self,
        *,
        embedding_size: int = 32,
        dropout: float = 0.0,
        loss: str | None = None,
        negatives: int = 4,
        training: TrainingOptions | Mapping[str, Any] | None = None,
        device: str | None = "auto",
        show_progress: bool = False,
    ) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size, negatives=negatives)
        check_options(self.name, high=1, open_high=True, dropout=dropout)
        self.embedding_size, self.dropout, self.negatives = embedding_size, dropout, negatives
        self.loss = self.default_loss if loss is None else loss
        checks.one_of(f"{self.name}: loss", self.loss, self.losses)
        self.training = record(TRAINING, training, "training")
        self.device, self.show_progress = pick_device(device), show_progress
        self.progress = Progress()

    @abstractmethod
    def _network(self) -> PairNetwork:
        """A fresh network for `self.log`, with stars around `self._mean`."""

    def _fit(self, log: Interactions, key: Key) -> None:
        rng = generator(key, Purpose.FIT)
        learned = log.take(~np.isnan(log.ratings)) if self.loss == "mse" else log
        if not len(learned):
            raise RecommenderError(f"{self.name}: none of the {len(log)} interactions has a rating; expected some")
        self._build(int(rng.integers(2**31)))
        seed = int(rng.integers(2**31))
        run = Training(self.network, self._loss, self.training, seed=seed, show=self.show_progress)
        steps = -(-len(learned) // self.training.batch_size)
        self.progress = run.run(lambda epoch: self._batches(learned, np.random.default_rng([seed, epoch])), steps)
        self._ready()

    def _build(self, seed: int) -> None:
        rated = self._log.ratings[~np.isnan(self._log.ratings)]
        self._mean = float(rated.mean(dtype=np.float64)) if self.loss == "mse" else 0.0
        consumed = user_items(self._log, binary=True)
        self._consumed = np.repeat(np.arange(self.n_users), np.diff(consumed.indptr)) * self.n_items + consumed.indices
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self._network().to(self.device)
        self.network.eval()

    def _batches(self, log: Interactions, rng: np.random.Generator) -> Iterator[tuple[NDArray[Any], ...]]:
        """Shuffled pairs (n,), their stars (n,), and items to hold against them (n, negatives)."""
        order = rng.permutation(len(log))
        for start in range(0, len(order), self.training.batch_size):
            rows = order[start : start + self.training.batch_size]
            users = log.users[rows].astype(np.int64)
            yield users, log.items[rows].astype(np.int64), log.ratings[rows], self._others(users, rng)

    def _others(self, users: LongArray, rng: np.random.Generator) -> LongArray:
        """Items drawn for each user, (n, negatives), none of them consumed unless it is hard to find another."""
        drawn = rng.integers(0, self.n_items, (len(users), self.negatives if self.loss != "mse" else 0))
        for _ in range(5):
            wrong = contains(self._consumed, users[:, None] * self.n_items + drawn)
            if not wrong.any():
                break
            drawn[wrong] = rng.integers(0, self.n_items, int(wrong.sum()))
        return drawn

    def _loss(self, batch: tuple[NDArray[Any], ...]) -> tuple[Tensor, int]:
        users, items, stars, others = (torch.as_tensor(part).to(self.device, non_blocking=True) for part in batch)
        return self.network.pair_loss(self.loss, users, items, stars, others), len(users)

    @torch.no_grad()
    def _ready(self) -> None:
        """What all users are scored with: the states of all items."""
        self._items = self.network.item_states(torch.arange(self.n_items, device=self.device))

    @torch.no_grad()
    def _score(self, users: LongArray) -> NDArray[np.float32]:
        states = self.network.user_states(torch.as_tensor(users, device=self.device))
        return self.network.grid(states, self._items).float().cpu().numpy()

    @torch.no_grad()
    def predict_ratings(self, users: NDArray[Any], items: NDArray[Any]) -> FloatArray:
        """Stars of aligned (user, item) pairs, (n,).

        Raises:
            RecommenderError: if another loss than `mse` was trained.
        """
        self._require_fit()
        if self.loss != "mse":
            raise RecommenderError(f"{self.name}: predicts no stars with loss={self.loss}; expected loss=mse")
        rows = (torch.as_tensor(np.asarray(part, np.int64), device=self.device) for part in (users, items))
        user, item = rows
        return self.network.score(self.network.user_states(user), self._items[item]).float().cpu().numpy()

    def _state(self) -> Mapping[str, NDArray[Any]]:
        return {name: value.cpu().numpy() for name, value in self.network.state_dict().items()}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self._build(0)
        self.network.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        self._ready()


def embedding(n: int, size: int) -> nn.Embedding:
    """`n` vectors with small random numbers, so that what users and items share is learned before who they are."""
    table = nn.Embedding(n, size)
    nn.init.normal_(table.weight, std=0.05)
    return table


class NeuMFNetwork(PairNetwork):
    """Neural collaborative filtering (He et al. 2017, eqs. 8 to 12): an elementwise product of one pair of vectors
    beside a feed-forward network on another, and a linear layer on both; either part may be left out.
    """

    def __init__(
        self, n_users: int, n_items: int, size: int, hidden: Sequence[int], dropout: float, product: bool
    ) -> None:
        super().__init__()
        self.product, self.size = product, size
        self.users, self.items = embedding(n_users, (1 + product) * size), embedding(n_items, (1 + product) * size)
        self.mlp = PairMLP(size, hidden, dropout)
        self.of_mlp = nn.Linear(hidden[-1], 1)
        self.of_product = nn.Linear(size, 1, bias=False) if product else None

    def user_states(self, users: Tensor) -> Tensor:
        return self.users(users)

    def item_states(self, items: Tensor) -> Tensor:
        return self.items(items)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        fit = self.of_mlp(self.mlp(users[..., : self.size], items[..., : self.size]))
        if self.of_product is not None:
            fit = fit + self.of_product(users[..., self.size :] * items[..., self.size :])
        return cast(Tensor, fit[..., 0])

    def grid(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.cat([self.score(user, items)[None] for user in users[:, None]])


class NeuMF(PairRecommender):
    """Neural matrix factorisation, see `NeuMFNetwork`; its default loss is the paper's, `bce` with 4 negatives.

    BPR-MLP, the neural rival of P5's direct recommendation, is `product: false` with `loss: bpr` and one negative.

    Args:
        hidden: widths of the feed-forward layers.
        product: False leaves the elementwise product out.
        options: see `PairRecommender`.
    """

    name = "neumf"

    def __init__(self, *, hidden: Sequence[int] = (64, 32, 16), product: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.hidden, self.product = widths(self.name, hidden), product

    def _network(self) -> NeuMFNetwork:
        sizes = self.n_users, self.n_items, self.embedding_size
        return NeuMFNetwork(*sizes, self.hidden, self.dropout, self.product)


class SimpleXNetwork(PairNetwork):
    """SimpleX (Mao et al. 2021, "SimpleX: a simple and strong baseline for collaborative filtering", eqs. 1 to 6).

    A user is g times a vector of its own plus (1 - g) times the projected mean of the items in its history; fit is the
    cosine. Loss: 1 - cos of the consumed item plus w times the mean over drawn items of max(0, cos - margin).
    """

    history: Tensor

    def __init__(
        self, histories: LongArray, n_items: int, size: int, own: float, margin: float, weight: float, dropout: float
    ) -> None:
        super().__init__()
        self.own, self.margin, self.weight = own, margin, weight
        self.register_buffer("history", torch.as_tensor(histories), persistent=False)
        self.users, self.items = embedding(len(histories), size), embedding(n_items + 1, size)
        self.project = nn.Linear(size, size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def user_states(self, users: Tensor) -> Tensor:
        table = self.history[users]
        known = (table >= 0).float()
        read = self.items(torch.where(table < 0, self.items.num_embeddings - 1, table)) * known[..., None]
        mean = read.sum(dim=1) / known.sum(dim=1, keepdim=True).clamp(min=1)
        return F.normalize(self.dropout(self.own * self.users(users) + (1 - self.own) * self.project(mean)), dim=-1)

    def item_states(self, items: Tensor) -> Tensor:
        return F.normalize(self.items(items), dim=-1)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return (users * items).sum(dim=-1)

    def grid(self, users: Tensor, items: Tensor) -> Tensor:
        return users @ items.T

    def pair_loss(self, kind: str, users: Tensor, items: Tensor, stars: Tensor, others: Tensor) -> Tensor:
        user = self.user_states(users)
        own = self.score(user, self.item_states(items))
        counted = others >= 0  # -1 where the user consumed what was drawn for all
        away = self.grid(user, self.item_states(others.amax(dim=0).clamp(min=0)))
        excess = (F.relu(away - self.margin) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        return (1 - own + self.weight * excess).mean()


class SimpleX(PairRecommender):
    """Cosine contrastive learning with many negatives, see `SimpleXNetwork`; one draw of items serves a whole batch.

    Args:
        own: weight g of the user's own vector against its history, in [0, 1].
        history: items of the history that are read, the most recent ones.
        margin: cosine above which a drawn item is pushed away.
        weight: of the drawn items' term.
        negatives: items drawn for a batch.
        options: see `PairRecommender`; the loss, `cosine`, is its own.
    """

    name = "simplex"
    losses: ClassVar[tuple[str, ...]] = ("cosine",)
    default_loss: ClassVar[str] = "cosine"

    def __init__(
        self,
        *,
        own: float = 0.5,
        history: int = 50,
        margin: float = 0.5,
        weight: float = 150.0,
        negatives: int = 500,
        **options: Any,
    ) -> None:
        super().__init__(negatives=negatives, **options)
        check_options(self.name, low=1, whole=True, history=history)
        check_options(self.name, high=1, own=own)
        check_options(self.name, high=1, open_high=True, margin=margin)
        check_options(self.name, open_low=True, weight=weight)
        self.own, self.history, self.margin, self.weight = own, history, margin, weight

    def _recent(self) -> LongArray:
        """The last items of every user, (n_users, history), -1 after the end."""
        return Histories.from_log(self._log).last(np.arange(self.n_users), self.history)

    def _remember(self) -> None:
        cast(SimpleXNetwork, self.network).history = torch.as_tensor(self._recent(), device=self.device)

    def _network(self) -> SimpleXNetwork:
        shape = self.n_items, self.embedding_size, self.own, self.margin, self.weight, self.dropout
        return SimpleXNetwork(self._recent(), *shape)

    def _others(self, users: LongArray, rng: np.random.Generator) -> LongArray:
        """The same items for each user, (n, negatives), -1 where the user consumed one."""
        drawn = rng.integers(0, self.n_items, (1, self.negatives))
        return np.where(contains(self._consumed, users[:, None] * self.n_items + drawn), -1, drawn)


class WideDeepNetwork(PairNetwork):
    """Wide & Deep (Cheng et al. 2016, eq. 3): a linear model of user, item and crosses of what they are, joined with a
    feed-forward network on their embeddings; here with squared error on stars.

    A cross is a user attribute's value together with a genre. The deep part reads embeddings of user and item, and
    beside them the mean embedding of the user's values and of the item's genres.
    """

    traits: Tensor
    genres: Tensor

    def __init__(
        self, traits: BoolArray, genres: BoolArray, size: int, hidden: Sequence[int], dropout: float, mean: float
    ) -> None:
        super().__init__()
        self.register_buffer("traits", torch.as_tensor(traits, dtype=torch.float32), persistent=False)
        self.register_buffer("genres", torch.as_tensor(genres, dtype=torch.float32), persistent=False)
        self.users, self.items = embedding(len(traits), size), embedding(len(genres), size)
        self.trait, self.genre = nn.Linear(traits.shape[1], size), nn.Linear(genres.shape[1], size)
        self.user_bias, self.item_bias = nn.Embedding(len(traits), 1), nn.Embedding(len(genres), 1)
        self.cross = nn.Linear(traits.shape[1], genres.shape[1], bias=False)
        self.mlp, self.out = PairMLP(2 * size, hidden, dropout), nn.Linear(hidden[-1], 1)
        self.wide = 1 + genres.shape[1]  # how many of a state's numbers belong to the wide part
        self.mean = mean
        for table in (self.user_bias, self.item_bias, self.cross):
            nn.init.zeros_(table.weight)

    def user_states(self, users: Tensor) -> Tensor:
        traits = self.traits[users]
        deep = self.users(users), self.trait(traits / traits.sum(dim=1, keepdim=True).clamp(min=1))
        return torch.cat([self.user_bias(users), self.cross(traits), *deep], dim=1)

    def item_states(self, items: Tensor) -> Tensor:
        genres = self.genres[items]
        shares = genres / genres.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([self.item_bias(items), shares, self.items(items), self.genre(shares)], dim=1)

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        wide = users[..., 0] + items[..., 0] + (users[..., 1 : self.wide] * items[..., 1 : self.wide]).sum(dim=-1)
        deep = self.out(self.mlp(users[..., self.wide :], items[..., self.wide :]))[..., 0]
        return cast(Tensor, self.mean + wide + deep)

    def grid(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.cat([self.score(user, items)[None] for user in users[:, None]])


class WideDeep(PairRecommender):
    """A wide linear and a deep model of stars, see `WideDeepNetwork`.

    With `bind_dataset` before `fit` and `load` it knows the users' attributes and the items' genres; without them
    only who and what.

    Args:
        hidden: widths of the feed-forward layers.
        options: see `PairRecommender`; its default loss is `mse`.
    """

    name = "wide-deep"
    default_loss: ClassVar[str] = "mse"

    def __init__(self, *, hidden: Sequence[int] = (64, 32), **options: Any) -> None:
        super().__init__(**options)
        self.hidden = widths(self.name, hidden)
        self._traits: BoolArray | None = None
        self._genres: BoolArray | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Learn what users and items are."""
        self._genres = dataset.catalog.genres
        values = [np.asarray(column).astype(str) for column in dataset.user_attributes.values()]
        columns = [column[:, None] == np.unique(column) for column in values]
        self._traits = np.concatenate(columns, axis=1) if columns else None

    def _network(self) -> WideDeepNetwork:
        traits = np.ones((self.n_users, 1), np.bool_) if self._traits is None else self._traits
        genres = np.ones((self.n_items, 1), np.bool_) if self._genres is None else self._genres
        if not genres.shape[1]:
            genres = np.ones((self.n_items, 1), np.bool_)
        if (len(traits), len(genres)) != (self.n_users, self.n_items):
            raise RecommenderError(
                f"wide-deep: bound to {len(traits)} users and {len(genres)} items, fitted on {self.n_users} and "
                f"{self.n_items}; expected the same"
            )
        return WideDeepNetwork(traits, genres, self.embedding_size, self.hidden, self.dropout, self._mean)


def widths(name: str, hidden: Sequence[int]) -> tuple[int, ...]:
    """`hidden`, if they are widths of at least one layer."""
    checks.require(len(hidden) > 0, f"{name}: hidden", list(hidden), "the width of at least one layer")
    for width in hidden:
        check_options(name, low=1, whole=True, hidden=width)
    return tuple(hidden)
