"""Pictures made of grids: on paper, on a page with words under the pointer, as a table, as CSV and back."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from .canvas import Theme, theme
from .grid import Grid, lay
from .pens import Page, Paper
from .picture import Picture
from .states import STATES, Cell

if TYPE_CHECKING:
    from pandas import DataFrame


class GridPicture(Picture):
    """Grids, `across` side by side, over one legend. alt: what they show; by default the counts of their states."""

    def __init__(self, grids: Sequence[Grid], alt: str = "", across: int = 1) -> None:
        self.grids, self.across = list(grids), across
        super().__init__(self.on_paper, alt or described(self.grids), self.words, self.grids[0].title)

    def on_paper(self, theme: Theme) -> Figure:
        figure = Figure(facecolor=theme.paper)
        axes = figure.add_axes((0, 0, 1, 1))

        def pen(wide: float, high: float) -> Paper:
            figure.set_size_inches(wide, high)
            return Paper(axes, theme)

        lay(self.grids, self.across, pen)
        axes.set_axis_off()
        wide, high = figure.get_size_inches()
        axes.set(xlim=(0, wide), ylim=(high, 0))
        return figure

    def on_page(self, theme_name: str | None = None) -> str:
        """As SVG for a page, with each cell's words under the pointer; it needs neither kernel nor network."""
        size: list[float] = []

        def pen(wide: float, high: float) -> Page:
            size[:] = wide, high
            return Page(theme(theme_name), PLACE)

        text = lay(self.grids, self.across, pen).svg(*size, self.alt)
        # Names are shared by all that is on a page, so each picture has its own.
        return text.replace(PLACE, "g" + hashlib.sha256(text.encode()).hexdigest()[:8])

    def words(self) -> DataFrame:
        """A row for each row, a column for each column, each cell in words; several grids one over the other."""
        import pandas

        frames = [
            pandas.DataFrame([[cell.words for cell in row] for row in grid.cells], list(grid.rows), list(grid.columns))
            for grid in self.grids
        ]
        return frames[0] if len(frames) == 1 else pandas.concat(frames, keys=[grid.title for grid in self.grids])

    def csv(self) -> bytes:
        """A line for each cell: all that the picture is made of."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for grid in self.grids:
            for i, (row, cells) in enumerate(zip(grid.rows, grid.cells, strict=True)):
                for j, (column, cell) in enumerate(zip(grid.columns, cells, strict=True)):
                    value = "" if cell.value is None else repr(cell.value)
                    writer.writerow([grid.title, i, j, row, column, cell.state, cell.text, value, cell.note])
        return text.getvalue().encode()

    def counts(self, panel: int | None = None) -> Counter[str]:
        """How many cells are in each state, in one panel or in all."""
        grids = self.grids if panel is None else [self.grids[panel]]
        return Counter(cell.state for grid in grids for row in grid.cells for cell in row)

    @property
    def leaks(self) -> int:
        """How many cells show what a real query should not see."""
        return sum(count for state, count in self.counts().items() if state.startswith("leak"))


PLACE = "lab-picture-name"
HEADER = ["panel", "i", "j", "row", "column", "state", "text", "value", "note"]


def from_csv(content: bytes, **how: Any) -> list[Grid]:
    """The grids of `GridPicture.csv`; how: each one's `caption`, `least` and `rule`. Raises ValueError for others."""
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    if not rows or rows[0] != HEADER:
        raise ValueError(f"the file begins with {rows[0] if rows else 'nothing'}, not with {','.join(HEADER)}.")
    grids: list[Grid] = []
    for panel, i, j, row, column, state, text, value, note in rows[1:]:
        if state not in STATES:
            raise ValueError(f"{state!r} is no state of a cell; the states are {', '.join(filter(None, STATES))}.")
        if (i, j) == ("0", "0"):
            grids.append(Grid([], [], [], panel, **how))
        grid = grids[-1]
        if j == "0":
            grid.cells.append([])
            grid.rows.append(row)
        if i == "0":
            grid.columns.append(column)
        grid.cells[-1].append(Cell(state, text, float(value) if value else None, note))
    return grids


def described(grids: Sequence[Grid]) -> str:
    """Titles, sizes and how many cells are in each state."""
    said = []
    for grid in grids:
        counts = Counter(cell.state for row in grid.cells for cell in row if cell.state)
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        name = f"{grid.title}: " if grid.title else ""
        said.append(f"{name}{len(grid.rows)} rows by {len(grid.columns)} columns; {states or 'all empty'}.")
    return " ".join(said)


def check_labels(name: str, shape: Iterable[int], labels: Sequence[Sequence], of: tuple[str, str]) -> None:
    """Raises ValueError unless there is a row and a column for each label, and one of each at least."""
    shape = tuple(shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; a picture needs two dimensions, none of them 0.")
    for kind, size, given, what in zip(("rows", "columns"), shape, labels, of, strict=True):
        if size != len(given):
            raise ValueError(f"{name} has {size} {kind}, but {len(given)} {what} are given; give one for each.")
