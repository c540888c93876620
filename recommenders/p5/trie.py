"""The trie of item codes as flat tensors, and constrained decoding over it: exact or by beam.

A model enters only through `PathScorer`: something that scores the tokens which may follow a path. Only tokens of
existing items are ever scored, so that an item which does not exist cannot come out, whatever the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simenv.numeric import places

EXACT_LIMIT = 2_000  # internal nodes up to which every one of them is scored
DENSE_LIMIT = 64  # tokens of a level per child up to which all of them are scored
NEVER = -1e30  # a log-probability below every real one, finite so that sums of it stay numbers


@dataclass(frozen=True, slots=True)
class Level:
    """The internal nodes at one depth, and their children padded to the widest node."""

    parent: Tensor  # (M,) place of each node's parent among the nodes of the level above
    path: Tensor  # (M, depth) the tokens that lead from the root to each node
    child_tokens: Tensor  # (M, C), 0 where there is no child
    child_nodes: Tensor  # (M, C) place among the next level's nodes, or the item at the last level; -1 = none
    closed: Tensor  # (M, C) what is added to the logit of a child: 0, or `NEVER` where there is none

    @property
    def n_nodes(self) -> int:
        return len(self.path)

    @property
    def depth(self) -> int:
        """Tokens between the root and the nodes."""
        return self.path.shape[1]

    @property
    def token(self) -> Tensor:
        """(M,) the token that leads to each node from its parent."""
        return self.path[:, -1]


@dataclass(frozen=True, slots=True)
class Trie:
    """All code paths of an index; nodes are numbered breadth first, the root is 0, every path has the same length.

    `ptr`, `child_token` and `child_node` are the CSR form: the children of node n are the edges `ptr[n]:ptr[n + 1]`;
    a child is another node, or -1 - item where the path ends. `levels` holds the same edges padded per level,
    which is what batched decoding gathers from.
    """

    ptr: Tensor  # (n_nodes + 1,)
    child_token: Tensor  # (n_edges,)
    child_node: Tensor  # (n_edges,)
    levels: tuple[Level, ...]
    path_nodes: Tensor  # (n_items, depth) the node, counted within its level, at which each token of an item is chosen
    path_children: Tensor  # (n_items, depth) which child of that node the item follows
    n_items: int

    @property
    def n_nodes(self) -> int:
        """Internal nodes, the root included."""
        return len(self.ptr) - 1

    @property
    def depth(self) -> int:
        return len(self.levels)

    @classmethod
    def build(cls, codes: NDArray[Any], device: torch.device | str = "cpu") -> Trie:
        """The trie of these code paths.

        Args:
            codes: (n_items, depth), one distinct row per item.
            device: where its tensors live.
        """
        n_items, depth = codes.shape
        codes = codes.astype(np.int64)
        node = np.zeros(n_items, np.int64)  # each item's node at the current level, counted within the level
        path_nodes, path_children = np.empty((2, n_items, depth), np.int64)
        node_parent, node_path = np.zeros(1, np.int64), np.zeros((1, 0), np.int64)
        levels, ptr, tokens, children, first_node = [], [np.zeros(1, np.int64)], [], [], 0
        for level in range(depth):
            path_nodes[:, level] = node
            edges, edge_of_item = np.unique(np.stack([node, codes[:, level]], axis=1), axis=0, return_inverse=True)
            edge_of_item = edge_of_item.reshape(-1)
            if level == depth - 1:
                targets = np.empty(len(edges), np.int64)
                targets[edge_of_item] = np.arange(n_items)
            else:
                targets = np.arange(len(edges))
            counts = np.bincount(edges[:, 0], minlength=len(node_path))
            path_children[:, level] = edge_of_item - (np.cumsum(counts) - counts)[node]
            child_tokens, child_nodes = _pad(edges, counts, targets)
            parent, path, table, nodes = (_to(a, device) for a in (node_parent, node_path, child_tokens, child_nodes))
            closed = torch.zeros(nodes.shape, device=device).masked_fill(nodes < 0, NEVER)
            levels.append(Level(parent, path, table, nodes, closed))
            ptr.append(ptr[-1][-1] + np.cumsum(counts))
            tokens.append(edges[:, 1])
            first_node += len(node_path)
            children.append(-1 - targets if level == depth - 1 else targets + first_node)
            node_path = np.concatenate([node_path[edges[:, 0]], edges[:, 1:]], axis=1)
            node, node_parent = edge_of_item, edges[:, 0]
        return cls(
            ptr=_to(np.concatenate(ptr), device),
            child_token=_to(np.concatenate(tokens), device),
            child_node=_to(np.concatenate(children), device),
            levels=tuple(levels),
            path_nodes=_to(path_nodes, device),
            path_children=_to(path_children, device),
            n_items=n_items,
        )

    def allowed_after(self, prefix: list[int]) -> list[int]:
        """The tokens that may follow a path from the root: the plain walk, one edge at a time."""
        node = 0
        for token in prefix:
            edges = slice(int(self.ptr[node]), int(self.ptr[node + 1]))
            place = (self.child_token[edges] == token).nonzero()
            if len(place) == 0:
                return []
            node = int(self.child_node[edges][place[0, 0]])
        if node < 0:
            return []
        return [int(token) for token in self.child_token[self.ptr[node] : self.ptr[node + 1]]]


def _to(values: NDArray[Any], device: torch.device | str) -> Tensor:
    return torch.as_tensor(values, dtype=torch.long, device=device)


def _pad(edges: NDArray[Any], counts: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Edges sorted by node as two (M, C) tables of child tokens and child places."""
    column = places(counts)
    shape = (len(counts), int(counts.max()))
    tokens, nodes = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    tokens[edges[:, 0], column] = edges[:, 1]
    nodes[edges[:, 0], column] = targets
    return tokens, nodes


