"""GraphRec: a user is what it consumed and whom it knows, an item is who consumed it.

The module knows the friendship graph of the data set and the log with its stars, neither order nor content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from recommenders.base import check_options
from recommenders.neural.pairs import PairMLP, PairNetwork, PairRecommender, embedding, widths
from recommenders.social import friends_of
from simenv.datasets.base import Dataset, Interactions, LongArray
from simenv.datasets.friends import Friends
from simenv.errors import RecommenderError
from simenv.training.histories import Histories


class Gathering(nn.Module):
    """Attention of an owner over its neighbours, then a layer: relu(W sum a_n x_n + b), a = softmax(f(x_n, owner)).

    A layer norm follows, which keeps the signal from fading through the depth; the authors' code has batch norms.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention, self.weigh = PairMLP(size, (size,), 0.0), nn.Linear(size, 1)
        self.project, self.norm = nn.Linear(size, size), nn.LayerNorm(size)

    def forward(self, owners: Tensor, neighbours: Tensor, known: Tensor) -> Tensor:
        """Owners (n, d), neighbours (n, N, d) of which `known` (n, N) count, to (n, d)."""
        weight = self.weigh(self.attention(owners[:, None], neighbours))[..., 0].masked_fill(~known, -1e4)
        shares = weight.softmax(dim=1) * known
        return cast(Tensor, self.norm(self.project((shares[..., None] * neighbours).sum(dim=1)).relu()))


class GraphRecNetwork(PairNetwork):
    """GraphRec (Fan et al. 2019, "Graph neural networks for social recommendation", eqs. 1 to 20).

    While a pair is learned from, it is left out of the user's items and of the item's users, and of the others every
    one with probability `HIDDEN`; the paper says nothing of it. Else its own opinion would be among what its
    prediction reads, or be told by being the one that is missing.
    """

    HIDDEN = 0.5

    def __init__(
        self,
        items_of: tuple[LongArray, LongArray],
        users_of: tuple[LongArray, LongArray],
        friends: LongArray,
        n_opinions: int,
        size: int,
        hidden: Sequence[int],
        dropout: float,
        mean: float,
    ) -> None:
        super().__init__()
        for name, table in (
            ("items_of", items_of[0]),
            ("said_by", items_of[1]),
            ("users_of", users_of[0]),
            ("said_of", users_of[1]),
            ("friends", friends),
        ):
            self.register_buffer(name, torch.as_tensor(table), persistent=False)
        self.users, self.items = embedding(len(friends), size), embedding(len(users_of[0]), size)
        self.opinions = embedding(n_opinions, size)
        self.of_item, self.of_user = PairMLP(size, (size, size), dropout), PairMLP(size, (size, size), dropout)
        self.consumed, self.social, self.audience = Gathering(size), Gathering(size), Gathering(size)
        self.join = PairMLP(size, (size, size), dropout)
        self.mlp, self.out = PairMLP(size, hidden, dropout), nn.Linear(hidden[-1], 1)
        self.mean = mean

    def in_items(self, users: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Users (n,) as what they consumed, (n, d); `hidden` (n,) is an item of each that does not count."""
        items, said = self.buffer("items_of")[users], self.buffer("said_by")[users]
        known = self.shown(items, hidden)
        read = self.of_item(self.items(items.clamp(min=0)), self.opinions(said))
        return cast(Tensor, self.consumed(self.users(users), read, known))

    def shown(self, neighbours: Tensor, hidden: Tensor | None) -> Tensor:
        """Which of (n, N) neighbours are read: those that are there, without `hidden` (n,) and some by chance."""
        known = neighbours >= 0
        if self.training:
            known = known & (torch.rand(known.shape, device=known.device) >= self.HIDDEN)
        return known if hidden is None else known & (neighbours != hidden[:, None])

    def buffer(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, name))

    def user_states(self, users: Tensor, hidden: Tensor | None = None) -> Tensor:
        friends = self.buffer("friends")[users]
        met, place = torch.unique(friends.clamp(min=0), return_inverse=True)
        around = self.social(self.users(users), self.in_items(met)[place], friends >= 0)
        return cast(Tensor, self.join(self.in_items(users, hidden), around))

    def item_states(self, items: Tensor, hidden: Tensor | None = None) -> Tensor:
        users, said = self.buffer("users_of")[items], self.buffer("said_of")[items]
        known = self.shown(users, hidden)
        read = self.of_user(self.users(users.clamp(min=0)), self.opinions(said))
        return cast(Tensor, self.audience(self.items(items), read, known))

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return self.mean + cast(Tensor, self.out(self.mlp(users, items))[..., 0])

    def grid(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.cat([self.score(user, items)[None] for user in users[:, None]])

    def pair_loss(self, kind: str, users: Tensor, items: Tensor, stars: Tensor, others: Tensor) -> Tensor:
        user = self.user_states(users, items)
        item = self.item_states(items, users)
        away = self.item_states(others.flatten())
        drawn = away.view(*others.shape, away.shape[-1])
        return self.loss_of(kind, user, item, stars, drawn)


class GraphRec(PairRecommender):
    """A graph network on consumption and friendship, see `GraphRecNetwork`; needs `bind_dataset` before `fit`, `load`.

    Args:
        neighbours: items of a user, users of an item (the most recent ones) and friends (drawn once) that are read.
        hidden: widths of the layers that predict.
        options: see `recommenders.neural.pairs.PairRecommender`; its default loss is `mse`, where the log has no stars
            `bpr` or `bce`.
    """

    name = "graphrec"
    default_loss: ClassVar[str] = "mse"

    def __init__(self, *, neighbours: int = 20, hidden: Sequence[int] = (32,), **options: Any) -> None:
        super().__init__(**options)
        check_options(self.name, low=1, whole=True, neighbours=neighbours)
        self.neighbours, self.hidden = neighbours, widths(self.name, hidden)
        self._friends: Friends | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Learn who knows whom.

        Raises:
            ConfigError: the data set does not know.
        """
        self._friends = friends_of(dataset, self.name)

    def _network(self) -> GraphRecNetwork:
        log, friends = self._log, self._friends
        if friends is None or friends.n_users != self.n_users:
            raise RecommenderError(f"{self.name}: knows no friends of {self.n_users} users; bind_dataset first")
        stars = np.unique(log.ratings[~np.isnan(log.ratings)])
        said = np.where(np.isnan(log.ratings), len(stars), np.searchsorted(stars, log.ratings))
        rng = np.random.default_rng(0)
        known = np.full((self.n_users, self.neighbours), -1, np.int64)
        for user in range(self.n_users):
            some = rng.permutation(friends[user])[: self.neighbours]
            known[user, : len(some)] = some
        shape = self.embedding_size, self.hidden, self.dropout, self._mean
        return GraphRecNetwork(self._recent(log, said), self._recent(_turned(log), said), known, len(stars) + 1, *shape)

    def _recent(self, log: Interactions, said: LongArray) -> tuple[LongArray, LongArray]:
        """The last items of every user, (n_users, neighbours), -1 after the end, and what it said of them."""
        everyone = np.arange(log.n_users)
        items = Histories.from_log(log).last(everyone, self.neighbours)
        opinions = Histories.from_log(replace(log, items=said.astype(np.int32), n_items=int(said.max()) + 1))
        return items, opinions.last(everyone, self.neighbours).clip(min=0)


def _turned(log: Interactions) -> Interactions:
    """The log with users and items in each other's place."""
    return replace(log, users=log.items, items=log.users, n_users=log.n_items, n_items=log.n_users)
