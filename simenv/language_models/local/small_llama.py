"""SmallLlama: the forward pass of a small Llama on a CPU, in as few passes over memory as it takes.

A network of a million weights spends as long between its matrix products as in them. Here queries, keys and values come
of one product, gate and up of one; the weights of the norms are part of the products after them; positions are turned
as complex numbers, in place; and what the first layer makes of a token is looked up, not computed. The module knows
neither prompts nor answers: tokens in, keys and values or scores out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

MOST_WEIGHTS = 50_000_000  # of a network; above it the products are all that takes time, and a copy of them room
LARGEST_TABLE = 1 << 23  # values looked up for the first layer
LONG = 512  # tokens whose scores of attention are not worth the room

Stored = Sequence[tuple[Tensor, Tensor]]  # keys and values of each layer, (rows, heads, tokens, head size)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights (in, out) and biases of a layer, what stands side by side in one matrix."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    gate_up: Tensor
    down: Tensor


class SmallLlama:
    """A copy of a `LlamaForCausalLM`'s weights, to be run without it.

    Sums that run through the layers are kept in float32 also where the weights are bfloat16.

    Args:
        network: one that this class `takes`.
        digits: the tokens whose scores `read` gives.
    """

    def __init__(self, network: Any, digits: Tensor) -> None:
        config = network.config
        self._eps = float(config.rms_norm_eps)
        self._heads, self._key_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._size = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        self._frequencies: Tensor = network.model.rotary_emb.inv_freq.float()
        self._embeddings: Tensor = network.get_input_embeddings().weight
        self._layers = [self._merged(layer) for layer in network.model.layers]
        first = self._layers[0]
        small = first.qkv.shape[1] * len(self._embeddings) <= LARGEST_TABLE
        self._first = self._project(first, self._embeddings.float()) if small else None
        self._digits = _folded(network.get_output_embeddings().weight[digits], network.model.norm)

    @staticmethod
    def takes(network: Any) -> bool:
        """Whether a network is a plain Llama, small, and on a CPU."""
        if type(network) is not LlamaForCausalLM or network.device.type != "cpu":
            return False
        config = network.config
        plain = (config.rope_parameters or {}).get("rope_type") == "default" and config.hidden_act == "silu"
        exact = network.dtype in (torch.float32, torch.bfloat16) and not config.mlp_bias
        return plain and exact and sum(weight.numel() for weight in network.parameters()) <= MOST_WEIGHTS

    def store(self, tokens: Tensor, past: Stored, bias: Tensor) -> Stored:
        """Keys and values of tokens that follow those in `past`, and of the latter.

        The last layer is left as soon as it has them: nobody reads what a network says at the tokens of a prompt.

        Args:
            tokens: (n, L).
            past: of n rows or of one that all have in common; empty = these are the first.
            bias: broadcasts to (n, heads, L, past + L), added to the scores of attention.
        """
        begin = past[0][0].shape[2] if past else 0
        positions = torch.arange(begin, begin + tokens.shape[1])[None]
        return self._run(tokens, positions, past, bias, only_store=True)[1]

    def read(self, tokens: Tensor, positions: Tensor, ends: Tensor, past: Stored, bias: Tensor) -> Tensor:
        """Scores of the digits after the tokens at `ends`, (n, S, 10).

        Args:
            tokens: (n, W) that follow those in `past`.
            positions: (n, W) in their sequences.
            ends: (S,) places in `tokens`.
            past: of n rows.
            bias: as for `store`.
        """
        hidden = self._run(tokens, positions, past, bias, only_store=False)[0]
        return self._normed(hidden.view(*tokens.shape, -1)[:, ends]) @ self._digits

    def _run(
        self, tokens: Tensor, positions: Tensor, past: Stored, bias: Tensor, *, only_store: bool
    ) -> tuple[Tensor, Stored]:
        n, length = tokens.shape
        ids = tokens.flatten()
        hidden = functional.embedding(ids, self._embeddings).float()  # (n * L, d)
        angles = positions[:, :, None] * self._frequencies
        turns = torch.polar(torch.ones_like(angles), angles)[:, :, None]  # (n or 1, L, 1, head size / 2)
        seen = []
        for depth, layer in enumerate(self._layers):
            table = self._first if depth == 0 else None
            qkv = self._project(layer, hidden) if table is None else functional.embedding(ids, table)
            query, keys, values = self._split(qkv.view(n, length, -1, self._size), turns)
            if past:
                old_keys, old_values = (states.expand(n, -1, -1, -1) for states in past[depth])
                keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
            seen.append((keys, values))
            if only_store and depth == len(self._layers) - 1:
                break
            mixed = self._attend(query, keys, values, bias).transpose(1, 2).reshape(n * length, -1)
            hidden.add_(torch.addmm(layer.out_bias, mixed, layer.out))
            gate, up = (self._normed(hidden) @ layer.gate_up).chunk(2, dim=-1)
            hidden.add_(functional.silu(gate).mul_(up) @ layer.down)
        return hidden, seen

    def _project(self, layer: _Layer, hidden: Tensor) -> Tensor:
        return torch.addmm(layer.qkv_bias, self._normed(hidden), layer.qkv)

    def _normed(self, hidden: Tensor) -> Tensor:
        """At unit root mean square, in the precision of the weights."""
        scale = torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + self._eps)
        return (hidden * scale).to(self._embeddings.dtype)

    def _split(self, qkv: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, turned to their positions, and values: each (n, heads, L, head size)."""
        turned, values = torch.split(qkv, [self._heads + self._key_heads, self._key_heads], dim=2)
        pairs = torch.view_as_complex(torch.unflatten(turned.float(), -1, (-1, 2)))
        turned = torch.view_as_real(pairs * turns).flatten(-2).to(qkv.dtype)
        query, keys = torch.split(turned, [self._heads, self._key_heads], dim=2)
        return query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attention by plain products: no slower than PyTorch's own up to `LONG` tokens, faster in bfloat16."""
        groups = self._heads // self._key_heads
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
        if query.shape[2] > LONG:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=1.0)
        scores = (query @ keys.transpose(-1, -2)).add_(bias)
        return torch.softmax(scores, dim=-1) @ values

    def _merged(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        query, keys, values = (_with_bias(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
        # queries are scaled here rather than their scores
        rows = torch.cat([self._paired(query) * self._size**-0.5, self._paired(keys), values])
        dtype = self._embeddings.dtype
        return _Layer(
            qkv=_folded(rows[:, :-1], layer.input_layernorm, dtype),
            qkv_bias=rows[:, -1].to(dtype),
            out=attention.o_proj.weight.t().contiguous(),
            out_bias=_with_bias(attention.o_proj)[:, -1].to(dtype),
            gate_up=_folded(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), layer.post_attention_layernorm),
            down=mlp.down_proj.weight.t().contiguous(),
        )

    def _paired(self, rows: Tensor) -> Tensor:
        """Rows of each head in the order 0, h, 1, h + 1, ...: Llama turns dimension i with dimension h + i."""
        return torch.unflatten(rows, 0, (-1, 2, self._size // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _with_bias(projection: Any) -> Tensor:
    """Weights (out, in) and the bias, 0 where there is none, as one more column."""
    weight = projection.weight.float()
    bias = weight.new_zeros(len(weight)) if projection.bias is None else projection.bias.float()
    return torch.cat([weight, bias[:, None]], dim=1)


def _folded(weight: Tensor, norm: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A projection (out, in) with the weights of the norm before it, as (in, out)."""
    return (weight.float() * norm.weight.float()).to(dtype or weight.dtype).t().contiguous()
