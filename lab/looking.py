"""Pictures of a model at work on a batch: its attention, faulty against healthy, what influences what, its modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from . import seen as reading
from .attend import weights
from .canvas import WIDTH, number
from .grid import SPARSE, Grid
from .grid_picture import GridPicture
from .seen import Influence, Seen, check_number
from .states import Cell

Model = nn.Module | Sequence[Seen]  # or what `seen` returned, such as from within a fault
LOOKS = "↓ query, → key"
CAUSES = ("↓ position whose logits move", "→ position that is changed")


def attention(
    model: Model,
    batch: Any,
    layer: int | None = None,
    head: int | None = None,
    *,
    kind: str | None = None,
    row: int = 0,
    tokens: Any = None,
    title: str = "",
    **about: Any,
) -> GridPicture:
    """The weights that the model computed for one row of a batch, nothing masked afterwards: `seen`, drawn.

    layer, head, kind ("encoder", "decoder", "cross"): None is all of them, as small multiples. model may also be what
    `seen` returned. tokens, about: as in `seen`. Raises ValueError for a row, layer, head or kind that there is not.
    """
    chosen = picked(seen_of(model, batch, tokens, about), kind, layer)
    parts = [(one.of(row, at), at) for one in chosen for at in heads_of(one, head)]
    grids = []
    for one, at in parts:
        name = f"{one.kind} layer {one.layer}, head {at}"
        grids.append(panel(one, f"{title}: {name}" if title else name))
    across = arrange(grids, len(heads_of(chosen[0], head)))
    return GridPicture(grids, attention_words(parts, row), across)


def seen_of(model: Model, batch: Any, tokens: Any, about: dict[str, Any]) -> list[Seen]:
    if isinstance(model, nn.Module):
        return reading.seen(model, batch, tokens=tokens, **about)
    if isinstance(model, Sequence) and model and all(isinstance(one, Seen) for one in model):
        return list(model)
    raise TypeError(
        f"model is a {type(model).__name__}; give a torch.nn.Module, or the list that lab.seen.seen returns."
    )


def picked(found: list[Seen], kind: str | None, layer: int | None) -> list[Seen]:
    """Those of that kind and layer, all for None. Raises ValueError naming those there are."""
    kinds = list(dict.fromkeys(one.kind for one in found))
    if kind is not None and kind not in kinds:
        raise ValueError(f"kind is {kind!r}; the model has attention of kind {', '.join(kinds)}.")
    mine = [one for one in found if kind in (None, one.kind)]
    if layer is None:
        return mine
    count = 1 + max(one.layer for one in mine)
    check_number("layer", layer, count, f"its {kind}" if kind else "the model", "layers of attention")
    return [one for one in mine if one.layer == layer]


def heads_of(one: Seen, head: int | None) -> list[int]:
    count = one.weights.size(1)
    if head is not None:
        check_number("head", head, count, f"{one.kind} layer {one.layer}", "heads")
    return list(range(count)) if head is None else [head]


def panel(one: Seen, title: str) -> Grid:
    """One head of one row."""
    how = {"should": one.should[0], "pads": one.key_pads[0], "query_pads": one.query_pads[0]}
    (grid,) = weights(one.weights[0, 0], one.queries[0], one.keys[0], title=title, **how).grids
    idle = (f"{one.idle_leaks} from padding's own",) if one.idle_leaks else ()
    share, leaks = f"on padding: {share_of(one.on_padding)}", f"{leaks_of(one.leaks)} from real queries"
    grid.caption = (LOOKS, share, leaks, *idle)
    return grid


def share_of(share: float) -> str:
    return "0" if share == 0 else f"{share:.2g}" if share >= 0.001 else f"{share:.0e}"


def leaks_of(count: int) -> str:
    return counted(count, "leak") if count else "no leak"


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def arrange(grids: list[Grid], heads: int = 1) -> int:
    """How many stand side by side: a layer's heads in whole lines, where they fit. Cells are as wide as their numbers
    or, where there are too many columns for these, without.
    """
    longest = max(len(grid.columns) for grid in grids)
    most = min(len(grids), 4 if longest <= 8 else 3 if longest <= 100 else 2)
    across = next((n for n in range(most, 1, -1) if n % heads == 0 or heads % n == 0), most)
    for at, grid in enumerate(grids):
        if at >= across:
            grid.caption = grid.caption[1:]
        widen(grid, across)
    return across


def widen(grid: Grid, across: int) -> None:
    """Wide enough for its numbers; without them where there are too many columns."""
    grid.measure((WIDTH - 0.3 * (across - 1)) / across)
    if grid.width < 0.34 and len(grid.columns) <= 12:
        grid.least = 0.34
    elif grid.width < 0.34:
        grid.least = max(grid.least, min(SPARSE - 0.01, 2.4 / len(grid.columns)))
        grid.cells = [[replace(cell, text="") for cell in row] for row in grid.cells]


def attention_words(parts: list[tuple[Seen, int]], row: int) -> str:
    """The picture in two sentences."""
    panels = [one for one, _ in parts]
    leaks, idle = sum(one.leaks for one in panels), sum(one.idle_leaks for one in panels)
    shares = [one.on_padding for one in panels]
    if len(panels) == 1:
        where = f"{panels[0].kind} layer {panels[0].layer}, head {parts[0][1]}"
    else:
        layers = {kind: len({one.layer for one in panels if one.kind == kind}) for kind in {p.kind: 0 for p in panels}}
        where = f"{len(panels)} heads ({', '.join(counted(n, f'{kind} layer') for kind, n in layers.items())})"
    words = f"Attention weights of {where}, as the model computed them for row {row}. "
    if not any(bool(one.key_pads.any()) for one in panels):
        words += "The row has no padding; "
    elif not any(shares):
        words += "Nothing of a real query's weight falls on padding; "
    else:
        words += f"Of a real query's weight {share_of(sum(shares) / len(shares))} falls on padding"
        words += f", {share_of(max(shares))} in the worst head; " if len(panels) > 1 else "; "
    words += f"{leaks_of(leaks)} from real queries"
    return words + (f", and apart from these {idle} from padding's own queries." if idle else ".")


def compare(
    faulty: Model,
    healthy: Model,
    batch: Any,
    layer: int = 0,
    head: int = 0,
    *,
    kind: str | None = None,
    row: int = 0,
    tokens: Any = None,
    title: str = "",
    **about: Any,
) -> GridPicture:
    """One head of two models on one row of a batch, and the difference; where the faulty one leaks is framed there too.

    Either may be what `seen` returned: `with fault.inject(): faulty = seen(model, batch)`. kind: by default the
    decoder's, where there is one. `.counts(0)` are the states of the faulty panel. Raises what `attention` raises, and
    ValueError where the two attentions are of different sizes.
    """
    pair = [seen_of(model, batch, tokens, about) for model in (faulty, healthy)]
    if kind is None:
        kind = "decoder" if any(one.kind == "decoder" for one in pair[0]) else pair[0][0].kind
    both = [picked(found, kind, layer)[0] for found in pair]
    one, other = (found.of(row, *heads_of(found, head)) for found in both)
    if one.weights.shape != other.weights.shape:
        sizes = tuple(one.weights.shape[2:]), tuple(other.weights.shape[2:])
        raise ValueError(
            f"the faulty attention is {sizes[0]} and the healthy one {sizes[1]}; give both the same batch."
        )
    name = f"{kind} layer {layer}, head {head}"
    grids = [panel(one, "faulty"), panel(other, "healthy"), differences(one, other)]
    grids[0].title = f"{title or name}: faulty"
    for grid in grids:
        grid.least = min(0.34, 3.4 / len(grid.columns))
        widen(grid, 3)
    words = (
        f"{name[0].upper()}{name[1:]} on row {row}: faulty, healthy and the difference. Of a real query's weight "
        f"{share_of(one.on_padding)} falls on padding in the faulty model, {share_of(other.on_padding)} in the healthy "
        f"one; leaks from real queries: {one.leaks} and {other.leaks}; from padding's own: {one.idle_leaks} and "
        f"{other.idle_leaks}. "
    )
    change = (one.weights - other.weights)[0, 0].abs().nan_to_num(0.0)
    if bool((~one.query_pads).any()):
        change = change * ~one.query_pads[0][:, None]
    t, s = divmod(int(change.argmax()), change.size(1))
    most = f"The largest difference is {float(change.max()):.2g}, where {one.queries[0][t]} looks at {one.keys[0][s]}."
    return GridPicture(grids, words + (most if bool(change.any()) else "Real queries attend alike."), across=3)


def differences(one: Seen, other: Seen) -> Grid:
    """What the first gives more, and less, than the other."""

    def cell(mine: float, theirs: float, wanted: bool, own: bool) -> Cell:
        change = mine - theirs
        note = f"{mine:.4g} in the faulty, {theirs:.4g} in the healthy one"
        if change != change:
            return Cell("not a number", note=note)
        if abs(change) <= 1e-6:
            return Cell("the same", note=note)
        state = "more than healthy" if change > 0 else "less than healthy"
        if own:
            state = "padding's own row"
        elif mine > 0 and not wanted:
            state = "more than healthy, where nothing should be"
        text = (
            f"{change:+.2f}".replace("0.", ".").replace("1.00", "1").replace("-", "−") if abs(change) >= 0.005 else ""
        )
        return Cell(state, text, round(abs(change), 4), note)

    values = zip(one.weights[0, 0].tolist(), other.weights[0, 0].tolist(), one.should[0].tolist(), strict=True)
    own = one.query_pads[0].tolist()
    cells = [[cell(*of, own=own[t]) for of in zip(*rows, strict=True)] for t, rows in enumerate(values)]
    columns = [f"▨ {key}" if pad else key for key, pad in zip(one.keys[0], one.key_pads[0].tolist(), strict=True)]
    return Grid(cells, one.queries[0], columns, "faulty − healthy", (LOOKS,))


def influence(
    model: nn.Module,
    batch: Any,
    *,
    row: int = 0,
    tokens: Any = None,
    stream: str = "target",
    title: str = "",
    **about: Any,
) -> GridPicture:
    """What each position of a row (columns) changes at each position of the logits (rows), as `lab.seen.influence`
    measures it.

    Colours go by the change relative to the largest; the pointer tells the change of a logit itself. Raises what that
    raises.
    """
    found = reading.influence(model, batch, row=row, tokens=tokens, stream=stream, **about)
    scale = float(found.by.nan_to_num(0.0, posinf=0.0).max())
    rows = zip(found.by.T.tolist(), found.should.T.tolist(), found.query_pads.tolist(), strict=True)
    pads = found.pads.tolist()
    cells = [
        [
            influence_cell(by, by > found.floor, want, pad, own, by / (scale or 1.0))
            for by, want, pad in zip(*line, pads, strict=True)
        ]
        for *line, own in rows
    ]
    columns = [f"▨ {token}" if pad else token for token, pad in zip(found.tokens, pads, strict=True)]
    grid = Grid(cells, found.queries, columns, title or f"influence of the {stream}, row {row}", CAUSES)
    widen(grid, 1)
    return GridPicture([grid], influence_words(found, GridPicture([grid]).counts(), scale))


def influence_words(found: Influence, counts: Mapping[str, int], scale: float) -> str:
    sizes = f"{len(found.tokens)} {found.stream} positions of row {found.row} changes at {len(found.queries)} positions"
    words = f"What each of {sizes} of the logits, measured. "
    if found.leaks:
        parts = {what: counts[f"leak: influence of {what}"] for what in ("padding", "the future")}
        words += f"{leaks_of(found.leaks)}: " + ", ".join(f"{n} of {what}" for what, n in parts.items() if n)
    else:
        words += "No real position depends on what it should not"
    words += f"; apart from these {found.idle_leaks} at padding's own positions" if found.idle_leaks else ""
    missing, broken = counts["no influence, but there should be"], counts["not a number"]
    words += f"; {counted(missing, 'influence')} missing" if missing else ""
    words += f"; {broken} not a number" if broken else ""
    return f"{words}. The largest change of a logit is {number(scale)}."


def influence_cell(by: float, there: bool, wanted: bool, pad: bool, own: bool, share: float) -> Cell:
    if by != by:
        return Cell("not a number")
    if not there:
        missing = wanted and not own
        return Cell("no influence, but there should be" if missing else "no influence", note=f"{by:.3g}")
    state = "padding's own row" if own else "influence"
    if not own and not wanted:
        state = f"leak: influence of {'padding' if pad else 'the future'}"
    share = min(share, 1.0)
    text = "<.01" if share < 0.005 else f"{share:.2f}".replace("0.", ".")
    return Cell(state, text, round(share, 4), f"{by:.4g}")


def modes(model: nn.Module, calls: Mapping[str, Callable[[], Any]], *, depth: int = 2, title: str = "") -> GridPicture:
    """The mode of every submodule before, during and after each call, in turn; at the end each has its own again.

    depth: how many names deep, so "decoder.0" is 2 deep; module lists, which run nothing, are left out. During a call
    it is the mode in which a submodule last ran. Raises what a call raises, and ValueError for no call.
    """
    from .draw import timeline  # which re-exports this file

    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module.")
    if not calls:
        raise ValueError('calls is empty; give at least one, such as {"evaluate": lambda: model.evaluate(batches)}.')
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be at least 1: the model and what it holds.")
    shown = {
        name or "(model)": module
        for name, module in model.named_modules()
        if name.count(".") < depth and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    kept, handles, ran = [(module, module.training) for module in model.modules()], [], {}
    moments: dict[str, dict[str, bool | str]] = {"before": {name: m.training for name, m in shown.items()}}
    try:
        for name, module in shown.items():
            handles.append(module.register_forward_pre_hook(lambda m, _, name=name: ran.update({name: m.training})))
        for call, run in calls.items():
            ran.clear()
            run()
            moments[f"during {call}"] = {name: ran.get(name, "not run") for name in shown}
            moments[f"after {call}"] = {name: m.training for name, m in shown.items()}
    finally:
        for handle in handles:
            handle.remove()
        for module, training in kept:
            module.training = training
    after = [name for name in moments if name.startswith("after ")]
    picture = timeline(moments, title=title, compared=after)
    picture.alt = modes_words(moments, after)
    return picture


def modes_words(moments: Mapping[str, Mapping[str, bool | str]], after: Sequence[str]) -> str:
    before = moments["before"]
    words = [f"{sum(before.values())} of {counted(len(before), 'submodule')} are in train mode before the first call."]
    for name in after:
        changed = [part for part in before if moments[name][part] != before[part]]
        to = " or ".join(sorted({"train" if moments[name][part] else "eval" for part in changed}))
        left = f"{len(changed)} of them are left in {to} mode" if changed else "each is in the mode it came with"
        words.append(f"{name[0].upper()}{name[1:]} {left}.")
    return " ".join(words)
