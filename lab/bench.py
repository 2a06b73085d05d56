"""`lab bench`: speed and memory of a training step and of generation, ours and others', alternated in one run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig, unknown
from .contenders import OURS, make, make_batch, ours, stepper
from .flops import flops_per_step, measured_matmul_peak
from .loss import fast_type
from .memory import memory
from .parallel import fast_matmuls, find_device
from .presets import preset
from .trainer import PRECISIONS

MODES = ("eager", "compiled")
TOKENS = {"cpu": 2048, "cuda": 32768}  # of a step
STEPS = {"cpu": 1, "cuda": 10}  # of a turn: to wait for a GPU after each would leave it idle


def training(
    config: ModelConfig, names: list[str], checkout: Path | None, mode: str, precision: str, device: str, repeats: int,
    tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """Seconds of a step of each contender, taking turns, and the matmul peak measured in the same turns.

    Where they do not all fit in a GPU's memory, with half as many tokens.
    """
    how = names, checkout, mode, precision, device, repeats
    while True:
        try:
            return taking_turns(config, make_batch(config, tokens, device), *how)
        except torch.OutOfMemoryError:
            if tokens <= config.max_seq_len:
                raise
        tokens //= 2
        torch.cuda.empty_cache()


def taking_turns(
    config: ModelConfig, batch: dict[str, Tensor], names: list[str], checkout: Path | None, mode: str, precision: str,
    device: str, repeats: int,
) -> dict[str, Any]:  # fmt: skip
    contenders = [make(name, config, checkout, device) for name in names]
    steps = {c.name: stepper(c, mode == "compiled", precision, batch) for c in contenders}
    first = {name: step().item() for name, step in steps.items()}  # compiles, and fills the optimizer's state
    turn = STEPS.get(torch.device(device).type, 1)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for _ in range(repeats):
        peaks.append(measured_matmul_peak(device, PRECISIONS[precision]))
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(turn):
                loss = step()
            loss.item()  # waits for a GPU
            seconds[name].append((time.perf_counter() - start) / turn)
    flops = flops_per_step(ours(config, None).model.to(device), batch)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    count = batch["labels"].numel()
    return {
        "mode": mode,
        "batch": list(batch["input_ids"].shape),
        "first_loss": first,
        "loss_difference": max(abs(loss - first["lab"]) for loss in first.values()),
        "seconds": seconds,
        "tokens_per_second": {name: count / median for name, median in medians.items()},
        "ratio": {
            f"{mine} / {theirs}": medians[theirs] / medians[mine]
            for mine in medians
            for theirs in medians
            if mine.startswith("lab") and mine != theirs
        },
        "flops_per_step": flops,
        "matmul_peak": max(peaks),
        "matmul_peaks": peaks,
        "fraction_of_peak": {name: flops / median / max(peaks) for name, median in medians.items()},
    }


# Generation


@contextmanager
def single_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def generation(config: ModelConfig, names: list[str], device: str, repeats: int, new: int = 128) -> dict[str, Any]:
    """Seconds to continue a prompt of 32 by `new` tokens or what fits, greedily, in float32, on one thread."""
    new = min(new, config.max_seq_len - 32)
    mine = ours(config, None).model.to(device).eval()
    prompt = make_batch(config, config.max_seq_len, device)["input_ids"][:, :32]
    runs: dict[str, Callable[[], Tensor]] = {
        "lab": lambda: mine.generate(prompt, new),
        "lab, without a cache": lambda: mine.generate(prompt, new, use_cache=False),
    }
    if "transformers" in names:
        theirs = make("transformers", config, None, device).model.eval()
        mask = torch.ones_like(prompt)
        how = {"max_new_tokens": new, "do_sample": False, "use_cache": True, "attention_mask": mask}
        runs["transformers"] = lambda: theirs.generate(prompt, **how)
    with single_thread():
        ids = {name: run() for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                if name == "lab, without a cache" and seconds[name]:
                    continue  # once tells: it is many times slower
                start = time.perf_counter()
                run().sum().item()
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "tokens_per_second": {name: new / median for name, median in medians.items()},
        "ratio": {f"lab / {name}": medians[name] / medians["lab"] for name in medians if name != "lab"},
        "same_tokens": {name: bool(torch.equal(ids[name], ids["lab"])) for name in ids if name != "lab"},
    }


def startup(repeats: int) -> list[float]:
    """Seconds of `python -m lab --help`."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lab", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    return seconds


def profiled(config: ModelConfig, precision: str, device: str, tokens: int) -> dict[str, float]:
    """The share of the time of one eager step of ours that the ten largest operators take."""
    from torch.profiler import ProfilerActivity, profile

    step = stepper(make("lab", config, None, device), False, precision, make_batch(config, tokens, device))
    step()
    cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as taken:
        step()
    times = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in taken.key_averages()}
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:10]
    return {name: time / total for name, time in largest}


# All of it


