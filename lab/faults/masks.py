"""Faults in the masks of padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masks import causal
from .base import fault

ATTEND = {"of": "lab.attention:attend", "caught_by": "fully-masked-row", "half_repair": True}
LESSON = "02_attending_to_pads"


@fault("attends-to-pads", of="lab.masks:decoder", caught_by="attends-to-pads", lesson=LESSON)
def causal_only(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    """the decoder's self-attention mask is causal, but lets padding be attended to"""
    return causal(ids.size(1), last, device=ids.device)[None, None]


@fault(
    "pad-mask-one-late",
    of="lab.masks:key_is_real",
    caught_by="attends-to-pads",
    lesson=LESSON,
    also={"cache-equals-full": "token by token, nobody knows yet that a pad is the last one"},
)
def one_late(ids: Tensor, pad_id: int) -> Tensor:
    """the mask of padding ends one late: the last pad before the text can be attended to"""
    return ((ids != pad_id) | (ids.roll(-1, dims=1) != pad_id))[:, None, None, :]


@fault("minus-1e9", **ATTEND, lesson=LESSON)
def large_negative_fill(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """masked scores get -1e9: a row in which nothing may be attended becomes uniform over everything"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -1e9)
    return F.dropout(scores.softmax(-1), dropout) @ value


@fault("minus-infinity", **ATTEND, lesson=LESSON)
def infinite_fill(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """masked scores get -inf before a plain softmax: a row in which nothing may be attended becomes NaN"""
    if mask is None:
        mask = causal(key.size(2), query.size(2))
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    scores = scores.masked_fill(~mask, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout) @ value
