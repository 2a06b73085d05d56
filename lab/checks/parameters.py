"""Checks on parameters: registered with the model, reached by gradients, held by the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from ..calling import Missing
from ..instruments import forward_of
from ..probe import Probe
from ..report import Finding, Where
from .base import check
from .uses import Uses, backward, hidden, leaves, objective

LESSON = "06_why_perplexity_70"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@check(
    "unregistered-parameters",
    severity="P1",
    family="parameters",
    lesson=LESSON,
    silent="the loss falls all the same: the rest of the model learns to live with random layers",
    repair="hold modules in nn.ModuleList or nn.ModuleDict and tensors in nn.Parameter, not in a list or a dict",
    explains=("random-in-eval", "too-small-for-the-data"),
)
def unregistered_parameters(probe: Probe) -> Iterator[Finding]:
    """Every tensor that a backward pass gives a gradient is in model.parameters().

    Modules in a Python list are not: the optimizer does not see them, a checkpoint lacks them, and neither to() nor
    eval() reaches them. What a forward pass makes anew each time is another bug (random-in-eval).
    """
    batch = probe.whole()
    model = probe.copy().requires_grad_(True)
    registered = {id(parameter) for parameter in model.parameters()}
    first, second = ({id(leaf): leaf for leaf in leaves(objective(probe, model, batch))} for _ in range(2))
    lost = {key: leaf for key, leaf in first.items() if key in second and key not in registered}
    if not lost:
        return
    own = {id(parameter) for parameter in probe.subject.model.parameters()}
    if any(key in own for key in lost):
        raise Missing("a copy of the model still computes with the model itself: a forward was replaced on an instance")
    names, places = {}, []
    for name, owner, attribute, thing in hidden(model):
        inside = thing.named_parameters(prefix=name) if isinstance(thing, nn.Module) else [(name, thing)]
        for full, tensor in inside:
            if id(tensor) in lost and id(tensor) not in names:
                names[id(tensor)] = full
                places.append((f"{type(owner).__name__}.{attribute}", owner))
    total = sum(leaf.numel() for leaf in lost.values())
    evidence: dict[str, Any] = {"tensors": len(lost), "their elements": total}
    evidence["registered"] = sum(parameter.numel() for parameter in model.parameters())
    if names:
        evidence["the first of them"] = next(iter(names.values()))
    held = f", held in {some(dict.fromkeys(place for place, _ in places))}" if places else ""
    yield probe.finding(
        f"{total:,} parameters get gradients and are not among model.parameters(){held}: no optimizer updates them, no "
        f"checkpoint keeps them",
        evidence=evidence,
        where=Where.of(type(places[0][1]).__init__) if places else forward_of(model, ""),
    )


def wake(model: nn.Module) -> None:
    """Give parameters that are constant small random values: behind a projection of zeros nothing gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.is_floating_point()
                and parameter.numel()
                and bool((parameter == parameter.flatten()[0]).all())
            ):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.02 * noise.to(parameter)


def unreached(probe: Probe, model: nn.Module, batch: Any) -> tuple[dict[str, str], set[str]]:
    """The trainable parameters without a gradient, and whether it is missing or zero; and the names of those used."""
    model.zero_grad()
    with Uses(model) as uses:
        loss = objective(probe, model, batch)
    backward(loss)
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any())):
            found[name] = "no" if parameter.grad is None else "zero"
    model.zero_grad()
    return found, uses.used


