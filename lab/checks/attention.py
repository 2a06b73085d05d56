"""Checks on attention itself, read where it is computed: scale, axis, masks, and the split and merge of heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..calling import Missing, replaced
from ..instruments import forward_of
from ..intercept import attentions
from ..probe import LENGTH, ROWS, Probe
from ..readings import Attention
from ..report import Finding
from .base import check

FAMILY = {"family": "mixing", "lesson": "04_attention_masks"}
# What else follows from attention that gives its weights to the wrong keys, or reads the wrong numbers.
REST = ("positions", "padding-amount", "mask-ignored", "fully-masked-row", "source-ignored")
# Changed in the source and the target, to see which positions of a query follow.
CHANGED = {"source": 4, "target": 3}


def reading(probe: Probe, batch: Any = None) -> list[Attention]:
    """Every attention of one forward pass. Raises Missing where none is seen."""
    if batch is None and "attentions" in probe.shared.made:
        return probe.shared.made["attentions"]
    given = probe.whole() if batch is None else batch
    model, _ = probe.precise(given)
    with attentions(model) as seen:
        probe.logits(model, given)
    if not seen:
        raise Missing(
            "no attention was seen: neither scaled_dot_product_attention nor a softmax of products of queries and keys"
        )
    if batch is None:
        probe.shared.made["attentions"] = seen
    return seen


def padded(probe: Probe) -> Any:
    """A batch whose first row is padded at the left and whose second at the right; None where padding is unknown."""
    real = {name: torch.ones(ROWS, size, dtype=torch.bool) for name, size in LENGTH.items()}
    for there in real.values():
        there[0, :2], there[1, -2:] = False, False
    try:
        batch = probe.batch(real)
        probe.precise(batch)
        return batch
    except Missing:
        return None


def grouped(probe: Probe, wrong: list[tuple[Attention, str, dict]]) -> Iterator[Finding]:
    """One finding for each thing that is wrong, with the modules in which it is."""
    for message in dict.fromkeys(text for _, text, _ in wrong):
        mine = [(seen, evidence) for seen, text, evidence in wrong if text == message]
        seen, evidence = mine[0]
        modules = list(dict.fromkeys(seen.module or type(probe.subject.model).__name__ for seen, _ in mine))
        evidence = {"module": modules[0], "attentions": len(mine), **evidence}
        where = evidence.pop("where", None) or seen.where
        if where.path.startswith(torch.__path__[0]):
            where = forward_of(probe.subject.model, seen.module)
        yield probe.finding(f"{message}, first in {modules[0]}", evidence=evidence, where=where)


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * abs(b)


@check(
    "attention-scale",
    severity="P2",
    **FAMILY,
    silent="the model trains all the same: its softmax is too sharp or too flat to begin with, so learning is slow",
    repair="divide the scores by sqrt(d_k), the width of a head, once: q @ k.transpose(-2, -1) / q.size(-1) ** 0.5",
    after=("random-in-eval",),
)
def attention_scale(probe: Probe) -> Iterator[Finding]:
    """Scores are divided by the square root of a head's width, once.

    All numbers that multiply query, key and their product are counted, so a query that is scaled before the product is
    as good. Named are known slips: no scale, the square root of d_model, of the length or the number of heads, a
    product instead of a quotient, and scaling twice. Other factors (1/d_k, a learnt one, one for each layer, a norm of
    query and key) are somebody's choice. So is no scale at all where it is written as 1, as Granite's may be, where the
    queries are kept small instead, as T5's are, or where query and key are cast to float32 for it, as GPT-Neo's are.
    """
    wrong, judged = [], False
    for seen in reading(probe):
        if not seen.clear or seen.width < 2:
            continue
        judged = True
        what = slip(seen)
        if what:
            evidence = {"scores are multiplied by": seen.scale, "1 / sqrt(d_k)": seen.width**-0.5, "d_k": seen.width}
            wrong.append((seen, what, evidence))
    if not judged:
        raise Missing("query, key or their product are scaled by more than a number, such as a norm: no scale is wrong")
    yield from grouped(probe, wrong)


def slip(seen: Attention) -> str:
    """The known mistake in an attention's scale; empty where there is none."""
    right, scale = seen.width**-0.5, seen.scale
    if close(scale, right):
        return ""
    if close(scale, 1.0):
        small = seen.norms[0] <= 2 * right * seen.norms[1]
        return "" if small or seen.float32 or seen.chosen else "the scores are not scaled"
    if close(seen.before, right) and close(seen.after, right):
        return "the scores are scaled twice, in the query or key and after their product"
    if close(scale, 1 / right):
        return "the scores are multiplied by sqrt(d_k), not divided"
    sizes = {"the square root of the number of keys": seen.key.size(-2)}
    if seen.query.dim() == 4:
        heads = seen.query.size(1)
        sizes = {"sqrt(d_model)": heads * seen.width, "the square root of the number of heads": heads} | sizes
    for name, size in sizes.items():
        if size > 1 and close(scale, size**-0.5):
            return f"the scores are divided by {name}, not by sqrt(d_k)"
    return ""


