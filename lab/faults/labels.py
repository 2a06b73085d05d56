"""Faults in what the decoder is fed."""

from __future__ import annotations

from torch import Tensor

from ..labels import IGNORE_INDEX
from .base import Fault, Twin, register


def keeps_ignore_index(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    real = labels != IGNORE_INDEX
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = pad_id
    first = real & (real.cumsum(dim=1) == 1)
    return shifted.masked_fill(first, start_id)


def clamps_to_zero(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    real = labels != IGNORE_INDEX
    tokens = labels.clamp(min=0)
    shifted = tokens.roll(1, dims=1)
    shifted[:, 0] = pad_id
    first = real & (real.cumsum(dim=1) == 1)
    return shifted.masked_fill(first, start_id)


register(
    Fault(
        "padding-crash",
        "decoder inputs are shifted from labels that still hold -100; the embedding has no such row",
        "labels",
        caught_by="padding-crash",
        lesson="notebooks/01_padding_crash.ipynb",
        twins=(Twin("lab.labels:shift_right", keeps_ignore_index),),
    )
)
register(
    Fault(
        "clamp-to-zero",
        "-100 is clamped to 0 to stop the crash; 0 is the start token here, and masks look for pad_id",
        "labels",
        caught_by="padding-crash",
        lesson="notebooks/01_padding_crash.ipynb",
        twins=(Twin("lab.labels:shift_right", clamps_to_zero),),
        half_repair=True,
    )
)
