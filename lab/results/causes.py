"""What each cause costs: arms against their reference in nats, with what the seeds allow to say, and the pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..charts import Effect, Line, Points, chart, effects
from ..picture import Picture
from .source import made_by

if TYPE_CHECKING:
    from pandas import DataFrame

# What an arm is compared with, and by which column: experiments.causes says why. Those not named: the base, `loss`.
REFERENCE = {"context": ("128 packed", "rows_loss"), "eos": ("learned", "rows_loss"), "dropout": ("0.2", "loss")}
BASE = "base"
GROUPS = {
    "d_ff": "feed-forward layer, 4x in the base",
    "warmup": "warmup, 5% in the base",
    "rate": "peak rate, 0.003 in the base",
    "head": "head, tied in the base",
    "context": "context, 128 packed as the reference",
    "eos": "end of a row, learned as the reference",
    "dropout": "dropout, 0.2 as the reference",
}
# Student's t: of two equal arms, one pair in twenty differs by more standard errors. By degrees of freedom.
CRITICAL = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
WITHIN = "Marks: one seed each. Line: their range. A reference stands at 0 with its own seeds around it."


def critical(freedom: int) -> float:
    """How many standard errors a difference must exceed (95 %), for the seeds of both arms less two.

    Above 10 that of 10, which is stricter than it must be. Raises ValueError for less than 1.
    """
    if freedom < 1:
        raise ValueError(f"degrees of freedom are {freedom}; two arms of two seeds have 2.")
    return CRITICAL[min(freedom, max(CRITICAL))]


@dataclass(frozen=True)
class Difference:
    """arm less reference, in the unit of the losses. mean: of the means. low, high: its 95 % interval, None with one
    seed a side, of which nothing can be said. seeds: of the reference, of the arm."""

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, int]

    @property
    def clear(self) -> bool:
        """The interval does not hold 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        seeds = "one seed each" if self.seeds == (1, 1) else f"seeds {self.seeds[0]} and {self.seeds[1]}"
        between = "no interval" if self.low is None else f"95% {self.low:+.3f} to {self.high:+.3f}"
        return f"{self.mean:+.3f} nats ({between}; {seeds})"


def difference(reference: Sequence[float], arm: Sequence[float]) -> Difference:
    """Of two arms with one loss a seed: Student's interval with the pooled spread of both.

    Raises ValueError for an arm without a value.
    """
    counts = len(reference), len(arm)
    if not all(counts):
        raise ValueError(f"the arms have {counts[0]} and {counts[1]} values; each needs one at least.")
    a, b = np.asarray(reference, float), np.asarray(arm, float)
    mean = float(b.mean() - a.mean())
    if min(counts) < 2:
        return Difference(mean, None, None, counts)
    freedom = sum(counts) - 2
    pooled = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / freedom
    reach = critical(freedom) * math.sqrt(pooled * (1 / counts[0] + 1 / counts[1]))
    return Difference(mean, mean - reach, mean + reach, counts)


def losses(frame: DataFrame, cause: str, arm: str, column: str = "loss") -> list[float]:
    """One a seed, in the order of the seeds; empty where the arm has no run or was not asked for that column."""
    if column not in frame:
        return []
    rows = frame[(frame["cause"] == cause) & (frame["arm"].astype(str) == arm)].sort_values("seed")
    return rows[column].dropna().tolist()


def reference_of(frame: DataFrame, cause: str) -> tuple[list[float], str, str]:
    """(losses, name of the arm, column) that the arms of a cause are compared with."""
    if cause in REFERENCE:
        arm, column = REFERENCE[cause]
        return losses(frame, cause, arm, column), arm, column
    return losses(frame, BASE, BASE), BASE, "loss"


def cost(frame: DataFrame, cause: str, arm: str, than: str | None = None, column: str | None = None) -> Difference:
    """How much more loss an arm has than its reference, or than another arm of the same cause.

    Raises ValueError where one of them has no run yet, naming the command.
    """
    values, name, known = reference_of(frame, cause)
    column = column or known
    if than is not None:
        values, name = losses(frame, cause, than, column), than
    elif column != known:
        values = losses(frame, cause, name, column)
    own = losses(frame, cause, arm, column)
    for has, wanted in ((values, name), (own, arm)):
        if not has:
            raise ValueError(
                f"there is no run of {wanted!r} ({cause}) with {column}; run `python -m lab experiment causes --out "
                f"runs` and collect it."
            )
    return difference(values, own)


def bits_per_nat(frame: DataFrame) -> float:
    """Bits per byte that one nat per token is, on the text that the runs were validated on."""
    return float((frame["bits_per_byte"] / frame["loss"]).median())


def ranking(frame: DataFrame) -> DataFrame:
    """A row an arm, the most expensive first: cost in nats with its interval, the factor of the perplexity, bits per
    byte, and the arm's own loss and perplexity. `clear`: the interval does not hold 0."""
    import pandas

    rows = []
    for cause, arm in frame[["cause", "arm"]].astype(str).drop_duplicates().itertuples(index=False):
        values, name, column = reference_of(frame, cause)
        own = losses(frame, cause, arm, column)
        if arm == name or not own or not values:
            continue
        found, mean = difference(values, own), float(np.mean(own))
        rows.append(
            {
                "cause": cause,
                "arm": arm,
                "against": name,
                "seeds": len(own),
                "nats": found.mean,
                "low": found.low,
                "high": found.high,
                "clear": found.clear,
                "times perplexity": math.exp(found.mean),
                "bits per byte": found.mean * bits_per_nat(frame[frame["cause"].astype(str) == cause]),
                "loss": mean,
                "perplexity": math.exp(mean),
            }
        )
    if not rows:
        raise ValueError("no arm has a run of its reference beside it; collect the runs of `lab experiment causes`.")
    found = pandas.DataFrame(rows).astype({"low": float, "high": float})
    return found.sort_values("nats", ascending=False, ignore_index=True)


