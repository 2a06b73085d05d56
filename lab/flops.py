"""How much arithmetic a training step is, and how much a device can do: both measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from . import loss  # noqa: F401 - it defines the operator
from .mode import evaluating


def head_flops(hidden: torch.Size, weight: torch.Size, *_, **__) -> int:
    """Of one forward pass: hidden (N, D) times weight (V, D)."""
    return 2 * hidden.numel() * weight[0]


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Afterwards buffers and torch's random states are as before."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@torch.no_grad()
def forward_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """FLOPs of model(**batch) by the name of the operator, a multiply-add counting 2; nothing is changed.

    Only matrix products count, and the scores that a causal kernel may skip count too, as is usual (Chowdhery et al.
    2022, appendix B).
    """
    # The counter knows no CPU kernel of attention, nor of a whole encoder layer, but the products they are made of.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.lab.chunked_cross_entropy: head_flops})
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with undone(model), evaluating(model), sdpa_kernel(SDPBackend.MATH), counter:
            model(**batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {str(operator): count for operator, count in counter.get_flop_counts().get("Global", {}).items()}


def flops_per_step(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """FLOPs of forward and backward of model(**batch): three times those of the forward (see forward_flops)."""
    return 3 * sum(forward_flops(model, batch).values())


@torch.no_grad()
def measured_matmul_peak(device: torch.device | str, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a product of two square matrices, the best of those that fit in the time: the device at its fastest."""
    device = torch.device(device)
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)  # the global one is the training's
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:  # the first loads libraries
        start = time.perf_counter()
        F.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
