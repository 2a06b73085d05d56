"""What every picture is drawn with: two themes, colours that all can tell apart, measured text, stable bytes."""

from __future__ import annotations

import functools
import io
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

# Okabe and Ito's colours, which people of every colour vision can tell apart.
ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
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
WIDTH = 9.0  # inches: a notebook's page


@dataclass(frozen=True)
class Theme:
    """The colours of the page. Marks keep theirs, mixed with the paper."""

    name: str
    paper: str
    ink: str
    grey: str

    def tint(self, colour: str, strength: float) -> str:
        """The colour mixed with the paper; "grey" and "ink" are the theme's own."""
        colour = {"grey": self.grey, "ink": self.ink}.get(colour, colour)
        return mix(self.paper, colour, strength)

    def style(self) -> AbstractContextManager[None]:
        """matplotlib's settings for this page, whatever the caller's own are."""
        ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        page = dict.fromkeys(ink, self.ink) | dict.fromkeys(paper, self.paper) | {"grid.color": self.tint("grey", 0.4)}
        return matplotlib.style.context(["default", STYLE, page])

    @property
    def lines(self) -> list[tuple[str, str, str]]:
        """(colour, dash, mark) of each curve in turn."""
        colours = [self.readable(colour) for colour in (BLUE, VERMILLION, GREEN, PURPLE)] + [self.ink]
        return list(zip(colours, ("-", "--", "-.", ":", "-"), "os^Dv", strict=True))

    def readable(self, colour: str) -> str:
        """The colour, made lighter on dark paper until a thin line of it is seen (3 : 1, WCAG 1.4.11)."""
        towards = "#ffffff" if luminance(self.paper) < 0.5 else "#000000"
        for step in range(11):
            mixed = to_hex(
                [(1 - step / 10) * a + step / 10 * b for a, b in zip(to_rgb(colour), to_rgb(towards), strict=True)]
            )
            if contrast(mixed, self.paper) >= 3:
                return mixed
        return towards


THEMES = {
    "light": Theme("light", "#ffffff", "#1a1a1a", "#8a8a8a"),
    "dark": Theme("dark", "#1b1b1b", "#f0f0f0", "#9c9c9c"),
}


def theme(name: str | None = None) -> Theme:
    """The theme of that name; None is the one that LAB_THEME names, or light. Raises ValueError for another name."""
    name = name or os.environ.get("LAB_THEME") or "light"
    if name not in THEMES:
        raise ValueError(f"theme is {name!r}; the themes are {', '.join(THEMES)} (the default is LAB_THEME, or light).")
    return THEMES[name]


@functools.lru_cache(8192)
def mix(one: str, other: str, share: float) -> str:
    """Of two colours, `share` of the other."""
    return to_hex([(1 - share) * a + share * b for a, b in zip(to_rgb(one), to_rgb(other), strict=True)])


def luminance(colour: str) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@functools.lru_cache(4096)
def ink_on(fill: str) -> str:
    """Black or white, whichever is read better on the colour."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, fill))


@functools.cache
def glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


@functools.lru_cache(4096)
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


@functools.lru_cache(4096)
def fit(text: str, width: float, size: float) -> str:
    """The readable text, cut so that it takes at most `width` inches."""
    text = readable(text)
    if width_of(text, size) <= width:
        return text
    while len(text) > 1 and width_of(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


def render(figure: Figure, form: str) -> bytes:
    """The figure as "svg" or "png": the same bytes every time, without date and version."""
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    if figure.get_label():
        metadata["Title"] = figure.get_label()
    buffer = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        how = {"dpi": 144, "bbox_inches": "tight", "pad_inches": 0.12, "facecolor": figure.get_facecolor()}
        figure.savefig(buffer, format=form, metadata=metadata, **how)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}); choose a folder that can be written.") from error
    return path
