"""The learning rate, as a factor of its peak."""

from __future__ import annotations

import math


def warmup_cosine(step: int, warmup_steps: int, steps: int, floor: float = 0.1) -> float:
    """Linear from 1/warmup_steps to 1, then half a cosine down to `floor` at `steps` (Loshchilov & Hutter 2017)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