class PathScorer(Protocol):
    """A model asked about paths through the trie; its state is whatever it needs to go on from a set of paths."""

    def begin(self) -> Any:
        """The state of the root of each of the B users: M = 1."""

    def extend(self, state: Any, level: Level, parents: Tensor, nodes: Tensor) -> Any:
        """Go on from `state` by one token.

        Args:
            state: the state of paths one token shorter.
            level: the level of the new nodes.
            parents: (1 or B, M) which path of `state` each new path continues; 1 = the same for every user.
            nodes: (1 or B, M) the node of the level it arrives at.
        """

    def logits(self, state: Any, level: Level, tokens: Tensor) -> Tensor:
        """Scores (B, M, C) of `tokens` (1 or B, M, C), children of the nodes of `state` at this level."""


def item_scores(trie: Trie, scorer: PathScorer) -> Tensor:
    """Exact mode: the log-probability of every item, (B, n_items), by scoring every internal node once."""
    steps, _ = _last_steps(trie, scorer, trie.n_items)
    leaves = trie.levels[-1].child_nodes
    exists = leaves >= 0
    scores = steps.new_empty(len(steps), trie.n_items)
    scores[:, leaves[exists]] = steps[:, exists]
    return scores


def beam_items(
    trie: Trie, scorer: PathScorer, k: int, allowed: Tensor | None = None, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Beam mode: the `k` best items found, (B, k), best first and -1 where none is left, and their log-probabilities.

    Args:
        trie: the trie.
        scorer: the model, already holding the users.
        k: items per user.
        allowed: (B, n_items) bool, applied at the leaves only, so that a seen item does not cut off its siblings.
        width: paths kept at each level; at least 2 k, the default.
    """
    steps, nodes = _last_steps(trie, scorer, max(width or 0, 2 * k))
    scores = steps.flatten(1)
    if allowed is not None:
        items = trie.levels[-1].child_nodes[nodes].expand(len(scores), -1, -1).flatten(1)
        scores = scores.masked_fill(~allowed.gather(1, items.clamp(min=0)), NEVER)
    scores, best = scores.topk(min(2 * k, scores.shape[1]), dim=1)
    items, _ = _children(trie.levels[-1], nodes, best)
    return _ranked(scores, items, k)


def _last_steps(trie: Trie, scorer: PathScorer, width: int) -> tuple[Tensor, Tensor]:
    """Down to the level above the leaves, on all paths where a level has at most `width`, else on the best.

    Returns:
        Log-probabilities (B, M, C) of the children of the paths that got there, and the nodes (1 or B, M) they got to.
    """
    state = scorer.begin()
    nodes = torch.zeros((1, 1), dtype=torch.long, device=trie.ptr.device)
    steps = _steps(trie.levels[0], scorer, state, nodes)
    for above, level in pairwise(trie.levels):
        if level.n_nodes <= width:  # so has every level above, and no path was dropped
            reached = steps[:, above.child_nodes >= 0]  # the nodes of a level are numbered in the order of these edges
            parents, nodes = level.parent[None], torch.arange(level.n_nodes, device=nodes.device)[None]
        else:
            scores = steps.flatten(1)
            reached, best = scores.topk(min(width, scores.shape[1]), dim=1)
            nodes, parents = _children(above, nodes, best)
            nodes = nodes.clamp(min=0)  # a path that is none has NEVER as its score
        state = scorer.extend(state, level, parents, nodes)
        steps = _steps(level, scorer, state, nodes).add_(reached[:, :, None])
    return steps, nodes


def _steps(level: Level, scorer: PathScorer, state: Any, nodes: Tensor) -> Tensor:
    """Log-probabilities (B, M, C) of the children of nodes (1 or B, M), each given its node."""
    logits = scorer.logits(state, level, rows(level.child_tokens, nodes)).float()
    return (logits + rows(level.closed, nodes)).log_softmax(-1)


def _children(level: Level, nodes: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which children (B, n) are at these places among the M times C of nodes (1 or B, M), and of which of the M."""
    width = level.child_nodes.shape[1]
    parents = places // width
    return level.child_nodes[nodes.expand(len(places), -1).gather(1, parents), places % width], parents


def _ranked(scores: Tensor, items: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best of some leaves, ties to the smaller item, as in exact mode; -1 for those that are none."""
    items = items.masked_fill(scores <= NEVER / 2, -1)
    order = items.argsort(dim=1, stable=True)
    scores, items = scores.gather(1, order), items.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    scores, items = scores.gather(1, order), items.gather(1, order)
    missing = k - items.shape[1]
    if missing > 0:
        items = torch.nn.functional.pad(items, (0, missing), value=-1)
        scores = torch.nn.functional.pad(scores, (0, missing), value=NEVER)
    return items, scores


def rows(table: Tensor, places: Tensor) -> Tensor:
    """`table[places]`, (*places.shape, n), copied row by row."""
    return table.index_select(0, places.flatten()).view(*places.shape, table.shape[-1])


def child_logits(hidden: Tensor, output: Tensor, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scores (B, M, C) of child tokens.

    Args:
        hidden: (B, M, d) states.
        output: (V, d) output embeddings of the level.
        tokens: (1 or B, M, C) which of them to score; 1 = the same for every user.
        bias: (V,) added per token.
    """
    if len(tokens) == 1:
        scores = torch.bmm(hidden.transpose(0, 1), output[tokens[0]].transpose(1, 2)).transpose(0, 1)
    elif len(output) <= DENSE_LIMIT * tokens.shape[-1]:  # a product with the whole level moves less memory
        scores = (hidden @ output.T).gather(2, tokens)
    else:
        scores = torch.einsum("bmd,bmcd->bmc", hidden, torch.nn.functional.embedding(tokens, output))
    return scores if bias is None else scores + bias[tokens]


def step_losses(
    trie: Trie, depth: int, items: Tensor, hidden: Tensor, output: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    """Negative log-likelihood (N,) of the token of each item at one level, among the children that exist.

    Args:
        trie: the trie.
        depth: the level, from 0.
        items: (N,) targets.
        hidden: (N, d) states at the node of the level that leads to the target.
        output, bias: as for `child_logits`.

    Returns:
        None where no node of the level has a choice.
    """
    level = trie.levels[depth]
    if level.child_nodes.shape[1] == 1:
        return None
    # Of a level with one node, such as the first, all targets have the same children: nothing is copied for each.
    nodes = trie.path_nodes[items, depth] if level.n_nodes > 1 else items.new_zeros(1)
    logits = child_logits(hidden[:, None], output, level.child_tokens[nodes][:, None], bias)[:, 0].float()
    logits = logits.masked_fill(level.child_nodes[nodes] < 0, NEVER)
    return torch.nn.functional.cross_entropy(logits, trie.path_children[items, depth], reduction="none")
