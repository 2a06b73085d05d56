"""Checks on who depends on whom: rows on rows, positions on tokens before them, after them, and their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, tensors_of
from ..instruments import Trace, culprit, forward_of, traced
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding, Where
from .attention import FAMILY, reading
from .base import check
from .changes import (
    GATES,
    ROUNDING,
    by_position,
    by_row,
    differ,
    effect_of,
    other_tokens,
    rows_of,
    streams_or_missing,
    woken,
)


@check(
    "batch-independence",
    severity="P0",
    **FAMILY,
    silent="the loss falls, faster than it should: a row is told about by the others; decoded alone, it has no others",
    repair="mix and normalise within a row; put the batch first, or say batch_first=True",
    after=("random-in-eval",),
    explains=("stops-at-eos",),
)
def batch_independence(probe: Probe) -> Iterator[Finding]:
    """What else is in a batch, and in which order, changes nothing for a row.

    Other tokens in the first row leave the other rows alone, permuted rows give permuted outputs, and a row alone gives
    what it gives in company. In eval mode: batch norm, in training, mixes rows by its nature.
    """
    streams = streams_or_missing(probe)
    batch = probe.whole()
    model, relative = probe.precise(batch)
    tolerance, order = max(relative, ROUNDING), [2, 0, 1]
    logits = probe.base(batch)
    if len(logits) != ROWS:
        raise Missing(
            f"logits have {len(logits)} rows for a batch of {ROWS}: give forward=lambda model, batch: (B, T, V)"
        )
    questions = {
        "what another row holds changes a row": (
            other_tokens(probe, batch, {name: (slice(0, 1),) for name in streams}), [1, 2], [1, 2]
        ),
        "the order of the rows changes what they give": (rows_of(batch, order), [0, 1, 2], order),
        "a row alone gives something else than in company": (rows_of(batch, [1]), [0], [1]),
    }  # fmt: skip
    control, leaks, where = 0.0, {}, None
    for message, (asked, here, there) in questions.items():
        after = probe.logits(model, asked)
        if not control:
            control = float((after - logits).nan_to_num(nan=0.0).abs().max())
            if not control > 0:
                raise Missing("changing the tokens of a row has no effect on it either, so nothing can be told")
        leak = float((after[here] - logits[there]).nan_to_num(nan=0.0).abs().max())
        if leak > tolerance * control:
            leaks[message] = leak / control
            if where is None:
                before, trace = probe.trace(model, batch)[1], probe.trace(model, asked)[1]
                where = first_to_mix(model, before, trace, here, there, tolerance)
    if leaks:
        name, place = where
        evidence = {"module": name} | {f"{text}, relative to its own tokens": leak for text, leak in leaks.items()}
        yield probe.finding(f"{next(iter(leaks))}, first in {name}", evidence=evidence, where=place)


def first_to_mix(
    model: nn.Module, before: Trace, after: Trace, here: list[int], there: list[int], tolerance: float
) -> tuple[str, Where | None]:
    """The first module whose inputs agree, row by row, and whose output does not."""
    alone = len(here) == 1

    def differs(a: Tensor, b: Tensor) -> bool | None:
        a, b = by_row(a, ROWS), by_row(b, 1 if alone else ROWS)
        return None if a is None or b is None else differ(a[there], b[here], tolerance)

    return culprit(model, before, after, differs)


def next_token(probe: Probe) -> None:
    """Raises Missing for what need not be causal."""
    if probe.subject.kind == "encoder":
        raise Missing("an encoder may look both ways; where it is a language model, give kind='causal_lm'")


def unknown_masks(probe: Probe, batch: Any) -> None:
    """Raises Missing where the user's batch holds a mask over positions that cannot be made for another batch."""
    for key, tensor in tensors_of(probe.subject.batch).items():
        square = tensor.dim() >= 2 and tensor.size(-1) == tensor.size(-2) and tensor.dtype != torch.long
        if square and key not in tensors_of(batch):
            raise Missing(f"the batch's {key!r} looks like a mask that is not known here: give forward= that builds it")


