"""A report as a picture: its text, on paper, for those who have not run anything yet."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .canvas import ORANGE, SKY, VERMILLION, Theme, readable
from .picture import Picture
from .report import Report

if TYPE_CHECKING:
    from pandas import DataFrame

MONO = "DejaVu Sans Mono"
COLUMNS, SIZE, LINE, LETTER = 108, 9.5, 0.19, 0.0795  # characters a line, points, inches a line and a character
MARKS = {"P0": (VERMILLION, 0.55), "P1": (ORANGE, 0.6), "P2": (ORANGE, 0.3), "P3": (SKY, 0.4)}
HEADER = ["line", "text"]


def wrapped(text: str) -> list[str]:
    """Lines of at most COLUMNS characters; what is broken off goes on under where its sentence began."""
    lines = []
    for line in text.splitlines():
        indent = re.match(r"\s*(\[\w+\] |[a-z]+: )?", line).end()
        lines += textwrap.wrap(line, COLUMNS, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]
    return lines


def lines_of(report: Report) -> bytes:
    """The report's text as CSV, line by line: all that its picture is made of."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(enumerate(readable(line) for line in wrapped(report.text().rstrip())))
    return file.getvalue().encode()


def page(content: bytes, alt: str) -> Picture:
    """What `lines_of` gave, drawn; each finding's severity is marked, by name and by colour.

    Raises ValueError for other content.
    """
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    if len(rows) < 2 or rows[0] != HEADER:
        raise ValueError(f"the file begins with {rows[0] if rows else 'nothing'}, not with {','.join(HEADER)}.")
    lines = [text for _, text in rows[1:]]

    def table() -> DataFrame:
        import pandas

        return pandas.DataFrame({"text": lines})

    return Picture(lambda theme: on_paper(lines, theme), alt, table, lines[0])


def on_paper(lines: list[str], theme: Theme) -> Figure:
    wide, high = COLUMNS * LETTER + 0.3, len(lines) * LINE + 0.3
    figure = Figure(figsize=(wide, high), facecolor=theme.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, wide), ylim=(high, 0))
    frame = {"facecolor": "none", "edgecolor": theme.ink, "linewidth": 0.8}
    axes.add_patch(Rectangle((0.03, 0.03), wide - 0.06, high - 0.06, **frame))
    for at, line in enumerate(lines):
        y = 0.15 + LINE * (at + 0.5)
        mark = re.match(r"(\s*)\[(P\d)\]", line)
        if mark:
            x = 0.15 + LETTER * len(mark[1])
            box = {"facecolor": theme.tint(*MARKS[mark[2]]), "edgecolor": "none"}
            axes.add_patch(Rectangle((x, y - LINE * 0.42), LETTER * 4, LINE * 0.84, **box))
        weight = "bold" if at == 0 or re.match(r"P\d\b|Notes", line) else "normal"
        axes.text(0.15, y, line, family=MONO, size=SIZE, weight=weight, va="center_baseline", parse_math=False)
    return figure
