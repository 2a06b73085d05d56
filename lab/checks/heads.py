"""A check on attention heads: each does work of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..calling import Missing
from ..instruments import Trace, forward_of
from ..probe import ROWS, Probe
from ..report import Finding
from .base import check
from .weights import ABOUT, head_count

SAME = 1e-6  # heads whose outputs differ by less, relative to their size, are copies: precision is 1e-9 or 1e-4


@dataclass
class Heads:
    """What the heads of one attention gave on a batch: outputs (N, H, K), of all tokens."""

    name: str
    outputs: Tensor
    grouped: bool

    def copies(self, same: float) -> list[tuple[int, int]]:
        """The pairs of heads that gave one and the same, but for pairs that gave nothing."""
        pairs, size = [], float(self.outputs.abs().amax())
        for i in range(self.outputs.size(1)):
            for j in range(i):
                mine, theirs = self.outputs[:, i], self.outputs[:, j]
                if float(mine.abs().amax()) > 1e-6 * size and float((mine - theirs).abs().amax()) <= same * size:
                    pairs.append((j, i))
        return pairs


@check(
    "head-independence",
    severity="P2",
    **ABOUT,
    silent="the model works as one with fewer heads does, only a little worse",
    repair="initialise each head with numbers of its own, and split and merge heads as their projections are laid out",
    after=("random-in-eval",),
)
def head_independence(probe: Probe) -> Iterator[Finding]:
    """No two heads of an attention are copies of each other: they do not give the same for every token.

    Seen in what the output projection is given, or in the attention's output where that stands outside; for
    `nn.MultiheadAttention`, which calls no module, in the weights. Where heads share keys and values (grouped or
    multi-query), heads that all agree are a known design while the queries are still zero. That d_model is heads x head
    width is no law (T5, Gemma), and whether heads mix tokens is asked by head-mixing.
    """
    batch = probe.whole(ROWS)
    model, noise = probe.precise(batch)
    _, trace = probe.trace(model, batch)
    seen = list(attentions(model, trace))
    if not seen:
        raise Missing("no attention was found that says how many heads it has and has an output projection")
    same = max(SAME, noise)
    all_alike = all(len(heads.copies(same)) == pairs(heads) for heads in seen)
    for heads in seen:
        copies = heads.copies(same)
        if copies and not (all_alike and heads.grouped):
            yield probe.finding(
                f"heads {copies[0][0]} and {copies[0][1]} of {heads.name} are copies: they give the same everywhere",
                evidence={"pairs that are copies": len(copies), "of": pairs(heads), "heads": heads.outputs.size(1)},
                where=forward_of(model, heads.name),
            )


def pairs(heads: Heads) -> int:
    count = heads.outputs.size(1)
    return count * (count - 1) // 2


def attentions(model: nn.Module, trace: Trace) -> Iterator[Heads]:
    """The attention modules that name their number of heads, by what their output projection was given: the last linear
    layer that ran in them, unless it reads what the first one does, as the last of three input projections.
    """
    for name, module in model.named_modules():
        heads = head_count(module)
        if heads is None and "attention" in type(module).__name__.lower():
            heads = head_count(getattr(model, "config", None))
        inner = any(head_count(m) or "attention" in type(m).__name__.lower() for m in module.children())
        if heads is None or inner:
            continue
        if isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is not None:
                slices = module.in_proj_weight.detach().unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(1)
                yield Heads(name, slices.T[..., None], False)
            continue
        inside = [ins[0] for n, m, ins, _ in trace.calls if n.startswith(name + ".") and is_linear(m) and len(ins) == 1]
        whole = [outs[0] for n, _, _, outs in trace.calls if n == name and outs]
        merged = inside[-1] if inside and inside[-1].data_ptr() != inside[0].data_ptr() else None
        if merged is None and len(inside) == 1:
            merged = inside[0]
        if merged is None:
            merged = whole[0] if whole else None
        if merged is None or merged.dim() < 2 or merged.size(-1) % heads or merged.size(-1) == heads:
            continue
        yield Heads(name, merged.reshape(-1, heads, merged.size(-1) // heads), shares(model, module, heads))


def shares(model: nn.Module, module: nn.Module, heads: int) -> bool:
    """Whether heads share keys and values, as far as the module or the model's config says."""
    config = getattr(model, "config", None)
    groups = [getattr(at, name, None) for at in (module, config) for name in ("num_key_value_heads", "num_kv_heads")]
    return bool(getattr(module, "multi_query", False)) or any(isinstance(g, int) and g < heads for g in groups)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or hasattr(module, "nf")
