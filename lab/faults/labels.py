"""Faults in what the decoder is fed."""

from __future__ import annotations

from torch import Tensor

from ..labels import IGNORE_INDEX
from .base import fault

HERE = {"of": "lab.labels:shift_right", "caught_by": "padding-crash", "lesson": "01_padding_crash"}


@fault("padding-crash", **HERE)
def keeps_ignore_index(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """decoder inputs are shifted from labels that still hold -100; the embedding has no such row"""
    real = labels != IGNORE_INDEX
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = pad_id
    first = real & (real.cumsum(dim=1) == 1)
    return shifted.masked_fill(first, start_id)


@fault("clamp-to-zero", **HERE, half_repair=True)
def clamps_to_zero(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """-100 is clamped to 0 to stop the crash; 0 is the start token here, and masks look for pad_id"""
    real = labels != IGNORE_INDEX
    tokens = labels.clamp(min=0)
    shifted = tokens.roll(1, dims=1)
    shifted[:, 0] = pad_id
    first = real & (real.cumsum(dim=1) == 1)
    return shifted.masked_fill(first, start_id)
