"""What checks on who depends on whom have in common: other tokens, layouts, differences, a copy without zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, replaced, tensors_of
from ..probe import LENGTH, ROWS, Probe

# What is asked before two passes are compared, and before one row is taken for another's twin.
GATES = ("random-in-eval", "batch-independence")
# Parts of a model that hard-code float32 round differently for other rows, whatever the precision of the rest.
ROUNDING = 1e-6


def by_position(tensor: Tensor, rows: int, length: int) -> Tensor | None:
    """A tensor as (B, L, ...), where it has rows and positions in a usual layout; else None."""
    if tensor.shape[:2] == (rows, length):
        return tensor
    if tensor.shape[:2] == (length, rows):
        return tensor.transpose(0, 1)
    if tensor.dim() == 4 and tensor.size(0) == rows and tensor.size(2) == length:
        return tensor.transpose(1, 2)
    return tensor.unflatten(0, (rows, length)) if tensor.dim() and len(tensor) == rows * length else None


def by_row(tensor: Tensor, rows: int) -> Tensor | None:
    """A tensor as (B, ...), where an axis of it, or its first with the positions, are the rows; else None."""
    for length in LENGTH.values():
        found = by_position(tensor, rows, length)
        if found is not None:
            return found
    return tensor if tensor.dim() and len(tensor) == rows else None


def differ(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    """Whether two tensors differ by more than a share of their size; NaN agrees with NaN."""
    a, b = a.nan_to_num(nan=0.0), b.nan_to_num(nan=0.0)
    return a.shape == b.shape and a.numel() > 0 and float((a - b).abs().max()) > tolerance * float(b.abs().max())


def other_tokens(probe: Probe, batch: Any, where: dict[str, tuple]) -> Any:
    """The batch with other ordinary tokens at those places: stream -> (rows, columns) as they index its ids."""
    changes = {}
    for stream, place in where.items():
        key = probe.subject.streams[stream][0]
        ids = batch[key].clone()
        free = probe.ordinary()
        free = free[~torch.isin(free, ids)]
        pool = free if len(free) else probe.ordinary().flip(0)
        size = ids[place].numel()
        ids[place] = pool[torch.arange(size) % len(pool)].view_as(ids[place])
        changes[key] = ids
    return replaced(batch, changes)


def rows_of(batch: Any, rows: list[int]) -> Any:
    """Those rows of a batch of ROWS."""
    return replaced(batch, {k: t[rows] for k, t in tensors_of(batch).items() if t.dim() and len(t) == ROWS})


def streams_or_missing(probe: Probe) -> dict:
    if not probe.subject.streams:
        raise Missing("the batch has no ids by a usual name: give streams={'target': (key, mask key)}")
    return probe.subject.streams


def woken(probe: Probe) -> nn.Module:
    """A copy in which no parameter is all zero: projections that start at zero hide what a model will do."""
    model, generator = probe.copy(), torch.Generator().manual_seed(probe.seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and parameter.is_floating_point() and not bool(parameter.any()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def effect_of(probe: Probe, stream: str, columns: slice, batch: Any = None, model: nn.Module | None = None) -> Tensor:
    """The largest change of a logit at each position, (B, T), from other tokens in those columns of a stream."""
    batch = probe.whole() if batch is None else batch
    changed = other_tokens(probe, batch, {stream: (slice(None), columns)})
    pair = (probe.base(b) if model is None else probe.logits(model, b) for b in (changed, batch))
    after, before = pair
    return (after - before).nan_to_num(nan=0.0).abs().amax(-1)
