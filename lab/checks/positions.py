"""Checks on positions: the order of the tokens counts, and the amount of padding does not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, parameters_of, replaced
from ..instruments import Lookups, culprit, forward_of
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding, Where
from .attention import FAMILY
from .base import check
from .changes import GATES, ROUNDING, by_position, effect_of, other_tokens, streams_or_missing, woken
from .masks import Question

SWAPPED = [0, 3, 2, 1]
MORE = 2  # columns of padding


def swapped(probe: Probe, batch: Any, stream: str) -> Any:
    """The batch with tokens 1 and 3 of a stream in each other's place."""
    key = probe.subject.streams[stream][0]
    ids = batch[key].clone()
    ids[:, :4] = ids[:, SWAPPED]
    return replaced(batch, {key: ids})


@check(
    "positions",
    severity="P1",
    **FAMILY,
    silent="a bag of words predicts a good part of the next word, so the loss falls, and stops early",
    repair="add to each token a vector of its position in the row, torch.arange(ids.size(1)); or rotate query and key",
    after=("random-in-eval",),
    explains=("batch-independence",),
)
def positions(probe: Probe) -> Iterator[Finding]:
    """Swapping two earlier tokens changes what a later position is given.

    Under a causal mask the first module that mixes positions is asked, for behind it the mask itself tells the order;
    where it is blind to order, the others of its kind are asked too (some models leave out positions in some layers).
    An offset that is the same everywhere is no position. A table that starts at zero is woken on a copy. A causal model
    with no trace of positions at all gets a note: such models work, they count by their mask.
    """
    for stream in streams_or_missing(probe):
        batch = probe.whole()
        model, _ = probe.precise(batch)
        causal = stream == "target" and probe.subject.kind != "encoder"
        name = first_mixer(probe, model, batch) if causal else ""
        if order_counts(probe, model, batch, stream, name) or (causal and others_count(probe, model, batch, name)):
            continue
        awake = woken(probe)
        if order_counts(probe, awake, batch, stream, name, 1e-4):
            continue
        side = {"source": "source", "target": "target" if probe.subject.kind == "seq2seq" else "input"}[stream]
        evidence = {"module": name or type(model).__name__}
        message = f"swapping two tokens of the {side} changes nothing that a later position is given"
        if causal and not has_positions(probe, awake, batch):
            yield probe.finding(
                f"{message}: the model has no positions, and counts by its causal mask alone",
                "note",
                evidence=evidence,
                where=forward_of(awake, name),
            )
            continue
        yield probe.finding(
            f"{message}: the order of the tokens is lost", evidence=evidence, where=looked_up(awake, name)
        )


def first_mixer(probe: Probe, model: nn.Module, batch: Any) -> str:
    """The first module by which a change of tokens 1 and 3 reaches the last position; empty for the model itself."""
    _, before = probe.trace(model, batch)
    _, after = probe.trace(model, other_tokens(probe, batch, {"target": (slice(None), slice(1, 4, 2))}))

    def differs(a: Tensor, b: Tensor) -> bool | None:
        a, b = (by_position(t, ROWS, LENGTH["target"]) for t in (a, b))
        return None if a is None or b is None else bool((a[:, -1] - b[:, -1]).abs().max() > 1e-12 * a.abs().max())

    name, _ = culprit(model, before, after, differs)
    return name if name in dict(model.named_modules()) else ""


def at_the_end(probe: Probe, model: nn.Module, batch: Any, stream: str, name: str) -> Tensor:
    """What that module gives the last position, or the model where no module is named."""
    logits, trace = probe.trace(model, batch)
    if name:
        for called, _, _, outs in trace.calls:
            found = by_position(outs[0], ROWS, LENGTH["target"]) if called == name and outs else None
            if found is not None:
                return found[:, -1]
    return logits if stream == "source" else logits[:, 4:]


