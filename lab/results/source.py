"""Where the runs of a picture come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def made_by(table: DataFrame, name: str) -> str:
    """Where a picture's runs come from."""
    seeds = sorted(int(seed) for seed in table["seed"].unique())
    corpora = ", ".join(sorted({text.rpartition(" ")[0] for text in table["corpus"]}))
    plural = "s" if len(table) > 1 else ""
    seed = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"Source: figures/data/{name}.csv, {len(table)} run{plural} of the lab's trainer on {corpora}, {seed}."
