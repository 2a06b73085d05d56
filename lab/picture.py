"""A picture: what it shows, in words (alt text) and as a table, drawn in either theme, in a notebook or into a file."""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import canvas
from .canvas import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MAX_SVG = 300_000  # bytes: a larger figure is shown as PNG


class Picture:
    """What `lab.draw` returns. The last line of a cell shows it, with its alt text; print() says what it shows.

    make(theme) -> matplotlib Figure. alt: one or two sentences, with the numbers that matter. table() -> DataFrame.
    """

    def __init__(
        self, make: Callable[[Theme], Figure], alt: str, table: Callable[[], DataFrame], title: str = ""
    ) -> None:
        if not alt.strip():
            raise ValueError("alt is empty; say in a sentence what the picture shows.")
        self.make, self.alt, self.table, self.title = make, alt, table, title

    def figure(self, theme: str | None = None) -> Figure:
        """As a matplotlib Figure of its own, which pyplot does not know of; theme "light" or "dark"."""
        page = canvas.theme(theme)
        with page.style():
            figure = self.make(page)
        figure.set_label(self.title)
        return figure

    def as_frame(self) -> DataFrame:
        """The same as a table, in words and numbers."""
        return self.table()

    def render(self, form: str, theme: str | None = None) -> bytes:
        """As "svg" or "png": the same bytes every time. An SVG holds its title and its alt text."""
        content = canvas.render(self.figure(theme), form)
        if form != "svg":
            return content
        described = f'<svg role="img" aria-label="{html.escape(self.alt)}" '
        return content.replace(b"<svg ", described.encode(), 1)

    def save(self, path: str | Path, theme: str | None = None) -> Path:
        """Write it as .svg or .png. Raises ValueError for another suffix, OSError where it cannot be written."""
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise ValueError(f"{path} ends in {path.suffix!r}; a figure is saved as .svg or .png.")
        return canvas.put(path, self.render(path.suffix[1:], theme))

    def show(self, alt: str = "", theme: str | None = None) -> None:
        """In a notebook, display it; elsewhere print what it shows. alt: better words, from one who knows the story."""
        self.alt = alt or self.alt
        ipython = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
            ipython.display.display(self.bundle(theme), raw=True)
        else:
            print(self.alt)

    def bundle(self, theme: str | None = None) -> dict[str, str]:
        """HTML that needs neither kernel nor network, and the words alone."""
        kind, content = "svg+xml", self.render("svg", theme)
        if len(content) > MAX_SVG:
            kind, content = "png", self.render("png", theme)
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        image = f'<img alt="{html.escape(self.alt)}" src="{source}" style="max-width:100%">'
        return {"text/html": image, "text/plain": self.alt}

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.bundle()

    def __repr__(self) -> str:
        return self.alt
