"""Plots of curves and of bars, in either theme, with their alt text and their table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .canvas import SKY, Theme, fit, number
from .picture import Picture


def plot(theme: Theme, title: str, height: float, **how: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.5, height), facecolor=theme.paper)
    axes = figure.add_subplot()
    axes.set(**{name: text.replace("$", r"\$") for name, text in how.items()}, title=title.replace("$", r"\$"))
    return figure, axes


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str, title: str = ""
) -> Picture:
    """A line for each label, {label: (xs, ys)}. Raises ValueError for none, and for xs and ys of unequal length."""
    if not lines:
        raise ValueError("there is no curve to draw; give {label: (xs, ys)}.")
    lines = {label: (list(xs), list(ys)) for label, (xs, ys) in lines.items()}
    for label, (xs, ys) in lines.items():
        if len(xs) != len(ys) or not len(xs):
            raise ValueError(f"curve {label!r} has {len(xs)} xs and {len(ys)} ys; they go in pairs, one at least.")

    def make(theme: Theme) -> Figure:
        figure, axes = plot(theme, title, 4, xlabel=xlabel, ylabel=ylabel)
        for (label, (xs, ys)), (colour, dash, mark) in zip(lines.items(), itertools.cycle(theme.lines), strict=False):
            how = {
                "color": colour,
                "linestyle": dash,
                "marker": mark,
                "markevery": max(1, len(xs) // 12),
                "linewidth": 2,
            }
            axes.plot(xs, ys, **how, label=fit(label, 4, 11).replace("$", r"\$"))
        axes.grid(linewidth=0.6)
        axes.legend(frameon=False)
        return figure

    def table() -> Any:
        import pandas

        rows = [(label, x, y) for label, (xs, ys) in lines.items() for x, y in zip(xs, ys, strict=True)]
        return pandas.DataFrame(rows, columns=["curve", xlabel or "x", ylabel or "y"])

    ends = "; ".join(f"{label} from {number(ys[0])} to {number(ys[-1])}" for label, (_, ys) in lines.items())
    return Picture(make, f"{title + ': ' if title else ''}{ylabel or 'y'} by {xlabel or 'x'}: {ends}.", table, title)


def bars(values: Mapping[str, float], *, xlabel: str, title: str = "", log: bool = False) -> Picture:
    """A bar for each label with its value beside it. Raises ValueError for none, and for log of what is not above 0."""
    if not values:
        raise ValueError("there is no bar to draw; give {label: value}.")
    if log and min(values.values()) <= 0:
        raise ValueError(f"a value is {min(values.values()):g}; a logarithmic axis takes values above 0 alone.")

    def make(theme: Theme) -> Figure:
        figure, axes = plot(theme, title, 0.9 + 0.42 * len(values), xlabel=xlabel)
        names = [fit(label, 3, 11).replace("$", r"\$") for label in values]
        how = {"tick_label": names, "color": SKY, "edgecolor": theme.ink, "log": log}
        drawn = axes.barh(range(len(names)), list(values.values()), **how)
        axes.bar_label(drawn, [number(value) for value in values.values()], padding=4)
        axes.xaxis.set_major_formatter(number)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        return figure

    def table() -> Any:
        import pandas

        return pandas.DataFrame({xlabel or "value": dict(values)})

    said = "; ".join(f"{label} {number(value)}" for label, value in values.items())
    return Picture(make, f"{title + ': ' if title else ''}{xlabel or 'value'}: {said}.", table, title)