def order_counts(
    probe: Probe, model: nn.Module, batch: Any, stream: str, name: str, tolerance: float = ROUNDING
) -> bool:
    """Whether a swap moves the end by more than rounding, against other tokens there. Raises Missing without those."""
    model.eval()
    other = other_tokens(probe, batch, {stream: (slice(None), slice(1, 4, 2))})
    base = at_the_end(probe, model, batch, stream, name)
    control = float((at_the_end(probe, model, other, stream, name) - base).abs().max())
    if not control > 0:
        raise Missing(f"changing tokens of the {stream} has no effect on later positions, so their order has none")
    moved = float((at_the_end(probe, model, swapped(probe, batch, stream), stream, name) - base).abs().max())
    return moved > tolerance * control


def others_count(probe: Probe, model: nn.Module, batch: Any, name: str) -> bool:
    """Whether another module of that kind tells the order of what it is given."""
    modules = dict(model.named_modules())
    if not name:
        return False
    base, found = probe.trace(model, batch)[1], False
    given = {called: outs for called, _, _, outs in base.calls}
    for other, module in modules.items():
        if other == name or type(module) is not type(modules[name]) or not given.get(other):
            continue
        with reordered(module):
            after = {called: outs for called, _, _, outs in probe.trace(model, batch)[1].calls}
        a, b = (by_position(outs[other][0], ROWS, LENGTH["target"]) for outs in (given, after))
        if a is not None and b is not None:
            found = found or bool((a[:, -1] - b[:, -1]).abs().max() > ROUNDING * a[:, -1].abs().max())
    return found