@check(
    "sees-the-future",
    severity="P0",
    **FAMILY,
    silent="the loss is lower than ever: the answer is read off the input; only generation, which has no future, fails",
    repair="mask the keys after each query in every self-attention of the decoder: torch.ones(T, T).tril().bool()",
    after=GATES,
    explains=("blind-to-the-past", "blind-to-itself"),
)
def sees_the_future(probe: Probe) -> Iterator[Finding]:
    """Changing a token changes nothing before it.

    Asked on each path that a mask may take: as in the user's batch, with no mask at all, and beside a padded row.
    """
    next_token(probe)
    as_yours = probe.alike()
    unknown_masks(probe, as_yours)
    dependency = probe.dependency("target")
    early = dependency.seen().tril(-1)
    if early.any():
        j, t = max(early.nonzero().tolist(), key=lambda pair: pair[0] - pair[1])
        yield ahead(probe, as_yours, j, t, float(dependency.by.tril(-1).max()) / dependency.scale, "")
        return
    mask_key = probe.subject.streams["target"][1]
    last = LENGTH["target"] - 1
    real = {name: torch.ones(ROWS, size, dtype=torch.bool) for name, size in LENGTH.items()}
    real["target"][-1, -2:] = False
    paths = {" where a row of the batch is padded": lambda: probe.batch(real)}
    if mask_key is not None and not isinstance(probe.subject.batch, tuple | list):
        whole = probe.whole()
        paths[" where no mask is given"] = lambda: {k: v for k, v in whole.items() if k != mask_key}
    for path, make in paths.items():
        try:
            batch = make()
            model, relative = probe.precise(batch)
            other = other_tokens(probe, batch, {"target": (slice(0, -1), slice(last, None))})
            change = (probe.logits(model, other) - probe.base(batch))[:-1].abs().amax(-1).amax(0)
        except Missing:
            continue
        early = change[:last] > relative * float(change.max())
        if bool(early.any()) and float(change[last]) > 0:
            t = int(early.nonzero()[0])
            yield ahead(probe, batch, last, t, float(change[:last].max() / change.max()), path)


def ahead(probe: Probe, batch: Any, j: int, t: int, effect: float, path: str) -> Finding:
    """The finding that position t depends on token j; path: on which batches alone, said in words."""
    model, relative = probe.precise(batch)
    rows = len(batch[probe.subject.streams["target"][0]])
    _, before = probe.trace(model, batch)
    with traced(model) as after:
        probe.logits(model, other_tokens(probe, batch, {"target": (slice(0, 2), slice(j, j + 1))}))

    def differs(a: Tensor, b: Tensor) -> bool | None:
        a, b = by_position(a, rows, LENGTH["target"]), by_position(b, rows, LENGTH["target"])
        return None if a is None or b is None else differ(a[:2, :j], b[:2, :j], relative)

    name, where = culprit(model, before, after, differs)
    far = looks_ahead(probe, batch, name) or j - t
    return probe.finding(
        f"a position sees {far} token{'s' if far > 1 else ''} ahead{path}, first in {name}",
        "P1" if path else None,
        evidence={
            "module": name,
            "tokens ahead there": far,
            "of the whole model": f"position {t} depends on token {j}",
            "effect, relative to the largest of any token": effect,
        },
        where=where,
    )


def looks_ahead(probe: Probe, batch: Any, module: str) -> int | None:
    """How far ahead the keys are that the attention in a module gives weight; None where it is not seen to give any."""
    try:
        seen = next(seen for seen in reading(probe, batch) if f"{seen.module}.".startswith(f"{module}."))
    except (Missing, StopIteration):
        return None
    if seen.weights is None or seen.weights.shape[-2:] != (LENGTH["target"],) * 2:
        return None
    weights = seen.weights.nan_to_num(nan=0.0).flatten(0, -3).amax(0)
    offsets = (weights.triu(1) > 0).nonzero()
    return int((offsets[:, 1] - offsets[:, 0]).max()) if len(offsets) else None


