"""The memory that a training step takes beside weights and optimizer state, in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .config import ModelConfig
from .contenders import make, make_batch, stepper
from .presets import preset


def extra_memory(
    name: str, config: ModelConfig, checkout: Path | None, mode: str, precision: str, device: str, tokens: int
) -> int:
    """The bytes that a step needs beside weights and optimizer state; in a process of its own on a CPU."""
    batch = make_batch(config, tokens, device)
    step = stepper(make(name, config, checkout, device), mode == "compiled", precision, batch)
    step()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    step()
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def trim_heap() -> None:
    """Give freed memory back to the system, so that it counts again when the next step takes it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; memory on a CPU is measured on Linux alone.")


def memory(preset_name: str, names: list[str], threads: int, **how: Any) -> dict[str, int | None]:
    """extra_memory of each contender; None where it could not be measured."""
    measured: dict[str, int | None] = {}
    for name in names:
        told = json.dumps({"preset": preset_name, "name": name, "threads": threads, **how}, default=str)
        run = subprocess.run([sys.executable, "-m", "lab.memory", told], capture_output=True, text=True)
        measured[name] = int(run.stdout.split()[-1]) if run.returncode == 0 and run.stdout.split() else None
        if run.returncode:
            print(f"memory of {name}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return measured


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    torch.set_num_threads(told.pop("threads"))
    told["config"] = preset(told.pop("preset"))
    told["checkout"] = Path(told["checkout"]) if told["checkout"] else None
    print(extra_memory(**told))
