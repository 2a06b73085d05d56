"""The user's own training step, put to a fresh model and watched: what gradients and rates its optimizer gets."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, clone, replaced, tensors_of
from ..instruments import user_frame
from ..probe import LENGTH, Probe
from ..report import Where
from .parameters import built
from .randomness import Dropouts, seed_all

# Of each parameter so many elements stand for its gradient: a model has too many to keep several of them.
SAMPLE = 2048
# Rows of up to so many tokens are quick enough to train on as they are.
SHORT = 64


@contextmanager
def unclipped() -> Iterator[None]:
    """Gradient clipping does nothing inside: it would bring a gradient that is k times too large back to its size."""
    module = torch.nn.utils.clip_grad
    patches = [(module, "_clip_grads_with_norm_"), (module, "clip_grad_value_"), (torch.nn.utils, "clip_grad_value_")]
    kept = [(holder, name, getattr(holder, name)) for holder, name in patches if hasattr(holder, name)]
    try:
        for holder, name, _ in kept:
            setattr(holder, name, lambda *args, **kwargs: None)
        yield
    finally:
        for holder, name, function in kept:
            setattr(holder, name, function)


@dataclass
class Update:
    """What one call of the optimizer's step() found: a sample of the gradients (n,), the rates, who called."""

    gradients: Tensor
    rates: list[float]
    where: Where


@dataclass
class Session:
    """Some updates of one fresh model, in which no parameter was moved."""

    updates: list[Update] = field(default_factory=list)
    calls: int = 0


def rates_of(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]


def sampled(model: nn.Module) -> Tensor:
    """The same elements of each parameter's gradient each time, (n,); zeros where there is none."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for parameter in model.parameters():
        count = min(parameter.numel(), SAMPLE)
        index = torch.randint(max(1, parameter.numel()), (count,), generator=generator)
        if parameter.grad is None or not count:
            parts.append(torch.zeros(count, dtype=torch.float64))
        else:
            grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            parts.append(grad.detach().flatten()[index.to(grad.device)].double().cpu())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


class Loop:
    """The user's train_step on fresh models, all alike.

    Raises Missing where build= or train_step= is lacking. Without build, the model in use is copied, with its optimizer
    and its scheduler.
    """

    def __init__(self, probe: Probe) -> None:
        subject = probe.subject
        if subject.train_step is None:
            raise Missing("needs train_step=lambda model, optimizer, scheduler, micro_batches: one update")
        if subject.build is None and subject.optimizer is None:
            raise Missing("needs build=lambda: (model, optimizer, scheduler), a fresh set")
        if subject.batch is None:
            raise Missing("needs a batch: give batch=")
        self.probe, self.subject = probe, subject
        self.kept: tuple | None = None

    def made(self) -> tuple[nn.Module, Any, Any]:
        """One fresh set for all that moves no parameter."""
        if self.kept is None:
            self.kept = self.fresh()
        return self.kept

    def fresh(self) -> tuple[nn.Module, Any, Any]:
        """(model, optimizer, scheduler); the same random numbers make the same model."""
        seed_all(0)
        subject = self.subject
        if subject.build is not None:
            made = built(self.probe)
        else:
            try:
                made = copy.deepcopy((subject.model, subject.optimizer, subject.scheduler))
            except Exception as error:
                reason = shorten(f"{type(error).__name__}: {error}", 100)
                raise Missing(f"model, optimizer and scheduler cannot be copied ({reason}): give build=") from error
        if not hasattr(made[1], "param_groups"):
            raise Missing(f"the optimizer, a {type(made[1]).__name__}, has no param_groups as torch's have")
        return made

    def step(self, made: tuple, micro_batches: list[Any]) -> None:
        """One call of the user's train_step, without dropout. Raises Missing where it fails."""
        device = next(made[0].parameters()).device
        try:
            with warnings.catch_warnings(), torch.enable_grad(), Dropouts(off=True):
                warnings.simplefilter("ignore")  # schedulers warn of a step() that is not the optimizer's own
                self.subject.train_step(*made, [clone(batch, device) for batch in micro_batches])
        except Exception as error:
            reason = shorten(f"{type(error).__name__}: {error}", 100)
            raise Missing(f"train_step fails on {len(micro_batches)} micro-batches ({reason})") from error

    def watch(self, steps: list[list[Any]], made: tuple | None = None) -> Session:
        """The gradients and rates of these updates; no parameter moves, and no gradient is clipped."""
        made = self.made() if made is None else made
        model, optimizer, _ = made
        model.zero_grad()
        session = Session()

        def step(closure: Any = None, *args: Any, **kwargs: Any) -> Any:
            loss = closure() if callable(closure) else None
            where = Where.of_code(user_frame(2).f_code)
            session.updates.append(Update(sampled(model), rates_of(optimizer), where))
            return loss

        optimizer.step = step
        with unclipped():
            for micro_batches in steps:
                self.step(made, micro_batches)
                session.calls += 1
        return session

    def batches(self) -> Iterator[Any]:
        """Batches of two rows to try: the user's own, unless it is long; short ones like it, padded and not."""
        own = self.cut(self.subject.batch, slice(0, 2))
        rows = self.rows(own)
        if len(rows) == 2 and rows.numel() <= 2 * SHORT:
            yield own
        padded = {name: torch.ones(2, size, dtype=torch.bool) for name, size in LENGTH.items()}
        for real in padded.values():
            real[1:, -3:] = False
        for make in (lambda: self.probe.batch(padded), lambda: self.probe.whole(2)):
            try:
                yield make()
            except Missing:
                continue
        if len(rows) == 2:
            yield own

    def accepted(self) -> Any:
        """The first batch that train_step takes. Raises Missing where it takes none."""
        problem = Missing("the batch has one row, and none like it can be made")
        for batch in self.batches():
            try:
                self.watch([[batch]])
                return batch
            except Missing as reason:
                problem = reason
        raise problem

    def halves(self, whole: Any) -> tuple[Any, Any]:
        """A batch of two rows as two of one: of equal number, as micro-batches are."""
        return self.cut(whole, slice(0, 1)), self.cut(whole, slice(1, None))

    def rows(self, batch: Any) -> Tensor:
        """The tensor that tells how many rows a batch has."""
        streams = self.subject.streams
        key = next((streams[name][0] for name in ("target", "source") if name in streams), None)
        tensors = tensors_of(batch)
        found = tensors.get(key, next((tensor for tensor in tensors.values() if tensor.dim()), None))
        if found is None:
            raise Missing("the batch has no rows to be told apart: give a batch of tensors (B, ...)")
        return found

    def cut(self, batch: Any, rows: slice) -> Any:
        size = len(self.rows(batch))
        cut = {key: t[rows] for key, t in tensors_of(batch).items() if t.dim() and len(t) == size}
        return replaced(batch, cut)


