"""Faults in generation: the cache, what is fed back, padded prompts, the end of a row and of the context."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import decoding, masks
from ..attention import KVCache
from ..blocks import check_shape
from ..decoding import Sampler, Step, next_tokens
from .base import fault

LM = {"lesson": "08_diagnose_your_model", "on": "language model"}
CACHE = {"of": "lab.attention:LayerCache.append", "caught_by": "cache-equals-full", **LM}
POSITIONS = {"of": "lab.blocks:position_of", **LM}
STEP = {"of": "lab.language_model:LanguageModel.step", **LM}
STREAM = {"of": "lab.decoding:stream", **LM}
TOKENS = {"its-own-teacher": "tokens are chosen by what the cache gives"}
PADS = {"batched-equals-alone": "what the cache mixes up depends on the pads before the prompt"}
PADDED = {"cache-equals-full": "it is the cached step that treats the pads of its prompt otherwise"}


@fault("cache-overwrites", **CACHE, also=TOKENS | PADS)
def overwrites(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """the cache writes each new token over the first ones"""
    batch, heads, new, width = key.shape
    if self.past is None:
        self.past = key.new_zeros(2, batch, heads, self.max_len, width)
    end = self.length + new
    self.past[0, :, :, :new] = key
    self.past[1, :, :, :new] = value
    self.length = end
    return self.past[0, :, :, :end], self.past[1, :, :, :end]


@fault("cache-values-one-late", **CACHE, also=TOKENS | PADS)
def one_late(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """the cache stores the values of new tokens one place after their keys"""
    batch, heads, new, width = key.shape
    if self.past is None:
        self.past = key.new_zeros(2, batch, heads, self.max_len + 1, width)
    end = self.length + new
    self.past[0, :, :, self.length : end] = key
    self.past[1, :, :, self.length + 1 : end + 1] = value
    self.length = end
    return self.past[0, :, :, :end], self.past[1, :, :, :end]


@fault("cache-positions-restart", **POSITIONS, caught_by="cache-equals-full", also=TOKENS)
def restarts(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """positions are counted in the tokens that are fed: with a cache each new one stands at position 0"""
    ids = ids[:, -last:]
    if pad_id is None:
        return torch.arange(ids.size(1) - last, ids.size(1), device=ids.device)
    return ((ids != pad_id).cumsum(dim=1) - 1).clamp(min=0)[:, -last:]


@fault("cache-positions-off-by-one", **POSITIONS, caught_by="cache-equals-full", also=TOKENS)
def off_by_one(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """with a cache the new token gets the position after its own"""
    past = int(last < ids.size(1))
    if pad_id is None:
        return torch.arange(ids.size(1) - last, ids.size(1), device=ids.device) + past
    return ((ids != pad_id).cumsum(dim=1) - 1).clamp(min=0)[:, -last:] + past


@fault("feeds-the-last-token-twice", **STREAM, caught_by="its-own-teacher")
def feeds_twice(
    step: Step, prompt: Tensor, max_new_tokens: int, choose: Sampler, eos_id: int | None, pad_id: int
) -> Iterator[Tensor]:
    """generate() feeds each new token together with the one before it, which the cache holds already"""
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    new = prompt
    for _ in range(max_new_tokens):
        ids = next_tokens(step, new, choose, done, eos_id, pad_id)
        yield ids
        if done.all():
            return
        new = torch.cat([new[:, -1:], ids[:, None]], dim=1)


@fault(
    "reads-the-wrong-logits",
    **STEP,
    caught_by="its-own-teacher",
    also={"batched-equals-alone": "the first position, whose logits it reads, is a pad in a short prompt"},
)
def reads_the_first(self, input_ids: Tensor, use_cache: bool = True) -> decoding.Step:
    """generate() takes the logits of the first position that it feeds, which is the last only when it feeds one"""
    check_shape(input_ids)
    if self.config.pad_id is not None and (input_ids[:, -1] == self.config.pad_id).any():
        row = int((input_ids[:, -1] == self.config.pad_id).nonzero()[0])
        raise ValueError(
            f"prompt {row} ends in padding (pad_id {self.config.pad_id}), so its continuation would follow a pad; "
            f"pad prompts at the left (labels.pad(rows, pad_id, 'left')) and give each at least one token."
        )
    cache = KVCache(self.config.num_layers, self.config.max_seq_len) if use_cache else None
    return decoding.Step(lambda ids, cache: self(ids, cache=cache).logits[:, :1], cache)


@fault("goes-on-after-eos", of="lab.decoding:next_tokens", caught_by="stops-at-eos", **LM)
@torch.no_grad()
def goes_on(step: Step, new: Tensor, choose: Sampler, done: Tensor, eos_id: int | None, pad_id: int) -> Tensor:
    """a row that has ended goes on as long as another one does"""
    ids = choose(step(new))
    if eos_id is not None:
        done |= ids == eos_id
    return ids


@fault("first-eos-ends-all", **STREAM, caught_by="stops-at-eos")
def ends_all(
    step: Step, prompt: Tensor, max_new_tokens: int, choose: Sampler, eos_id: int | None, pad_id: int
) -> Iterator[Tensor]:
    """the first row that ends cuts all others short"""
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    new = prompt
    for _ in range(max_new_tokens):
        ids = next_tokens(step, new, choose, done, eos_id, pad_id)
        yield ids
        if done.any():
            return
        new = ids[:, None]


@fault("pads-counted-while-generating", **POSITIONS, caught_by="batched-equals-alone", also=PADDED)
def counts_pads(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """with a cache positions count the pads of the prompt, which the prompt's own positions do not"""
    if pad_id is None or last < ids.size(1):
        return torch.arange(ids.size(1) - last, ids.size(1), device=ids.device)
    return ((ids != pad_id).cumsum(dim=1) - 1).clamp(min=0)[:, -last:]


