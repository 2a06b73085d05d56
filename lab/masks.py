"""Attend masks: boolean, True = may attend, broadcastable to (B, H, T, S)."""

from __future__ import annotations

import torch
from torch import Tensor


def causal(length: int, last: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """Position t may attend to positions 0..t. Returns (T, T), or its last rows only: (last, T)."""
    last = length if last is None else last
    return torch.ones(last, length, dtype=torch.bool, device=device).tril(length - last)


def key_is_real(ids: Tensor, pad_id: int) -> Tensor:
    """Keys that are not padding: ids (B, S) -> (B, 1, 1, S)."""
    return (ids != pad_id)[:, None, None, :]


def decoder(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    """Causal and key-is-real: ids (B, T) -> (B, 1, T, T), or (B, 1, last, T) for the last positions.

    The review's second finding is this line without its second half.
    """
    return causal(ids.size(1), last, device=ids.device) & key_is_real(ids, pad_id)
