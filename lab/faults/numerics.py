"""Faults in numbers: noise, half precision, another attention on another path, what is kept between calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import decoding
from ..attention import KVCache
from ..blocks import check_shape
from .base import fault

LM = {"lesson": "08_diagnose_your_model", "on": "language model"}
FEED = {"of": "lab.blocks:FeedForward.forward", **LM}
ATTEND = {"of": "lab.attention:attend", **LM}


@fault(
    "noise-in-eval",
    **FEED,
    caught_by="noise-at-inference",
    also={"random-in-eval": "two passes in eval mode differ by that noise"},
)
def adds_noise(self, x: Tensor) -> Tensor:
    """noise is added to regularise, in eval mode too"""
    x = self.up(x)
    x = x + 0.1 * torch.randn_like(x)
    return self.down(F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x))


@fault("feed-forward-in-bfloat16", **FEED, caught_by="precision-drift")
def in_bfloat16(self, x: Tensor) -> Tensor:
    """the activation is computed in bfloat16, which has three digits, whatever the model's precision"""
    x = self.up(x)
    x = x.to(torch.bfloat16)
    x = F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x)
    return self.down(x.to(self.down.weight.dtype))


@fault("keys-and-values-in-half-precision", **ATTEND, caught_by="precision-drift")
def in_half(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """keys and values are rounded to half precision, whatever the model's own"""
    if mask is None and query.size(2) not in (1, key.size(2)):
        raise ValueError(f"{query.size(2)} queries and {key.size(2)} keys need a mask: which key may each attend to?")
    is_causal = mask is None and query.size(2) > 1
    key, value = key.half().to(query.dtype), value.half().to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal)


@fault("eager-path-without-scale", **ATTEND, caught_by="backend-parity")
def eager_without_scale(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """where there is no flash kernel attention is computed by hand, and not divided by sqrt(K)"""
    if mask is None and query.size(2) not in (1, key.size(2)):
        raise ValueError(f"{query.size(2)} queries and {key.size(2)} keys need a mask: which key may each attend to?")
    is_causal = mask is None and query.size(2) > 1
    scale = None if torch.backends.cuda.flash_sdp_enabled() else 1.0
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale
    )


@fault("cache-kept-between-calls", of="lab.language_model:LanguageModel.step", caught_by="stale-state", **LM)
def keeps_its_cache(self, input_ids: Tensor, use_cache: bool = True) -> decoding.Step:
    """the cache is made once and never emptied: each call of generate() goes on where the last one ended"""
    check_shape(input_ids)
    if self.config.pad_id is not None and (input_ids[:, -1] == self.config.pad_id).any():
        row = int((input_ids[:, -1] == self.config.pad_id).nonzero()[0])
        raise ValueError(
            f"prompt {row} ends in padding (pad_id {self.config.pad_id}), so its continuation would follow a pad; "
            f"pad prompts at the left (labels.pad(rows, pad_id, 'left')) and give each at least one token."
        )
    if not hasattr(self, "cache"):
        self.cache = KVCache(self.config.num_layers, self.config.max_seq_len)
    return decoding.Step(lambda ids, cache: self(ids, cache=cache, last_only=True).logits, self.cache)
