"""Faults in the training loop: gradients added up wrongly, a step or a rate forgotten, a config not saved."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import FORMAT
from ..config import ModelConfig, TrainConfig
from ..labels import count_targets, cross_entropy
from ..loss import linear_cross_entropy
from ..parallel import moved
from ..trainer import History
from .base import fault

LESSON = "06_why_perplexity_70"
UPDATE = {"of": "lab.trainer:Trainer.update", "lesson": LESSON, "on": "language model"}


@fault("accumulation-not-scaled", **UPDATE, caught_by="accumulation-scale")
def adds_losses(self, step: int) -> tuple[Tensor, Tensor, int]:
    """the losses of the micro-batches are added up as they are: twice as many, a gradient twice as large"""
    batches = [next(self.batches) for _ in range(self.config.accumulate)]
    total = sum(count_targets(batch["labels"]) for batch in batches)
    self.optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, batch in enumerate(batches, start=1):
        mine, count = self.world.share(batch)
        if self.flops is None and self.out is not None:
            self.flops = self.count_flops(mine)
        with self.world.synchronised(self.wrapped, last=number == len(batches)):
            with self.autocast():
                part = self.engine(moved(mine, self.device))
            # The ranks' gradients are averaged, and their parts add up.
            self.scaler.scale(part * self.world.size).backward()
        parts.append(part.detach())
    loss = self.world.sum(torch.stack(parts).sum())
    self.scaler.unscale_(self.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if self.read_every == 1:
        self.guard(float(loss), float(norm), step)
    self.scaler.step(self.optimizer)
    self.scaler.update()
    return loss, norm, total


@fault("mean-of-means", **UPDATE, caught_by="accumulation-scale", half_repair=True)
def averages_means(self, step: int) -> tuple[Tensor, Tensor, int]:
    """each micro-batch counts the same, whatever it holds: a target among padding weighs more than one in a full row"""
    batches = [next(self.batches) for _ in range(self.config.accumulate)]
    total = sum(count_targets(batch["labels"]) for batch in batches)
    self.optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, batch in enumerate(batches, start=1):
        mine, count = self.world.share(batch)
        if self.flops is None and self.out is not None:
            self.flops = self.count_flops(mine)
        with self.world.synchronised(self.wrapped, last=number == len(batches)):
            with self.autocast():
                part = self.engine(moved(mine, self.device)) / len(batches)
            # The ranks' gradients are averaged, and their parts add up.
            self.scaler.scale(part * self.world.size).backward()
        parts.append(part.detach())
    loss = self.world.sum(torch.stack(parts).sum())
    self.scaler.unscale_(self.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if self.read_every == 1:
        self.guard(float(loss), float(norm), step)
    self.scaler.step(self.optimizer)
    self.scaler.update()
    return loss, norm, total


@fault("zeroed-between-micro-batches", **UPDATE, caught_by="accumulation-scale")
def zeroes_each_time(self, step: int) -> tuple[Tensor, Tensor, int]:
    """the gradients are set to zero before each micro-batch: the last one alone counts"""
    batches = [next(self.batches) for _ in range(self.config.accumulate)]
    total = sum(count_targets(batch["labels"]) for batch in batches)
    parts = []
    for number, batch in enumerate(batches, start=1):
        mine, count = self.world.share(batch)
        if self.flops is None and self.out is not None:
            self.flops = self.count_flops(mine)
        self.optimizer.zero_grad(set_to_none=True)
        with self.world.synchronised(self.wrapped, last=number == len(batches)):
            with self.autocast():
                part = self.engine(moved(mine, self.device)) * (count / total)
            # The ranks' gradients are averaged, and their parts add up.
            self.scaler.scale(part * self.world.size).backward()
        parts.append(part.detach())
    loss = self.world.sum(torch.stack(parts).sum())
    self.scaler.unscale_(self.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if self.read_every == 1:
        self.guard(float(loss), float(norm), step)
    self.scaler.step(self.optimizer)
    self.scaler.update()
    return loss, norm, total


@fault("zero-grad-forgotten", **UPDATE, caught_by="zero-grad")
def never_zeroes(self, step: int) -> tuple[Tensor, Tensor, int]:
    """nobody sets the gradients to zero: each step goes along the sum of all before"""
    batches = [next(self.batches) for _ in range(self.config.accumulate)]
    total = sum(count_targets(batch["labels"]) for batch in batches)
    parts = []
    for number, batch in enumerate(batches, start=1):
        mine, count = self.world.share(batch)
        if self.flops is None and self.out is not None:
            self.flops = self.count_flops(mine)
        with self.world.synchronised(self.wrapped, last=number == len(batches)):
            with self.autocast():
                part = self.engine(moved(mine, self.device)) * (count / total)
            # The ranks' gradients are averaged, and their parts add up.
            self.scaler.scale(part * self.world.size).backward()
        parts.append(part.detach())
    loss = self.world.sum(torch.stack(parts).sum())
    self.scaler.unscale_(self.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if self.read_every == 1:
        self.guard(float(loss), float(norm), step)
    self.scaler.step(self.optimizer)
    self.scaler.update()
    return loss, norm, total


@fault("step-never-called", **UPDATE, caught_by="step-changes-parameters")
def never_steps(self, step: int) -> tuple[Tensor, Tensor, int]:
    """the loss is differentiated, the gradients are clipped, and the optimizer is never asked to step"""
    batches = [next(self.batches) for _ in range(self.config.accumulate)]
    total = sum(count_targets(batch["labels"]) for batch in batches)
    self.optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, batch in enumerate(batches, start=1):
        mine, count = self.world.share(batch)
        if self.flops is None and self.out is not None:
            self.flops = self.count_flops(mine)
        with self.world.synchronised(self.wrapped, last=number == len(batches)):
            with self.autocast():
                part = self.engine(moved(mine, self.device)) * (count / total)
            # The ranks' gradients are averaged, and their parts add up.
            self.scaler.scale(part * self.world.size).backward()
        parts.append(part.detach())
    loss = self.world.sum(torch.stack(parts).sum())
    self.scaler.unscale_(self.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if self.read_every == 1:
        self.guard(float(loss), float(norm), step)
    self.scaler.update()
    return loss, norm, total


@fault(
    "scheduler-never-stepped",
    of="lab.trainer:Trainer.step",
    caught_by="scheduler-never-stepped",
    lesson=LESSON,
    on="language model",
)
def never_sets_the_rate(self, history: History) -> None:
    """the planned rates are logged, and never given to the optimizer, which stays at its first one"""
    step, rate = self.progress.step + 1, self.rates[self.progress.step]
    loss, norm, tokens = self.update(step)
    self.progress.step, self.progress.tokens = step, self.progress.tokens + tokens
    record = {"event": "step", "step": step, "epoch": self.progress.epoch, "rate": rate, "tokens": tokens}
    self.pending.append((record, loss, norm))
    due = step % self.config.eval_every == 0 or step == self.config.steps
    if due or len(self.pending) == self.read_every:
        self.flush(history, last=due)
    if due:
        self.pause(history)


@fault(
    "bounded-logits",
    of="lab.language_model:head_and_loss",
    caught_by="overfits-one-batch",
    lesson=LESSON,
    on="language model",
)
def bounds_logits(
    head: nn.Linear, hidden: Tensor, labels: Tensor | None, config: ModelConfig, training: bool
) -> tuple[Tensor | None, Tensor | None]:
    """the logits pass through a tanh: no token can ever get more than e^2 times the probability of another"""
    smoothing = config.label_smoothing if training else 0.0
    if labels is None:
        return head(hidden).tanh(), None
    if config.loss_chunk is not None:
        return None, linear_cross_entropy(hidden, head, labels, config.loss_chunk, smoothing)
    logits = head(hidden).tanh()
    return logits, cross_entropy(logits, labels, smoothing)


DESCRIBE = {"of": "lab.checkpoint:describe", "caught_by": "checkpoint-has-config", "lesson": LESSON}


@fault("checkpoint-without-config", **DESCRIBE)
def leaves_the_config_out(model: nn.Module, train: TrainConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """the checkpoint says how it was trained, and not what was: no model can be built from it"""
    about = {
        "format": FORMAT,
        "kind": type(model).__name__,
        "model": None,
        "train": asdict(train),
        "data": dict(data),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }
    return json.loads(json.dumps(about, default=str))  # as it will be read


@fault("checkpoint-without-heads", **DESCRIBE, half_repair=True)
def keeps_sizes_alone(model: nn.Module, train: TrainConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """the checkpoint leaves out the number of heads: the model is built with the default, and nothing says so"""
    config = getattr(model, "config", None)
    about = {
        "format": FORMAT,
        "kind": type(model).__name__,
        "model": {k: v for k, v in asdict(config).items() if k != "num_heads"} if is_dataclass(config) else None,
        "train": asdict(train),
        "data": dict(data),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }
    return json.loads(json.dumps(about, default=str))  # as it will be read
