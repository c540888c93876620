"""LogitReadout: the expectation of every integer of an answer, read from what a network expects at its first digit.

After a prompt stands a tree of beginnings of the answer, one branch for each integer. A branch sees the prompt and not
the other branches, so that neither order nor earlier answers matter. The prompts of a batch run first, once; what they
begin with in common runs once for all, and is kept for the next batch; so does what only some of them have in common,
such as one person's history before many questions. The module knows neither messages nor schemas.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from simenv.language_models.local.small_llama import SmallLlama, Stored
from simenv.numeric import DoubleArray

SHORTEST_PREFIX = 16  # tokens in common that are worth a pass of their own
FAMILY_PREFIX = 64  # tokens that some prompts have in common beyond all, for which they are taken by themselves
TOKENS_PER_PASS = {"cpu": 2048}  # more leaves the processor's caches
TOKENS_PER_PASS_ELSEWHERE = 1 << 17


@dataclass(frozen=True, slots=True)
class Tree:
    """Branches of tokens after a prompt, what they begin with in common only once.

    Attributes:
        tokens: (W,).
        depths: (W,) how many tokens of the tree come before.
        sees: (W, W), itself and what comes before it on its branch.
        ends: (S,) where each branch ends.
    """

    tokens: NDArray[np.int64]
    depths: NDArray[np.int64]
    sees: NDArray[np.bool_]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, branches: Sequence[Sequence[int]]) -> Tree:
        """The tree of these branches, none of them empty."""
        nodes: dict[tuple[int, ...], int] = {}
        for branch in branches:
            for length in range(1, len(branch) + 1):
                nodes.setdefault(tuple(branch[:length]), len(nodes))
        sees = np.zeros((len(nodes), len(nodes)), np.bool_)
        for beginning, node in nodes.items():
            sees[node, [nodes[beginning[:length]] for length in range(1, len(beginning) + 1)]] = True
        return cls(
            tokens=np.array([beginning[-1] for beginning in nodes], np.int64),
            depths=np.array([len(beginning) - 1 for beginning in nodes], np.int64),
            sees=sees,
            ends=np.array([nodes[tuple(branch)] for branch in branches], np.int64),
        )


class _Stored(Exception):
    """The keys and values of the last layer are in the cache; nothing further is needed of this pass."""


class _Cache(DynamicCache):
    """Keys and values, which can end a pass as soon as it has stored those of the last layer.

    Nobody reads what a network says at the tokens of a prompt: its last layer's attention and feed-forward there are
    a third of the work in a network of three layers.
    """

    def __init__(self, stored: Stored, rows: int, layers: int) -> None:
        super().__init__(list(stored))
        held: list[Any] = self.layers if stored else []  # without `stored` they appear with the first tokens
        for layer in held:
            layer.keys, layer.values = layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)
        self.only_stores = False
        self._last = layers - 1

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        found = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.only_stores and layer_idx == self._last:
            raise _Stored
        return found


class AnyNetwork:
    """Any causal language model of transformers whose attention takes masks of four dimensions (``sdpa``).

    Args:
        network: the model.
        digits: the tokens whose scores `read` gives.
    """

    def __init__(self, network: Any, digits: Tensor) -> None:
        self._network, self._digits = network, digits
        self._layers = int(network.config.get_text_config().num_hidden_layers)
        self._picks = "logits_to_keep" in inspect.signature(network.forward).parameters

    def store(self, tokens: Tensor, past: Stored, bias: Tensor) -> Stored:
        """As `SmallLlama.store`."""
        n, length = tokens.shape
        begin = past[0][0].shape[2] if past else 0
        cache = _Cache(past, n, self._layers)
        cache.only_stores = True
        with contextlib.suppress(_Stored):
            self._network.base_model(
                input_ids=tokens,
                attention_mask=bias.expand(n, -1, -1, -1),
                position_ids=torch.arange(begin, begin + length, device=tokens.device).expand(n, -1),
                past_key_values=cache,
                use_cache=True,
            )
        return [(keys, values) for keys, values, _ in cache]

    def read(self, tokens: Tensor, positions: Tensor, ends: Tensor, past: Stored, bias: Tensor) -> Tensor:
        """As `SmallLlama.read`."""
        out = self._network(
            input_ids=tokens,
            attention_mask=bias,
            position_ids=positions,
            past_key_values=_Cache(past, len(tokens), self._layers),
            use_cache=True,
            **({"logits_to_keep": ends} if self._picks else {}),
        )
        scores = out.logits if self._picks else out.logits[:, ends]
        return scores[:, :, self._digits]


class LogitReadout:
    """Reads digits off a causal language model of transformers.

    Args:
        network: of `AnyNetwork`'s kind.
        digits: tokens of the digits 0 to 9 where a number of an answer stands.
        letters: further tokens that an answer may be about.
    """

    def __init__(self, network: Any, digits: Sequence[int], letters: Sequence[int] = ()) -> None:
        self.dtype, self.device = network.dtype, network.device
        kind = SmallLlama if SmallLlama.takes(network) else AnyNetwork
        with torch.inference_mode():
            self._network: SmallLlama | AnyNetwork = kind(
                network, torch.tensor([*digits, *letters], device=self.device)
            )
        self._per_pass = TOKENS_PER_PASS.get(self.device.type, TOKENS_PER_PASS_ELSEWHERE)
        self._prefix: list[int] = []
        self._stored: Stored = []

    def expectations(self, prompts: Sequence[list[int]], tree: Tree, asked: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean digit at the end of each branch.

        Args:
            prompts: n of at least one token.
            tree: of S branches.
            asked: (S, 2) the lowest and the highest digit that could stand there.

        Returns:
            (n, S), between the lowest and the highest digit asked for.
        """
        digits = np.arange(10)
        possible = torch.tensor((asked[:, :1] <= digits) & (digits <= asked[:, 1:]), device=self.device)
        values = torch.arange(10.0, device=self.device)

        def mean(scores: Tensor) -> Tensor:
            return scores[..., :10].masked_fill(~possible, -torch.inf).softmax(dim=-1) @ values

        means = self._read(prompts, tree, mean, (len(tree.ends),))
        return means.clip(asked[:, 0], asked[:, 1])

    def chances(self, prompts: Sequence[list[int]], branch: Sequence[int], letters: Sequence[int]) -> DoubleArray:
        """How likely each of some letters is after one branch: (n, L), a row sums to 1.

        Args:
            prompts: n of at least one token.
            branch: tokens after each prompt.
            letters: places among the letters' tokens.
        """
        columns = torch.tensor(letters, device=self.device) + 10
        tree = Tree.of([branch])
        return self._read(prompts, tree, lambda scores: scores[:, 0, columns].softmax(dim=-1), (len(letters),))

    def _read(
        self, prompts: Sequence[list[int]], tree: Tree, reduced: Callable[[Tensor], Tensor], shape: tuple[int, ...]
    ) -> DoubleArray:
        """What `reduced` makes of the scores (rows, S, tokens) at the branches' ends, (n, *shape)."""
        found = np.empty((len(prompts), *shape))
        for family in _families(prompts):
            own = [prompts[row] for row in family.tolist()]
            n_prefix = self._share(own)

            @torch.inference_mode()
            def read(
                rows: NDArray[np.int64],
                own: list[list[int]] = own,
                family: NDArray[np.int64] = family,
                n_prefix: int = n_prefix,
            ) -> None:
                scores = self._scores([own[row] for row in rows], n_prefix, tree)
                found[family[rows]] = reduced(scores.float()).double().cpu().numpy()

            lengths = np.array([len(prompt) for prompt in own]) - n_prefix + len(tree.tokens)
            threads = torch.get_num_threads() if isinstance(self._network, SmallLlama) else 1
            _side_by_side(read, self._passes(lengths, threads), threads)
        return found

    def _share(self, prompts: Sequence[list[int]]) -> int:
        """How many tokens, common to all prompts and fewer than any, are in `_stored` now."""
        longest = min(len(prompt) for prompt in prompts) - 1
        common = prompts[0][: min(longest, _n_common(min(prompts), max(prompts)))]
        known = _n_common(common, self._prefix)
        if len(common) - known >= SHORTEST_PREFIX and (len(prompts) > 1 or not known):
            # `common[:known]` is stored already: slices of it serve the rest
            self._stored = self._store(np.array([common[known:]]), known)
            self._prefix, known = common, len(common)
        return known

    def _passes(self, lengths: NDArray[np.int64], threads: int) -> list[NDArray[np.int64]]:
        """Rows in groups of similar length, about as many tokens in each, that fit a pass; as many for every thread."""
        order = np.argsort(lengths, kind="stable")
        upto = np.cumsum(lengths[order])
        n = threads * -(-int(upto[-1]) // (threads * self._per_pass))
        cuts = np.searchsorted(upto, upto[-1] * np.arange(1, n) / n, side="right")
        return [rows for rows in np.split(order, cuts) if len(rows)]

    def _scores(self, prompts: Sequence[list[int]], n_prefix: int, tree: Tree) -> Tensor:
        """Scores of the digits, and of the letters, at each branch's end, (n, S, 10 + letters)."""
        n, lengths = len(prompts), np.array([len(prompt) - n_prefix for prompt in prompts])
        longest, width = int(lengths.max()), len(tree.tokens)
        own = np.zeros((n, longest), np.int64)  # padded on the right, where nothing that is read looks
        for row, prompt in enumerate(prompts):
            own[row, : lengths[row]] = prompt[n_prefix:]
        past = self._store(own, n_prefix)
        visible = np.ones((n, 1, width, n_prefix + longest + width), np.bool_)
        visible[:, 0, :, n_prefix : n_prefix + longest] = (np.arange(longest) < lengths[:, None])[:, None]
        visible[:, 0, :, n_prefix + longest :] = tree.sees
        return self._network.read(
            torch.from_numpy(tree.tokens).to(self.device).expand(n, -1),
            torch.from_numpy(n_prefix + lengths[:, None] + tree.depths).to(self.device),
            torch.from_numpy(tree.ends).to(self.device),
            past,
            self._bias(visible),
        )

    def _store(self, tokens: NDArray[np.int64], n_prefix: int) -> Stored:
        """Keys and values of the prefix and of tokens (n, L) that follow it."""
        length = tokens.shape[1]
        prefix = [(keys[:, :, :n_prefix], values[:, :, :n_prefix]) for keys, values in self._stored] if n_prefix else []
        causal = np.tri(length, n_prefix + length, n_prefix, dtype=np.bool_)
        return self._network.store(torch.from_numpy(tokens).to(self.device), prefix, self._bias(causal[None, None]))

    def _bias(self, visible: NDArray[np.bool_]) -> Tensor:
        """A mask as what is added to the scores of attention."""
        bias = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(torch.from_numpy(~visible).to(self.device), torch.finfo(self.dtype).min)


def _side_by_side(work: Callable[[NDArray[np.int64]], None], parts: Sequence[NDArray[np.int64]], threads: int) -> None:
    """Call `work` with every part, each on one core: a small network's operations are too short to be shared out."""
    if len(parts) == 1 or threads == 1:
        for part in parts:
            work(part)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)  # what a thread sets for itself, threads that begin later would take over


def _families(prompts: Sequence[list[int]]) -> list[NDArray[np.int64]]:
    """Rows that have much more in common than all have, together; all others together."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    neighbours = np.array([_n_common(prompts[one], prompts[next_]) for one, next_ in pairwise(order)], np.int64)
    near = neighbours >= neighbours.min(initial=1 << 30) + FAMILY_PREFIX
    groups = np.split(np.array(order), np.flatnonzero(~near) + 1)
    alone = [rows for rows in groups if len(rows) == 1]
    together = [np.sort(rows) for rows in groups if len(rows) > 1]
    return ([np.sort(np.concatenate(alone))] if alone else []) + together


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
