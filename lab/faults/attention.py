"""Faults inside attention: its scale, its softmax, the number that its mask writes, the split and merge of heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..masks import causal
from .base import fault

LESSON = "04_attention_masks"
ATTEND = {"of": "lab.attention:attend", "lesson": LESSON, "on": "language model"}
SCALE = {**ATTEND, "caught_by": "attention-scale"}
OPEN = {
    "sees-the-future": "the keys that keep weight are those of later tokens",
    "attends-to-pads": "the keys that keep weight are those of padding",
}
FILL = {**ATTEND, "caught_by": "mask-fill", "also": OPEN}
AXIS = {
    **ATTEND,
    "caught_by": "softmax-axis",
    "also": {
        "sees-the-future": "what a key gives one query depends on who else looks at it, be it later or blocked",
        "attends-to-pads": "what a key gives one query depends on the scores of padding",
    },
}
HEADS = {
    "caught_by": "head-mixing",
    "lesson": LESSON,
    "on": "language model",
    "also": {
        "sees-the-future": "a position holds pieces of later tokens",
        "attends-to-pads": "a position holds pieces of padding",
    },
}


@fault("unscaled-scores", **SCALE)
def unscaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """the scores are not divided by sqrt(d_k): the wider the head, the closer the softmax is to one single key"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = (query @ key.transpose(-2, -1)).masked_fill(~mask, -1e9)
    return F.dropout(scores.softmax(-1) * mask, dropout) @ value


@fault("scaled-by-d-model", **SCALE)
def scaled_by_d_model(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """the scores are divided by sqrt(d_model), not sqrt(d_k): too flat by the root of the number of heads"""
    is_causal = mask is None and query.size(2) > 1
    scale = (query.size(1) * query.size(3)) ** -0.5
    options = {"attn_mask": mask, "dropout_p": dropout, "is_causal": is_causal, "scale": scale}
    return F.scaled_dot_product_attention(query, key, value, **options)


@fault("scaled-twice", **SCALE)
def scaled_twice(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """the query is scaled by hand, and scaled_dot_product_attention scales once more: the softmax is almost flat"""
    is_causal = mask is None and query.size(2) > 1
    query = query / query.size(-1) ** 0.5
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


@fault("minus-1e-9", **FILL)
def tiny_fill(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """masked scores get -1e-9 for -1e9: as good as 0, an ordinary score"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -1e-9)
    return F.dropout(scores.softmax(-1), dropout) @ value


@fault("scores-times-mask", **FILL)
def scores_times_mask(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """the scores are multiplied by the mask: a blocked one is 0, and e to the 0 is 1"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores * mask
    return F.dropout(scores.softmax(-1), dropout) @ value


@fault("mask-after-softmax", **FILL)
def mask_after_softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """the weights are multiplied by the mask after the softmax: what is left does not sum to 1, and knows the rest"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    return F.dropout(scores.softmax(-1) * mask, dropout) @ value


@fault("softmax-over-heads", **AXIS)
def softmax_over_heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax over dim=1, the heads: the heads share out each key, and a query may read any amount of them"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -1e9)
    return F.dropout(scores.softmax(1), dropout) @ value


@fault("softmax-over-queries", **AXIS)
def over_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax over dim=-2, the queries: each key is shared out among those that look at it, later ones too"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -1e9)
    return F.dropout(scores.softmax(-2), dropout) @ value


@fault(
    "mask-argument-ignored",
    **ATTEND,
    caught_by="mask-ignored",
    also={"attends-to-pads": "the mask that is dropped is that of the padding"},
)
def always_causal(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """attention takes a mask and is causal all the same: the mask of the padding is dropped"""
    is_causal = query.size(2) > 1
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=is_causal)


@fault("view-at-the-split", of="lab.attention:MultiHeadAttention.split", **HEADS)
def split_by_view(self, x: Tensor) -> Tensor:
    """the split into heads is a view of (B, T, D) as (B, H, T, K): a head gets pieces of several tokens"""
    return x.reshape(x.size(0), self.num_heads, x.size(1), -1)


@fault("view-at-the-merge", of="lab.attention:MultiHeadAttention.merge", **HEADS)
def merge_by_view(self, out: Tensor) -> Tensor:
    """the merge of the heads is a view of (B, H, T, K) as (B, T, D): a position gets pieces of several tokens"""
    return out.reshape(out.size(0), out.size(2), -1)
