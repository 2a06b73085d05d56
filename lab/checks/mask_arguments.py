"""The check that a mask which is given does something, be it given to the model or by one part of it to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, clone, replaced, tensors_of
from ..instruments import forward_of
from ..intercept import low_of_two
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding
from ..spelling import attend_to
from .attention import FAMILY, padded, reading
from .base import check
from .changes import GATES, effect_of, streams_or_missing
from .masks import Question, on_own_batch


@check(
    "mask-ignored",
    severity="P1",
    **FAMILY,
    silent="the argument is accepted, its shape is right, and nothing is done with it",
    repair="hand the mask on to the attention, and there to the scores",
    after=(*GATES, "head-mixing", "softmax-axis", "mask-fill"),
    explains=("attends-to-pads", "sees-the-future", "fully-masked-row", "padding-amount"),
)
def mask_ignored(probe: Probe) -> Iterator[Finding]:
    """A mask that is given has an effect: the batch's, and each that one part of the model hands to another.

    One column of the mask is turned round, alone. A mask in the batch that has none is harmless where the model masks
    by its ids all the same, and where causality hides the padding: then it is a note.
    """
    streams_or_missing(probe)
    asked = 0
    for stream, (key, mask_key) in probe.subject.streams.items():
        if mask_key is not None:
            asked += 1
            yield from mask_of_batch(probe, stream, key, mask_key)
    batch = padded(probe)
    batch = probe.whole() if batch is None else batch
    model, _ = probe.precise(batch)
    for name, slot in receivers(probe, model, batch):
        effect = turned(probe, model, batch, name, slot)
        asked += effect is not None
        if effect == 0:
            yield probe.finding(
                f"{name} is given a mask ({slot}) and does nothing with it",
                evidence={"module": name, "effect of the mask": 0.0},
                where=forward_of(model, name),
            )
    if not asked:
        raise Missing("no mask is given to the model, nor by one of its parts to another")


def mask_of_batch(probe: Probe, stream: str, key: Any, mask_key: Any) -> Iterator[Finding]:
    subject, batch = probe.subject, probe.whole()
    model, relative = probe.precise(batch)
    real = torch.ones(ROWS, LENGTH[stream], dtype=torch.bool)
    real[0, 2] = False
    mask = attend_to(tensors_of(subject.batch)[mask_key], subject.real(stream))(real)
    control = float(effect_of(probe, stream, slice(2, 3), batch)[:, 3:].max())
    if not control > 0:
        return
    moved = probe.logits(model, replaced(batch, {mask_key: mask})) - probe.base(batch)
    if bool(moved.isnan().any()) or float(moved.abs().max()) > relative * control:
        return
    hole = {name: torch.ones(ROWS, size, dtype=torch.bool) for name, size in LENGTH.items()}
    hole[stream][0, :2] = False
    question = Question(probe, model, probe.batch(hole), stream)
    leak = question.effect(~hole[stream], hole["target"]) > relative * control
    own = on_own_batch(probe, stream) if leak else 0.0
    message = f"the batch's {mask_key!r} has no effect"
    if not leak:
        message += "; what padding holds is hidden all the same, by the ids"
    elif own == 0:
        message += "; harmless on your batch, where causality hides the padding: padding at the left would be read"
    yield probe.finding(
        message, None if own != 0 else "note", evidence={"largest change of a logit": 0.0}, where=forward_of(model, "")
    )


def is_mask(value: Any) -> bool:
    """A tensor over keys, boolean, or additive with very low entries."""
    if not isinstance(value, Tensor) or value.dim() < 2 or value.size(-1) not in LENGTH.values():
        return False
    return value.dtype == torch.bool or (value.is_floating_point() and low_of_two(value) is not None)


def receivers(probe: Probe, model: nn.Module, batch: Any) -> list[tuple[str, Any]]:
    """The innermost modules that attend and are given a mask, one of each class and argument: (name, argument)."""
    given: list[tuple[str, nn.Module, Any, int]] = []
    try:
        attending = {seen.module for seen in reading(probe)}
    except Missing:
        return []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            for slot, value in (*enumerate(args), *kwargs.items()):
                if is_mask(value) and not kwargs.get("is_causal"):
                    given.append((name, module, slot, value.data_ptr()))

        return hook

    handles = [m.register_forward_pre_hook(look(n), with_kwargs=True) for n, m in model.named_modules() if n]
    try:
        probe.logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[tuple, tuple[str, Any]] = {}
    for name, module, slot, pointer in given:
        inner = any(n.startswith(f"{name}.") and p == pointer for n, _, _, p in given)
        attends = any(f"{inside}.".startswith(f"{name}.") for inside in attending)
        if attends and not inner and not type(module).__module__.startswith("torch."):
            found.setdefault((type(module), slot), (name, slot))
    return list(found.values())


def turned(probe: Probe, model: nn.Module, batch: Any, name: str, slot: Any) -> float | None:
    """How far a module's output moves when a column of the mask that it is given is turned round; None: no output."""
    made: list[list[Tensor]] = []

    def turn(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = (args[slot] if isinstance(slot, int) else kwargs[slot]).clone()
        if mask.dtype == torch.bool:
            mask[..., 3] = ~mask[..., 3]
        else:
            blocked = mask[..., 3] <= -1e3
            mask[..., 3] = torch.where(blocked, torch.zeros_like(mask[..., 3]), mask.amin())
        if isinstance(slot, int):
            return (*args[:slot], mask, *args[slot + 1 :]), kwargs
        return args, {**kwargs, slot: mask}

    module = model.get_submodule(name)
    for change_it in (False, True):
        _ = change_it
        handle = module.register_forward_pre_hook(turn, with_kwargs=True) if change_it else None
        try:
            _, trace = probe.trace(model, clone(batch))
        finally:
            if handle is not None:
                handle.remove()
        made.append(next((outs for called, _, _, outs in trace.calls if called == name), []))
    pairs = [(a, b) for a, b in zip(*made, strict=False) if a.shape == b.shape]
    return max((float((a - b).nan_to_num(nan=1.0).abs().max()) for a, b in pairs), default=None)
