"""How somebody else's batch spells a mask: from one example, the same mask for a batch of other sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .masks import causal


def attend_to(mask: Tensor, real: Tensor) -> Callable[[Tensor], Tensor]:
    """From one example, a function from `real` (True = attend) to such a mask.

    mask and real have one shape; which value stands at the attended positions decides: True = attend, True = blocked,
    or numbers that are added to the scores.
    """
    blocked = mask[~real]
    if mask.is_floating_point() and blocked.numel() and bool((blocked < -1).all()):
        return lambda real: torch.zeros(real.shape, dtype=mask.dtype).masked_fill(~real, float(blocked.min()))
    value = mask[real]
    inverted = bool((value == 0).all()) if value.numel() else False
    return lambda real: (~real if inverted else real).to(mask.dtype)


def patterns(real: Tensor, memory: Tensor) -> list[Tensor]:
    """What a mask of queries and keys may mean, as attend masks (B, T, S): of rows whose queries are `real` (B, T).

    memory (B, S): which keys are real; the same as `real` in self-attention.
    """
    shape = (*real.shape, memory.size(1))
    keys = memory[:, None, :].expand(shape)
    if real.size(1) != memory.size(1):
        return [keys]
    past = causal(real.size(1)).expand(shape)
    both = past & keys
    return [both, past, keys, both & real[..., None], keys & real[..., None]]


def respelled(mask: Tensor, real: Tensor, memory: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """From a mask over queries and keys, a function from (real, memory) of another batch to such a mask.

    mask: (T, S) or (B, [1 or H,] 1 or T, S), of a batch whose queries are `real` (B, T) and keys `memory` (B, S). None
    where it is none of the masks known here.
    """
    rows, queries, keys = mask.size(0) if mask.dim() > 2 else 1, mask.size(-2), mask.size(-1)
    if keys != memory.size(1) or queries not in (1, real.size(1)) or rows not in (1, len(real)):
        return None

    def laid_out(pattern: Tensor, like: Tensor) -> Tensor:
        pattern = pattern[:1] if rows == 1 else pattern
        pattern = pattern[:, -1:] if queries == 1 else pattern
        if like.dim() == 2:
            return pattern[0]
        middle = like.shape[1:-2]
        return pattern.reshape(len(pattern), *(1 for _ in middle), *pattern.shape[1:]).expand(
            len(pattern), *middle, *pattern.shape[1:]
        )

    for number, pattern in enumerate(patterns(real, memory)):
        there = laid_out(pattern, mask)
        if there.shape != mask.shape or not there.any():
            continue
        spell = attend_to(mask, there)
        example = spell(there)
        # Large negative numbers need not be the same ones.
        if torch.equal(example, mask) or (mask.is_floating_point() and torch.equal(example >= 0, mask >= 0)):
            return lambda real, memory, number=number, spell=spell: spell(
                laid_out(patterns(real, memory)[number], mask).contiguous()
            )
    return None
