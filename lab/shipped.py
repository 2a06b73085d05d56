"""The tables that come with the project: the measured runs in figures/data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER = Path(__file__).resolve().parents[1] / "figures" / "data"
COMMANDS = {"prediction_runs": "prediction"}  # tables that another experiment than that of their name writes


def path(name: str) -> Path:
    """figures/data/NAME.csv. Raises FileNotFoundError, with the command that measures it, where it is not there."""
    found = FOLDER / f"{name}.csv"
    if found.is_file():
        return found
    experiment = COMMANDS.get(name, name.removesuffix("_curves"))
    there = ", ".join(sorted(file.stem for file in FOLDER.glob("*.csv"))) or "none"
    raise FileNotFoundError(
        f"there is no table {name!r} in {FOLDER} (there: {there}). It comes with a checkout of the project; a run is "
        f"added by `python -m lab experiment {experiment} --out runs`, then the same with `--collect figures/data`."
    )


def table(name: str) -> DataFrame:
    """The table as a DataFrame, a row a run (or, in NAME_curves, a point of its curve). Raises what `path` raises."""
    import pandas

    return pandas.read_csv(path(name))
