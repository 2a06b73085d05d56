"""Grids of marked cells: how rows of cells are laid out with their labels, at 6 x 6 and at 200 x 200."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .canvas import VERMILLION, WIDTH, fit, width_of
from .pens import Pen
from .states import STATES, Cell

SPARSE = 0.16  # inches: in narrower cells stands no symbol, and not every row has its label
LEAST = 0.032  # inches: no cell is narrower, and so a grid of more than 240 columns is wider than a page


@dataclass
class Grid:
    """Rows of cells with labels. least: a cell's least width in inches. rule: how many rows stand over the line."""

    cells: list[list[Cell]]
    rows: Sequence[str]
    columns: Sequence[str]
    title: str = ""
    caption: tuple[str, ...] = ()
    least: float = LEAST
    rule: int = 0
    lines: list[tuple[str, float, bool]] = field(default_factory=list, init=False, repr=False)

    def measure(self, room: float) -> None:
        """Shorten labels and settle all sizes, in inches, for `room` inches of width."""
        count = len(self.columns)
        widest = max(width_of(text, 11) for text in {cell.shown for row in self.cells for cell in row}) + 0.2
        self.size = 10.0
        for self.size in (10.0, 8.0):
            number = f"{len(self.rows) - 1} " if self.size < 10 else ""
            labels = [fit(number + label, 2.4, self.size) for label in self.rows]
            self.left = max(width_of(label, self.size) for label in labels) + 0.12
            self.width = max(self.least, min(max(0.36, widest), 1.1, (room - self.left) / count))
            self.sparse = self.width < SPARSE
            if not self.sparse:
                break
        self.height = min(self.width, 0.36)
        digits = f"{len(self.columns) - 1} " if self.sparse else ""
        label = max(width_of(fit(digits + label, 1.7, self.size), self.size) for label in self.columns)
        self.turned = label > self.width - 0.06
        self.wide, self.high = self.width * count, self.height * len(self.cells)
        heading = textwrap.wrap(self.title, int(max(self.left + self.wide, min(room, 4.5)) / 0.1))
        caption = "    ".join(self.caption)
        captions = [caption] if width_of(caption, 10) <= room else list(self.caption)
        self.lines = [(line, 12.0, True) for line in heading] + [(line, 10.0, False) for line in captions if line]
        self.top = 0.26 * len(self.lines) + (label + 0.16 if self.turned else 0.28)
        margin = 0.22 if self.alarmed()[0] else 0.0
        widths = [width_of(line, size) * 1.1 for line, size, _ in self.lines]
        self.span = max([self.left + self.wide + margin, *widths])

    def alarmed(self) -> tuple[set[int], set[int]]:
        """The rows and columns with a cell that is marked in the margin: those of grids without room for symbols."""
        if not self.sparse:
            return set(), set()
        at = [(i, j) for i, row in enumerate(self.cells) for j, cell in enumerate(row) if cell.look.alarm]
        return {i for i, _ in at}, {j for _, j in at}

    def draw(self, pen: Pen, x: float, y: float) -> None:
        """x, y: where the first cell begins."""
        for at, (line, size, bold) in enumerate(self.lines):
            pen.text(x - self.left, y - self.top + 0.1 + 0.26 * at, line, size, bold=bold)
        self.draw_labels(pen, x, y)
        if self.sparse:
            self.draw_sparse(pen, x, y)
        else:
            self.draw_cells(pen, x, y)
        for down, (row, cells) in enumerate(zip(self.rows, self.cells, strict=True)):
            for at, (column, cell) in enumerate(zip(self.columns, cells, strict=True)):
                if cell.state or cell.text:
                    where = x + self.width * at, y + self.height * down, self.width, self.height
                    pen.note(*where, f"{row} → {column}: {cell.words}")
        if self.rule:
            line = y + self.height * self.rule
            pen.lines([(x - self.left, line, x + self.wide, line)], pen.theme.ink, 1.5)

    def draw_labels(self, pen: Pen, x: float, y: float) -> None:
        """Each label, or as many as there is room for, with their numbers."""
        for labels, size in ((self.rows, self.height), (self.columns, self.width)):
            step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if n * size >= self.size / 72 * 1.05)
            for at in range(0, len(labels), step):
                text = labels[at] if step == 1 else f"{at} {labels[at]}"
                if labels is self.rows:
                    text = fit(text, self.left - 0.1, self.size)
                    pen.text(x - 0.08, y + size * (at + 0.5), text, self.size, anchor="end")
                elif self.turned:
                    text = fit(text, 1.7, self.size)
                    pen.text(x + size * (at + 0.5), y - 0.08, text, self.size, turned=True)
                else:
                    pen.text(x + size * (at + 0.5), y - 0.14, fit(text, 1.7, self.size), self.size, anchor="middle")

    def draw_cells(self, pen: Pen, x: float, y: float) -> None:
        if any(cell == Cell() for row in self.cells for cell in row):
            down = [y + self.height * at for at in range(len(self.cells) + 1)]
            across = [x + self.width * at for at in range(len(self.columns) + 1)]
            lines = [(x, at, x + self.wide, at) for at in down] + [(at, y, at, y + self.high) for at in across]
            pen.lines(lines, pen.theme.grey)
        for down, row in enumerate(self.cells):
            for at, cell in enumerate(row):
                if cell != Cell():
                    cell.draw(pen, x + self.width * at, y + self.height * down, self.width, self.height)

    def draw_sparse(self, pen: Pen, x: float, y: float) -> None:
        """Colours cell by cell, hatches and frames around whole regions, and a mark in the margin for each alarm."""
        theme = pen.theme
        pen.image(x, y, self.wide, self.high, [[c.look.fill(theme, c.value) for c in row] for row in self.cells])
        pen.rect(x, y, self.wide, self.high, edge=theme.grey)
        states = {cell.state for row in self.cells for cell in row}
        edge = theme.readable(VERMILLION)
        for state in sorted(states):
            look = STATES[state]
            if look.hatch or look.alarm:
                for i, j, high, wide in regions([[cell.state == state for cell in row] for row in self.cells]):
                    where = x + self.width * j, y + self.height * i, self.width * wide, self.height * high
                    how = {"edge": edge, "width": 0.8} if look.alarm else {"width": 0}
                    pen.rect(*where, hatch=look.hatch, **how)
        rows, columns = self.alarmed()
        right, below = x + self.wide, y + self.high
        marks = [(right + 0.05, y + self.height * (i + 0.5), right + 0.17, y + self.height * (i + 0.5)) for i in rows]
        marks += [(x + self.width * (j + 0.5), below + 0.05, x + self.width * (j + 0.5), below + 0.17) for j in columns]
        if marks:
            pen.lines(sorted(marks), edge, 72 * self.height * 0.8)