def shares(mixed: Tensor, first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """(a, b, rest): mixed = a * first + b * second and a rest, relative to mixed; gradients (n,) each.

    Raises Missing where the two are too much alike to be told apart.
    """
    basis = torch.stack([first, second], dim=1)
    norms = basis.norm(dim=0)
    if not bool((norms > 0).all()) or float((first @ second).abs() / norms.prod()) > 0.999:
        raise Missing("the gradients of two rows are zero or alike, so they cannot be told apart: give other rows")
    solution = torch.linalg.lstsq(basis / norms, mixed[:, None]).solution[:, 0] / norms
    rest = float((basis @ solution - mixed).norm() / mixed.norm().clamp(min=1e-300))
    return float(solution[0]), float(solution[1]), rest


@dataclass
class Measured:
    """The gradients of two batches apart, of both as one, of both as micro-batches; and of the second after the first.

    rates: those of four updates in a row. batch: what train_step was given.
    """

    first: Tensor
    second: Tensor
    whole: Tensor
    parts: Tensor
    after: Tensor
    rates: list[list[float]]
    where: Where
    batch: Any


def measured(probe: Probe) -> Measured:
    """Run once for all checks of a diagnosis. Raises Missing where train_step cannot be watched."""
    if "loop" not in probe.shared.made:
        loop = Loop(probe)
        whole = loop.accepted()
        a, b = loop.halves(whole)

        def only(*micro_batches: Any) -> Tensor:
            session = loop.watch([list(micro_batches)])
            if len(session.updates) != 1:
                raise Missing(f"train_step makes {len(session.updates)} updates of {len(micro_batches)} micro-batches")
            return session.updates[0].gradients

        row = loop.watch([[a], [b], [a], [b]])
        if len(row.updates) != row.calls:
            raise Missing(
                "train_step does not call the optimizer's step() once each time, so its gradients are not seen"
            )
        first, after = row.updates[0].gradients, row.updates[1].gradients
        rates = [update.rates for update in row.updates]
        probe.shared.made["loop"] = Measured(
            first, only(b), only(whole), only(a, b), after, rates, row.updates[0].where, whole
        )
    return probe.shared.made["loop"]
