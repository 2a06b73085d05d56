"""Faults in the masks of padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks import causal
from .base import Fault, Twin, register


def causal_only(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    return causal(ids.size(1), last, device=ids.device)[None, None]


def large_negative_fill(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -1e9)
    return F.dropout(scores.softmax(-1), dropout) @ value


def infinite_fill(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ value


register(
    Fault(
        "attends-to-pads",
        "the decoder's self-attention mask is causal, but lets padding be attended to",
        "masks",
        caught_by="attends-to-pads",
        lesson="notebooks/02_attending_to_pads.ipynb",
        twins=(Twin("lab.masks:decoder", causal_only),),
    )
)
register(
    Fault(
        "minus-1e9",
        "masked scores get -1e9: a row in which nothing may be attended becomes uniform over everything",
        "masks",
        caught_by="fully-masked-row",
        lesson="notebooks/02_attending_to_pads.ipynb",
        twins=(Twin("lab.attention:attend", large_negative_fill),),
        half_repair=True,
    )
)
register(
    Fault(
        "minus-infinity",
        "masked scores get -inf before a plain softmax: a row in which nothing may be attended becomes NaN",
        "masks",
        caught_by="fully-masked-row",
        lesson="notebooks/02_attending_to_pads.ipynb",
        twins=(Twin("lab.attention:attend", infinite_fill),),
        half_repair=True,
    )
)