def regions(marked: list[list[bool]]) -> list[tuple[int, int, int, int]]:
    """Rectangles that cover just the marked cells: (row, column, height, width)."""
    found: list[tuple[int, int, int, int]] = []
    open_: dict[tuple[int, int], int] = {}
    for i, row in enumerate([*marked, []]):
        ends = [j for j in range(len(row) + 1) if (j > 0 and row[j - 1]) != (j < len(row) and row[j])]
        runs = set(zip(ends[::2], ends[1::2], strict=True))
        for run in [run for run in open_ if run not in runs]:
            start = open_.pop(run)
            found.append((start, run[0], i - start, run[1] - run[0]))
        for run in sorted(runs - open_.keys()):
            open_[run] = i
    return found


def lay(grids: Sequence[Grid], across: int, pen_for: Callable[[float, float], Pen], width: float = WIDTH) -> Pen:
    """Grids, `across` side by side, over one legend. pen_for(width, height) makes what they are drawn with."""
    for grid in grids:
        grid.measure((width - 0.3 * (across - 1)) / across)
    lefts = [max(grid.left for grid in grids[at::across]) for at in range(across)]
    places, wide, y = [], 4.5, 0.0
    for first in range(0, len(grids), across):
        line = grids[first : first + across]
        x, y = 0.0, y + max(grid.top for grid in line)
        for grid, left in zip(line, lefts, strict=False):
            places.append((grid, x + left, y))
            x += max(left + grid.wide, grid.span) + 0.3
        below = 0.4 if any(grid.alarmed()[1] for grid in line) else 0.25
        wide, y = max(wide, x - 0.3), y + max(grid.high for grid in line) + below
    entries, x = [], 0.0
    cells: dict[str, Cell] = {}
    for cell in itertools.chain.from_iterable(row for grid in grids for row in grid.cells):
        cells.setdefault(cell.state, cell)
    for state in [state for state in STATES if state in cells and state not in ("", "token")]:
        cell = cells[state]
        swatch = max(0.42, width_of(cell.shown, 11) + 0.2) if not cell.look.scale else 0.8
        needed = swatch + width_of(legend_name(state), 10) + 0.36
        x, y = (0.0, y + 0.38) if x and x + needed - 0.28 > wide else (x, y)
        entries.append((cell, x, y, swatch))
        x += needed
    high = y + 0.3 if entries else y - 0.25
    pen = pen_for(wide, high)
    for grid, x, y in places:
        grid.draw(pen, x, y)
    for cell, x, y, swatch in entries:
        draw_swatch(pen, cell, x, y, swatch)
        pen.text(x + swatch + 0.08, y + 0.14, legend_name(cell.state), 10)
    return pen


def legend_name(state: str) -> str:
    return f"{state}: 0, ¼, 1" if STATES[state].scale and not STATES[state].alarm else state


def draw_swatch(pen: Pen, cell: Cell, x: float, y: float, width: float) -> None:
    if not cell.look.scale:
        cell.draw(pen, x, y, width, 0.28)
        return
    steps = 8
    pen.image(x, y, width, 0.28, [[cell.look.fill(pen.theme, ((at + 0.5) / steps) ** 2) for at in range(steps)]])
    pen.rect(x, y, width, 0.28, hatch=cell.look.hatch)
    if cell.look.alarm:
        pen.rect(x + 0.02, y + 0.02, width - 0.04, 0.24, edge=pen.theme.readable(VERMILLION), width=2.2)
