"""Still pictures: batches, masks, attention weights, modes, the fault x check matrix, curves and bars.

Each function returns a Picture: shown as the last line of a cell, with alt text; `.as_frame()` is a table of it,
`.save(path)` writes it, theme "light" or "dark". Nothing is told by colour alone: a symbol or a hatch says it too.
Colours are Okabe and Ito's; weights are in cividis. What a model did is drawn as it was, and nothing is masked here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from . import checks
from .attend import conjunction as conjunction
from .attend import mask as mask
from .attend import weights as weights
from .charts import Effect as Effect
from .charts import Line as Line
from .charts import Points as Points
from .charts import chart as chart
from .charts import effects as effects
from .grid import Grid
from .grid_picture import GridPicture, check_labels
from .labels import IGNORE_INDEX
from .looking import attention as attention
from .looking import compare as compare
from .looking import influence as influence
from .looking import modes as modes
from .picture import Picture
from .plots import bars as bars
from .plots import curves as curves
from .states import Cell


def batch_grid(
    rows: Tensor,
    tokens: Sequence[Sequence[str]],
    *,
    title: str = "",
    pad_id: int = 1,
    special_ids: Sequence[int] = (0, 2),
) -> GridPicture:
    """A batch of ids or labels (B, T) as tokens. Raises ValueError where tokens are not B lists of T."""

    def cell(index: int, token: str) -> Cell:
        if index == IGNORE_INDEX:
            return Cell("for the loss alone: no token", str(index))
        if index == pad_id:
            return Cell("padding")
        return Cell("start or end" if index in special_ids else "token", token)

    for names in tokens or [[]]:
        check_labels("rows", rows.shape, (tokens, names), ("lists of tokens", "tokens in one list"))
    cells = [
        [cell(*pair) for pair in zip(ids, names, strict=True)] for ids, names in zip(rows.tolist(), tokens, strict=True)
    ]
    names, positions = [f"row {b}" for b in range(len(rows))], [str(t) for t in range(rows.size(1))]
    return GridPicture([Grid(cells, names, positions, title, ("→ position",), least=0.42)])


def timeline(
    snapshots: Mapping[str, Mapping[str, bool | str]], *, title: str = "", compared: Collection[str] = ()
) -> GridPicture:
    """The modes of submodules (rows) at moments (columns), {moment: {submodule: training}}: T for train, E for eval;
    "not run" may stand for one.

    In the last column, or those named in `compared`, what differs from the first is framed. Raises ValueError where
    there is nothing to draw.
    """
    if not any(snapshots.values()):
        raise ValueError("there is no mode to draw; give {moment: {submodule: training}} with at least one of each.")
    names = list(dict.fromkeys(name for moment in snapshots.values() for name in moment))
    states = {True: "train mode", False: "eval mode", None: "not there", "not run": "not run"}
    cells = [[Cell(states[moment.get(name)]) for moment in snapshots.values()] for name in names]
    moments = list(snapshots)
    for row in cells:
        for at in [moments.index(name) for name in compared] or [-1]:
            if row[at] != row[0] and row[at].state in ("train mode", "eval mode"):
                row[at] = Cell(f"{row[at].state}, differs from the first column")
    return GridPicture([Grid(cells, names, moments, title, least=0.72)])


def fault_matrix(rows: Sequence, columns: Sequence[str] | None = None) -> GridPicture:
    """Faults (rows, the healthy models on top) against checks (columns, all by default), from `lab.matrix.run()`."""

    def cell(row: Any, check: str) -> Cell:
        if check in row.report.errors:
            return Cell("the check itself broke", note=row.report.errors[check])
        if check in row.unexplained:
            return Cell("fires, and nothing explains it")
        if check in row.found and check == row.caught_by:
            return Cell("caught by its own check")
        if check in row.found:
            return Cell("fires too, for a known reason", note=row.also[check])
        if check == row.caught_by:
            return Cell("not caught by its own check")
        if check in row.report.skipped:
            return Cell("cannot be asked", note=row.report.skipped[check])
        return Cell()

    if not rows:
        raise ValueError("there is no row to draw; give what lab.matrix.run() returns.")
    rows = sorted(rows, key=lambda row: bool(row.caught_by))
    columns = [check.id for check in checks.all()] if columns is None else list(columns)
    columns += sorted({name for row in rows for name in (*row.found, *row.report.errors)} - set(columns))
    healthy = sum(not row.caught_by for row in rows)
    cells = [[cell(row, check) for check in columns] for row in rows]
    title, caption = "Every fault against every check", ("↓ fault", "→ check")
    return GridPicture([Grid(cells, [row.name for row in rows], columns, title, caption, 0.26, healthy % len(rows))])


def show(picture: Picture | Figure, alt: str = "", theme: str | None = None) -> None:
    """In a notebook, display it; elsewhere print what it shows. A matplotlib Figure of your own needs its alt text."""
    if isinstance(picture, Figure):
        own, figure = picture, picture.get_label()

        def none() -> Any:
            raise ValueError("a figure of your own has no table.")

        picture = Picture(lambda _: own, alt, none, str(figure))
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(own)
    picture.show(alt, theme)


def save(picture: Picture, path: Any, theme: str | None = None) -> Any:
    return picture.save(path, theme)
