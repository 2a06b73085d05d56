"""Multi-head attention over `scaled_dot_product_attention`; its weights on request; the key-value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V (Vaswani et al. 2017, eq. 1): (B, H, T, K), 2 x (B, H, S, K) -> (B, H, T, K).

    mask: attend mask, True = may attend. A query that may attend nowhere yields zeros, in the gradient too.
    mask None is plain causal, in the fastest kernel: T = S, or one new query that sees every key.
    """
    if mask is None and query.size(2) not in (1, key.size(2)):
        raise ValueError(f"{query.size(2)} queries and {key.size(2)} keys need a mask: which key may each attend to?")
    is_causal = mask is None and query.size(2) > 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The weights that `attend` gives the keys, before dropout: (B, H, T, K), (B, H, S, K) -> (B, H, T, S).

    Attending with the identity as values reads them off `attend` itself, so a picture shows what the model did, and
    not a second opinion about it.
    """
    identity = torch.eye(key.size(2), dtype=key.dtype, device=key.device).expand(*key.shape[:2], -1, -1)
    return attend(query, key, identity, mask)


class LayerCache:
    """Keys and values of one decoder layer: those of its own past, and those of the encoder's output."""

    def __init__(self, max_len: int) -> None:
        self.max_len = max_len
        self.length = 0
        self.past: Tensor | None = None  # (2, B, H, max_len, K), allocated on first use
        self.memory: tuple[Tensor, Tensor] | None = None  # 2 x (B, H, S, K)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new positions, (B, H, t, K) each; return those of all positions so far."""
        batch, heads, new, width = key.shape
        if self.past is None:
            self.past = key.new_empty(2, batch, heads, self.max_len, width)
        end = self.length + new
        self.past[0, :, :, self.length : end] = key
        self.past[1, :, :, self.length : end] = value
        self.length = end
        return self.past[0, :, :, :end], self.past[1, :, :, :end]


class KVCache:
    """What a decoder remembers between steps: the ids fed so far, (B, t), and a LayerCache for each layer."""

    def __init__(self, num_layers: int, max_len: int) -> None:
        self.ids: Tensor | None = None
        self.layers = [LayerCache(max_len) for _ in range(num_layers)]

    def extend(self, ids: Tensor) -> Tensor:
        """Append the new ids (B, t); return all of them."""
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], dim=1)
        return self.ids

    def reorder(self, rows: Tensor) -> None:
        """Row b continues what row rows[b] was; for beam search, within one example, so `memory` stays."""
        if self.ids is not None:
            self.ids = self.ids[rows]
        for layer in self.layers:
            if layer.past is not None:
                layer.past = layer.past[:, rows]


class MultiHeadAttention(nn.Module):
    """H attentions of width K = D / H side by side (Vaswani et al. 2017, 3.2.2).

    The three input projections are one matrix, as in GPT-2 and `torch.nn.MultiheadAttention`.
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, out: Tensor) -> Tensor:
        """(B, H, T, K) -> (B, T, D)."""
        return out.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        cache: LayerCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) attends to itself, or to memory (B, S, D) -> output (B, T, D), weights (B, H, T, S) or None.

        mask: attend mask; None is causal where x attends to itself, and all of a memory.
        The output is the same to the last bit with and without the weights.
        """
        if memory is None:
            query, key, value = map(self.split, self.in_proj(x).chunk(3, dim=-1))
            if cache is not None:
                key, value = cache.append(key, value)
        else:
            query, key, value = self.project_memory(x, memory, cache)
            if mask is None:
                mask = torch.ones(1, 1, dtype=torch.bool, device=x.device)
        out = attend(query, key, value, mask, self.dropout if self.training else 0.0)
        weights = attention_weights(query, key, mask) if need_weights else None
        return self.out_proj(self.merge(out)), weights

    def project_memory(self, x: Tensor, memory: Tensor, cache: LayerCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of memory; a cache computes the latter once."""
        d_model = x.size(-1)
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query = self.split(F.linear(x, weight[:d_model], bias[:d_model]))
        if cache is not None and cache.memory is not None:
            return query, *cache.memory
        key, value = map(self.split, F.linear(memory, weight[d_model:], bias[d_model:]).chunk(2, dim=-1))
        if cache is not None:
            cache.memory = key, value
        return query, key, value
