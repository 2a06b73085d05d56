"""Finished runs as a scaling law sees them: parameters, tokens, loss and arithmetic, from a CSV or from sequences."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .config import unknown
from .fits import Array

Source = str | Path | Iterable[Mapping[str, Any]]
LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Estimate:
    """A fitted constant; low and high are None where no interval is justified."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.value:.4g} ({interval})"


def between(draws: Array, level: float = LEVEL) -> tuple[Any, Any]:
    """The middle share `level` of draws (B, ...) -> low, high (...), floats where that is one number."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)


@dataclass(frozen=True)
class Runs:
    """Finished runs: parameters, tokens, loss in nats per token and flops, (n,) each.

    family: runs of one family share more than the law does (a beginning, a seed) and are resampled together.
    distinct: how many of the tokens differ, where some are repeated; None where none are.
    """

    parameters: Array
    tokens: Array
    loss: Array
    flops: Array
    family: np.ndarray
    distinct: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.loss)
        for name in ("parameters", "tokens", "loss", "flops", "distinct"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != n:
                raise ValueError(f"there are {len(values)} {name} and {n} losses; each run needs one.")
            if not (np.isfinite(values) & (values > 0)).all():
                row = int((~(np.isfinite(values) & (values > 0))).argmax())
                raise ValueError(f"{name} of run {row} is {values[row]}; it must be a number above 0.")

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, keep: Any) -> Runs:
        """Those that a boolean array (n,) or a list of indices keeps."""
        return Runs(*(None if v is None else v[keep] for v in vars(self).values()))


def runs(
    parameters: Any, tokens: Any, loss: Any, *, flops: Any = None, family: Any = None, distinct: Any = None
) -> Runs:
    """Runs from sequences. flops: 6 x parameters x tokens by default. family: each run its own by default."""
    n, d, y = (np.asarray(values, float).ravel() for values in (parameters, tokens, loss))
    if not len(n) == len(d) == len(y):
        raise ValueError(f"there are {len(n)} parameters, {len(d)} tokens and {len(y)} losses; they go together.")
    compute = 6 * n * d if flops is None else np.asarray(flops, float).ravel()
    group = np.arange(len(y)) if family is None else np.asarray(family)
    return Runs(n, d, y, compute, group, None if distinct is None else np.asarray(distinct, float).ravel())


def read(
    source: Source, *, size: Literal["total", "body"] = "total", compute: Literal["exact", "6nd"] = "exact"
) -> Runs:
    """The runs of a CSV, a list of mappings or a DataFrame, with the columns of figures/data.

    size: count all parameters, or `body_parameters`, those that are no embedding (Kaplan et al. 2020 count these,
    Hoffmann et al. 2022 all: Pearce and Song 2024). compute: the column `flops`, or 6 x that size x tokens. Where there
    is a column `family`, it says which runs are resampled together; a column `train_tokens`, how many tokens differ.

    Raises ValueError for a column that is not there, and for a number that is none.
    """
    for name, value, known in (("size", size, ["total", "body"]), ("compute", compute, ["exact", "6nd"])):
        if value not in known:
            raise unknown(name, value, known)
    if hasattr(source, "to_dict"):
        source = source.to_dict("records")
    if isinstance(source, str | Path):
        with open(source, encoding="utf-8", newline="") as file:
            source = list(csv.DictReader(file))
    rows = list(source)
    if not rows:
        raise ValueError("there is no run to read; the source has no row.")
    columns = ["parameters" if size == "total" else "body_parameters", "tokens", "loss"]
    if missing := [name for name in [*columns, *(["flops"] if compute == "exact" else [])] if name not in rows[0]]:
        raise ValueError(f"the runs have no column {missing[0]!r}; there are: {', '.join(rows[0])}.")
    flops = [row["flops"] for row in rows] if compute == "exact" else None
    family = [str(row["family"]) for row in rows] if "family" in rows[0] else None
    distinct = [row["train_tokens"] for row in rows] if "train_tokens" in rows[0] else None
    return runs(*([row[name] for row in rows] for name in columns), flops=flops, family=family, distinct=distinct)


def hoffmann_points(path: str | Path, left_out: int = 5) -> Runs:
    """The points of Hoffmann's figure 4 that Besiroglu et al. 2024 read off, without the highest losses, as they do.

    path: scaling/hoffmann2022_figure4.csv of the shared data; its columns are parameters, training_flop, loss.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = [[float(row[name]) for name in ("parameters", "training_flop", "loss")] for row in csv.DictReader(file)]
    n, c, y = np.array(sorted(rows, key=lambda row: row[2])[: len(rows) - left_out]).T
    return runs(n, c / (6 * n), y, flops=c)
