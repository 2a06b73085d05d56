"""The scaling pictures: counts, curves, fits with their bands, parabolas at equal FLOPs and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..canvas import Theme
from ..charts import Line, Points, chart, plain
from ..fits import HOFFMANN, KAPLAN, Array
from ..isoflop import Parabola, fitted_parabola, parabola_bias
from ..measured import Runs, read, runs
from ..picture import Picture
from ..plots import plot
from ..published import Law, short
from ..scaling import Fit, fit, obstacle
from .source import made_by

NATS = "validation loss, nats per token"
AXES = {
    "tokens": "tokens trained on",
    "flops": "FLOPs of the training, forward and backward (B = billion, T = trillion)",
    "parameters": "parameters",
}
FEWEST = 4  # sizes at equal FLOPs that leave something over to test a parabola with


# Counts


def counts(sizes: Mapping[str, tuple[int, int]], title: str = "Body, and all parameters") -> Picture:
    """{model: (parameters, those of the body)}: both on a logarithmic axis, and the embeddings' share in figures.

    Raises ValueError for none, and for a body that is larger than the whole.
    """
    if not sizes:
        raise ValueError("there is no model to count; give {name: (parameters, body)}.")
    if wrong := [name for name, (total, body) in sizes.items() if not 0 < body <= total]:
        raise ValueError(f"{wrong[0]} has (parameters, body) {sizes[wrong[0]]}; the body is a part of all.")
    share = {name: 1 - body / total for name, (total, body) in sizes.items()}

    def make(theme: Theme) -> Figure:
        figure, axes = plot(theme, title, 1.2 + 0.36 * len(sizes), xlabel="parameters")
        blue, red = theme.lines[0][0], theme.lines[1][0]
        axes.set_xscale("log")
        for y, (name, (total, body)) in enumerate(sizes.items()):
            axes.plot([body, total], [y, y], color=theme.grey, linewidth=2, zorder=1)
            axes.plot([body], [y], "o", color=blue, markersize=7, label="" if y else "body")
            axes.plot([total], [y], "s", color=red, markersize=7, label="" if y else "all: body and embeddings")
            text = f"{short(body)} of {short(total)}: {share[name]:.0%} embeddings"
            axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", size=9.5)
        axes.set_yticks(range(len(sizes)), [name.replace("$", r"\$") for name in sizes])
        axes.set_ylim(len(sizes) - 0.5, -0.5)
        axes.margins(x=0.05)
        plain(axes.xaxis, True)
        axes.grid(axis="x", linewidth=0.6)
        # Outside: within, it would hide a row.
        axes.legend(frameon=False, fontsize=9.5, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderpad=0)
        return figure

    def table() -> pd.DataFrame:
        rows = {name: (*pair, pair[0] - pair[1], share[name]) for name, pair in sizes.items()}
        return pd.DataFrame.from_dict(rows, "index", columns=["parameters", "body", "embeddings", "share"])

    said = "; ".join(f"{n} {short(b)} of {short(t)} ({share[n]:.0%} embeddings)" for n, (t, b) in sizes.items())
    return Picture(make, f"{title}. Body of all parameters: {said}.", table, title)


def ladder_counts(ladder: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Of each size of a ladder, {its width: (parameters, body)}."""
    first = ladder.drop_duplicates("d_model").sort_values("parameters")
    return {
        f"ladder, width {w}": (int(n), int(b))
        for w, n, b in zip(first["d_model"], first["parameters"], first["body_parameters"], strict=True)
    }


# Curves


