"""What the figures are made of: one style, grids of marked cells on one canvas, and figures as bytes."""

from __future__ import annotations

import base64
import csv
import functools
import html
import inspect
import io
import itertools
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from torch import Tensor

INK, GREY = "#1a1a1a", "#8a8a8a"
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
CURVES = [(BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"), (INK, "-", "v")]
FONT = "DejaVu Sans"  # matplotlib brings it along, so every machine draws the same
STYLE = {
    "font.family": FONT,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "lab",
    "svg.fonttype": "path",  # an <img> loads no font: as text, labels would move wherever DejaVu Sans is missing
}
styled = matplotlib.style.context(["default", STYLE])  # a decorator here: the caller's own style must not matter
WIDTH = 9.0  # inches: a notebook's page
MAX_SVG = 300_000  # bytes: show() sends a larger figure as PNG


def tint(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    return to_hex([1 - strength * (1 - part) for part in to_rgb(colour)])


@functools.cache
def glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def readable(text: str) -> str:
    """The text on one line, with escapes for what has no glyph."""
    return "".join(c if c.isprintable() and ord(c) in glyphs() else c.encode("unicode_escape").decode() for c in text)


@functools.lru_cache(4096)
def width_of(text: str, size: float) -> float:
    """In inches."""
    font = FontProperties(family=FONT, size=size)
    return text_to_path.get_text_width_height_descent(readable(text), font, ismath=False)[0] / 72 if text else 0.0


def number(value: float, _: Any = None) -> str:
    """Four digits or, from a thousand on, all of them. The second argument is a tick's position."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def fit(text: str, width: float, size: float) -> str:
    """The readable text, cut so that it takes at most `width` inches."""
    text = readable(text)
    if width_of(text, size) <= width:
        return text
    while len(text) > 1 and width_of(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


@dataclass(frozen=True)
class Cell:
    """What stands in a cell. name: its meaning, for the legend. note: more about it, for the table."""

    text: str = ""
    fill: str = "#ffffff"
    hatch: str = ""
    frame: str = ""
    ink: str = INK
    name: str = ""
    note: str = ""

    @property
    def empty(self) -> bool:
        return not (self.text or self.hatch or self.frame) and self.fill == "#ffffff"

    def draw(self, axes: Any, x: float, y: float, width: float, height: float) -> None:
        how = {"facecolor": self.fill, "edgecolor": GREY, "hatch": self.hatch, "linewidth": 0.7, "clip_on": False}
        axes.add_patch(Rectangle((x, y), width, height, **how))
        if self.frame:
            how |= {"facecolor": "none", "edgecolor": self.frame, "hatch": "", "linewidth": 2.2}
            axes.add_patch(Rectangle((x + 0.02, y + 0.02), width - 0.04, height - 0.04, **how))
        size = 11 if width >= 0.36 else 8
        behind = {"facecolor": self.fill, "edgecolor": "none", "pad": 0.8} if self.hatch and self.text != "·" else None
        how = {"size": 17 if self.text == "·" else size, "color": self.ink, "bbox": behind, "ha": "center"}
        write(axes, x + width / 2, y + height / 2, fit(self.text, width - 0.05, size), **how)


def write(axes: Any, x: float, y: float, text: str, size: float = 10, **how: Any) -> None:
    axes.text(x, y, readable(text), **{"size": size, "va": "center_baseline", "parse_math": False, **how})


@dataclass
class Grid:
    """Rows of cells with labels. cell: the least width of one in inches. rule: how many rows stand over the line."""

    cells: list[list[Cell]]
    rows: Sequence[str]
    columns: Sequence[str]
    title: str = ""
    caption: tuple[str, ...] = ()
    cell: float = 0.36
    rule: int = 0

    def measure(self, room: float) -> None:
        """Shorten labels and settle all sizes, in inches, for `room` inches of width."""
        self.short_rows = [fit(label, 2.4, 10) for label in self.rows]
        self.short_columns = [fit(label, 1.7, 10) for label in self.columns]
        self.left = max(width_of(label, 10) for label in self.short_rows) + 0.12
        label = max(width_of(label, 10) for label in self.short_columns)
        widest = max(width_of(cell.text, 11) for row in self.cells for cell in row) + 0.2
        count = len(self.columns)
        self.width = max(0.26, min(max(self.cell, widest), 1.1, (room - self.left) / count))
        self.height = min(self.width, 0.36)
        self.turned = label > self.width - 0.06
        self.wide, self.high = self.width * count, self.height * len(self.cells)
        heading = textwrap.wrap(self.title, int(max(self.left + self.wide, min(room, 4.5)) / 0.1))
        caption = "    ".join(self.caption)
        captions = [caption] if width_of(caption, 10) <= room else self.caption
        self.lines = [(line, 12, "bold") for line in heading] + [(line, 10, "normal") for line in captions if line]
        self.top = 0.26 * len(self.lines) + (label + 0.16 if self.turned else 0.28)
        self.span = max([self.left + self.wide, *(width_of(line, size) * 1.1 for line, size, _ in self.lines)])

    def draw(self, axes: Any, x: float, y: float) -> None:
        """x, y: where the first cell begins."""
        for at, (line, size, weight) in enumerate(self.lines):
            write(axes, x - self.left, y - self.top + 0.1 + 0.26 * at, line, size, weight=weight)
        how = {"rotation": 90, "va": "bottom"} if self.turned else {"va": "baseline"}
        for at, label in enumerate(self.short_columns):
            write(axes, x + self.width * (at + 0.5), y - 0.08, label, ha="center", **how)
        if any(cell.empty for row in self.cells for cell in row):
            lines = {"color": GREY, "linewidth": 0.7, "clip_on": False}  # one path for all, to keep files small
            axes.hlines([y + self.height * at for at in range(len(self.cells) + 1)], x, x + self.wide, **lines)
            axes.vlines([x + self.width * at for at in range(len(self.columns) + 1)], y, y + self.high, **lines)
        for down, (label, row) in enumerate(zip(self.short_rows, self.cells, strict=True)):
            write(axes, x - 0.08, y + self.height * (down + 0.5), label, ha="right")
            for at, cell in enumerate(row):
                if not cell.empty:
                    cell.draw(axes, x + self.width * at, y + self.height * down, self.width, self.height)
        if self.rule:
            axes.plot([x - self.left, x + self.wide], [y + self.height * self.rule] * 2, color=INK, clip_on=False)


@styled
def compose(grids: Sequence[Grid], across: int = 1) -> Figure:
    """Grids, `across` side by side, over one legend, on one canvas in inches from the top left."""
    figure = Figure(facecolor="white")
    figure.set_label(grids[0].title)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for grid in grids:
        grid.measure((WIDTH - 0.3 * (across - 1)) / across)
    lefts = [max(grid.left for grid in grids[at::across]) for at in range(across)]
    wide, y = 4.5, 0.0
    for first in range(0, len(grids), across):
        line = grids[first : first + across]
        x, y = 0.0, y + max(grid.top for grid in line)
        for grid, left in zip(line, lefts, strict=False):
            grid.draw(axes, x + left, y)
            x += max(left + grid.wide, grid.span) + 0.3
        wide, y = max(wide, x - 0.3), y + max(grid.high for grid in line) + 0.25
    legend: dict[str, Cell] = {}
    for cell in itertools.chain.from_iterable(row for grid in grids for row in grid.cells):
        legend.setdefault(cell.name, cell)
    legend.pop("", None)
    x = 0.0
    for name, cell in legend.items():
        swatch = max(0.42, width_of(cell.text, 11) + 0.2)
        needed = swatch + width_of(name, 10) + 0.36
        x, y = (0.0, y + 0.38) if x and x + needed - 0.28 > wide else (x, y)
        cell.draw(axes, x, y, swatch, 0.28)
        write(axes, x + swatch + 0.08, y + 0.14, name)
        x += needed
    high = y + 0.3 if legend else y - 0.25
    figure.set_size_inches(wide, high)
    axes.set(xlim=(0, wide), ylim=(high, 0))
    return figure


def check_labels(name: str, values: Tensor, rows: Sequence, columns: Sequence, of: tuple[str, str]) -> None:
    """Raises ValueError unless values is (rows, columns) and holds something."""
    if values.dim() != 2 or not values.numel():
        raise ValueError(f"{name} has shape {tuple(values.shape)}; a picture needs two dimensions, none of them 0.")
    for kind, size, given, what in zip(("rows", "columns"), values.shape, (rows, columns), of, strict=True):
        if size != len(given):
            raise ValueError(f"{name} has {size} {kind}, but {len(given)} {what} are given; give one for each.")


def table(grids: Sequence[Grid]) -> bytes:
    """The data behind the picture as CSV, a line for each cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "row", "column", "cell", "meaning", "note"])
    for grid in grids:
        for row, cells in zip(grid.rows, grid.cells, strict=True):
            for column, cell in zip(grid.columns, cells, strict=True):
                writer.writerow([grid.title, row, column, cell.text, cell.name, cell.note])
    return text.getvalue().encode()


def drawn(make: Callable[..., Grid]) -> Callable[..., Figure]:
    """A function that makes a grid -> one that draws it; `.grid` is the first, to put several on one figure."""

    @functools.wraps(make)
    def draw(*args: Any, **how: Any) -> Figure:
        return compose([make(*args, **how)])

    draw.grid = make
    draw.__signature__ = inspect.signature(make).replace(return_annotation="Figure")
    return draw


@styled
def render(figure: Figure, form: str) -> bytes:
    """The figure as "svg" or "png": the same bytes every time, without date and version."""
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    if figure.get_label():
        metadata["Title"] = figure.get_label()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=144, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}); choose a folder that can be written.") from error
    return path


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as .svg or .png. Raises ValueError for another suffix, OSError where it cannot be written."""
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ValueError(f"{path} ends in {path.suffix!r}; a figure is saved as .svg or .png.")
    return put(path, render(figure, path.suffix[1:]))


def show(figure: Figure, alt: str) -> None:
    """In a notebook, display the figure with its alt text; elsewhere print that. A figure of pyplot's is closed."""
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the picture shows.")
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        kind, content = "svg+xml", render(figure, "svg")
        if len(content) > MAX_SVG:
            kind, content = "png", render(figure, "png")
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        image = f'<img alt="{html.escape(alt)}" src="{source}" style="max-width:100%">'
        ipython.display.display({"text/html": image, "text/plain": alt}, raw=True)
    else:
        print(alt)
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)
