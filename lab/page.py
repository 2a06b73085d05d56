"""A report as a picture: its text, on paper, for those who have not run anything yet."""

from __future__ import annotations

import re
import textwrap

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .canvas import INK, ORANGE, SKY, VERMILLION, readable, styled, tint
from .report import Report

MONO = "DejaVu Sans Mono"
COLUMNS, SIZE, LINE, LETTER = 108, 9.5, 0.19, 0.0795  # characters a line, points, inches a line and a character
MARKS = {"P0": tint(VERMILLION, 0.55), "P1": tint(ORANGE, 0.6), "P2": tint(ORANGE, 0.3), "P3": tint(SKY, 0.4)}


def wrapped(text: str) -> list[str]:
    """Lines of at most COLUMNS characters; what is broken off goes on under where its sentence began."""
    lines = []
    for line in text.splitlines():
        indent = re.match(r"\s*(\[\w+\] |[a-z]+: )?", line).end()
        lines += textwrap.wrap(line, COLUMNS, subsequent_indent=" " * indent, break_on_hyphens=False) or [""]
    return lines


@styled
def page(report: Report) -> Figure:
    """The report's text; each finding's severity is marked, by name and by colour."""
    lines = [readable(line) for line in wrapped(report.text().rstrip())]
    wide, high = COLUMNS * LETTER + 0.3, len(lines) * LINE + 0.3
    figure = Figure(figsize=(wide, high), facecolor="white")
    figure.set_label(lines[0])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, wide), ylim=(high, 0))
    axes.add_patch(Rectangle((0.03, 0.03), wide - 0.06, high - 0.06, facecolor="none", edgecolor=INK, linewidth=0.8))
    for at, line in enumerate(lines):
        y = 0.15 + LINE * (at + 0.5)
        mark = re.match(r"(\s*)\[(P\d)\]", line)
        if mark:
            x = 0.15 + LETTER * len(mark[1])
            box = {"facecolor": MARKS[mark[2]], "edgecolor": "none"}
            axes.add_patch(Rectangle((x, y - LINE * 0.42), LETTER * 4, LINE * 0.84, **box))
        weight = "bold" if at == 0 or re.match(r"P\d\b|Notes", line) else "normal"
        axes.text(0.15, y, line, family=MONO, size=SIZE, weight=weight, va="center_baseline", parse_math=False)
    return figure
