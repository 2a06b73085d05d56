"""How much arithmetic a step is, and how much a device can do: both measured."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .mode import evaluating


@torch.no_grad()
def flops_per_step(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """FLOPs of forward and backward of model(**batch), a multiply-add counting 2: three times those of the forward.

    Only matrix products count. The scores that a causal kernel may skip are counted, as is usual. Mode and weights
    stay as they are; without dropout nothing random is drawn.
    """
    # The counter knows no CPU kernel of attention, but the products that the plain one is made of.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch)
    return 3 * counter.get_total_flops()


@torch.no_grad()
def measured_matmul_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a product of two square matrices, the best of those that fit in the time; the device at its fastest."""
    device = torch.device(device)
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # the global one is the training's
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        F.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
