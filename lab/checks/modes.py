"""Checks on modes: evaluate() and generate() give back the modes that they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..calling import Missing
from ..instruments import user_frame
from ..probe import Probe
from ..report import Finding, Where
from .base import check


class Interrupted(Exception):  # noqa: N818 - raised on purpose
    """Raised in the middle of the user's function, to see what it leaves behind."""


@dataclass
class Switches:
    """Where the user's code called eval() or train() on a module: the function, and the line of the call."""

    calls: list[tuple[bool, Where, int]] = field(default_factory=list)

    def last(self, mode: bool) -> tuple[Where | None, int | None]:
        return next(((where, line) for to, where, line in reversed(self.calls) if to is mode), (None, None))


@contextmanager
def switches(model: nn.Module) -> Iterator[Switches]:
    """Record who switches modes. `eval()` calls `train(False)`, which recurses: the outermost call is the user's."""
    seen, original = Switches(), nn.Module.train
    depth = 0

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        nonlocal depth
        if not depth:
            frame = user_frame(2)
            seen.calls.append((bool(mode), Where.of_code(frame.f_code), frame.f_lineno))
        depth += 1
        try:
            return original(self, mode)
        finally:
            depth -= 1

    nn.Module.train = train
    try:
        yield seen
    finally:
        nn.Module.train = original


def starts(model: nn.Module) -> dict[str, dict[str, bool]]:
    """The modes to start from, by module: all in train, all in eval, and train with a frozen part in eval."""
    names = [name for name, _ in model.named_modules()]
    frozen = next((name for name, child in model.named_children() if list(child.parameters())), None)
    modes = {"train": dict.fromkeys(names, True), "eval": dict.fromkeys(names, False)}
    if frozen is not None:
        modes["mixed"] = {n: n != frozen and not n.startswith(frozen + ".") for n in names}
    return modes


def set_modes(model: nn.Module, modes: dict[str, bool]) -> None:
    for name, module in model.named_modules():
        module.training = modes[name]


def modes_of(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@contextmanager
def interrupting(model: nn.Module) -> Iterator[None]:
    """Raise Interrupted in the first forward of any module of the model."""
    mine = {id(module) for module in model.modules()}

    def stop(module: nn.Module, args: Any) -> None:
        if id(module) in mine:
            raise Interrupted

    handle = register_module_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class Visit:
    """One call of the user's function: how it ended, and the modes that it left."""

    start: str
    ending: str
    before: dict[str, bool]
    after: dict[str, bool]
    grad_changed: bool
    switches: Switches
    error: Exception | None = None

    def changed(self, to: bool) -> list[str]:
        return [name for name in self.after if self.after[name] is to and self.before.get(name) is not to]


def visits(model: nn.Module, function: Callable[[], Any]) -> list[Visit]:
    """Call the function from each starting mode, to its end and interrupted; abandon the generator it may return."""
    seen = []
    for start, modes in starts(model).items():
        for interrupt in (False, True):
            set_modes(model, modes)
            grad, error = torch.is_grad_enabled(), None
            with switches(model) as switched:
                try:
                    with interrupting(model) if interrupt else nullcontext():
                        ending = exhaust(function())
                except Exception as caught:
                    ending, error = "raises", None if isinstance(caught, Interrupted) else caught
            changed = torch.is_grad_enabled() is not grad
            seen.append(Visit(start, ending, modes, modes_of(model), changed, switched, error))
            torch.set_grad_enabled(grad)
    return seen


def require_success(seen: list[Visit]) -> None:
    """Raises Missing where the user's function fails of itself: it may have failed before it did anything."""
    for visit in seen:
        if visit.error is not None:
            reason = shorten(str(visit.error), 100)
            raise Missing(f"the function given raises {type(visit.error).__name__}: {reason}")


def exhaust(result: Any) -> str:
    """Take one item of a generator and drop it; anything else is done already."""
    if not hasattr(result, "__next__"):
        return "returns"
    next(result, None)
    return "is abandoned"


def functions(probe: Probe) -> dict[str, Callable[[], Any]]:
    """The user's evaluate and generate as calls without arguments. Raises Missing where there is neither."""
    subject, model = probe.subject, probe.own()
    found: dict[str, Callable[[], Any]] = {}
    if subject.evaluate is not None:
        found["evaluate"] = lambda: subject.evaluate(model)
    if subject.can_generate() and subject.batch is not None:
        found["generate"] = lambda: subject.generated(model, probe.own_batch())
    if not found:
        raise Missing("needs generate=lambda model, batch: ids, or evaluate=lambda model: ...")
    return found


def train_passes_differ(probe: Probe) -> float | None:
    """How far two forward passes on the same batch differ in the present mode: dropout, where it is awake."""
    subject = probe.subject
    try:
        with torch.no_grad():
            first, second = (subject.logits(subject.model, probe.own_batch()) for _ in range(2))
        return float((first - second).abs().max())
    except Exception:
        return None


@check("stuck-in-eval", severity="P3", family="modes", lesson="03_stuck_in_eval")
def stuck_in_eval(probe: Probe) -> Iterator[Finding]:
    """After evaluate() and generate() no submodule that was in train mode is in eval mode, however they ended."""
    model = probe.subject.model
    for name, function in functions(probe).items():
        seen = visits(model, function)
        stuck = [v for v in seen if v.changed(to=False) or v.grad_changed]
        if not stuck:
            require_success(seen)
            continue
        endings = sorted({v.ending for v in stuck})
        where, line = stuck[0].switches.last(False)
        evidence: dict[str, Any] = {
            "when it": " / ".join(endings),
            "modules left in eval": len(stuck[0].changed(False)),
        }
        if line:
            evidence["eval() called at line"] = line
        if "returns" in endings:
            model.train()
            evidence["two train passes differ before by"] = train_passes_differ(probe)
            with torch.set_grad_enabled(torch.is_grad_enabled()):  # given back, where the function does not
                function()
            evidence["and after by"] = train_passes_differ(probe)
        ways = {("raises",): " when it raises", ("is abandoned",): " when its generator is abandoned"}
        yield probe.finding(
            f"{name}() switches to eval and never restores training mode{ways.get(tuple(endings), '')}"
            if stuck[0].changed(to=False)
            else f"{name}() leaves gradients {'off' if torch.is_grad_enabled() else 'on'}",
            evidence={key: value for key, value in evidence.items() if value is not None},
            where=where,
            repair="note the mode of every submodule and give each its own back, in a finally (lab.mode.evaluating)",
        )


@check("half-repaired-mode", severity="P3", family="modes", lesson="03_stuck_in_eval")
def half_repaired_mode(probe: Probe) -> Iterator[Finding]:
    """After evaluate() and generate() no submodule that was in eval mode, frozen on purpose, is in train mode."""
    model = probe.subject.model
    for name, function in functions(probe).items():
        seen = visits(model, function)
        woken = [v for v in seen if v.changed(to=True)]
        if not woken:
            require_success(seen)
            continue
        where, line = woken[0].switches.last(True)
        evidence = {"started in": " / ".join(dict.fromkeys(v.start for v in woken))}
        evidence["modules woken"] = len(woken[0].changed(True))
        if line:
            evidence["train() called at line"] = line
        yield probe.finding(
            f"{name}() ends in train mode whatever it found: it wakes frozen parts and undoes an outer eval()",
            evidence=evidence,
            where=where,
            repair="give every submodule the mode it had, and not train() to all (lab.mode.evaluating)",
        )