def curves(ladder: pd.DataFrame, points: pd.DataFrame, *, skip: int = 2) -> Picture:
    """Training loss against tokens, of the longest run of each size (first seed). skip: points of the first descent."""
    lines = []
    for size, rows in ladder[ladder["seed"] == ladder["seed"].min()].groupby("parameters"):
        longest = rows.sort_values("tokens").iloc[-1]
        mine = points[(points["run"] == longest["run"]) & points["training_loss"].notna()].iloc[skip:]
        if len(mine):
            lines.append(Line(f"{short(size)} parameters", mine["tokens"], mine["training_loss"]))
    note = "Each point is the mean since the one before. The fall at the end of a curve is that of the rate.\n"
    return chart(
        lines,
        xlabel=AXES["tokens"],
        ylabel="training loss, nats per token",
        title="The longest training of each size",
        logx=True,
        note=note + made_by(ladder, "ladder_curves"),
    )


def ends(table: pd.DataFrame, against: str = "tokens", name: str = "ladder", note: str = "") -> Picture:
    """The loss at the end of each run, by size, against "tokens" or "flops"; with bars for the range of several seeds.

    Against FLOPs, the lowest so far is drawn too (see `envelope`). `note`: whole lines to say below the picture as
    well. Raises ValueError for another axis.
    """
    if against not in ("tokens", "flops"):
        raise ValueError(f"against is {against!r}; it is 'tokens' or 'flops'.")
    series, several = [], table["seed"].nunique() > 1
    for size, rows in table.groupby("parameters"):
        by, label = rows.groupby(against)["loss"].agg(["mean", "min", "max"]).reset_index(), f"{short(size)} parameters"
        series.append(Points(label, by[against], by["mean"], *((by["min"], by["max"]) if several else ())))
        series += [Line(label, by[against], by["mean"])] * (len(by) > 1)  # no line where there is one point
    alt = ""
    if against == "flops" and (lowest := envelope(table)) is not None:
        series.append(Line("lowest so far", lowest["flops"], lowest["loss"], framed=True))
        best = [f"{short(n)} with {short(c)}" for c, n in lowest.iloc[[0, -1]][["flops", "parameters"]].to_numpy()]
        alt = f"The size of the lowest loss: {best[0]} FLOPs, {best[1]} FLOPs."
    bars = "; bars are the range of the seeds" if several else ""
    note = f"Each point ends a schedule of its own. Lines join the runs of one size{bars}.\n{note}"
    return chart(
        series,
        xlabel=AXES[against],
        ylabel=NATS,
        logx=True,
        title=f"Loss against {'FLOPs' if against == 'flops' else 'tokens'}, by size",
        note=note + made_by(table, name),
        alt=alt,
    )


def interpolated(table: pd.DataFrame, flops: Array) -> pd.DataFrame:
    """Loss and tokens of each size at these FLOPs, straight between its runs' logarithms (seeds averaged), and none
    beyond them; columns parameters, flops, tokens, loss."""
    rows = []
    for size, mine in table.groupby("parameters"):
        mean = mine.groupby("flops")[["tokens", "loss"]].mean()
        known = np.log(mean.index.to_numpy(float))
        inside = flops[(np.log(flops) >= known[0] - 1e-9) & (np.log(flops) <= known[-1] + 1e-9)]
        loss, tokens = (np.exp(np.interp(np.log(inside), known, np.log(mean[name]))) for name in ("loss", "tokens"))
        rows += [(size, c, d, y) for c, d, y in zip(inside, tokens, loss, strict=True)]
    return pd.DataFrame(rows, columns=["parameters", "flops", "tokens", "loss"])


def envelope(table: pd.DataFrame, sizes: int = 3) -> pd.DataFrame | None:
    """The lowest loss that any size had reached with so many FLOPs or fewer, and that size; columns as `interpolated`.

    From the first FLOPs on at which so many sizes were run; None where there are none. Where the best size was run no
    longer, it stays level until another is lower.
    """
    own = table["flops"].to_numpy(float)
    found = interpolated(table, np.unique([*own, *np.geomspace(own.min(), own.max(), 200)]))
    shared = found["flops"][found.groupby("flops")["loss"].transform("size") >= sizes]
    if shared.empty:
        return None
    lowest = found.loc[found.groupby("flops")["loss"].idxmin()].reset_index(drop=True)
    held = lowest.loc[[lowest["loss"][: row + 1].idxmin() for row in lowest.index]].reset_index(drop=True)
    return held.assign(flops=lowest["flops"])[lowest["flops"] >= shared.min()].reset_index(drop=True)


