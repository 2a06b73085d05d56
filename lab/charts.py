"""Charts of measurements: curves with bands and points with error bars on plain-number axes, and effects by seed."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from .canvas import Theme, fit, number
from .picture import Picture
from .plots import plot
from .published import short

MARKS = "os^Dv<>pPX"
DASHES = ("-", "--", "-.", ":")
NOTE = 0.62  # inches from the axis down to the note: ticks and label are between
APART = 0.07  # of a logarithmic axis: two numbers at its ticks stand no nearer


@dataclass(frozen=True)
class Series:
    """label, and x, y (n,) each. low, high: its interval at each x, (n,) each, or None. The same label, the same look.

    framed: to be found again among others, so points are large and hollow, and a line broad and grey behind all.

    Raises ValueError for none, for lengths that differ, and for half an interval.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    framed: bool = False

    def __post_init__(self) -> None:
        for name in ("x", "y", "low", "high"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, np.atleast_1d(np.asarray(values, float)))
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(f"{self.label!r} has {len(self.x)} x and {len(self.y)} y; they go in pairs, one at least.")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.label!r} has {'no low' if self.low is None else 'no high'}; an interval has both.")
        if self.low is not None and not len(self.low) == len(self.high) == len(self.x):
            raise ValueError(f"{self.label!r} has {len(self.low)} low, {len(self.high)} high and {len(self.x)} x.")


class Line(Series):
    """A curve with its band."""


class Points(Series):
    """Marks with their error bars."""


def chart(
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    logx: bool = False,
    logy: bool = False,
    note: str = "",
    alt: str = "",
) -> Picture:
    """Lines and points over one pair of axes. note: below them, for sources. alt: added to what it says of itself.

    Marks are of what was measured: beside points, a line has none. A band that goes far beyond all else is cut at the
    frame, and the note says so.

    Raises ValueError for no series, and for a logarithmic axis of what is not above 0.
    """
    series = list(series)
    if not series:
        raise ValueError("there is nothing to draw; give Line(label, x, y) or Points(label, x, y).")
    for one in series:
        for name, log in (("x", logx), ("y", logy)):
            if log and getattr(one, name).min() <= 0:
                raise ValueError(
                    f"{one.label!r} has a {name} of {getattr(one, name).min():g}; its axis is a logarithm."
                )
    labels = list(dict.fromkeys(one.label for one in series))
    bottom, top, cut = limits(series, logy)
    note = f"{note} A band is cut at the frame.".strip() if cut else note

    def make(theme: Theme) -> Figure:
        figure, axes = plot(theme, title, 4.4, xlabel=xlabel, ylabel=ylabel)
        axes.set(xscale="log" if logx else "linear", yscale="log" if logy else "linear")
        measured = any(isinstance(one, Points) for one in series)
        for one in series:
            put(axes, theme, one, labels.index(one.label), marked=not measured)
        if cut:
            axes.set_ylim(bottom, top)
        if logx and len(only := {float(x) for one in series for x in one.x}) == 1:
            axes.set_xlim(min(only) / 2, min(only) * 2)  # one number has no range of its own
        plain(axes.xaxis, logx, [float(x) for one in series if isinstance(one, Points) for x in one.x])
        plain(axes.yaxis, logy)
        axes.grid(linewidth=0.6)
        if len(labels) > 1 or labels[0]:  # beside the chart: in it, it would hide something of some chart
            beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
            axes.legend(*legend(axes, labels), frameon=False, fontsize=9.5, handlelength=3, **beside)
        remark(axes, theme, note)
        return figure

    def table() -> Any:
        import pandas

        return pandas.concat([frame(one, xlabel, ylabel) for one in series], ignore_index=True)

    joined = {(one.label, tuple(one.x)) for one in series if isinstance(one, Points)}
    told = [one for one in series if isinstance(one, Points) or (one.label, tuple(one.x)) not in joined]
    said = f"{ylabel} by {xlabel}: {'; '.join(in_words(one) for one in told)}."
    return Picture(make, " ".join(filter(None, [f"{title}." if title else "", said, alt])), table, title)


def limits(series: Sequence[Series], log: bool) -> tuple[float, float, bool]:
    """Lowest and highest of points, their bars and lines, with a margin; and does a band go beyond?"""
    bands = [one for one in series if isinstance(one, Line) and one.low is not None]
    bars = [v for one in series if isinstance(one, Points) and one.low is not None for v in (one.low, one.high)]
    shown = np.concatenate([*(one.y for one in series), *bars])
    scale, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    low, high = float(scale(shown.min())), float(scale(shown.max()))
    margin = 0.3 * (high - low) or 1.0
    bottom, top = float(back(low - margin)), float(back(high + margin))
    return bottom, top, any(band.low.min() < bottom or band.high.max() > top for band in bands)


