"""Two ways to put a picture down: on matplotlib's paper, and as an SVG for a page, with a word on each cell under the
pointer. Positions and sizes are in inches from the top left, text sizes in points.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from .canvas import FONT, Theme, ink_on, mix, readable

Segment = tuple[float, float, float, float]  # x, y of its start and of its end


class Pen(Protocol):
    theme: Theme

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str = "",
        hatch: str = "",
        edge: str = "",
        width: float = 0.7,
    ) -> None:
        """hatch: "/", "\\" or "x". edge: the colour of its frame, of `width` points."""

    def text(self, x: float, y: float, text: str, size: float, **how: Any) -> None:
        """anchor: "start", "middle" or "end". turned: upwards. bold, colour. behind: the colour of a patch under it."""

    def lines(self, segments: Sequence[Segment], colour: str, width: float = 0.7) -> None: ...

    def image(self, x: float, y: float, w: float, h: float, colours: list[list[str]]) -> None:
        """Rows of cells that fill the rectangle."""

    def note(self, x: float, y: float, w: float, h: float, text: str) -> None:
        """What the pointer is told there."""


def hatch_on(fill: str, theme: Theme) -> str:
    """The colour of a hatch that is seen on the fill, and not louder than what stands there."""
    return mix(fill, ink_on(fill), 0.5) if fill else theme.grey


class Paper:
    """Axes of matplotlib."""

    def __init__(self, axes: Any, theme: Theme) -> None:
        self.axes, self.theme = axes, theme

    def rect(self, x, y, w, h, fill="", hatch="", edge="", width=0.7) -> None:  # noqa: ANN001 - see Pen
        if hatch or edge or fill:
            # A hatch takes the colour of the edge, so a frame of another colour is a second rectangle.
            line = hatch_on(fill, self.theme) if hatch else edge or self.theme.grey
            how = {"facecolor": fill or "none", "edgecolor": line, "hatch": hatch * 3, "clip_on": False}
            self.axes.add_patch(Rectangle((x, y), w, h, linewidth=0 if edge and hatch else width, **how))
        if edge and hatch:
            how = {"facecolor": "none", "edgecolor": edge, "linewidth": width, "clip_on": False}
            self.axes.add_patch(Rectangle((x, y), w, h, **how))

    def text(self, x, y, text, size, *, anchor="start", turned=False, bold=False, colour="", behind="") -> None:  # noqa: ANN001
        where = {"start": "left", "middle": "center", "end": "right"}[anchor]
        how = {"ha": where, "va": "center_baseline"}
        if turned:
            how = {"ha": "center", "va": {"start": "bottom", "middle": "center", "end": "top"}[anchor], "rotation": 90}
        if behind:
            how["bbox"] = {"facecolor": behind, "edgecolor": "none", "pad": 0.8}
        how |= {"size": size, "weight": "bold" if bold else "normal", "color": colour or self.theme.ink}
        self.axes.text(x, y, readable(text), parse_math=False, **how)

    def lines(self, segments, colour, width=0.7) -> None:  # noqa: ANN001
        xs, ys = [], []
        for x, y, to_x, to_y in segments:  # one path for all, to keep files small
            xs += [x, to_x, np.nan]
            ys += [y, to_y, np.nan]
        self.axes.plot(xs, ys, color=colour, linewidth=width, clip_on=False, solid_capstyle="butt")

    def image(self, x, y, w, h, colours) -> None:  # noqa: ANN001
        pixels = (np.array([[to_rgb(colour) for colour in row] for row in colours]) * 255).round().astype(np.uint8)
        extent = (x, x + w, y + h, y)
        self.axes.imshow(pixels, extent=extent, aspect="auto", interpolation="none", clip_on=False, origin="upper")

    def note(self, x, y, w, h, text) -> None:  # noqa: ANN001
        """Paper has no pointer."""


DOTS = 96  # an inch of a page has 96 pixels
MARGIN = 8  # pixels
SHAPES = {"/": "M-1 1 1 -1M0 6 6 0M5 7 7 5", "\\": "M-1 5 1 7M0 0 6 6M5 -1 7 1", "x": "M0 0 6 6M0 6 6 0"}


class Page:
    """An SVG as text. It refers to nothing outside itself."""

    def __init__(self, theme: Theme, name: str) -> None:
        self.theme, self.name, self.parts, self.notes = theme, name, [], []
        self.used: dict[tuple[str, str], int] = {}

    def rect(self, x, y, w, h, fill="", hatch="", edge="", width=0.7) -> None:  # noqa: ANN001
        line = f' stroke="{edge or self.theme.grey}" stroke-width="{width * DOTS / 72:.2f}"' if width else ""
        if fill or edge or not hatch:
            self.parts.append(f'<rect {box(x, y, w, h)} fill="{fill or "none"}"{line}/>')
        if hatch:
            number = self.used.setdefault((hatch, hatch_on(fill, self.theme)), len(self.used))
            self.parts.append(f'<rect {box(x, y, w, h)} fill="url(#{self.name}-{number})"/>')

    def text(self, x, y, text, size, *, anchor="start", turned=False, bold=False, colour="", behind="") -> None:  # noqa: ANN001
        x, y = x * DOTS, y * DOTS
        how = f' text-anchor="{anchor}"' if anchor != "start" else ""
        how += ' font-weight="bold"' if bold else ""
        how += f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        if behind:
            how += f' paint-order="stroke" stroke="{behind}" stroke-width="4"'
        how += f' fill="{colour}"' if colour else ""
        where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size * DOTS / 72:.1f}"'
        words = html.escape(readable(text)).replace("  ", "\u00a0 ")  # a page makes one space of many
        self.parts.append(f"<text {where}{how}>{words}</text>")

    def lines(self, segments, colour, width=0.7) -> None:  # noqa: ANN001
        path = "".join("M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*(DOTS * part for part in line)) for line in segments)
        self.parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width * DOTS / 72:.2f}"/>')

    def image(self, x, y, w, h, colours) -> None:  # noqa: ANN001
        high, wide = h * DOTS / len(colours), w * DOTS / len(colours[0])
        runs: dict[str, list[str]] = {}
        for down, row in enumerate(colours):
            start = 0
            for at in range(1, len(row) + 1):
                if at == len(row) or row[at] != row[start]:
                    left, top = x * DOTS + start * wide, y * DOTS + down * high
                    size = f"h{(at - start) * wide:.2f}v{high:.2f}h-{(at - start) * wide:.2f}z"
                    runs.setdefault(row[start], []).append(f"M{left:.2f} {top:.2f}{size}")
                    start = at
        self.parts += [
            f'<path fill="{colour}" shape-rendering="crispEdges" d="{"".join(path)}"/>' for colour, path in runs.items()
        ]

    def note(self, x, y, w, h, text) -> None:  # noqa: ANN001
        self.notes.append(f"<rect {box(x, y, w, h)}><title>{html.escape(text)}</title></rect>")

    def svg(self, wide: float, high: float, alt: str) -> str:
        """The whole of it, with what lies under the pointer on top of all."""
        hatches = "".join(
            f'<pattern id="{self.name}-{number}" width="6" height="6" patternUnits="userSpaceOnUse">'
            f'<path d="{SHAPES[hatch]}" stroke="{colour}" stroke-width="1" fill="none"/></pattern>'
            for (hatch, colour), number in self.used.items()
        )
        wide, high = wide * DOTS + 2 * MARGIN, high * DOTS + 2 * MARGIN
        size = f'viewBox="{-MARGIN} {-MARGIN} {wide:.0f} {high:.0f}" style="max-width:100%;width:{wide:.0f}px"'
        paper = f'<rect x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" fill="{self.theme.paper}"/>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(alt)}" {size} '
            f'font-family="{FONT}, Verdana, sans-serif" fill="{self.theme.ink}" dominant-baseline="central">'
            f"<defs>{hatches}</defs>{paper}"
            f'{"".join(self.parts)}<g fill="#000" fill-opacity="0">{"".join(self.notes)}</g></svg>'
        )


def box(x: float, y: float, w: float, h: float) -> str:
    return f'x="{x * DOTS:.1f}" y="{y * DOTS:.1f}" width="{w * DOTS:.1f}" height="{h * DOTS:.1f}"'
