"""What the shipped runs say of EOS: its probability along the training, and how long generated rows are at the end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .. import draw, shipped
from ..picture import Picture
from .source import made_by

if TYPE_CHECKING:
    from pandas import DataFrame

ARMS = {
    "learned": "learned",
    "ignored": "ignored (pad = EOS)",
    "cut off": "cut off (rows of 32 tokens)",
}
MEASURED = ("eos_at_end", "eos_elsewhere", "generated_tokens", "ended")
COMMAND = "python -m lab experiment causes --out runs --only 'eos-*'"


def runs(table: DataFrame | None = None) -> DataFrame:
    """The runs in which EOS is learned, ignored or cut off, a row each, by arm and seed; of figures/data/causes.csv.

    Raises ValueError, with the command that measures them, where the table has none.
    """
    table = shipped.table("causes") if table is None else table
    found = table[table["cause"] == "eos"] if "eos_at_end" in table else table[:0]
    if not len(found):
        raise ValueError(f"the table holds no run of the cause 'eos'; measure them with `{COMMAND}`.")
    if unknown := sorted(set(found["arm"]) - set(ARMS)):
        raise ValueError(f"an arm of the cause 'eos' is {unknown[0]!r}; the arms are {', '.join(ARMS)}.")
    order = found["arm"].map(list(ARMS).index)
    return found.assign(order=order).sort_values(["order", "seed"]).drop(columns="order").reset_index(drop=True)


def along(table: DataFrame | None = None, curves: DataFrame | None = None) -> DataFrame:
    """Mean, lowest and highest of the seeds at each validation, a row for each arm, step and quantity.

    Columns: arm, step, tokens (the mean of the seeds; an arm that ignores labels trains on fewer), quantity (one of
    MEASURED), mean, low, high, seeds. Raises what `runs` raises, and ValueError where the curves lack those runs.
    """
    import pandas

    chosen = runs(table)
    curves = shipped.table("causes_curves") if curves is None else curves
    points = curves.merge(chosen[["run", "arm"]], on="run")
    points = points.dropna(subset=["eos_at_end"]) if "eos_at_end" in points else points[:0]
    if not len(points):
        raise ValueError(
            f"the curves hold no measurement of EOS along these runs; collect them anew after `{COMMAND}`."
        )
    rows = []
    for (arm, step), group in points.groupby(["arm", "step"]):
        for quantity in MEASURED:
            values = group[quantity]
            about = {"arm": arm, "step": step, "tokens": group["tokens"].mean(), "quantity": quantity}
            rows.append(about | {"mean": values.mean(), "low": values.min(), "high": values.max(), "seeds": len(group)})
    frame = pandas.DataFrame(rows)
    return frame.assign(order=frame["arm"].map(list(ARMS).index)).sort_values(["order", "step"]).drop(columns="order")


def foot(chosen: DataFrame) -> str:
    """Under a picture: where its runs come from, and what they were."""
    first = chosen.iloc[0]
    model = f"{int(first['body_parameters']):,} parameters without embeddings, context {int(first['context'])}"
    return (
        f"{made_by(chosen, 'causes')}\nA line a row, each padded to the context; {model}; {int(first['steps'])} steps "
        f"of {int(first['batch_tokens'])} positions."
    )


def probability(table: DataFrame | None = None, curves: DataFrame | None = None) -> Picture:
    """The mean probability of EOS where a row of the validation ends, and at its other positions, by tokens trained on.

    A line for each arm and place, with the range of the seeds, and one where an untrained model is. Raises what `along`
    raises.
    """
    points, lines, said = along(table, curves), [], []
    for arm, name in ARMS.items():
        for quantity, place in (("eos_at_end", "at the end"), ("eos_elsewhere", "elsewhere")):
            part = points[(points["arm"] == arm) & (points["quantity"] == quantity)]
            if len(part):
                label = f"{name}, {place}"
                lines.append(draw.Line(label, part["tokens"], part["mean"], part["low"], part["high"]))
        ends = points[(points["arm"] == arm) & (points["quantity"] == "eos_at_end")]
        if len(ends):
            said.append(f"{name} {ends['mean'].iloc[-1]:.2g}")
    if found := re.search(r"\bbpe-(\d+)", str(runs(table)["corpus"].iloc[0])):
        span, even = [0, points["tokens"].max()], 1 / int(found[1])
        lines.append(draw.Line("1 / vocabulary, where all begin", span, [even, even]))
    return draw.chart(
        lines,
        xlabel="target tokens trained on",
        ylabel="mean probability of EOS",
        title="The probability of EOS along the training",
        logy=True,
        note=("Bands: the range of the seeds.\n" if points["seeds"].max() > 1 else "") + foot(runs(table)),
        alt=f"Where a row ends, after the last step: {'; '.join(said)}.",
    )


def lengths(table: DataFrame | None = None) -> Picture:
    """After the last step, the mean length of 32 sampled rows against the share of them that ended, a mark a run.

    The length is in tokens without EOS; a row that does not end is as long as the context lets it be. Raises what
    `runs` raises.
    """
    chosen, points, said = runs(table), [], []
    limit = int(chosen["context"].iloc[0]) - 1
    for arm, name in ARMS.items():
        part = chosen[chosen["arm"] == arm]
        if len(part):
            ended, tokens = 100 * part["ended"], part["generated_tokens"]
            points.append(draw.Points(name, ended, tokens))
            said.append(f"{name}: {tokens.mean():.0f} tokens, {ended.mean():.0f} % ended")
    points.append(draw.Line(f"the limit, {limit} tokens", [0, 100], [limit, limit]))
    return draw.chart(
        points,
        xlabel="rows that ended by themselves, %",
        ylabel="tokens of a generated row, mean",
        title="Generated rows after the last step",
        note="32 rows a run, sampled at temperature 1; a mark is a run, and may cover others.\n" + foot(chosen),
        alt=f"Means over the seeds. {'; '.join(said)}.",
    )


def summary(table: DataFrame | None = None) -> DataFrame:
    """A row an arm: the mean over the seeds of what was measured at the end, and of the losses in nats per token.

    `loss` is that of all lines as one stream, whose EOS count; `rows_loss` that of each line read alone. Raises what
    `runs` raises.
    """
    columns = [*MEASURED, "training_loss", "loss", "rows_loss"]
    chosen = runs(table)
    frame = chosen.groupby("arm", sort=False)[columns].mean()
    return frame.assign(seeds=chosen.groupby("arm", sort=False)["seed"].nunique())
