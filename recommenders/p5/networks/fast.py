"""The p5-fast network: pooled item codes -> causal encoder -> depth decoder over the codes of the next item.

An item enters as one vector pooled from its code tokens (three times shorter than writing the tokens out); every
position of a history predicts the next item, one code level after the other, as in the RQ-Transformer (Lee et al.
2022). Scores at a node are normalised over its children alone. The module does not know how the codes were made, nor
how the network is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.p5.trie import Level, Trie, child_logits, step_losses
from simenv import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class FastOptions:
    """Shape of the network."""

    embedding_size: int = 64
    layers: int = 2
    heads: int = 2
    depth_layers: int = 1  # residual blocks of the depth decoder per code level
    dropout: float = 0.2
    history: int = 100  # items read

    def __post_init__(self) -> None:
        for name in ("embedding_size", "layers", "heads", "depth_layers", "history"):
            checks.whole(name, getattr(self, name), 1)
        fits = self.embedding_size % (2 * self.heads) == 0
        checks.require(fits, "embedding_size", self.embedding_size, f"a multiple of twice the heads={self.heads}")
        checks.share("dropout", self.dropout, open_high=True)


class CausalEncoder(nn.Module):
    """A pre-norm causal transformer with rotary positions: what counts is how long ago, not the place in the window."""

    def __init__(self, size: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.head_size = size // heads
        self.blocks = nn.ModuleList(Block(size, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d); position t sees positions 0 to t."""
        x = self.dropout(x)
        turn = rotations(x.shape[1], self.head_size, x.device)
        for block in self.blocks:
            x = block(x, turn)
        return self.norm(x)


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a norm and added to its input.

    Dropout on the two residual branches only: inside attention and the wide layer it costs a third of a CPU step.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.project = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        n, length, size = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, length, 3, self.heads, size // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, turn), rotate(k, turn)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.project(mixed.transpose(1, 2).reshape(n, length, size)))
        return x + self.dropout(self.feed_forward(self.forward_norm(x)))


def rotations(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, size / 2) of rotary position embedding (Su et al. 2021)."""
    rates = 100.0 ** (-torch.arange(0, size, 2, device=device) / size)
    angles = torch.arange(length, device=device)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of features of (..., T, size) by its position's angles."""
    cos, sin = turn[0].to(x.dtype), turn[1].to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


class DepthDecoder(nn.Module):
    """From a user's state and the tokens chosen so far to the state that scores the next token.

    The state of a path is the user's vector plus an embedding per token, passed through `layers` residual blocks of
    its level. It depends on the parent's sum only, so that every node of the trie costs one block, once.
    """

    def __init__(self, size: int, depth: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(
                    nn.LayerNorm(size),
                    nn.Linear(size, 4 * size),
                    nn.GELU(),
                    nn.Dropout(dropout),
                    nn.Linear(4 * size, size),
                )
                for _ in range(layers)
            )
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(depth))

    def forward(self, total: Tensor, level: int) -> Tensor:
        """Sums (..., d) of user vector and token embeddings to scoring states (..., d)."""
        blocks = cast(nn.ModuleList, self.levels[level])
        for block in blocks:
            total = total + block(total)
        return cast(Tensor, self.norms[level](total))


class FastModel(nn.Module):
    """p5-fast. `sizes` are the tokens per code level; embeddings are shared between input and output."""

    codes: Tensor  # (n_items, depth)

    def __init__(self, codes: Tensor, sizes: tuple[int, ...], options: FastOptions) -> None:
        super().__init__()
        size = options.embedding_size
        self.options = options
        self.register_buffer("codes", codes.long())
        self.tokens = nn.ModuleList(nn.Embedding(n, size) for n in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in sizes)
        self.pool = nn.LayerNorm(size)
        self.start = nn.Parameter(torch.randn(1, 1, size))
        self.encoder = CausalEncoder(size, options.layers, options.heads, options.dropout)
        self.decoder = DepthDecoder(size, len(sizes), options.depth_layers, options.dropout)
        for level in range(len(sizes)):
            nn.init.normal_(self.table(level), std=size**-0.5)

    def table(self, level: int) -> Tensor:
        """The token embeddings of a level, (n_tokens, d)."""
        return cast(nn.Embedding, self.tokens[level]).weight

    def encode(self, items: Tensor) -> Tensor:
        """User states (B, T + 1, d) before the first and after each item of (B, T); -1 pads the end."""
        codes = self.codes[items.clamp(min=0)]
        pooled = sum(table(codes[..., level]) for level, table in enumerate(self.tokens))
        start = self.start.expand(len(items), 1, -1)
        return self.encoder(torch.cat([start, self.pool(pooled)], dim=1))

    def loss(self, targets: Tensor, trie: Trie) -> Tensor:
        """Mean negative log-likelihood of every item of (B, T), -1 after the end, given those before it."""
        valid = targets >= 0
        total = self.encode(targets[:, :-1])[valid]
        targets = targets[valid]
        codes = self.codes[targets]
        loss = total.new_zeros((), dtype=torch.float32)
        for depth in range(trie.depth):
            hidden = self.decoder(total, depth)
            losses = step_losses(trie, depth, targets, hidden, self.table(depth), self.biases[depth])
            if losses is not None:
                loss = loss + losses.mean()
            total = total + self.tokens[depth](codes[:, depth])
        return loss

    def scorer(self, items: Tensor) -> FastScorer:
        """A `PathScorer` for users with these histories (B, T), -1 after the end."""
        ends = (items >= 0).sum(dim=1)
        states = self.encode(items)[torch.arange(len(items), device=items.device), ends]
        return FastScorer(self, states)


@dataclass(frozen=True, slots=True)
class FastScorer:
    """p5-fast as a `PathScorer`; a state is the sum of user vector and path embeddings, (B, M, d)."""

    model: FastModel
    users: Tensor  # (B, d)

    def begin(self) -> Tensor:
        return self.users[:, None]

    def extend(self, state: Tensor, level: Level, parents: Tensor, nodes: Tensor) -> Tensor:
        embedded = self.model.tokens[level.depth - 1](level.token[nodes])
        if len(parents) == 1:
            return state[:, parents[0]] + embedded
        return state.gather(1, parents[..., None].expand(-1, -1, state.shape[-1])) + embedded

    def logits(self, state: Tensor, level: Level, tokens: Tensor) -> Tensor:
        hidden = self.model.decoder(state, level.depth)
        return child_logits(hidden, self.model.table(level.depth), tokens, self.model.biases[level.depth])
