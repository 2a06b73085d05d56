"""Faults in the masks of padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import masks
from ..attention import KVCache
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


@fault(
    "cross-attends-to-pads",
    of="lab.transformer:Transformer.decode",
    caught_by="attends-to-pads",
    lesson="04_attention_masks",
)
def source_unmasked(
    self,
    decoder_input_ids: Tensor,
    memory: Tensor,
    memory_mask: Tensor,
    attentions: dict[str, list[Tensor]] | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    """cross-attention is handed no mask of the source: the decoder reads the padding that the encoder made states of"""
    past = decoder_input_ids if cache is None else cache.extend(decoder_input_ids)
    x = self.embedder(decoder_input_ids, past, "decoder_input_ids")
    mask = masks.decoder(past, self.config.pad_id, decoder_input_ids.size(1))
    for i, block in enumerate(self.decoder):
        layer_cache = None if cache is None else cache.layers[i]
        x, weights = block(x, mask, memory, None, cache=layer_cache, need_weights=attentions is not None)
        if attentions is not None:
            attentions["decoder"].append(weights[0])
            attentions["cross"].append(weights[1])
    return self.decoder_norm(x)


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