def rounded(one: Series) -> Series:
    """To six digits: what a fit computes differs in its last ones from machine to machine, and a picture must not."""
    digits = {
        name: None if values is None else [float(f"{value:.6g}") for value in values]
        for name, values in ((name, getattr(one, name)) for name in ("x", "y", "low", "high"))
    }
    return type(one)(one.label, **digits, framed=one.framed)


def put(axes: Any, theme: Theme, one: Series, number_: int, marked: bool) -> None:
    one, label = rounded(one), shorter(one.label)
    colour = theme.lines[number_ % len(theme.lines)][0]
    mark, dash = MARKS[number_ % len(MARKS)], DASHES[number_ % len(DASHES)]
    if isinstance(one, Points):
        error = None if one.low is None else [np.maximum(0, one.y - one.low), np.maximum(0, one.high - one.y)]
        how = {"fmt": mark, "color": colour, "markersize": 6, "capsize": 3, "elinewidth": 1.2, "zorder": 3}
        if one.framed:
            how |= {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2}
        axes.errorbar(one.x, one.y, yerr=error, label=label, **how)
        return
    if one.low is not None:
        axes.fill_between(one.x, one.low, one.high, color=theme.tint(colour, 0.18), linewidth=0, zorder=1)
        for edge in (one.low, one.high):  # the band is seen without its colour too
            axes.plot(one.x, edge, color=colour, linewidth=0.5, zorder=1)
    how = {"color": colour, "linestyle": dash, "linewidth": 1.8, "zorder": 2, "label": label}
    if marked:
        every = max(1, len(one.x) // 8)
        how |= {"marker": mark, "markevery": (every // 2, every), "markersize": 5}
    if one.framed:
        how |= {
            "color": theme.tint("grey", 0.5),
            "linestyle": "-",
            "linewidth": 7,
            "solid_capstyle": "butt",
            "zorder": 0,
        }
    axes.plot(one.x, one.y, **how)


def legend(axes: Any, labels: Sequence[str]) -> tuple[list[Any], list[str]]:
    """One entry a label, points upon their line, in the order in which the series were given."""
    handles: dict[str, list[Any]] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, []).append(handle)
    shown = [shorter(label) for label in labels]
    return [tuple(handles[label]) for label in shown], shown


def shorter(label: str) -> str:
    return fit(label, 4, 11).replace("$", r"\$")


def plain(axis: Any, log: bool, measured: Sequence[float] = ()) -> None:
    """Ticks in plain numbers (0.0001, 500k, 1M); on a logarithmic axis at what was measured, where that has room."""
    axis.set_major_formatter(lambda value, _: in_plain(value))
    if not log:
        return
    low, high = axis.get_view_interval()
    spots = sorted({float(f"{value:.3g}") for value in measured})
    nearest = np.diff(np.log(spots)).min(initial=np.inf) if spots else 0
    axis.set_major_locator(FixedLocator(spots if nearest > APART * np.log(high / low) else ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def in_plain(value: float) -> str:
    if abs(value) >= 1000:
        return short(value)
    return number(value) if abs(value) >= 1e-3 or not value else f"{value:.12f}".rstrip("0")


def ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between two, evenly spread on a logarithmic axis."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [float(f"{step * 10.0**k:.12g}") for k in decades for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) >= 4:
            break
    else:
        found = [value for value in MaxNLocator(6).tick_values(low, high) if low <= value <= high]
    return found[:: max(1, -(-len(found) // 8))]


def remark(axes: Any, theme: Theme, note: str) -> None:
    """Below the label of the x axis, in small letters."""
    if not note:
        return
    lines = [line for part in note.split("\n") for line in textwrap.wrap(part, 110)]
    below = axes.transAxes + ScaledTranslation(0, -NOTE, axes.figure.dpi_scale_trans)
    how = {"size": 8.5, "color": theme.ink, "va": "top", "ha": "left", "transform": below}
    axes.figure.text(0, 0, "\n".join(lines).replace("$", r"\$"), **how)


def in_words(one: Series) -> str:
    def at(i: int) -> str:
        between = "" if one.low is None else f" ({number(one.low[i])} to {number(one.high[i])})"
        return f"{number(one.y[i])}{between} at {in_plain(one.x[i])}"

    ends = f"{at(0)}, {at(len(one.x) - 1)}" if len(one.x) > 1 else at(0)
    return f"{one.label} {ends}".strip()


def frame(one: Series, xlabel: str, ylabel: str) -> Any:
    import pandas

    what = "points" if isinstance(one, Points) else "line"
    values = {"series": one.label, xlabel or "x": one.x, ylabel or "y": one.y}
    bounds = {} if one.low is None else {"low": one.low, "high": one.high}
    return pandas.DataFrame({**values, **bounds, "what": what})


@dataclass(frozen=True)
class Effect:
    """values: one a seed, in the unit of the axis. Raises ValueError for none."""

    group: str
    label: str
    values: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.atleast_1d(np.asarray(self.values, float)))
        if not len(self.values):
            raise ValueError(f"{self.group} {self.label!r} has no value; give one a seed.")

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{signed(self.mean)} (one seed)"
        return f"{signed(self.mean)} ({signed(self.values.min())} to {signed(self.values.max())})"


def signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # 0.0 takes the sign of what rounds to -0


def effects(
    rows: Sequence[Effect], *, xlabel: str, title: str = "", zero: str = "", note: str = "", alt: str = ""
) -> Picture:
    """A row for each effect: each seed as a mark, the mean, the range of the seeds. Groups in the order of their first.

    zero: what the line at 0 stands for. Raises ValueError for no row.
    """
    groups: dict[str, list[Effect]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    if not groups:
        raise ValueError("there is nothing to draw; give Effect(group, label, values).")
    count = len(rows) + sum(bool(group) for group in groups)

    def make(theme: Theme) -> Figure:
        figure, axes = plot(theme, title, 1.1 + 0.29 * count, xlabel=xlabel)
        names, heads, at = {}, {}, itertools.count()
        ends = [value for row in rows for value in row.values]
        for position, (group, members) in enumerate(groups.items()):
            colour, _, mark = theme.lines[position % len(theme.lines)]
            if group:
                heads[y := next(at)] = group
                axes.axhspan(y - 0.5, y + 0.5, color=theme.tint("grey", 0.14), linewidth=0, zorder=0)
            for row in members:
                names[y := next(at)] = row.label
                line = {"color": colour, "linewidth": 2, "solid_capstyle": "butt"}
                axes.plot([row.values.min(), row.values.max()], [y, y], **line)
                each = {"marker": "|", "color": colour, "markersize": 9, "linestyle": "none", "markeredgewidth": 1.4}
                axes.plot(row.values, [y] * len(row.values), **each)
                axes.plot([row.mean], [y], marker=mark, color=colour, markersize=7, zorder=3)
                axes.annotate(signed(row.mean), (1.01, y), xycoords=("axes fraction", "data"), va="center", size=9.5)
        axes.axvline(0, color=theme.ink, linewidth=1, zorder=1)
        if zero:
            axes.annotate(fit(f"0: {zero}", 5, 9), (0, 1.0), xycoords=("data", "axes fraction"), xytext=(4, 3),
                          textcoords="offset points", size=9, va="bottom")  # fmt: skip
        axes.set_yticks(
            [*names, *heads], [fit(text, 3.2, 11).replace("$", r"\$") for text in [*names.values(), *heads.values()]]
        )
        for tick, y in zip(axes.get_yticklabels(), [*names, *heads], strict=True):
            tick.set_fontweight("bold" if y in heads else "normal")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(count - 0.5, -0.5)
        low, high = min(0, *ends), max(0, *ends)
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.grid(axis="x", linewidth=0.6)
        if zero:
            axes.set_title(title.replace("$", r"\$"), pad=18)
        remark(axes, theme, note)
        return figure

    def table() -> Any:
        import pandas

        columns: Mapping[str, Any] = {
            "group": [row.group for row in rows],
            "label": [row.label for row in rows],
            "mean": [row.mean for row in rows],
            "lowest": [row.values.min() for row in rows],
            "highest": [row.values.max() for row in rows],
            "seeds": [len(row.values) for row in rows],
        }
        return pandas.DataFrame(columns)

    said = "; ".join(f"{f'{row.group}, ' if row.group else ''}{row.label} {row}" for row in rows)
    return Picture(
        make, " ".join(filter(None, [f"{title}." if title else "", f"{xlabel}: {said}.", alt])), table, title
    )
