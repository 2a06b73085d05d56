"""Checks on paths that must be open: from the source to the target, and past the matrices of a block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..calling import Missing, replaced
from ..instruments import Trace, forward_of
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding, Where
from .attention import FAMILY
from .base import check
from .changes import GATES, by_position, differ, effect_of, other_tokens, streams_or_missing, woken
from .shapes import blocks


@check(
    "source-ignored",
    severity="P0",
    **FAMILY,
    silent="the decoder is a language model of the target: its sentences are fluent, and about nothing in the source",
    repair="queries from the decoder, keys and values from the encoder's output, in every cross-attention",
    after=GATES,
    explains=("no-gradient",),
)
def source_ignored(probe: Probe) -> Iterator[Finding]:
    """Every token of the source changes what the decoder gives."""
    streams = streams_or_missing(probe)
    if "source" not in streams:
        raise Missing("there is no source: the check is for encoder–decoders")
    if "target" not in streams:
        raise Missing("the batch has no decoder ids by a usual name: give streams={'target': (key, mask key)}")
    batch = probe.alike()
    model, relative = probe.precise(batch)
    key, length = streams["source"][0], LENGTH["source"]
    changed, free = batch[key].clone(), probe.ordinary()
    free = free[~torch.isin(free, changed)]
    for j in range(length):
        changed[j + 1, j] = free[j % len(free)] if len(free) else changed[0, j - 1]
    logits, before = probe.trace(model, batch)
    moved, after = probe.trace(model, replaced(batch, {key: changed}))
    by = (moved - logits).abs().flatten(1).amax(1)[1 : length + 1]
    control = float(effect_of(probe, "target", slice(0, 1), batch).max())
    if not control > 0:
        raise Missing("changing the target has no effect either, so nothing can be told")
    unread = (by <= max(relative, 1e-9) * control).nonzero().flatten().tolist()
    if not unread:
        return
    started = float(effect_of(probe, "source", slice(None), batch, woken(probe)).max()) > 1e-5 * control
    if started and len(unread) == length:
        return  # the cross-attention starts at zero
    name, where = last_to_tell(model, before, after)
    all_of = len(unread) == length
    yield probe.finding(
        f"the source has no effect on the decoder: what {name} makes of it is not read"
        if all_of
        else f"source tokens {unread[0]} to {unread[-1]} have no effect on the decoder: it reads a part of the source",
        None if all_of else "P1",
        evidence={"source tokens without effect": len(unread), "of": length, "last module with an effect": name},
        where=where,
    )


def last_to_tell(model: nn.Module, before: Trace, after: Trace) -> tuple[str, Where | None]:
    """The last module whose output still knows of a change; where the function is written that calls it."""
    names = [
        name
        for (name, _, _, outs), (_, _, _, outs2) in zip(before.calls, after.calls, strict=False)
        if any(differ(a, b) for a, b in zip(outs, outs2, strict=False))
    ]
    if not names:
        return type(model).__name__, forward_of(model, "")
    return names[-1], forward_of(model, names[-1].rpartition(".")[0])


@check(
    "residual",
    severity="P2",
    **FAMILY,
    silent="two layers train without residuals; depth does not: the deeper, the less of the input and gradient arrives",
    repair="x = x + sublayer(norm(x)), around each attention and each feed-forward layer",
    after=GATES,
)
def residual(probe: Probe) -> Iterator[Finding]:
    """With the matrices of a block zeroed, its input still comes through.

    Asked of the numbered blocks that mix tokens, all at once and each by itself: stacks of convolutions and heads do
    not count. Norms, gains and biases stay, so the order of norm and sum does not matter.
    """
    batch = probe.whole()
    column = slice(0, 2)
    other = other_tokens(probe, batch, {name: (slice(None), column) for name in streams_or_missing(probe)})
    bare = probe.copy()
    with torch.no_grad():
        for _, block in blocks(bare):
            for parameter in block.parameters():
                if parameter.dim() >= 2:
                    parameter.zero_()
    torch.backends.mha.set_fastpath_enabled(False)  # it skips the masked positions of a padded batch; see Around
    (logits, before), (changed, after) = probe.trace(bare, batch), probe.trace(bare, other)
    numbered, asked, lost = {name for name, _ in blocks(bare)}, 0, []
    for (name, _, ins, outs), (_, _, ins2, outs2) in zip(before.calls, after.calls, strict=False):
        if name in numbered and ins and outs and ins[0].shape == outs[0].shape:
            asked += 1
            if differ(ins[0], ins2[0], 1e-5) and not differ(outs[0], outs2[0], 1e-5):
                lost.append(name)
    if not asked and not differ(changed, logits, 1e-5):
        raise Missing("no numbered block with an input and an output of one shape was seen, so none can be asked")
    del bare
    if lost:
        model, _ = probe.precise(batch)
        mixing = mixing_blocks(model, probe.trace(model, batch)[1], probe.trace(model, other)[1])
        for name in mixing.intersection(lost):
            yield probe.finding(
                f"with its matrices zeroed, nothing of the input of {name} comes through: a residual is missing",
                evidence={"module": name},
                where=forward_of(model, name),
            )


def mixing_blocks(model: nn.Module, before: Trace, after: Trace) -> set[str]:
    """The numbered blocks in which a change of the first two tokens reaches positions after them."""
    names = {name for name, _ in blocks(model)}
    found = set()
    for (name, _, _, outs), (_, _, _, outs2) in zip(before.calls, after.calls, strict=False):
        if name in names and outs and outs2:
            for length in LENGTH.values():
                a, b = (by_position(t, ROWS, length) for t in (outs[0], outs2[0]))
                if a is not None and b is not None and differ(a[:, 2:], b[:, 2:], 1e-7):
                    found.add(name)
    return found
