"""Devices: one, or those of the processes that torchrun started, joined as DDP or FSDP2."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .config import unknown
from .labels import IGNORE_INDEX

KINDS = ("ddp", "fsdp")


def find_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where this machine has none, naming those it has."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"device {name!r} is not there ({str(error).splitlines()[0]}); use {' or '.join(there)}."
        ) from error
    return device


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that were in use so far: allocated on a GPU, resident on a CPU; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def get_random(device: torch.device) -> dict[str, Tensor]:
    """The state of every generator of this process: torch's on the CPU and on the device, Python's and NumPy's."""
    name, keys, *rest = np.random.get_state()
    plain = {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}
    states = {key: torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8) for key, value in plain.items()}
    states["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what get_random gave."""
    version, internal, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = json.loads(bytes(states["numpy"].tolist()))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def aside(device: torch.device) -> AbstractContextManager:
    """What torch's generators give out inside, they give out again after."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextmanager
def fast_matmuls(device: torch.device) -> Iterator[None]:
    """TF32 on a GPU, for what autocast leaves in float32."""
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """On the device; from pinned memory a copy to a GPU does not make the host wait."""
    if device.type == "cuda":
        return {key: value.pin_memory().to(device, non_blocking=True) for key, value in batch.items()}
    return {key: value.to(device) for key, value in batch.items()}


@dataclass(frozen=True)
class World:
    """The processes that train one model together; alone, a world of one."""

    device: torch.device
    rank: int = 0
    size: int = 1
    kind: str = "ddp"

    @property
    def chief(self) -> bool:
        """The one that writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call in the model's place, so that gradients are averaged over the ranks.

        FSDP2 shards the model in place: each element of a ModuleList is gathered when it is needed, the rest at once.
        """
        if self.size == 1:
            return model
        if self.kind == "ddp":
            return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        # Inner lists before outer ones: a module takes what its own have left.
        for modules in reversed([module for module in model.modules() if isinstance(module, nn.ModuleList)]):
            for module in modules:
                if not isinstance(module, nn.ModuleList | nn.ModuleDict):  # these are never called
                    fully_shard(module, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def settle(self, model: nn.Module) -> None:
        """Before parameters are read: FSDP2 leaves the outermost ones gathered after a forward pass."""
        if self.size > 1 and self.kind == "fsdp":
            for module in model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    def synchronised(self, wrapped: nn.Module, last: bool) -> AbstractContextManager:
        """Around the backward pass of a micro-batch: gradients travel once a step, with its last one."""
        if self.size > 1 and self.kind == "fsdp":
            wrapped.set_requires_gradient_sync(last)
        elif self.size > 1 and not last:
            return wrapped.no_sync()
        return nullcontext()

    def share(self, batch: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], int]:
        """This rank's rows, and how many targets they hold; where they hold none, a row of another rank that counts as
        none: the loss of no target may be NaN, and NaN times zero is NaN."""
        real = batch["labels"] != IGNORE_INDEX
        if self.size == 1:
            return batch, int(real.sum())
        mine = {key: value[self.rank :: self.size] for key, value in batch.items()}
        if count := int(real[self.rank :: self.size].sum()):
            return mine, count
        row = int(real.nonzero()[0, 0])
        return {key: value[row : row + 1] for key, value in batch.items()}, 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """What every rank has, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str = "cpu", kind: str = "ddp") -> Iterator[World]:
    """The world that torchrun started this process in, by its environment; alone, a world of one.

    With "cuda" each process takes the GPU of its local rank. Raises ValueError for a device or kind that is not there.
    """
    if kind not in KINDS:
        raise unknown("kind of parallelism", kind, list(KINDS))
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(find_device(device))
        return
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(find_device(device))
    dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield World(find_device(device), dist.get_rank(), size, kind)
    finally:
        dist.destroy_process_group()
