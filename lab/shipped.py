"""The tables that come with the project: the measured runs in figures/data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).resolve().parents[1] / "figures" / "data"


def experiment(name: str) -> str:
    """The experiment that writes a table."""
    return "prediction" if name.startswith("prediction") else name.removesuffix("_curves")


def path(name: str) -> Path:
    """figures/data/NAME.csv. Raises FileNotFoundError, with the command that measures it, where it is not there."""
    found = FOLDER / f"{name}.csv"
    if found.is_file():
        return found
    there = ", ".join(sorted(file.stem for file in FOLDER.glob("*.csv"))) or "none"
    raise FileNotFoundError(
        f"there is no table {name!r} in {FOLDER} (there: {there}). It comes with a checkout of the project; runs are "
        f"added by `python -m lab experiment {experiment(name)} --out runs`, and again with `--collect figures/data`."
    )


def table(name: str) -> DataFrame:
    """The table as a DataFrame, a row a run (or, in NAME_curves, a point of its curve). Raises what `path` raises."""
    import pandas

    return pandas.read_csv(path(name))


def optional(name: str) -> DataFrame | None:
    """The table, None where it is not there yet: a prediction is older than its test."""
    try:
        return table(name)
    except FileNotFoundError:
        return None
