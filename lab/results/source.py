"""Where the runs of a picture come from."""

from __future__ import annotations

import pandas as pd


def made_by(table: pd.DataFrame, name: str) -> str:
    """Where a picture's runs come from."""
    seeds = sorted(int(seed) for seed in table["seed"].unique())
    corpora = ", ".join(sorted({text.rpartition(" ")[0] for text in table["corpus"]}))
    seed = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"Source: figures/data/{name}.csv, {len(table)} runs of the lab's trainer on {corpora}, {seed}."