# Fits


def fitted(found: Fit, by: str = "parameters", *, count: str = "all parameters", note: str = "") -> Picture:
    """The runs of a fit, its curve and the band of the curve, against "parameters" or "tokens"; a line for each value
    of the other. count: what was counted as a parameter. Raises ValueError for an axis that the form does not have.
    """
    names = {"N": "parameters", "D": "tokens"}
    has = [names[variable] for variable in found.form.variables]
    if by not in has:
        raise ValueError(f"by is {by!r}; {found.form.formula} has {' and '.join(has)}.")
    other = next((name for name in has if name != by), None)
    sample, series = found.runs, []
    x = np.geomspace(getattr(sample, by).min(), getattr(sample, by).max() * 1.3, 60)
    levels = [None] if other is None else sorted(set(np.round(getattr(sample, other)).astype(int)))
    for level in levels:
        mine = sample if level is None else sample.where(np.round(getattr(sample, other)) == level)
        at = {by: x, **({} if other is None else {other: float(level)})}
        n, d = at.get("parameters", 1.0), at.get("tokens", 1.0)
        low, high = (None, None) if found.draws is None else found.band(*np.broadcast_arrays(n, d))
        label = "runs and fit" if level is None else f"{short(level)} {other}"
        line = Line(label, x, found.loss(*np.broadcast_arrays(n, d)), low, high)
        series += [Points(label, getattr(mine, by), mine.loss), line]
    band = f"Bands: {found.level:.0%} of the curve." if found.reason is None else f"No band: {found.reason}."
    constants = ", ".join(f"{name} {estimate}" for name, estimate in found.constants.items())
    return chart(
        series,
        xlabel=f"{by} ({count})" if by == "parameters" else AXES["tokens"],
        ylabel=NATS,
        logx=True,
        title=found.form.formula,
        note=f"{len(sample)} runs; form: {found.form.source}. {band} {note}".strip(),
        alt=f"Constants: {constants}. {band}",
    )


# As committed figures: tables alone go in


def by_flops(ladder: pd.DataFrame) -> Picture:
    return ends(ladder, "flops")


def ladder_fit(ladder: pd.DataFrame) -> Picture:
    """Hoffmann's form over the ladder; Kaplan's, which has fewer constants, where the runs cannot test that one.

    Raises ValueError where the runs determine neither.
    """
    sample = read(ladder)
    form = HOFFMANN if obstacle(HOFFMANN, sample) == (None, None) else KAPLAN
    return fitted(fit(sample, form), note=made_by(ladder, "ladder"))


# At equal FLOPs


def at_equal_flops(table: pd.DataFrame, count: int = 3) -> Runs:
    """Runs of a ladder brought to common FLOPs, where four sizes or more have them between two of their own budgets.

    They are interpolated, and neighbours share a run: no new evidence. Raises ValueError where there are no such FLOPs.
    """
    spans = table.groupby("parameters")["flops"].agg(["min", "max"]).to_numpy(float)
    grid = np.geomspace(spans.min(), spans.max(), 400)
    covered = grid[((spans[:, :1] <= grid) & (grid <= spans[:, 1:])).sum(0) >= FEWEST]
    if not len(covered):
        raise ValueError(f"nowhere have {FEWEST} sizes the same FLOPs between two of their budgets; add budgets.")
    found = interpolated(table, np.geomspace(covered[0], covered[-1], count))
    enough = found.groupby("flops")["loss"].transform("size") >= FEWEST
    return runs(*(found[enough][name] for name in ("parameters", "tokens", "loss")), flops=found[enough]["flops"])


