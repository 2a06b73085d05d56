"""The learning rate, as a factor of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable

WSD_DECAY = 0.2  # the share of the steps over which "wsd" comes down

# done, the share of the steps after warmup that are over, in 0..1 -> how much of the way down is still to go.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov & Hutter 2017
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "wsd": lambda done: min(1.0, (1 - done) / WSD_DECAY),  # warmup, stable, decay: Hu et al. 2024
}


def warmup(step: int, warmup_steps: int) -> float:
    """From 1/warmup_steps at step 0 to 1 at step warmup_steps - 1; 1 ever after, and without warmup."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def rate_factor(step: int, schedule: str, warmup_steps: int, steps: int, final_rate: float) -> float:
    """The factor of step 0..steps - 1: linear warmup, then `schedule`, which at `steps` would reach final_rate.

    A run that is shorter than its warmup ends while the rate still rises.
    """
    done = min(1.0, max(0, step - warmup_steps) / max(1, steps - warmup_steps))
    return warmup(step, warmup_steps) * (final_rate + (1 - final_rate) * SCHEDULES[schedule](done))
