"""Reading prompts and scoring paths of the trie with a T5, for many users at once.

What no user changes is computed once for all of them: the decoder's first self-attention, and the query it asks the
prompt with, depend on the path alone. Keys and values of the prompt are computed once per user, those of a path once
per node, and found by index afterwards. The module does not know prompts, users, or how paths are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.t5.modeling_t5 import T5DenseActDense

from recommenders.p5.language.text import PAD
from recommenders.p5.trie import NEVER, Level, child_logits, rows


@dataclass(frozen=True, slots=True)
class Paths:
    """A set of paths per user. Of the layers above the first, each depth holds the keys and values of its own nodes."""

    hidden: Tensor  # (B, M, d) final states
    above: tuple[Tensor, ...]  # per depth so far, (1 or B, M): which of that depth's nodes each path goes through
    keys: tuple[tuple[Tensor, ...], ...]  # per layer above the first, per depth: (B, M of the depth, heads * d_kv)
    values: tuple[tuple[Tensor, ...], ...]


class T5Scorer:
    """A `PathScorer`: the decoder of a T5 one token at a time, equal to its own forward pass (tested).

    Args:
        network: the T5 and its vocabulary.
        states: (B, S, d) encoder outputs.
        mask: (B, S) which of them are real.
    """

    def __init__(self, network: Any, states: Tensor, mask: Tensor) -> None:
        self.network, self.blocks = network, network.t5.decoder.block
        config = network.t5.config
        self.heads, self.d_kv = config.num_heads, config.d_kv
        self.n_users = len(states)
        self.blocked = _blocked(mask, states.dtype)
        cross = [block.layer[1].EncDecAttention for block in self.blocks]
        shape = (*states.shape[:2], self.heads, self.d_kv)
        self.cross_keys = [attention.k(states).view(shape).permute(0, 2, 3, 1).contiguous() for attention in cross]
        self.cross_values = [attention.v(states).view(shape).transpose(1, 2).contiguous() for attention in cross]
        self.position_bias = _position_bias(self.blocks[0].layer[0].SelfAttention, len(network.offsets))
        offsets = network.offsets
        inner = torch.arange(offsets[0], offsets[-1], device=states.device)  # tokens that paths go through
        self.words = network.embedding(F.pad(inner, (1, 0), value=PAD))
        first = self.blocks[0].layer[0]
        normed = _normed(first.layer_norm, self.words)
        self.word_queries, self.word_keys, self.word_values = (
            project(normed) for project in (first.SelfAttention.q, first.SelfAttention.k, first.SelfAttention.v)
        )

    def begin(self) -> Paths:
        root = torch.zeros(1, 0, dtype=torch.long, device=self.words.device)
        return self._step(*self._first(root, torch.zeros(1, 1, dtype=torch.long, device=root.device)), None, ())

    def extend(self, state: Paths, level: Level, parents: Tensor, nodes: Tensor) -> Paths:
        above = (*(_at(index, parents) for index in state.above), parents)
        return self._step(*self._first(level.path, nodes), state, above)

    def logits(self, state: Paths, level: Level, tokens: Tensor) -> Tensor:
        network, depth = self.network, level.depth
        output = network.output(network.offsets[depth], network.level_sizes[depth])
        return child_logits(network.scaled(state.hidden), output, tokens)

    def _first(self, paths: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer up to its question to the prompt, which depends on the path alone.

        Args:
            paths: (n, depth) tokens of all nodes of a level.
            nodes: (1 or B, M) which of them are asked for.

        Returns:
            States (1 or B, M, d) and queries (1 or B, M, heads * d_kv).
        """
        if len(paths) > nodes.numel():
            paths, nodes = paths[nodes.flatten()], torch.arange(nodes.numel(), device=nodes.device).view(nodes.shape)
        offsets = self.network.offsets
        shift = torch.tensor([offset - offsets[0] + 1 for offset in offsets], device=paths.device)
        words = F.pad(paths + shift[: paths.shape[1]], (1, 0))  # rows of `self.words`; the start token comes first
        last, along = words[:, -1], words.T[:, None]
        block = self.blocks[0]
        mixed = self._mix(self.word_queries[last][None], list(self.word_keys[along]), list(self.word_values[along]))
        x = self.words[last] + block.layer[0].SelfAttention.o(mixed[0])
        return rows(x, nodes), rows(block.layer[1].EncDecAttention.q(_normed(block.layer[1].layer_norm, x)), nodes)

    def _step(self, x: Tensor, queries: Tensor, state: Paths | None, above: tuple[Tensor, ...]) -> Paths:
        """The decoder on the last token of each path, from the first layer's question to the prompt on."""
        keys, values = [], []
        for number, block in enumerate(self.blocks):
            if number > 0:
                attention, h = block.layer[0].SelfAttention, _normed(block.layer[0].layer_norm, x)
                earlier = ((), ()) if state is None else (state.keys[number - 1], state.values[number - 1])
                keys.append((*earlier[0], attention.k(h)))
                values.append((*earlier[1], attention.v(h)))
                x += attention.o(self._mix(attention.q(h), _along(keys[-1], above), _along(values[-1], above)))
                queries = block.layer[1].EncDecAttention.q(_normed(block.layer[1].layer_norm, x))
            x = _fed(block.layer[2], x + self._cross(number, queries))
        hidden = _normed(self.network.t5.decoder.final_layer_norm, x)
        return Paths(hidden, above, tuple(keys), tuple(values))

    def _mix(self, q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """Attention of each node (.., M, heads * d_kv) to its ancestors and itself, one tensor per depth."""
        q = self._split(q)
        logits = torch.stack([(q * self._split(key)).sum(-1) for key in keys])  # (length, .., M, heads)
        weights = (logits + self.position_bias[-len(keys) :, None, None]).softmax(0)[..., None]
        mixed = weights[0] * self._split(values[0])
        for weight, value in zip(weights[1:], values[1:], strict=True):
            mixed = torch.addcmul(mixed, weight, self._split(value))
        return mixed.flatten(-2)

    def _cross(self, number: int, q: Tensor) -> Tensor:
        """What each path reads in the prompt, (B, M, d)."""
        weights = self._split(q).transpose(1, 2) @ self.cross_keys[number]  # (B, heads, M, S)
        mixed = weights.add_(self.blocked).softmax(-1) @ self.cross_values[number]
        return cast(Tensor, self.blocks[number].layer[1].EncDecAttention.o(mixed.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.d_kv)


def encoded(t5: Any, x: Tensor, mask: Tensor) -> Tensor:
    """What the encoder of a T5 makes of embedded prompts: its own forward pass (tested), in fewer and smaller steps.

    Args:
        t5: a T5ForConditionalGeneration in evaluation mode.
        x: (B, S, d) embedded prompts.
        mask: (B, S) which of their places are real.
    """
    blocks, n = t5.encoder.block, x.shape[1]
    bias = blocks[0].layer[0].SelfAttention.compute_bias(n, n) + _blocked(mask, x.dtype)
    for block in blocks:
        attention, h = block.layer[0].SelfAttention, _normed(block.layer[0].layer_norm, x)
        shape = (*x.shape[:2], -1, attention.key_value_proj_dim)
        q, k, v = (project(h).view(shape).transpose(1, 2) for project in (attention.q, attention.k, attention.v))
        mixed = (q @ k.transpose(2, 3)).add_(bias).softmax(-1) @ v
        x = _fed(block.layer[1], x + attention.o(mixed.transpose(1, 2).flatten(2)))
    return _normed(t5.encoder.final_layer_norm, x)


def _blocked(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of places (B, 1, 1, S): 0 where the mask (B, S) is true, `NEVER` elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, NEVER)[:, None, None]


def _fed(layer: Any, x: Tensor) -> Tensor:
    """The feed-forward layer of a block; writes over `x`."""
    dense, h = layer.DenseReluDense, _normed(layer.layer_norm, x)
    if isinstance(dense, T5DenseActDense) and isinstance(dense.act, torch.nn.ReLU):
        return x.add_(dense.wo(dense.wi(h).relu_()))
    return x.add_(dense(h))


def _position_bias(attention: Any, length: int) -> Tensor:
    """Relative position bias (length, heads) of the last token of a path towards all of it."""
    return cast(Tensor, attention.compute_bias(1, length, past_seen_tokens=length - 1)[0, :, 0].T)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """What a T5LayerNorm makes of x."""
    if x.is_cuda:  # one kernel there; here it would be six passes over x
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x * length.square_().div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()).mul_(norm.weight)


def _at(index: Tensor, parents: Tensor) -> Tensor:
    """An index (1 or B, M) of the parents of some paths, for the paths themselves."""
    return index[0][parents] if len(index) == 1 else index.gather(1, parents)


def _along(nodes: tuple[Tensor, ...], above: tuple[Tensor, ...]) -> list[Tensor]:
    """Of each depth (B, M of the depth, n) the nodes that each path goes through, (B, 1 or M, n); the newest all."""
    found = []
    for node, index in zip(nodes, above, strict=False):
        if node.shape[1] == 1 or len(index) == 1:
            found.append(node if node.shape[1] == 1 else node[:, index[0]])
        else:
            first = torch.arange(len(node), device=node.device)[:, None] * node.shape[1]
            found.append(rows(node.flatten(0, 1), index + first))
    return [*found, nodes[-1]]
