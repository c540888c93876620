"""Caser and HGN: models of a user's vector and the few last items, with no memory beyond them.

Every position of a history predicts the item after it from the window that ends there. The module does not know item
codes or texts.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.base import check_options
from recommenders.neural.base import NextItemNetwork, NextItemRecommender


class WindowNetwork(NextItemNetwork):
    """User vectors and item embeddings; a position's state comes from its user and the last `window` items."""

    def __init__(self, n_users: int, n_items: int, size: int, window: int, width: int) -> None:
        super().__init__(n_items, size)
        self.users = nn.Embedding(n_users, size)
        self.answers = nn.Embedding(n_items, width)  # what states are multiplied with: not the vectors that are read
        self.window = window
        for table in (self.users, self.answers):
            nn.init.normal_(table.weight, std=1 / size)

    @property
    def output(self) -> Tensor:
        return self.answers.weight

    @abstractmethod
    def read(self, items: Tensor, real: Tensor, user: Tensor) -> Tensor:
        """States (N, width) after windows (N, L, d), oldest first, of users (N, d); `real` (N, L) is False in front."""

    def encode(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        n, length = rows.shape
        owner = torch.zeros(n, dtype=torch.long, device=rows.device) if users is None else users.long()
        windows = F.pad(rows, (self.window - 1, 0), value=-1).unfold(1, self.window, 1).reshape(-1, self.window)
        real = windows >= 0
        items = self.embed(windows) * real[..., None]
        user = self.users(owner)[:, None].expand(-1, length, -1).flatten(0, 1)
        return self.read(items, real, user).view(n, length, -1)


class CaserNetwork(WindowNetwork):
    """Convolutions over the window as over an image (Tang and Wang 2018, "Personalized top-n sequential recommendation
    via convolutional sequence embedding", eqs. 3 to 10): `horizontal` filters of each height and max-pooling,
    `vertical` filters that weigh the items; what they find and the user's vector make the state.
    """

    def __init__(
        self, n_users: int, n_items: int, size: int, window: int, horizontal: int, vertical: int, dropout: float
    ) -> None:
        super().__init__(n_users, n_items, size, window, 2 * size)
        self.rows = nn.ModuleList(nn.Conv1d(size, horizontal, height) for height in range(1, window + 1))
        self.columns = nn.Linear(window, vertical, bias=False)
        self.project = nn.Linear(window * horizontal + vertical * size, size)
        self.dropout = nn.Dropout(dropout)

    def read(self, items: Tensor, real: Tensor, user: Tensor) -> Tensor:
        by_place = items.transpose(1, 2)  # (N, d, L)
        found = [convolve(by_place).relu().amax(dim=2) for convolve in self.rows]
        found.append(self.columns(by_place).flatten(1))
        seen = self.project(self.dropout(torch.cat(found, dim=1))).relu()
        return torch.cat([seen, user], dim=1)


class HGNNetwork(WindowNetwork):
    """Hierarchical gating (Ma, Kang and Liu 2019, "Hierarchical gating networks for sequential recommendation", eqs. 2
    to 9): gates on the features of each item, then on the items, averaged; beside it the user's vector and, as
    item-item products, the sum of the items read.
    """

    def __init__(self, n_users: int, n_items: int, size: int, window: int) -> None:
        super().__init__(n_users, n_items, size, window, size)
        self.feature_of_item, self.feature_of_user = nn.Linear(size, size), nn.Linear(size, size, bias=False)
        self.instance_of_item, self.instance_of_user = nn.Linear(size, 1, bias=False), nn.Linear(size, window)

    def read(self, items: Tensor, real: Tensor, user: Tensor) -> Tensor:
        gated = items * (self.feature_of_item(items) + self.feature_of_user(user)[:, None]).sigmoid()
        gate = (self.instance_of_item(gated)[..., 0] + self.instance_of_user(user)).sigmoid() * real
        pooled = (gated * gate[..., None]).sum(dim=1) / gate.sum(dim=1, keepdim=True).clamp(min=1e-6)
        return user + pooled + items.sum(dim=1)


class WindowRecommender(NextItemRecommender):
    """Both: what a state may depend on, and the loss of the paper as the default one.

    Args:
        window: last items read.
        history: items of a row of training and of scoring, of which each position reads its window.
        loss, negatives, options: see `recommenders.neural.base.NextItemRecommender`.
    """

    def __init__(self, *, window: int = 5, **options: Any) -> None:
        super().__init__(**options)
        check_options(self.name, low=1, high=self.history, whole=True, window=window)
        self.window = window


class Caser(WindowRecommender):
    """Convolutional sequence embedding, see `CaserNetwork`; the paper draws 3 items for the binary cross-entropy.

    Args:
        horizontal: filters of each height.
        vertical: filters over the places.
        window, loss, negatives, options: see `WindowRecommender`.
    """

    name = "caser"
    default_loss: ClassVar[str] = "bce"

    def __init__(self, *, horizontal: int = 16, vertical: int = 4, **options: Any) -> None:
        super().__init__(layers=1, **options)
        check_options(self.name, low=1, whole=True, horizontal=horizontal, vertical=vertical)
        self.horizontal, self.vertical = horizontal, vertical

    def _network(self) -> CaserNetwork:
        sizes = self.n_users, self.n_items, self.embedding_size, self.window
        return CaserNetwork(*sizes, self.horizontal, self.vertical, self.dropout)


class HGN(WindowRecommender):
    """A hierarchical gating network, see `HGNNetwork`. Options: see `WindowRecommender`; there is no dropout."""

    name = "hgn"
    default_loss: ClassVar[str] = "bpr"

    def __init__(self, **options: Any) -> None:
        super().__init__(layers=1, dropout=0.0, **options)

    def _network(self) -> HGNNetwork:
        return HGNNetwork(self.n_users, self.n_items, self.embedding_size, self.window)
