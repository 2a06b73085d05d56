"""What the cells of pictures look like: each state has a symbol, a colour and a hatch, and its name is its legend."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from .canvas import BLUE, ORANGE, SKY, VERMILLION, Theme, fit, ink_on, width_of
from .pens import Pen


@dataclass(frozen=True)
class Look:
    """How a state is told: by a colour of some strength, a hatch and a symbol. alarm: framed, and marked in the margin.

    scale: the fill is cividis at the cell's value instead; a colour with scale grows with the value. Both go by its
    square root, for among 200 keys most weights are small.
    """

    symbol: str = ""
    colour: str = ""
    strength: float = 1.0
    hatch: str = ""
    alarm: bool = False
    scale: bool = False

    def fill(self, theme: Theme, value: float | None = None) -> str:
        if self.scale:
            value = round(min(max(value or 0.0, 0.0), 1.0) ** 0.5 * 255) / 255  # of 256 shades
            if not self.colour:
                return CIVIDIS[round(value * (len(CIVIDIS) - 1))]
            return theme.tint(self.colour, value)
        return theme.tint(self.colour, self.strength) if self.colour else theme.paper


CIVIDIS = [to_hex(colour) for colour in matplotlib.colormaps["cividis"](np.linspace(0, 1, 256))]

# Every state that a cell can have. The key is what the legend, the table and the pointer say.
STATES = {
    "": Look(),
    # attend masks
    "may attend": Look("■", BLUE),
    "blocked": Look("·"),
    "blocked padding": Look("·", "grey", 0.2, "/"),
    "leak: padding may be attended to": Look("▲", VERMILLION, 0.4, "/", alarm=True),
    "leak: the future may be attended to": Look("◆", VERMILLION, 0.75, "x", alarm=True),
    "blocked, but should not be": Look("○", ORANGE, 0.45, "\\", alarm=True),
    "leak: may be attended to, but should not": Look("◈", VERMILLION, 0.75, "x", alarm=True),
    "padding's own row: may attend": Look("▪", "grey", 0.45, "\\"),
    "padding's own row: blocked": Look("·", "grey", 0.2, "\\"),
    # attention weights, influence
    "weight": Look(scale=True),
    "exactly 0": Look("×"),
    "exactly 0 on padding": Look("×", "grey", 0.2, "/"),
    "leak: weight on padding": Look(scale=True, hatch="/", alarm=True),
    "leak: weight on the future": Look(scale=True, hatch="x", alarm=True),
    "leak: weight on what should be blocked": Look(scale=True, hatch="x", alarm=True),
    "padding's own row": Look("", "grey", 0.45, scale=True, hatch="\\"),
    "not a number": Look("NaN", VERMILLION, 0.3, "x", alarm=True),
    "influence": Look(scale=True),
    "no influence": Look("×"),
    "leak: influence of padding": Look(scale=True, hatch="/", alarm=True),
    "leak: influence of the future": Look(scale=True, hatch="x", alarm=True),
    "no influence, but there should be": Look("○", ORANGE, 0.45, "\\", alarm=True),
    # differences
    "the same": Look("="),
    "more than healthy": Look("", ORANGE, scale=True),
    "less than healthy": Look("", SKY, scale=True, hatch="\\"),
    "more than healthy, where nothing should be": Look("", ORANGE, scale=True, hatch="x", alarm=True),
    # batches
    "token": Look(),
    "padding": Look("pad", "grey", 0.2, "/"),
    "start or end": Look("", SKY, 0.4),
    "for the loss alone: no token": Look("", VERMILLION, 0.3, "x"),
    # modes
    "train mode": Look("T", ORANGE, 0.55),
    "eval mode": Look("E", SKY, 0.4, "\\"),
    "not there": Look("–"),
    "not run": Look("∅", "grey", 0.2),
    "train mode, differs from the first column": Look("T ≠", ORANGE, 0.55, alarm=True),
    "eval mode, differs from the first column": Look("E ≠", SKY, 0.4, "\\", alarm=True),
    # faults against checks
    "caught by its own check": Look("●", BLUE),
    "fires too, for a known reason": Look("○", SKY, 0.4, "\\"),
    "fires, and nothing explains it": Look("!", VERMILLION, 0.3, "x", alarm=True),
    "not caught by its own check": Look("?", VERMILLION, 0.3, "x", alarm=True),
    "the check itself broke": Look("E", VERMILLION, 0.3, "x", alarm=True),
    "cannot be asked": Look("–", "grey", 0.2),
}


@dataclass(frozen=True)
class Cell:
    """What stands in a cell. text: instead of its state's symbol. value: 0 to 1, for the colour. note: more of it."""

    state: str = ""
    text: str = ""
    value: float | None = None
    note: str = ""

    @property
    def look(self) -> Look:
        return STATES[self.state]

    @property
    def shown(self) -> str:
        return self.text or self.look.symbol

    @property
    def words(self) -> str:
        """The cell as a screen reader should say it."""
        said = self.note or (self.text if self.text != self.look.symbol else "")
        return ", ".join(part for part in (self.state, said) if part)

    def draw(self, pen: Pen, x: float, y: float, w: float, h: float) -> None:
        """With its symbol, if there is room for one."""
        look, fill = self.look, self.look.fill(pen.theme, self.value)
        pen.rect(x, y, w, h, fill, look.hatch)
        if look.alarm:
            edge = pen.theme.readable(VERMILLION)
            pen.rect(x + 0.02, y + 0.02, w - 0.04, h - 0.04, edge=edge, width=2.2)
        if self.shown:
            fitting = [size for size in (11, 8, 6.5) if width_of(self.shown, size) <= w - 0.05]
            if not fitting and self.value is not None:
                return  # the colour says it, and a number cut short would lie
            size = 17 if self.shown == "·" else fitting[0] if fitting else 8
            how = {"anchor": "middle", "colour": ink_on(fill)}
            if look.hatch and self.shown != "·":
                how["behind"] = fill
            pen.text(x + w / 2, y + h / 2, fit(self.shown, w - 0.05, size), size, **how)
