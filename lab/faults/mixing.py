"""Faults in who depends on whom: causality, positions, the residual stream, the source, the rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import masks
from ..attention import KVCache
from .base import fault

LESSON = "04_attention_masks"
CAUSAL = {"of": "lab.masks:causal", "lesson": LESSON, "on": "language model"}
POSITION = {"of": "lab.blocks:position_of", "lesson": LESSON, "on": "language model"}


@fault("sees-one-ahead", **CAUSAL, caught_by="sees-the-future")
def one_ahead(length: int, last: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """the causal mask is off by one: position t sees token t + 1, the very one that it is to predict"""
    last = length if last is None else last
    return torch.ones(last, length, dtype=torch.bool, device=device).tril(length - last + 1)


@fault("no-causal-mask", of="lab.masks:decoder", lesson=LESSON, on="language model", caught_by="sees-the-future")
def padding_only(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    """the decoder's self-attention mask covers padding, and lets every token see the whole row"""
    return masks.key_is_real(ids, pad_id)


@fault(
    "mask-transposed",
    **CAUSAL,
    caught_by="sees-the-future",
    also={"blind-to-the-past": "what each position may see is the other half"},
)
def transposed(length: int, last: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """the causal mask is transposed: each position sees those after it, and none before"""
    last = length if last is None else last
    return torch.ones(last, length, dtype=torch.bool, device=device).triu(length - last)


@fault("strict-mask", **CAUSAL, caught_by="blind-to-itself")
def strict(length: int, last: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """the causal mask leaves out the diagonal: no position attends to itself"""
    last = length if last is None else last
    return torch.ones(last, length, dtype=torch.bool, device=device).tril(length - last - 1)


@fault("only-itself", **CAUSAL, caught_by="blind-to-the-past")
def only_itself(length: int, last: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """the causal mask is the diagonal alone: no position attends to another"""
    last = length if last is None else last
    return torch.ones(last, length, dtype=torch.bool, device=device).tril(length - last).triu(length - last)


@fault("no-positions", of="lab.blocks:Embedder.placed", lesson=LESSON, on="language model", caught_by="positions")
def not_placed(self, x: Tensor, past: Tensor) -> Tensor:
    """the position table is there, and nobody adds it"""
    return x


@fault("constant-position", **POSITION, caught_by="positions")
def constant_position(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """every token has position 0"""
    return torch.zeros_like(ids)[:, -last:]


@fault(
    "positions-by-row",
    **POSITION,
    caught_by="positions",
    also={"batch-independence": "a row's offset is its place in the batch"},
)
def by_row(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """positions are counted along the batch: arange(ids.size(0)), so all tokens of a row have the same"""
    return torch.arange(ids.size(0), device=ids.device)[:, None].expand(-1, last)


@fault("positions-count-padding", **POSITION, caught_by="padding-amount")
def counts_padding(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """positions count the padding too: a prompt padded at the left starts at another position than alone"""
    return torch.arange(ids.size(1) - last, ids.size(1), device=ids.device)


@fault("no-residual", of="lab.blocks:Block.after", lesson=LESSON, on="language model", caught_by="residual")
def no_residual(self, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> Tensor:
    """a sublayer's output replaces its input instead of being added to it"""
    x = self.dropout(out)
    return x if self.pre else norm(x)


@fault(
    "mean-over-the-batch",
    of="lab.blocks:Block.before",
    lesson=LESSON,
    caught_by="batch-independence",
    also={"stops-at-eos": "a row that is done is still told to the others"},
)
def adds_the_mean(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """a summary of the row, its mean, is taken over dim 0, the batch: every row is told about the others"""
    x = x + x.mean(dim=0)
    return norm(x) if self.pre else x


@fault(
    "mean-over-the-row",
    of="lab.blocks:Block.before",
    lesson=LESSON,
    on="language model",
    caught_by="sees-the-future",
    also={"attends-to-pads": "the padding is part of the mean"},
)
def adds_the_row(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """a summary of the row, its mean, is added to each position: no attention leaks, and each knows of the future"""
    x = x + x.mean(dim=1, keepdim=True)
    return norm(x) if self.pre else x


@fault(
    "source-ignored",
    of="lab.transformer:Transformer.decode",
    lesson=LESSON,
    caught_by="source-ignored",
    also={"no-gradient": "nothing reads the encoder, so nothing teaches it"},
)
def attends_to_itself(
    self,
    decoder_input_ids: Tensor,
    memory: Tensor,
    memory_mask: Tensor,
    attentions: dict[str, list[Tensor]] | None = None,
    cache: KVCache | None = None,
) -> Tensor:
    """cross-attention is handed the decoder's own states, not the encoder's"""
    past = decoder_input_ids if cache is None else cache.extend(decoder_input_ids)
    x = self.embedder(decoder_input_ids, past, "decoder_input_ids")
    mask = masks.decoder(past, self.config.pad_id, decoder_input_ids.size(1))
    for i, block in enumerate(self.decoder):
        layer_cache = None if cache is None else cache.layers[i]
        x, weights = block(x, mask, x, mask, cache=layer_cache, need_weights=attentions is not None)
        if attentions is not None:
            attentions["decoder"].append(weights[0])
            attentions["cross"].append(weights[1])
    return self.decoder_norm(x)