@fault(
    "pads-attended-while-generating",
    of="lab.language_model:LanguageModel.mask",
    caught_by="batched-equals-alone",
    also=PADDED,
    **LM,
)
def unmasked_step(self, ids: Tensor, last: int) -> Tensor | None:
    """a single new token needs no causal mask, so it is given none: it attends to the pads of its prompt"""
    if self.config.pad_id is not None and last > 1:
        return masks.decoder(ids, self.config.pad_id, last)
    return None if last in (1, ids.size(1)) else masks.causal(ids.size(1), last, device=ids.device)


@fault("crops-the-wrong-end", **STEP, caught_by="past-the-context")
def crops_the_wrong_end(self, input_ids: Tensor, use_cache: bool = True) -> decoding.Step:
    """a text longer than the context is cut to its first max_seq_len tokens, and not to its last"""
    check_shape(input_ids)
    if self.config.pad_id is not None and (input_ids[:, -1] == self.config.pad_id).any():
        row = int((input_ids[:, -1] == self.config.pad_id).nonzero()[0])
        raise ValueError(
            f"prompt {row} ends in padding (pad_id {self.config.pad_id}), so its continuation would follow a pad; "
            f"pad prompts at the left (labels.pad(rows, pad_id, 'left')) and give each at least one token."
        )
    context = self.config.max_seq_len
    return decoding.Step(lambda ids, cache: self(ids[:, :context], last_only=True).logits)


@fault("crops-the-wrong-end", of="lab.decoding:room")
@fault("context-not-checked", of="lab.decoding:room", caught_by="past-the-context", **LM)
def unlimited(prompt: int, max_new_tokens: int | None, max_seq_len: int) -> int:
    """nobody asks whether the text fits the context: beyond it there is no row in the table of positions"""
    return max_seq_len - prompt if max_new_tokens is None else max_new_tokens


@fault("context-not-checked", of="lab.blocks:check_length")
def lets_all_through(ids: Tensor, name: str, max_seq_len: int) -> None:
    return