@check(
    "no-gradient",
    severity="P1",
    family="parameters",
    lesson=LESSON,
    silent="the rest of the model learns, and the loss falls to what that can reach",
    repair="let the gradient through: no detach(), no torch.no_grad() and no .data between the parameter and the loss",
    after=("random-in-eval", "unregistered-parameters"),
    explains=("step-changes-parameters", "overfits-one-batch"),
)
def no_gradient(probe: Probe) -> Iterator[Finding]:
    """Every trainable parameter that the forward pass computes with gets a gradient from the loss.

    Parameters frozen on purpose (requires_grad False) are left alone; one that no pass uses is a note. Constant
    parameters are first given small random values, for behind a projection of zeros, a known way to start, nothing has
    a gradient. The gradient of a key's bias is zero in exact arithmetic, and rounding noise here.
    """
    batch = probe.whole(11)
    model = probe.copy()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise Missing("no parameter of the model is trainable")
    wake(model)
    try:
        found, used = unreached(probe, model, batch)
    except Missing:
        found, used = dict.fromkeys((n for n, p in model.named_parameters() if p.requires_grad), "no"), set()
    if found:  # some give gradients in train mode alone; and leave layers out by chance there
        for seed in range(2):
            torch.manual_seed(seed)
            again, more = unreached(probe, model.train(), batch)
            found, used = {name: how for name, how in found.items() if name in again}, used | more
    shapes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for how, text in (("no", "no gradient reaches them"), ("zero", "their gradient is exactly zero")):
        names = [name for name in found if name in used and found[name] == how]
        if names:
            yield probe.finding(
                f"{some(names)}: used in the forward pass, and {text}; they keep their first values",
                evidence={
                    "parameters": len(names),
                    "their elements": sum(shapes[name] for name in names),
                    "of": sum(shapes.values()),
                },
                where=forward_of(model, common_owner(names)),
            )
    unused = [name for name in found if name not in used]
    if unused:
        yield probe.finding(
            f"{some(unused)}: trainable, and no forward pass of these batches uses them",
            "note",
            evidence={"parameters": len(unused), "their elements": sum(shapes[name] for name in unused)},
            where=forward_of(model, common_owner(unused)),
            repair="leave them out, or call them: they take memory, and DistributedDataParallel stops at them",
        )


def common_owner(names: list[str]) -> str:
    """The innermost module that holds all of these parameters."""
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    while shared and shared[-1].isdigit() and len(names) > 1 and len({tuple(p) for p in parts}) > 1:
        shared.pop()
    return ".".join(shared)


@check(
    "optimizer-coverage",
    severity="P1",
    family="parameters",
    lesson=LESSON,
    silent="gradients flow, the loss falls, and a part of the model stays as it was made",
    repair="make the optimizer last, of model.parameters(), when every module is in its place",
    after=("unregistered-parameters",),
    explains=("step-changes-parameters", "zero-grad"),
)
def optimizer_coverage(probe: Probe) -> Iterator[Finding]:
    """The optimizer holds every trainable parameter of the model, and none of another.

    One that is made before a head is replaced, before weights are tied, or of a copy of the model holds parameters that
    the model no longer has. Frozen parameters in it are harmless.
    """
    subject = probe.subject
    if subject.optimizer is None and subject.build is None:
        raise Missing("needs optimizer=, or build=lambda: (model, optimizer, scheduler)")
    if subject.optimizer is not None:
        model, optimizer = subject.model, subject.optimizer
    else:
        model, optimizer, _ = built(probe)
    try:
        held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    except (AttributeError, TypeError, KeyError) as error:
        raise Missing(f"the optimizer has no param_groups as torch's have ({error})") from error
    own = {id(parameter) for parameter in model.parameters()}
    missing = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in held}
    foreign = [parameter for key, parameter in held.items() if key not in own]
    evidence = {"trainable parameters": sum(p.requires_grad for p in model.parameters()), "held": len(held)}
    if missing:
        evidence |= {"not held": len(missing), "their elements": sum(p.numel() for p in missing.values())}
    if foreign:
        evidence["held, and of no part of the model"] = len(foreign)
    if missing and foreign:
        shapes = {tuple(parameter.shape) for parameter in foreign}
        same = [name for name, parameter in missing.items() if tuple(parameter.shape) in shapes]
        yield probe.finding(
            f"the optimizer holds {len(foreign)} parameters that the model does not have, and not "
            f"{some(missing)}: {'it was made before these were replaced' if same else 'it is of another model'}",
            evidence=evidence,
        )
    elif missing:
        yield probe.finding(
            f"the optimizer does not hold {some(missing)}, which nothing else moves",
            evidence=evidence,
            repair="give it all of model.parameters(); where they are to stay, say so: requires_grad_(False)",
        )
    elif foreign:
        yield probe.finding(
            f"the optimizer holds {len(foreign)} parameters that are no part of the model",
            evidence=evidence,
        )


def built(probe: Probe) -> tuple[nn.Module, Any, Any]:
    """A fresh (model, optimizer, scheduler) by `build`. Raises Missing where it fails."""
    probe.at_risk()  # by a build that gives the model in use
    try:
        made = tuple(probe.subject.build())
    except Exception as error:
        raise Missing(f"build() raises {type(error).__name__}: {shorten(str(error), 100)}") from error
    if not 2 <= len(made) <= 3 or not isinstance(made[0], nn.Module):
        raise Missing("build() must give (model, optimizer, scheduler), the last of which may be None")
    return made if len(made) == 3 else (*made, None)