def scale(frame: DataFrame) -> str:
    """In words, how small the runs are."""
    base = frame[frame["cause"] == BASE]
    one = (base if len(base) else frame).iloc[0]
    return (
        f"{one['parameters'] / 1e6:.2f}M parameters, {one['body_parameters'] / 1e6:.2f}M of them without embeddings; "
        f"{one['steps'] * one['batch_tokens'] / 1e6:.2f}M positions of {str(one['corpus']).split()[0]}, "
        f"{frame['seed'].nunique()} seed{'s' if frame['seed'].nunique() > 1 else ''}"
    )


def foot(frame: DataFrame, drawn: DataFrame) -> str:
    """Under a picture: where the runs that it draws come from, and how small all of them are."""
    return f"{made_by(drawn, 'causes')}\nScale: {scale(frame)}."


def ranked(frame: DataFrame) -> Picture:
    """What each change costs, one row an arm, the groups by their most expensive arm."""
    table = ranking(frame)
    rows = []
    for cause in dict.fromkeys(table["cause"]):
        values, name, column = reference_of(frame, cause)
        centre = float(np.mean(values))
        rows.append(Effect(GROUPS.get(cause, cause), name, [value - centre for value in values]))
        for arm in table[table["cause"] == cause]["arm"]:
            own = [value - centre for value in losses(frame, cause, arm, column)]
            rows.append(Effect(GROUPS.get(cause, cause), arm, own))
    factor, bits = math.exp(0.1), 0.1 * bits_per_nat(frame)
    note = (
        f"{WITHIN}\n0.1 nats per token is {factor - 1:.1%} of perplexity, and {bits:.3f} bits per byte of this text.\n"
        f"Context and end of a row: the loss of rows read alone; else that of the stream.\n{foot(frame, frame)}"
    )
    clear = table[table["clear"]]
    said = "; ".join(f"{row.cause} {row.arm} {row.nats:+.2f}" for row in clear.itertuples()) or "none"
    return effects(
        rows,
        xlabel="nats per token, validation, more than the reference",
        title="What each change costs alone",
        zero="the reference",
        note=note,
        alt=f"Clear of the seeds' spread: {said}.",
    )


def spread(frame: DataFrame, cause: str, arms: Sequence[str], column: str) -> tuple[list[float], ...]:
    """Mean, lowest and highest of each arm over its seeds."""
    found = [losses(frame, cause, arm, column) for arm in arms]
    return [float(np.mean(one)) for one in found], [min(one) for one in found], [max(one) for one in found]


def context(frame: DataFrame) -> Picture:
    """The loss of rows read alone, by the context that was trained with, rows packed and rows cut and padded."""
    series = []
    for layout, label in (("padded", "rows cut and padded"), ("packed", "rows packed")):
        lengths = [n for n in (64, 128, 256, 512) if losses(frame, "context", f"{n} {layout}", "rows_loss")]
        if lengths:
            mean, low, high = spread(frame, "context", [f"{n} {layout}" for n in lengths], "rows_loss")
            series.append(Line(label, lengths, mean))
            series.append(Points(label, lengths, mean, low, high))
    return chart(
        series,
        xlabel="context, tokens",
        ylabel="nats per token of rows read alone",
        title="Context: long rows against packed rows",
        logx=True,
        note="Bars: range of the seeds. The same number of positions in every run.\n"
        + foot(frame, frame[frame["cause"] == "context"]),
        alt=real_tokens(frame),
    )


def real_tokens(frame: DataFrame) -> str:
    """The tokens that each arm of the context trained on, of its positions."""
    rows = frame[frame["cause"] == "context"].drop_duplicates("arm").sort_values(["layout", "context"])
    shares = rows["tokens"] / (rows["steps"] * rows["batch_tokens"])
    said = ", ".join(f"{arm} {share:.0%}" for arm, share in zip(rows["arm"], shares, strict=True))
    return f"Of its positions real tokens, not padding: {said}."


def rates(frame: DataFrame) -> Picture:
    """The loss by the peak rate, the base among them."""
    rows = frame[frame["cause"].isin(["rate", BASE])]
    by_rate = rows.groupby("rate")["loss"]
    means = by_rate.mean()
    at, best, label = list(means.index), float(means.idxmin()), "mean, and range of the seeds"
    return chart(
        [Line(label, at, means.tolist()), Points(label, at, means.tolist(), by_rate.min(), by_rate.max())],
        xlabel="peak learning rate",
        ylabel="nats per token, validation",
        title="The peak rate",
        logx=True,
        note=f"Bars: range of the seeds.\n{foot(frame, rows)}",
        alt=f"The lowest loss is at {best:g}.",
    )


def warmups(frame: DataFrame, curves: DataFrame) -> Picture:
    """The training loss by tokens for each warmup: the mean over the seeds, and their range."""
    rows = frame[frame["cause"].isin(["warmup", BASE])]
    series = []
    for steps, runs in sorted(rows.groupby("warmup_steps")["run"]):
        points = curves[curves["run"].isin(runs)].groupby("tokens")["training_loss"].agg(["mean", "min", "max"])
        total = int(rows["steps"].iloc[0])
        series.append(Line(f"{steps:,} of {total:,} steps", points.index, points["mean"], points["min"], points["max"]))
    return chart(
        series,
        xlabel="training tokens",
        ylabel="nats per token, training",
        title="Warmup",
        note=f"Bands: range of the seeds. A point is the mean of the steps since the one before.\n{foot(frame, rows)}",
    )