@contextmanager
def reordered(module: nn.Module) -> Iterator[None]:
    """Inside, the module is given its hidden states with positions 1 and 3 in each other's place."""

    def swap(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        everything = {**dict(enumerate(args)), **kwargs}
        for key, value in everything.items():
            if isinstance(value, Tensor) and value.shape[:2] == (ROWS, LENGTH["target"]) and value.is_floating_point():
                everything[key] = torch.cat([value[:, SWAPPED], value[:, 4:]], dim=1)
                break
        return tuple(everything[i] for i in range(len(args))), {key: everything[key] for key in kwargs}

    handle = module.register_forward_pre_hook(swap, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def has_positions(probe: Probe, model: nn.Module, batch: Any) -> bool:
    """Whether there is a sign that positions are meant to count: by name, or a table read by other ids than tokens."""
    named = (*model.named_parameters(), *model.named_buffers(), *model.named_modules())
    words = {word for name, _ in named for word in re.split(r"[._]", name.lower())}
    if words & {"pos", "wpe", "rope", "alibi"} or any(re.match("position|rotary|relative", word) for word in words):
        return True
    with Lookups() as lookups:
        probe.logits(model, batch)
    tokens = [batch[key] for key, _ in probe.subject.streams.values()]
    return any(
        all(seen.ids.shape != ids.shape or bool((seen.ids != ids).any()) for ids in tokens) for seen in lookups.seen
    )


def looked_up(model: nn.Module, name: str) -> Where | None:
    """Where positions would be added: the forward of what holds the token embedding, or of the first mixing module."""
    table = next((n for n, module in model.named_modules() if isinstance(module, nn.Embedding)), name)
    return forward_of(model, table.rpartition(".")[0])


@check(
    "padding-amount",
    severity="P2",
    **FAMILY,
    silent="a row means something else in a longer batch; the loss does not show it, for it is right on average",
    repair="count positions and means over real tokens alone: ((ids != pad_id).cumsum(1) - 1).clamp(min=0)",
    after=(*GATES, "attends-to-pads"),
)
def padding_amount(probe: Probe) -> Iterator[Finding]:
    """More columns of padding, at the right or the left, change nothing at the real positions.

    At the left absolute positions move unless they are counted over real tokens: a note that says how to correct it,
    and a finding only where the user's own left-padded prompts are continued by a generate() that cannot be told.
    """
    streams, judged, reason = streams_or_missing(probe), False, ""
    moves: dict[tuple[str, bool], dict[str, float]] = {}
    for stream in streams:
        for side in ("right", "left"):
            try:
                batch, wider, place = widened(probe, stream, side)
                relative = probe.precise(wider)[1]
                logits, control = probe.base(batch), effect_of(probe, stream, slice(0, 2), batch)
                moved = change(probe, wider, logits, place, stream)
            except Missing as missing:
                reason = str(missing)
                continue
            judged = judged or float(control.max()) > 0
            tolerance = max(relative, ROUNDING if side == "right" else 1e-4)
            if moved <= tolerance * float(control.max()):
                continue
            floor = tolerance * float(control.max())
            if pads_are_read(probe, wider, stream, place, floor):
                continue  # attends-to-pads says so
            told = corrected(probe, stream, wider, logits, place) if stream == "target" else None
            can_be_told = told is not None and told <= floor
            moves.setdefault((side, can_be_told), {})[stream] = moved / float(control.max())
    for (side, can_be_told), effects in moves.items():
        yield verdict(probe, side, can_be_told, effects)
    if not judged:
        raise Missing(reason or f"{probe.subject.name}: changing a token has no effect, so nothing can be told")


def widened(probe: Probe, stream: str, side: str) -> tuple[Any, Any, slice]:
    """A batch, the same with columns of padding at that side of a stream, and where its real columns are."""
    batch = probe.whole()
    sizes = LENGTH | {stream: LENGTH[stream] + MORE}
    place = slice(0, LENGTH[stream]) if side == "right" else slice(MORE, None)
    real = {name: torch.ones(ROWS, size, dtype=torch.bool) for name, size in sizes.items()}
    real[stream][:] = False
    real[stream][:, place] = True
    wider, changes = probe.batch(real), {}
    for name, (key, _) in probe.subject.streams.items():
        ids = wider[key].clone()
        ids[:, place if name == stream else slice(None)] = batch[key]
        changes[key] = ids
    return batch, replaced(wider, changes), place


def pads_are_read(probe: Probe, wider: Any, stream: str, place: slice, floor: float) -> bool:
    """Whether what the padding holds moves the real positions, so that more of it must move them too."""
    pads = torch.ones(ROWS, LENGTH[stream] + MORE, dtype=torch.bool)
    pads[:, place] = False
    try:
        question = Question(probe, probe.precise(wider)[0], wider, stream)
        return question.effect(pads, ~pads if stream == "target" else None) > floor
    except Missing:
        return False


def change(probe: Probe, wider: Any, logits: Tensor, place: slice, stream: str) -> float:
    given = probe.base(wider)
    given = given[:, place] if stream == "target" else given
    if given.shape != logits.shape:
        raise Missing("logits do not follow the length of the input: give forward=lambda model, batch: (B, T, V)")
    return float((given - logits).nan_to_num(nan=0.0).abs().max())


def verdict(probe: Probe, side: str, can_be_told: bool, effects: dict[str, float]) -> Finding:
    """How bad it is that padding at that side moves the real positions of those streams."""
    subject, name = probe.subject, " and ".join(effects)
    message, severity = f"padding at the {side} of the {name} moves what its real positions give", "note"
    edge = -1 if side == "right" else 0
    mine = any(bool((~subject.real(stream)[:, edge]).any()) for stream in effects)
    if side == "right":
        severity = "P2" if mine else "P3"
        message += "" if mine else "; your batch has none there, one of unequal lengths would"
    elif can_be_told:
        message += ", for its absolute positions count the padding: give position_ids of the real tokens alone"
    else:
        message += ", as absolute positions that count the padding do"
        if mine and subject.kind == "causal_lm" and subject.can_generate():
            severity = "P2"
            message += ": a prompt is continued otherwise in a padded batch than alone"
        else:
            message += "; it bites where rows are padded at the left, as prompts are that are continued together"
    evidence = {"columns added": MORE}
    evidence |= {f"effect in the {stream}, relative to that of other tokens": by for stream, by in effects.items()}
    return probe.finding(message, severity, evidence=evidence, where=looked_up(subject.model, ""))


def corrected(probe: Probe, stream: str, wider: Any, logits: Tensor, place: slice) -> float | None:
    """The same with position_ids that do not count padding; None where the model takes none."""
    if not isinstance(wider, dict) or "position_ids" not in parameters_of(probe.subject.model):
        return None
    ids = wider[probe.subject.streams[stream][0]]
    real = torch.zeros_like(ids)
    real[:, place] = 1
    try:
        told = {**wider, "position_ids": (real.cumsum(1) - 1).clamp(min=0)}
        return change(probe, told, logits, place, stream)
    except Exception:
        return None