@check(
    "blind-to-the-past",
    severity="P1",
    **FAMILY,
    silent="a model of single tokens learns their frequencies, so the loss falls, and stops early",
    repair="let each query attend to the keys before it: in scaled_dot_product_attention True = may attend",
    after=GATES,
)
def blind_to_the_past(probe: Probe) -> Iterator[Finding]:
    """The last position depends on a token before it; in an encoder, on some other token.

    Where it does not, the question is put again to a copy without zeros: output projections that start at zero are a
    known design. A window is no blindness, and a model that shifts its input inside looks one further back.
    """
    dependency = probe.dependency("target")
    last = LENGTH["target"] - 1
    if bool(dependency.seen()[:last, last].any()):
        return
    moved = effect_of(probe, "target", slice(0, last), model=woken(probe))[:, last]
    if float(moved.max()) > 1e-5 * float(effect_of(probe, "target", slice(last - 1, None)).max()):
        return
    yield probe.finding(
        "no position depends on another: the last sees none of the tokens before it",
        evidence={"tokens before it": last, "largest effect, relative to that of a token": float(moved.max())},
        where=forward_of(probe.subject.model, reading_name(probe)),
    )


def reading_name(probe: Probe) -> str:
    """The module of the first attention; the model itself where none is seen."""
    try:
        return reading(probe)[0].module
    except Missing:
        return ""


def predicts_itself(probe: Probe) -> bool | None:
    """Whether position t is trained on token t, so that it must not see it; None where no loss tells."""
    try:
        teaching = probe.teaching(probe.whole())
    except Exception:
        return None
    counts = teaching.counts
    return bool((teaching.targets == teaching.ids)[counts].float().mean() > 0.5) if bool(counts.any()) else None


@check(
    "blind-to-itself",
    severity="P1",
    **FAMILY,
    silent="each position still guesses from those before it, and its own token comes round by the residual, unmixed",
    repair="keep the diagonal of the causal mask: torch.ones(T, T).tril(), and not tril(-1)",
    after=(*GATES, "head-mixing", "softmax-axis"),
)
def blind_to_itself(probe: Probe) -> Iterator[Finding]:
    """Each position depends on its own token, and in self-attention its own key gets weight.

    A model that shifts its input inside, and so predicts at t the token that it is fed at t, must not see it: told by
    the tokens that its loss pulls up.
    """
    next_token(probe)
    dependency = probe.dependency("target")
    own = dependency.seen().diagonal()
    strict = [seen for seen in self_attentions(probe) if bool((seen.weights.diagonal(0, -2, -1)[..., 1:] == 0).all())]
    if bool(own.all()) and not strict:
        return
    itself = predicts_itself(probe)
    if itself:
        raise Missing("position t is trained on the token that it is fed at t, so it must not see it")
    if strict:
        modules = list(dict.fromkeys(seen.module for seen in strict))
        name = modules[0] or type(probe.subject.model).__name__
        yield probe.finding(
            f"no query attends to its own position, first in {name}: the mask is strict",
            evidence={"module": name, "attentions": len(strict)},
            where=forward_of(probe.subject.model, modules[0]),
        )
    elif itself is None:
        raise Missing("no position depends on its own token, which is right if the model shifts its input: give loss=")
    else:
        blind = (~own).nonzero().flatten().tolist()
        yield probe.finding(
            f"position {blind[0]} does not depend on its own token",
            evidence={"such positions": len(blind), "of": len(own)},
            where=forward_of(probe.subject.model, reading_name(probe)),
        )


def self_attentions(probe: Probe) -> list:
    """The attentions whose weights are (…, T, T) of the target, and give some key weight in every row but the first."""
    length = LENGTH["target"]
    try:
        found = reading(probe)
    except Missing:
        return []
    square = [seen for seen in found if seen.weights is not None and seen.weights.shape[-2:] == (length, length)]
    return [seen for seen in square if bool((seen.weights[..., 1:, :].sum(-1) > 0).all())]
