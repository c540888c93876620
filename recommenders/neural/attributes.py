"""FDSA and S3-Rec: self-attention that knows what items are, not only which.

An item's attributes are its genres and the values of its textual attributes, such as the brand. FDSA reads them beside
the items, S3-Rec learns them before it learns what comes next. The module does not know item codes or free text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.base import check_options
from recommenders.neural.base import NextItemNetwork, NextItemRecommender, divisor
from recommenders.neural.sequential import SASRecNetwork, future, transformer
from simenv.datasets.base import BoolArray, Catalog, Dataset, LongArray
from simenv.errors import ConfigError, RecommenderError
from simenv.numeric import places
from simenv.training.histories import Histories
from simenv.training.loop import Training

RARE = 2  # a value that fewer items share tells nothing about them
PATHS = "category_path"  # a textual attribute that genres hold already


def item_attributes(catalog: Catalog) -> BoolArray:
    """Genres, and every value of a textual attribute that two items or more share: (n_items, n_attributes)."""
    columns = [catalog.genres]
    for name, values in catalog.attributes.items():
        if values.dtype.kind in "US" and name != PATHS:
            distinct, number, counts = np.unique(values, return_inverse=True, return_counts=True)
            kept = np.flatnonzero((counts >= RARE) & (distinct != ""))
            columns.append(number.reshape(-1, 1) == kept)
    return np.concatenate(columns, axis=1)


def listed(table: BoolArray) -> LongArray:
    """The columns that are true in each row, (n, most), -1 after the end."""
    rows, columns = np.nonzero(table)
    counts = table.sum(axis=1)
    out = np.full((len(table), max(1, int(counts.max(initial=0)))), -1, np.int64)
    out[rows, places(counts)] = columns
    return out


class AttributeRecommender(NextItemRecommender):
    """What both share: item attributes from the catalogue; needs `bind_dataset` before `fit` and `load`.

    Args:
        heads: attention heads.
        loss, negatives, options: see `recommenders.neural.base.NextItemRecommender`.
    """

    default_loss: ClassVar[str] = "bce"

    def __init__(self, *, heads: int = 2, **options: Any) -> None:
        super().__init__(**options)
        self.heads = divisor(self.name, heads, self.embedding_size)
        self._attributes: BoolArray | None = None

    def bind_dataset(self, dataset: Dataset) -> None:
        """Learn what items are.

        Raises:
            ConfigError: the catalogue does not say.
        """
        self._attributes = item_attributes(dataset.catalog)
        if self._attributes.shape[1] == 0:
            raise ConfigError(f"arm '{self.name}': {dataset.name} knows no genres or other attributes of items")

    @property
    def attributes(self) -> BoolArray:
        """(n_items, n_attributes)."""
        if self._attributes is None or len(self._attributes) != self.n_items:
            raise RecommenderError(f"{self.name}: knows no attributes of {self.n_items} items; bind_dataset first")
        return self._attributes


class FDSANetwork(NextItemNetwork):
    """Two self-attention streams, one over items and one over what they are (Zhang et al. 2019, "Feature-level deeper
    self-attention network for sequential recommendation", eqs. 2 to 11); an item's attributes are pooled by attention.
    """

    listed: Tensor

    def __init__(
        self, attributes: LongArray, n_attributes: int, size: int, layers: int, heads: int, dropout: float, history: int
    ) -> None:
        super().__init__(len(attributes), size)
        nothing = np.full((1, attributes.shape[1]), -1)  # of padding and mask
        self.register_buffer("listed", torch.as_tensor(np.concatenate([attributes, nothing])))
        self.features = nn.Embedding(n_attributes + 1, size)
        self.weigh = nn.Linear(size, 1)
        self.places = nn.ParameterList(nn.Parameter(torch.randn(history, size) * size**-0.5) for _ in range(2))
        self.streams = nn.ModuleList(transformer(size, layers, heads, dropout) for _ in range(2))
        self.join = nn.Linear(2 * size, size)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.features.weight, std=size**-0.5)

    def describe(self, rows: Tensor) -> Tensor:
        """(B, T) items to (B, T, d), the attention-weighted mean of their attributes' vectors."""
        table = self.listed[rows.masked_fill(rows < 0, self.n_items).clamp(max=self.n_items)]
        known = table >= 0
        vectors = self.features(table.masked_fill(~known, self.features.num_embeddings - 1))
        weight = self.weigh(vectors.tanh())[..., 0].masked_fill(~known, -1e4).softmax(dim=-1) * known
        return cast(Tensor, (weight[..., None] * vectors).sum(dim=-2))

    def encode(self, rows: Tensor, users: Tensor | None = None) -> Tensor:
        length = rows.shape[1]
        ahead, read = future(length, rows.device), [self.embed(rows), self.describe(rows)]
        streams = zip(self.streams, read, self.places, strict=True)
        return cast(
            Tensor,
            self.join(
                torch.cat([stream(self.dropout(x + place[:length]), mask=ahead) for stream, x, place in streams], dim=2)
            ),
        )


class FDSA(AttributeRecommender):
    """Feature-level deeper self-attention, see `FDSANetwork`. Options: see `AttributeRecommender`."""

    name = "fdsa"

    def _network(self) -> FDSANetwork:
        known = self.attributes
        shape = self.embedding_size, self.layers, self.heads, self.dropout, self.history
        return FDSANetwork(listed(known), known.shape[1], *shape)


class S3RecNetwork(SASRecNetwork):
    """SASRec whose weights first learn four things about the data (Zhou et al. 2020, "S3-Rec: self-supervised learning
    for sequential recommendation with mutual information maximization", eqs. 5 to 8).
    """

    attributes: Tensor
    AAP, MIP, MAP, SP = 0.2, 1.0, 1.0, 0.5  # weights of the four losses, the authors'
    MASKED = 0.2  # share of a history's items that are hidden

    def __init__(self, attributes: BoolArray, *shape: Any) -> None:
        super().__init__(len(attributes), *shape)
        size = self.items.embedding_dim
        self.register_buffer("attributes", torch.as_tensor(attributes, dtype=torch.float32))
        self.features = nn.Embedding(attributes.shape[1], size)
        self.of_item, self.of_place = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        self.item_here, self.segment_here = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        nn.init.normal_(self.features.weight, std=size**-0.5)

    def both_ways(self, rows: Tensor) -> Tensor:
        """(B, T) to (B, T, d); every position sees all others."""
        x = self.dropout(self.embed(rows) + self.positions[: rows.shape[1]])
        return cast(Tensor, self.encoder(x, src_key_padding_mask=rows < 0))

    def pretraining_loss(self, rows: Tensor) -> Tensor:
        """The four losses of (B, T) histories, -1 after the end.

        AAP: an item's embedding tells its attributes. MIP: the state at a hidden item ranks it above a random one. MAP:
        it tells the hidden item's attributes. SP: the state of a history without a segment ranks that segment above as
        many items in a row of somebody else.
        """
        real = rows >= 0
        length = real.sum(dim=1)
        hidden = (torch.rand(rows.shape, device=rows.device) < self.MASKED) & real
        hidden |= (torch.arange(rows.shape[1], device=rows.device) == length[:, None] - 1) & ~hidden.any(1, True)
        states, items = self.both_ways(rows.masked_fill(hidden, self.mask))[hidden], rows[hidden]
        here = self.item_here(states)
        other = torch.randint(self.n_items, items.shape, device=rows.device)
        mip = -F.logsigmoid((here * (self.items(items) - self.items(other))).sum(dim=1)).mean()
        shown = torch.unique(rows[real])
        aap = self._tell(self.of_item(self.embed(shown)), shown)
        return (
            self.AAP * aap
            + self.MIP * mip
            + self.MAP * self._tell(self.of_place(states), items)
            + self.SP * self._segments(rows, length)
        )

    def _tell(self, states: Tensor, items: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(states @ self.features.weight.T, self.attributes[items])

    def _segments(self, rows: Tensor, length: Tensor) -> Tensor:
        draw = torch.rand(2, len(rows), device=rows.device)
        size = 1 + (draw[0] * (length // 2).clamp(min=1)).long()  # at most half of the history
        start = (draw[1] * (length - size + 1)).long()
        place = torch.arange(rows.shape[1], device=rows.device)
        inside = (place >= start[:, None]) & (place < (start + size)[:, None])
        pool = rows[rows >= 0]
        offset = torch.randint(len(pool), (len(rows), 1), device=rows.device)
        strange = pool[(offset + place) % len(pool)]
        outside = torch.where(rows < 0, rows, self.mask)
        context, own, others = self.both_ways(
            torch.cat(
                [
                    rows.masked_fill(inside, self.mask),
                    torch.where(inside, rows, outside),
                    torch.where(inside, strange, outside),
                ]
            )
        )[torch.arange(3 * len(rows), device=rows.device), (length - 1).repeat(3)].chunk(3)
        asked = self.segment_here(context)
        return -F.logsigmoid((asked * (own - others)).sum(dim=1)).mean()


class S3Rec(AttributeRecommender):
    """SASRec pre-trained on attributes, hidden items and segments, see `S3RecNetwork`.

    Args:
        pretraining: passes over the histories before the first one that learns what comes next; 0 = SASRec.
        heads, options: see `AttributeRecommender`.
    """

    name = "s3rec"

    def __init__(self, *, pretraining: int = 20, **options: Any) -> None:
        super().__init__(**options)
        check_options(self.name, whole=True, pretraining=pretraining)
        self.pretraining = pretraining
        self.pretraining_losses: list[float] = []

    def _network(self) -> S3RecNetwork:
        shape = self.embedding_size, self.layers, self.heads, self.dropout, self.history + 1
        return S3RecNetwork(self.attributes, *shape)

    def _prepare(self, histories: Histories, seed: int) -> None:
        if not self.pretraining:
            return
        network = cast(S3RecNetwork, self.network)

        def loss(batch: tuple[Any, Any]) -> tuple[Tensor, int]:
            rows = torch.as_tensor(batch[0]).to(self.device, non_blocking=True)
            return network.pretraining_loss(rows), int((batch[0] >= 0).sum())

        options = replace(self.training, epochs=self.pretraining, max_minutes=None, early_stop=False)
        run = Training(network, loss, options, seed=seed, show=self.show_progress)
        steps = -(-len(histories.windows(self.history, np.random.default_rng(seed))[0]) // options.batch_size)
        batches: Any = lambda epoch: self._batches(histories, np.random.default_rng([seed, epoch, 1]))  # noqa: E731
        self.pretraining_losses = run.run(batches, steps).losses
