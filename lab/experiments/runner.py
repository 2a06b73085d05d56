"""Runs the plans of an experiment in order, each in a folder of its own; what is finished is never done again."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint, faults, runlog
from ..config import TrainConfig
from ..data import Prepared
from ..evaluation import Evaluation
from ..flops import flops_per_step
from ..language_model import LanguageModel
from ..parallel import World, find_device
from ..trainer import fit, planned_rates
from .batches import Reading, open_prepared, read
from .plan import Plan
from .probes import PROBES

RUN = "run.json"  # what a folder says of its run


def run_all(
    experiment: str, plans: Sequence[Plan], out: Path, *, device: str = "cpu", data_dir: str | None = None
) -> None:
    """Train what is not trained yet, in order. Killed at any moment, the next call goes on from the last checkpoint.

    Raises BlockingIOError where another process works in the same folder, and what `fit` and `read` raise.
    """
    where = find_device(device)
    folder = out / experiment
    with alone(folder):
        prepared: dict[tuple[str, ...], Prepared] = {}
        for number, plan in enumerate(plans, start=1):
            if finished(folder / plan.name, plan):
                continue
            key = (plan.data.corpus, plan.data.tokenizer, str(plan.data.vocab_size))
            if key not in prepared:
                prepared[key] = open_prepared(plan.data, data_dir)
            began = time.perf_counter()
            say(f"[{number}/{len(plans)}] {plan.name}: {plan.train.steps} steps")
            train(experiment, plan, folder, prepared[key], where)
            loss = [r["loss"] for r in runlog.read(folder / plan.name) if r["event"] == "validation"][-1]
            say(f"[{number}/{len(plans)}] {plan.name}: loss {loss:.4f} after {time.perf_counter() - began:.0f} s")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder; the system lets go of it where the process is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process runs experiments in {folder}; wait for it, or end it.") from error
        yield


def step_of(folder: Path) -> int:
    """The step of a run's last checkpoint; 0 where there is none."""
    return checkpoint.find(folder).about["progress"]["step"] if (folder / checkpoint.INDEX).exists() else 0


def finished(folder: Path, plan: Plan) -> bool:
    """Whether the run is there to its last step. Raises ValueError where the folder holds a run of another plan."""
    if not (folder / RUN).exists():
        return False
    was, now = checkpoint.read_json(folder / RUN)["plan"], json.loads(json.dumps(plan.described()))
    if changed := [name for name in now if name != "about" and was.get(name) != now[name]]:
        raise ValueError(
            f"{folder} was run by another plan: {changed[0]} is {was.get(changed[0])} there and {now[changed[0]]} now; "
            "delete the folder, or give another --out."
        )
    return step_of(folder) == plan.train.steps


def status(folder: Path, plan: Plan) -> str:
    """A line on one run: finished with its loss, under way, or not begun."""
    if not (folder / RUN).exists():
        return f"{plan.name:40} {plan.tokens:>12,} tokens  not begun"
    if not finished(folder, plan):
        return f"{plan.name:40} {plan.tokens:>12,} tokens  checkpoint of step {step_of(folder)} of {plan.train.steps}"
    loss = [record["loss"] for record in runlog.read(folder) if record["event"] == "validation"][-1]
    return f"{plan.name:40} {plan.tokens:>12,} tokens  finished, loss {loss:.4f}"


def train(experiment: str, plan: Plan, runs: Path, prepared: Prepared, device: torch.device) -> None:
    """One run, begun, gone on with, or forked off the run before it."""
    folder = runs / plan.name
    if plan.fault and folder.exists():
        shutil.rmtree(folder)
    resume = (folder / checkpoint.INDEX).exists()
    if not resume and plan.after is not None:
        fork(runs / plan.after, folder, plan.train)
        resume = True
    config = plan.config(prepared.vocab_size, prepared.eos_id)
    reading = read(plan, prepared)
    torch.manual_seed(plan.train.seed)
    model = LanguageModel(config)
    describe(experiment, plan, folder, model, reading, device)
    model.to(device)

    def measure(result: Evaluation) -> dict[str, float]:
        return reading.units(result) | (PROBES[plan.probe](model, reading) if plan.probe else {})

    with faults.get(plan.fault).inject() if plan.fault else nullcontext():
        fit(
            model,
            reading.train,
            plan.train,
            validation=reading.validation,
            out=folder,
            resume=resume,
            data=reading.about,
            tokenizer=prepared.tokenizer.to_str(),
            measure=measure,
            world=World(device),
        )


def fork(before: Path, folder: Path, config: TrainConfig) -> None:
    """Begin a run with the end of another one, whose training up to there is its own to the last bit.

    Raises ValueError where it is not: other rates up to there, or another batch, seed, decay.
    """
    found = checkpoint.find(before)
    was, step = found.train, found.about["progress"]["step"]
    same = config.replace(steps=was.steps, schedule=was.schedule)
    if was != same or planned_rates(config)[:step] != planned_rates(was)[:step]:
        raise ValueError(f"{folder} cannot go on from {before}: up to step {step} it would have trained otherwise.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(before / runlog.LOG, folder / runlog.LOG)
    about = {**found.about, "train": asdict(config)}
    tokenizer = found.verified(checkpoint.TOKENIZER).read_text(encoding="utf-8")
    checkpoint.save(folder, about, found.weights(), found.state(), tokenizer=tokenizer)


def describe(
    experiment: str, plan: Plan, folder: Path, model: LanguageModel, reading: Reading, device: torch.device
) -> None:
    """Write what a row says of a run beside its log: sizes, arithmetic, corpus, hardware, command."""
    batch = next(iter(reading.validation))
    row = {name: ids[:1, : plan.model["max_seq_len"]] for name, ids in batch.items()}
    outside = {id(p) for module in (model.embedder, model.head) for p in module.parameters()}
    how = "" if device.type == "cpu" else f" --device {device.type}"
    value = {
        "experiment": experiment,
        "plan": plan.described(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "body_parameters": sum(p.numel() for p in model.parameters() if id(p) not in outside),
        "flops_per_token": flops_per_step(model, row) / row["labels"].numel(),
        "train_tokens": reading.tokens,
        "validation_tokens": reading.count,
        "corpus": corpus_name(plan, reading),
        "begun": step_of(folder) if plan.after and not (folder / RUN).exists() else began(folder),
        "hardware": hardware(device),
        "command": f"python -m lab experiment {experiment} --out runs --only {plan.name}{how}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.replace_text(folder / RUN, json.dumps(value, indent=1))


def began(folder: Path) -> int:
    """The step at which a run was forked, as its folder says; 0 for one that was not."""
    return checkpoint.read_json(folder / RUN)["begun"] if (folder / RUN).exists() else 0


def corpus_name(plan: Plan, reading: Reading) -> str:
    size = f"-{reading.prepared.vocab_size}" if plan.data.tokenizer == "bpe" else ""
    return f"{plan.data.corpus} {plan.data.tokenizer}{size} {reading.prepared.hash}"


def hardware(device: torch.device) -> str:
    """The processor, by its own name, and how many threads compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names: list[Any] = []
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
