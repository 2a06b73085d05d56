"""What was expected of a run, beside what it gave: the registered prediction, and the review's three sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..charts import Line, Points, chart
from ..picture import Picture
from ..presets import GPT2_VOCABULARY
from ..published import LAWS, Law, short
from ..scaling import Fit
from .scaling import AXES, NATS, ends
from .source import made_by


def verdicts(registered: pd.DataFrame, measured: pd.DataFrame | None) -> pd.DataFrame:
    """Each registered run with its measured loss, NaN where it was not run yet, and what came of the prediction."""
    losses = {} if measured is None else measured.groupby("run")["loss"].mean().to_dict()
    found = registered.assign(measured=[losses.get(run, math.nan) for run in registered["run"]])

    def verdict(row: Any) -> str:
        if math.isnan(row.measured):
            return "not run yet"
        if math.isnan(row.low):
            return f"no interval was predicted: {row.reason}"
        if row.low <= row.measured <= row.high:
            return "inside"
        return f"outside, {'above' if row.measured > row.high else 'below'}"

    return found.assign(verdict=[verdict(row) for row in found.itertuples()])


def prediction(registered: pd.DataFrame, measured: pd.DataFrame | None) -> Picture:
    """What was predicted, with its interval, and what was measured: by tokens, of the run that the fit did not see."""
    found = verdicts(registered, measured).sort_values("tokens")
    interval = found["low"].notna().all()
    level = f"{found['level'].iloc[0]:.0%} interval" if interval else "no interval"
    bars = (found["low"], found["high"]) if interval else (None, None)
    label = f"predicted before the run, {level}"
    series = [Points(label, found["tokens"], found["predicted"], *bars, framed=True)]
    there = found[found["measured"].notna()]
    if len(there):
        series.append(Points("measured", there["tokens"], there["measured"]))
    said = "; ".join(f"{row.run}: {row.verdict}" for row in found.itertuples())
    return chart(
        series,
        logx=True,
        xlabel=AXES["tokens"],
        ylabel=NATS,
        title=f"{short(found['parameters'].iloc[0])} parameters, predicted {'and measured' if len(there) else 'only'}",
        note="Source: figures/data/prediction.csv, written before the run, and prediction_runs.csv.",
        alt=f"{said}.",
    )


# The review's sizes


def expected(sizes: pd.DataFrame, laws: Mapping[str, Law | Fit]) -> pd.DataFrame:
    """Of each run: size, tokens, what was measured, what each law expects of all its parameters, and the difference,
    in nats per token."""
    found = sizes.sort_values(["tokens", "parameters"])[["run", "parameters", "tokens", "loss"]].reset_index(drop=True)
    for name, law in laws.items():
        losses = [float(np.squeeze(law.loss(n, d))) for n, d in zip(found["parameters"], found["tokens"], strict=True)]
        found[name] = losses
    return found.rename(columns={"loss": "measured"})


def common_tokens(sizes: pd.DataFrame) -> int:
    """The largest budget that the most sizes have."""
    have = sizes.groupby("tokens")["parameters"].nunique()
    return int(have[have == have.max()].index.max())


def beside_laws(
    sizes: pd.DataFrame, laws: Mapping[str, Law | Fit], vocabulary: int | None = None, name: str = "sizes"
) -> Picture:
    """What was measured at the budget that most sizes have, and what each law expects there: points, and lines.

    vocabulary: draw the loss of one who guesses among so many tokens.
    """
    tokens = common_tokens(sizes)
    mine = sizes[sizes["tokens"] == tokens].sort_values("parameters")
    x = np.geomspace(mine["parameters"].min() / 2, mine["parameters"].max() * 2, 50)
    series: list[Line | Points] = [Points("measured", mine["parameters"], mine["loss"])]
    for label, law in laws.items():
        losses = np.array([float(np.squeeze(law.loss(n, float(tokens)))) for n in x])
        low, high = law.band(x, float(tokens)) if isinstance(law, Fit) and law.draws is not None else (None, None)
        series.append(Line(label, x, losses, low, high))
    if vocabulary is not None:
        label = f"guessing, ln {vocabulary:,}"
        series.append(Line(label, x, np.full(len(x), math.log(vocabulary))))
    note = "The laws are asked far outside their own runs; each is in nats per token of its own tokenizer.\n"
    return chart(
        series,
        logx=True,
        xlabel="parameters (all)",
        ylabel="loss, nats per token",
        title=f"{short(tokens)} tokens: measured, and what laws expect",
        note=note + recipes(mine) + made_by(mine, name),
    )


def recipes(sizes: pd.DataFrame) -> str:
    """Where the sizes differ in more than size, each one's peak rate and context; a line, or nothing."""
    how = sizes.drop_duplicates("parameters")[["parameters", "rate", "context"]]
    if (how[["rate", "context"]].nunique() == 1).all():
        return ""
    each = "; ".join(f"{short(n)} {rate:g}, {int(context):,}" for n, rate, context in how.itertuples(index=False))
    return f"Peak rate and context differ as well: {each}.\n"


def review_sizes(sizes: pd.DataFrame) -> Picture:
    """As a committed figure: the presets on wiki2015, beside the published laws."""
    return beside_laws(on_wiki2015(sizes), {law.source: law for law in LAWS}, GPT2_VOCABULARY)


def review_tokens(sizes: pd.DataFrame) -> Picture:
    """As a committed figure: the presets on wiki2015, each as far as it was run."""
    mine = on_wiki2015(sizes)
    return ends(mine, name="sizes", note=recipes(mine))


def on_wiki2015(sizes: pd.DataFrame) -> pd.DataFrame:
    """The runs that read no token twice, on the corpus that all of them have."""
    return sizes[sizes["corpus"].str.startswith("wiki2015")]


def bytes_per_token(table: pd.DataFrame) -> float:
    """Of the text that its runs were validated on."""
    return float((table["loss"] / math.log(2) / table["bits_per_byte"]).median())


def in_bits_per_byte(sizes: pd.DataFrame, ladder: pd.DataFrame, found: Fit, size: str = "parameters") -> pd.DataFrame:
    """What a ladder's fit expects of runs with another tokenizer, in the one unit that both have.

    A token of theirs holds other bytes than one of the ladder, so the fit is asked about as many bytes, and its nats
    are shared out among them. size: the column that the fit counts by, "parameters" or "body_parameters".
    """
    own, theirs = bytes_per_token(ladder), bytes_per_token(sizes)
    found_at = sizes.sort_values(["tokens", "parameters"])
    losses = found.loss(found_at[size].to_numpy(float), found_at["tokens"].to_numpy(float) * theirs / own)
    columns = {"measured": found_at["bits_per_byte"].to_numpy(), "expected": losses / math.log(2) / own}
    return found_at[["run", "parameters", "body_parameters", "tokens"]].reset_index(drop=True).assign(**columns)