def parabolas_of(sample: Runs) -> list[Parabola]:
    """One for each number of FLOPs at which three sizes or more are."""
    found = []
    for flops in np.unique(sample.flops):
        at = np.flatnonzero(sample.flops == flops)
        if len(np.unique(sample.parameters[at])) >= 3:
            found.append(fitted_parabola(sample, at))
    return found


def parabolas(sample: Runs, note: str = "", count: str = "all parameters") -> Picture:
    """Loss against parameters at each number of FLOPs, the parabola through log N, and its lowest point."""
    series: list[Line | Points] = []
    found = parabolas_of(sample)
    for parabola in found:
        mine = sample.where(sample.flops == sample.flops[np.abs(np.log(sample.flops / parabola.flops)).argmin()])
        x = np.geomspace(mine.parameters.min(), mine.parameters.max(), 60)
        label = f"{short(parabola.flops)} FLOPs"
        line = Line(label, x, np.polyval(parabola.curve, np.log(x)))
        series += [Points(label, mine.parameters, mine.loss), line]
    if lows := [parabola for parabola in found if parabola.inside]:
        at = [low.parameters for low in lows], [low.loss for low in lows]
        series.append(Points("lowest of a parabola", *at, framed=True))
    outside, every = len(found) - len(lows), len(found)
    said = f" {outside} of {every} parabolas have their lowest point beyond the sizes that were run." if outside else ""
    return chart(
        series,
        xlabel=f"parameters ({count})",
        ylabel=NATS,
        logx=True,
        title="Parabolas at equal FLOPs",
        note=f"{note}{said}".strip(),
        alt=said.strip(),
    )


def bias(law: Law, flops: float, width: float, points: int = 9) -> Picture:
    """Approach 2 without noise on a known law: sizes from N / width to N x width about the true optimum N, the parabola
    through them and both lowest points. Raises ValueError for a width that is no factor above 1."""
    if not width > 1:
        raise ValueError(f"width is {width}; it is a factor above 1.")
    true = law.optimal(flops)[0]
    spots, x = (true * np.geomspace(1 / width, width, count) for count in (points, 200))
    at, line = (np.array([law.loss(n, flops / (6 * n)) for n in sizes]) for sizes in (spots, x))
    parabola = fitted_parabola(runs(spots, flops / (6 * spots), at, flops=np.full(points, flops)), np.arange(points))
    ratio = float(parabola_bias(law, [flops, 10 * flops], width=width, points=points).found[0] / true)
    series = [
        Points("the law, and the sizes that are run", spots, at),
        Line("the law, and the sizes that are run", x, line),
        Line("the parabola", x, np.polyval(parabola.curve, np.log(x))),
        Points("lowest of the law", [true], [law.loss(true, flops / (6 * true))], framed=True),
        Points("lowest of the parabola", [parabola.parameters], [parabola.loss], framed=True),
    ]
    return chart(
        series,
        logx=True,
        xlabel=AXES["parameters"],
        ylabel="loss, nats per token",
        title=f"No noise, and the parabola's optimum is {ratio:.3f} times the true one",
        note=f"Truth: {law.source}, at {flops:.3g} FLOPs; sizes from 1/{width:g} to {width:g} times the optimum.",
    )


def bias_by_width(
    laws: Mapping[str, Law], flops: float, widths: Sequence[float] = (1.5, 2, 4, 8, 16, 32, 64)
) -> Picture:
    """By what factor approach 2 misses the optimum of each law without any noise, by the width of its sizes."""
    lines = []
    for name, law in laws.items():
        found = [parabola_bias(law, [flops, 10 * flops], width=width) for width in widths]
        lines.append(Line(name, widths, [bias.found[0] / bias.true[0] for bias in found]))
    return chart(
        lines,
        xlabel="largest size over the true optimum (and that over the smallest)",
        ylabel="found optimum over the true one",
        title="The parabola's bias, by the width of the sizes",
        logx=True,
        note=f"No noise, 9 sizes at {flops:.3g} FLOPs. Hoffmann et al. 2022, approach 2, on laws that are known.",
    )
