"""Still figures: batches, masks, attention, modes, the fault x check matrix, curves and bars.

Nothing is told by colour alone: a mark or a hatch says it too. Each function returns a matplotlib Figure of its own,
which pyplot does not know of. Colours are Okabe and Ito's; weights are in cividis.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from . import checks
from .canvas import (
    BLUE,
    CURVES,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    Cell,
    Grid,
    check_labels,
    drawn,
    fit,
    number,
    styled,
    tint,
)
from .canvas import save as save
from .canvas import show as show
from .labels import IGNORE_INDEX

AXES = ("↓ query (who looks)", "→ key (what is looked at)")


@drawn
def batch_grid(
    rows: Tensor, tokens: list[list[str]], *, title: str = "", pad_id: int = 1, special_ids: Sequence[int] = (0, 2)
) -> Grid:
    """A batch of ids or labels (B, T) as tokens. Raises ValueError where tokens are not B lists of T."""

    def cell(index: int, token: str) -> Cell:
        if index == IGNORE_INDEX:
            return Cell(str(index), tint(VERMILLION, 0.3), "xxx", name="for the loss alone: no token")
        if index == pad_id:
            return Cell("pad", tint(GREY, 0.2), "///", name="padding")
        if index in special_ids:
            return Cell(token, tint(SKY, 0.4), name="start or end")
        return Cell(token)

    for names in tokens or [[]]:
        check_labels("rows", rows, tokens, names, ("lists of tokens", "tokens in one list"))
    cells = [
        [cell(*pair) for pair in zip(ids, names, strict=True)] for ids, names in zip(rows.tolist(), tokens, strict=True)
    ]
    names, positions = [f"row {b}" for b in range(len(rows))], [str(t) for t in range(rows.size(1))]
    return Grid(cells, names, positions, title, ("→ position",), cell=0.42)


def attend_grid(
    name: str, values: Tensor, queries: list[str], keys: list[str], title: str, pads: Any, cell: Callable[..., Cell]
) -> Grid:
    check_labels(name, values, queries, keys, ("queries", "keys"))
    given = torch.as_tensor([] if pads is None else pads)
    if given.dtype == torch.bool and given.shape != (len(keys),):
        raise ValueError(
            f"pads has shape {tuple(given.shape)}, but there are {len(keys)} keys; give one bool for each."
        )
    padding = set((given.nonzero().flatten() if given.dtype == torch.bool else given).tolist())
    if wrong := padding - set(range(len(keys))):
        raise ValueError(f"pads names column {min(wrong)}, but the {len(keys)} keys are columns 0..{len(keys) - 1}.")
    cells = [[cell(value, at in padding) for at, value in enumerate(row)] for row in values.tolist()]
    return Grid(cells, queries, [f"▨ {key}" if at in padding else key for at, key in enumerate(keys)], title, AXES)


@drawn
def attend_mask(mask: Tensor, queries: list[str], keys: list[str], *, title: str = "", pads: Any = None) -> Grid:
    """An attend mask (T, S), True = may attend, as it is given.

    pads: the keys that are padding, one bool for each or their numbers; hatched. Raises ValueError for another shape
    or dtype and for labels of another number.
    """

    def cell(allowed: bool, pad: bool) -> Cell:
        if pad and allowed:
            return Cell("■", tint(VERMILLION, 0.4), "///", VERMILLION, name="may attend to padding")
        if pad:
            return Cell("·", tint(GREY, 0.2), "///", name="blocked padding")
        return Cell("■", BLUE, ink="#ffffff", name="may attend") if allowed else Cell("·", name="blocked")

    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; give an attend mask: bool, True = may attend.")
    return attend_grid("mask", mask, queries, keys, title, pads, cell)


@drawn
def attention(weights: Tensor, queries: list[str], keys: list[str], *, title: str = "", pads: Any = None) -> Grid:
    """Attention weights (T, S) as they are given: nothing is masked here, so a leak shows.

    pads and errors as in attend_mask. A cell's number is rounded; "×" is exactly 0.
    """

    def cell(weight: float, pad: bool) -> Cell:
        how = {"hatch": "///", "fill": tint(GREY, 0.2)} if pad else {}
        if weight != weight:
            return Cell("NaN", tint(VERMILLION, 0.3), "xxx", VERMILLION, name="not a number")
        if weight == 0:
            return Cell("×", **how, name="exactly 0 on padding" if pad else "exactly 0")
        colour = matplotlib.colormaps["cividis"](min(max(weight, 0.0), 1.0))[:3]
        how |= {"fill": to_hex(colour), "ink": "#ffffff" if sum(colour) < 1.45 else INK, "note": repr(weight)}
        if pad:
            how |= {"frame": VERMILLION, "name": "weight on padding"}
        return Cell(f"{weight:.2f}".replace("0.", "."), **how)

    return attend_grid("weights", weights.detach().float(), queries, keys, title, pads, cell)


@drawn
def modes(snapshots: Mapping[str, Mapping[str, bool]], *, title: str = "") -> Grid:
    """The modes of submodules (rows) at moments (columns), {moment: {submodule: training}}: T for train, E for eval.

    In the last column, what differs from the first is framed. Raises ValueError where there is nothing to draw.
    """
    if not any(snapshots.values()):
        raise ValueError("there is no mode to draw; give {moment: {submodule: training}} with at least one of each.")
    looks = {
        True: Cell("T", tint(ORANGE, 0.55), name="train mode"),
        False: Cell("E", tint(SKY, 0.4), "\\\\\\", name="eval mode"),
        None: Cell("–", name="not there"),
    }
    names = list(dict.fromkeys(name for moment in snapshots.values() for name in moment))
    cells = [[looks[moment.get(name)] for moment in snapshots.values()] for name in names]
    for row in cells:
        if row[-1] != row[0]:
            row[-1] = replace(row[-1], text=f"{row[-1].text} ≠", frame=VERMILLION, name="differs from the first column")
    return Grid(cells, names, list(snapshots), title, cell=0.72)


@drawn
def fault_matrix(rows: Sequence, columns: Sequence[str] | None = None) -> Grid:
    """Faults (rows, the healthy models on top) against checks (columns, all by default), from `lab.matrix.run()`."""
    alarm = Cell("!", tint(VERMILLION, 0.3), "xxx", VERMILLION, name="fires, and nothing explains it")

    def cell(row: Any, check: str) -> Cell:
        if check in row.report.errors:
            return replace(alarm, text="E", name="the check itself broke", note=row.report.errors[check])
        if check in row.unexplained:
            return alarm
        if check in row.found and check == row.caught_by:
            return Cell("●", BLUE, ink="#ffffff", name="caught by its own check")
        if check in row.found:
            return Cell("○", tint(SKY, 0.4), "\\\\\\", name="fires too, for a known reason", note=row.also[check])
        if check == row.caught_by:
            return replace(alarm, text="?", name="not caught by its own check")
        if check in row.report.skipped:
            return Cell("–", tint(GREY, 0.2), name="cannot be asked", note=row.report.skipped[check])
        return Cell(name="silent")

    if not rows:
        raise ValueError("there is no row to draw; give what lab.matrix.run() returns.")
    rows = sorted(rows, key=lambda row: bool(row.caught_by))
    columns = [check.id for check in checks.all()] if columns is None else list(columns)
    columns += sorted({name for row in rows for name in (*row.found, *row.report.errors)} - set(columns))
    healthy = sum(not row.caught_by for row in rows)
    cells = [[cell(row, check) for check in columns] for row in rows]
    title = "Every fault against every check"
    caption = ("↓ fault", "→ check")
    return Grid(cells, [row.name for row in rows], columns, title, caption, cell=0.26, rule=healthy % len(rows))


def plot(title: str, height: float, **how: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.5, height), facecolor="white")
    figure.set_label(title)
    axes = figure.add_subplot()
    axes.set(**{name: text.replace("$", r"\$") for name, text in how.items()}, title=title.replace("$", r"\$"))
    return figure, axes


@styled
def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str, title: str = ""
) -> Figure:
    """A line for each label, {label: (xs, ys)}. Raises ValueError for none, and for xs and ys of unequal length."""
    if not lines:
        raise ValueError("there is no curve to draw; give {label: (xs, ys)}.")
    figure, axes = plot(title, 4, xlabel=xlabel, ylabel=ylabel)
    for (label, (xs, ys)), (colour, dash, mark) in zip(lines.items(), itertools.cycle(CURVES), strict=False):
        if len(xs) != len(ys):
            raise ValueError(f"curve {label!r} has {len(xs)} xs and {len(ys)} ys; they go in pairs.")
        how = {"color": colour, "linestyle": dash, "marker": mark, "markevery": max(1, len(xs) // 12), "linewidth": 2}
        axes.plot(xs, ys, **how, label=fit(label, 4, 11).replace("$", r"\$"))
    axes.grid(color=tint(GREY, 0.4), linewidth=0.6)
    axes.legend(frameon=False)
    return figure


@styled
def bars(values: Mapping[str, float], *, xlabel: str, title: str = "", log: bool = False) -> Figure:
    """A bar for each label with its value beside it. Raises ValueError for none, and for log of what is not above 0."""
    if not values:
        raise ValueError("there is no bar to draw; give {label: value}.")
    if log and min(values.values()) <= 0:
        raise ValueError(f"a value is {min(values.values()):g}; a logarithmic axis takes values above 0 alone.")
    figure, axes = plot(title, 0.9 + 0.42 * len(values), xlabel=xlabel)
    names = [fit(label, 3, 11).replace("$", r"\$") for label in values]
    how = {"tick_label": names, "color": SKY, "edgecolor": INK, "log": log}
    bars = axes.barh(range(len(names)), list(values.values()), **how)
    axes.bar_label(bars, [number(value) for value in values.values()], padding=4)
    axes.xaxis.set_major_formatter(number)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    return figure