@check(
    "softmax-axis",
    severity="P0",
    **FAMILY,
    silent="the shapes fit, the loss falls, and each query reads an arbitrary amount of the values",
    repair="softmax over the keys: scores.softmax(dim=-1) of scores (B, H, T, S)",
    after=("random-in-eval",),
    explains=("sees-the-future", "mask-fill", "attends-to-pads", "batch-independence", *REST),
)
def softmax_axis(probe: Probe) -> Iterator[Finding]:
    """Attention weights sum to 1 over the keys: over the axis that is summed when they meet the values.

    Which axis that is, is read off the product with the values, so no layout is assumed. Weights that sum to 1 over no
    axis (a sigmoid, a sink whose column is dropped) are somebody's choice.
    """
    wrong, judged = [], False
    for seen in reading(probe):
        used, weights = seen.used, seen.weights
        if seen.fused:
            judged = True  # it has no axis to get wrong
        if seen.fused or used is None or weights is None or used.numel() != weights.numel():
            continue
        judged = True
        axis, sums = seen.axis % used.dim() - used.dim(), used.sum(seen.axis)
        whole = (sums - 1).abs() < 1e-3
        if bool((whole | (sums == 0)).all()) or (used.shape == weights.shape and seen.dim == axis):
            continue
        others = [d - used.dim() for d in range(used.dim()) if d - used.dim() != axis]
        over = next((d for d in others if bool(((used.sum(d) - 1).abs() < 1e-3).all())), None)
        if over is None and used.shape == weights.shape and not bool(used.isfinite().all()):
            over = seen.dim
        if over is not None:
            name = {-1: "the queries", -2: "the queries", -3: "the heads"}.get(over, "the batch")
            name = "the batch" if used.dim() == 3 and over == -3 else name
            evidence = {"sum over the keys, least": float(sums.min()), "largest": float(sums.max())}
            wrong.append((seen, f"attention weights sum to 1 over {name}, not over the keys", evidence))
    if not judged:
        raise Missing("the product of weights and values was not seen, so nothing can be told")
    yield from grouped(probe, wrong)


@check(
    "mask-fill",
    severity="P0",
    **FAMILY,
    silent="the mask is there, of the right shape and at the right place: only the number it writes is too weak",
    repair="before the softmax: scores.masked_fill(~mask, float('-inf')), or a boolean attn_mask",
    after=("random-in-eval", "softmax-axis"),
    explains=("sees-the-future", "attends-to-pads", *REST),
)
def mask_fill(probe: Probe) -> Iterator[Finding]:
    """A key that a mask blocks gets no weight at all, and the others share all of it.

    Every mask that is put on the scores is followed to the softmax: written, filled, added, multiplied. -1e-9 instead
    of -1e9, 0 instead of -inf, a mask of 0 and 1 that is added: the blocked keys keep weight. A mask that multiplies
    the weights after the softmax lets the blocked keys count in its sum. Queries that may attend nowhere are left out.
    """
    batch, wrong, masks = padded(probe), [], 0
    for seen in [*reading(probe), *(reading(probe, batch) if batch is not None else ())]:
        together = blocked_by_any(seen)
        for how, mask in seen.blocked:
            verdict = None if seen.weights is None else leak_of(seen, how, mask, together)
            masks += verdict is not None
            if verdict:
                wrong.append((seen, *verdict))
    if not masks:
        raise Missing("no mask was seen on the scores of any attention, so there is none to be too weak")
    yield from grouped(probe, wrong)


