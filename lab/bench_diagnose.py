"""`lab bench diagnose`: seconds of each check, and memory, on models of transformers, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import diagnosis
from .bench import machine
from .memory import resident, trim_heap
from .report import Report

# GPT-2's own size, and one whose tables do not outweigh its layers.
SIZES: dict[str, dict[str, int]] = {
    "3m": {"vocab_size": 5000, "n_positions": 256, "n_embd": 192, "n_layer": 5, "n_head": 6},
    "124m": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
}
MB = 1e6


def subject(size: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Hugging Face's GPT-2 of that size with random weights, and four rows of 9 to 21 tokens,
    padded at the right."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = SIZES[size]
    pad, eos = 0, shape["vocab_size"] - 1
    model = GPT2LMHeadModel(GPT2Config(**shape, pad_token_id=pad, bos_token_id=eos, eos_token_id=eos))
    lengths = torch.tensor([21, 9, 15, 18])
    ids = torch.randint(3, eos, (4, 21))
    ids[torch.arange(4), lengths - 1] = eos
    real = torch.arange(21) < lengths[:, None]
    batch = {"input_ids": ids.masked_fill(~real, pad), "attention_mask": real.long()}
    return model, batch | {"labels": ids.masked_fill(~real, -100)}


def measured(size: str) -> dict[str, Any]:
    """The whole battery on that model, in this process: seconds of each check, and the memory that it took.

    What several checks share, as a copy in float64, is made by the first that needs it, and counted there. Seconds of
    the processor, of all threads together, tell where another process had the machine in the meantime.
    """
    model, batch = subject(size)
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}
    peaks: dict[str, int] = {}
    ask = diagnosis.put

    def put(check: Any, probe: Any, report: Report) -> None:
        new_peak()
        start, worked = time.perf_counter(), time.process_time()
        ask(check, probe, report)
        seconds[check.id] = time.perf_counter() - start
        processor[check.id] = time.process_time() - worked
        peaks[check.id] = resident("VmHWM")

    trim_heap()
    before = resident("VmRSS")
    diagnosis.put = put
    start, worked = time.perf_counter(), time.process_time()
    try:
        report = diagnosis.diagnose(model, batch)
    finally:
        diagnosis.put = ask
        total = time.perf_counter() - start, time.process_time() - worked
    own = sum(t.numel() * t.element_size() for t in model.state_dict(keep_vars=True).values())
    own -= model.lm_head.weight.numel() * model.lm_head.weight.element_size()  # tied: it is there once
    return {
        "size": size,
        "machine": machine(torch.device("cpu")),
        "parameters": sum(p.numel() for p in model.parameters()),
        "total_seconds": total[0],
        "total_processor_seconds": total[1],
        "seconds": dict(sorted(seconds.items(), key=lambda item: -item[1])),
        "processor_seconds": processor,
        "model_bytes": own,
        "extra_bytes": {name: peak - before for name, peak in peaks.items()},
        "report": report.to_dict(),
    }


def new_peak() -> None:
    """The peak of resident memory starts anew at what is resident now."""
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")


def run(sizes: tuple[str, ...] = tuple(SIZES), json_path: Path | None = None, threads: int | None = None) -> list[dict]:
    """Measure each size in a fresh process, print, and write as JSON. Raises ValueError for an unknown size.

    RuntimeError where the measuring fails: memory is read from /proc, on Linux alone.
    """
    from .config import unknown

    for size in sizes:
        if size not in SIZES:
            raise unknown("size", size, list(SIZES))
    results = []
    for size in sizes:
        told = json.dumps({"size": size, "threads": threads})
        done = subprocess.run([sys.executable, "-m", "lab.bench_diagnose", told], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"measuring {size} failed: {done.stderr.strip().splitlines()[-1]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(shown(results[-1]))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def shown(result: dict[str, Any]) -> str:
    """A size in lines: the totals, what was said, and each check, the slowest first."""
    model, extra = result["model_bytes"], result["extra_bytes"]
    most = max(extra, key=extra.__getitem__)
    report, where = result["report"], result["machine"]
    said = ", ".join(f"{len(report[kind])} {kind}" for kind in ("findings", "notes", "passed", "skipped", "errors"))
    wall, worked = result["total_seconds"], result["total_processor_seconds"]
    lines = [
        f"GPT-2 of {result['parameters']:,} parameters ({model / MB:,.0f} MB), {where['processor']}, threads "
        f"{where['threads']}: {wall:.1f} s, {worked:.1f} s of the processor",
        f"  at most {1 + extra[most] / model:.1f} x the model's memory, itself included, in {most}",
        f"  {said}",
        f"  {'check':26} {'seconds':>8} {'processor':>9} {'memory beside the model, x its own':>36}",
    ]
    processor = result["processor_seconds"]
    for name, seconds in result["seconds"].items():
        lines.append(f"  {name:26} {seconds:8.2f} {processor[name]:9.2f} {extra[name] / model:36.1f}")
    left = result["total_seconds"] - sum(result["seconds"].values())
    return "\n".join([*lines, f"  {'(keeping and giving back)':26} {left:8.2f}"])


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    print(json.dumps(measured(asked["size"])))