def run(
    presets: tuple[str, ...] = ("16m",),
    nanogpt: Path | None = None,
    precision: str = "auto",
    device: str = "cpu",
    repeats: int = 5,
    threads: int | None = None,
    tokens: int | None = None,
    modes: tuple[str, ...] = MODES,
    json_path: Path | None = None,
    configs: dict[str, ModelConfig] | None = None,
) -> dict[str, Any]:
    """Measure, print, and write as JSON. tokens: of a step; configs: sizes in place of the presets of that name.

    precision: "fp32", "bf16", or "auto", which is bf16 where the device has instructions for it.

    Raises ValueError for an unknown precision, mode, preset or device, and for a checkout that is none of nanoGPT.
    """
    where = find_device(device)
    precision = chosen(precision, where)
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, list(MODES))
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1.")
    if threads is not None:
        torch.set_num_threads(threads)
    tokens = tokens or TOKENS.get(where.type, TOKENS["cpu"])
    sizes = {name: (configs or {}).get(name) or preset(name) for name in presets}
    names = list(OURS)
    missing = {}
    if importlib.util.find_spec("transformers"):
        names.append("transformers")
    else:
        missing["transformers"] = "the package is not installed"
    if nanogpt is None:
        missing["nanoGPT"] = "no checkout was given: --nanogpt PATH"
    else:
        names.append("nanoGPT")
    first = next(iter(sizes.values()))
    result: dict[str, Any] = {
        "machine": machine(where),
        "precision": precision,
        "repeats": repeats,
        "code": {name: make(name, first, nanogpt, device).code for name in names},
        "missing": missing,
        "startup_seconds": startup(repeats),
        "presets": {},
    }
    print(
        f"{result['machine']['processor']}, torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}"
    )
    for name, why in missing.items():
        print(f"{name} is left out: {why}")
    print(f"startup of `lab --help`: {statistics.median(result['startup_seconds']):.2f} s")
    for size, config in sizes.items():
        measured: dict[str, Any] = {"training": [], "memory": {}}
        for mode in modes:
            with fast_matmuls(where):
                row = training(config, names, nanogpt, mode, precision, device, repeats, tokens)
            if configs is None:
                how = {"checkout": nanogpt, "mode": mode, "precision": precision, "device": device}
                how["tokens"] = math.prod(row["batch"])  # all of them, or what fitted
                measured["memory"][mode] = memory(size, names, torch.get_num_threads(), **how)
            measured["training"].append(row)
            show_training(size, row, measured["memory"].get(mode, {}))
        measured["profile"] = profiled(config, precision, device, tokens)
        print(
            "  an eager step of ours: " + ", ".join(f"{n} {s:.0%}" for n, s in measured["profile"].items() if s > 0.03)
        )
        measured["generation"] = generation(config, names, device, repeats)
        show_generation(measured["generation"])
        result["presets"][size] = measured
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def chosen(precision: str, device: torch.device) -> str:
    """The precision asked for; "auto" is bf16 where the device has instructions for it."""
    slow = fast_type(device, torch.bfloat16) != torch.bfloat16
    if precision == "auto":
        return "fp32" if slow else "bf16"
    if precision not in PRECISIONS:
        raise unknown("precision", precision, ["auto", *PRECISIONS])
    if precision == "bf16" and slow:
        print("this CPU has no instructions for bf16: products are emulated, and steps take minutes; take fp32")
    return precision


def machine(device: torch.device) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"processor": processor, "device": str(device), "threads": torch.get_num_threads(), **versions}


def show_training(size: str, row: dict[str, Any], memories: dict[str, int | None]) -> None:
    rows, context = row["batch"]
    print(f"{size}, {row['mode']}, {rows} x {context} tokens, matmul peak {row['matmul_peak'] / 1e9:,.0f} GFLOP/s")
    for name, speed in row["tokens_per_second"].items():
        ratios = [
            f"{ratio:.2f} x {key.split(' / ')[1]}"
            for key, ratio in row["ratio"].items()
            if key.startswith(f"{name} / ")
        ]
        extra = memories.get(name)
        print(
            f"  {name:18} {speed:10,.0f} tokens/s  {row['fraction_of_peak'][name]:6.1%} of the peak"
            + (f"  {extra / 1e6:7,.0f} MB more in a step" if extra is not None else "")
            + (f"  {', '.join(ratios)}" if ratios else "")
        )
    losses = row["first_loss"]
    print(f"  first loss, the same weights: {', '.join(f'{name} {loss:.6f}' for name, loss in losses.items())}")


def show_generation(row: dict[str, Any]) -> None:
    for name, speed in row["tokens_per_second"].items():
        same = row["same_tokens"].get(name)
        ratio = row["ratio"].get(f"lab / {name}")
        print(
            f"  generating, {name:20} {speed:8,.0f} tokens/s"
            + (f"  lab is {ratio:.2f} x as fast, {'the same' if same else 'OTHER'} tokens" if ratio else "")
        )