def spread(mask: Tensor, weights: Tensor) -> Tensor | None:
    """A mask in the shape of the weights (…, T, S), whose rows and heads may be one axis; None where it fits not."""
    try:
        if mask.dim() == 4 and weights.dim() == 3 and len(weights) % len(mask) == 0:
            return mask.expand(-1, len(weights) // len(mask), -1, -1).reshape(-1, *mask.shape[2:]).expand_as(weights)
        return mask.broadcast_to(weights.shape)
    except RuntimeError:
        return None


def blocked_by_any(seen: Attention) -> Tensor | None:
    masks = [] if seen.weights is None else [spread(mask, seen.weights) for _, mask in seen.blocked]
    masks = [mask for mask in masks if mask is not None]
    return torch.stack(masks).any(0) if masks else None


def leak_of(seen: Attention, how: str, mask: Tensor, together: Tensor | None) -> tuple[str, dict] | tuple[()] | None:
    """What is wrong with one mask on the scores of an attention, with evidence; () for nothing, None: cannot be told.

    together: what it and the other masks block.
    """
    weights, blocked = seen.weights, spread(mask, seen.weights)
    if blocked is None:
        return None
    weights, blocked, together = (t.movedim(seen.dim, -1) for t in (weights, blocked, together))
    some = blocked & ~together.all(dim=-1, keepdim=True)
    if not some.any() or not bool(weights.isfinite().all()):
        return None
    most = float(weights[some].max())
    if how.startswith("multiplied weights"):
        if seen.used is None or seen.used.shape != weights.shape or seen.dim != -1:
            return None
        left = seen.used.sum(seen.axis)[some.any(-1)]
        left = left[left > 0]
        if most > 1e-6 and left.numel() and float(left.min()) < 1 - 1e-4:
            evidence = {
                "weight that blocked keys took, at most": most,
                "what is left sums to, at least": float(left.min()),
            }
            return "the mask is put on the weights after the softmax, so they do not sum to 1", evidence
        return ()
    if most > 1e-6:
        return "keys that the mask blocks keep weight", {"weight of a blocked key": most, "the mask is": how}
    return ()


@check(
    "head-mixing",
    severity="P0",
    **FAMILY,
    silent="view() and transpose() give the same shape; only the numbers stand elsewhere",
    repair="split: x.view(B, T, H, K).transpose(1, 2); merge: out.transpose(1, 2).reshape(B, T, H * K)",
    after=("random-in-eval",),
    explains=("sees-the-future", "blind-to-the-past", "blind-to-itself", "attends-to-pads", *REST),
)
def head_mixing(probe: Probe) -> Iterator[Finding]:
    """Splitting into heads and merging them keeps each token's numbers at its own position.

    A view from (B, T, D) to (B, H, T, K), or back, cuts the numbers in their order in memory: a head then holds pieces
    of several tokens. At the split it is known by which positions of a query follow a changed token, at the merge by
    the numbers that the output projection is given.
    """
    before = reading(probe)
    if all(heads_of(seen.query, seen) is None for seen in before):
        raise Missing("no attention with more than one head was seen")
    batch = probe.whole()
    unused = probe.ordinary()
    changes = {}
    for stream, (key, _) in probe.subject.streams.items():
        ids, j = batch[key].clone(), CHANGED[stream]
        free = unused[~torch.isin(unused, ids)]
        ids[:, j] = free[0] if len(free) else ids[:, 0]
        changes[key] = ids
    after = reading(probe, replaced(batch, changes))
    wrong = []
    for old, new in zip(before, after, strict=False):
        for name in ("query", "key", "value"):
            a, b = heads_of(getattr(old, name), old), heads_of(getattr(new, name), new)
            if a is not None and b is not None and cut_in_memory(a, b):
                evidence = {"heads": a.size(1), "head width": a.size(-1), "where": old.made.get(name)}
                wrong.append((old, f"the split into heads mixes tokens in the {name}", evidence))
                break
        out = heads_of(old.out, old)
        if out is not None and merged_in_memory(out, old.merged):
            evidence = {"heads": out.size(1), "head width": out.size(-1), "where": old.merged_where}
            wrong.append((old, "the merge of the heads mixes tokens", evidence))
    yield from grouped(probe, wrong)


def heads_of(tensor: Tensor | None, seen: Attention) -> Tensor | None:
    """A query, key, value or output as (B, H, T, K); None where it is not of several heads."""
    if tensor is None:
        return None
    if tensor.dim() == 3 and tensor.size(0) % ROWS == 0:
        tensor = tensor.unflatten(0, (ROWS, -1))
    fits = tensor.dim() == 4 and tensor.size(0) == ROWS and tensor.size(1) > 1 and tensor.size(2) in LENGTH.values()
    return tensor if fits else None


def cut_in_memory(before: Tensor, after: Tensor) -> bool:
    """Whether exactly those heads and positions follow a token that hold it when (T, D) is cut in its order in memory.

    before, after: (B, H, T, K), of which the token at CHANGED differs.
    """
    if before.shape != after.shape:
        return False
    heads, length = before.shape[1:3]
    moved = ((before - after).abs().amax(-1) > 1e-9 * before.abs().max()).any(0)  # (H, T)
    for stream, j in CHANGED.items():
        if LENGTH[stream] == length:
            expected = torch.zeros(heads * length, dtype=torch.bool)
            expected[j * heads : (j + 1) * heads] = True
            return bool((moved == expected.view(heads, length)).all())
    return False


def merged_in_memory(out: Tensor, merged: Tensor | None) -> bool:
    """Whether a projection is given (B, H, T, K) in its order in memory, and not by position."""
    if merged is None or merged.numel() != out.numel() or merged.size(-1) != out.size(1) * out.size(3):
        return False
    given, right = merged.flatten(), out.transpose(1, 2).flatten()
    return not torch.equal(given, right) and torch.equal(given, out.flatten())
