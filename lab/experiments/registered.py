"""Predictions before their runs: what a fit of the ladder expects of the held-out size, written down once."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .. import scaling
from ..checks.shapes import count_parameters
from ..language_model import LanguageModel
from .collect import write
from .plan import Plan

REGISTERED = Path("figures/data/prediction.csv")
LADDER = Path("figures/data/ladder.csv")
COLUMNS = [
    "run", "parameters", "tokens", "predicted", "low", "high", "level", "outside", "reason", "form", "size", "fitted",
]  # fmt: skip


def register(
    plans: Sequence[Plan],
    ladder: Path = LADDER,
    to: Path = REGISTERED,
    *,
    form: str = "hoffmann",
    size: Literal["total", "body"] = "total",
) -> Path:
    """Write a row for each run that is no stage: the loss that `form`, fitted to the ladder's CSV, expects of it.

    size: which parameters the fit counts; the column `parameters` counts the same. fitted: how many runs it saw.

    Raises FileExistsError where there is a prediction already, FileNotFoundError where there is no ladder, and what
    `scaling.fit` raises for runs that cannot determine the constants.
    """
    if to.exists():
        raise FileExistsError(
            f"{to} holds a prediction already, and one that is written again after its run is none. Delete it only "
            "where no run of `lab experiment prediction` has begun."
        )
    if not ladder.is_file():
        raise FileNotFoundError(f"there is no {ladder}; run `lab experiment ladder`, then the same with --collect.")
    fitted = scaling.fit(scaling.read(ladder, size=size), form)
    rows = []
    for plan in plans:
        if plan.stage:
            continue
        total, body = count_parameters(LanguageModel(plan.config(plan.data.vocab_size, 0)), plan.data.vocab_size)
        row = scaling.predict(fitted, total if size == "total" else body, plan.tokens).as_row()
        about: dict[str, Any] = {"form": form, "size": size, "fitted": len(fitted.runs)}
        rows.append({"run": plan.name, **{k: "" if v is None else v for k, v in row.items()}, **about})
    to.parent.mkdir(parents=True, exist_ok=True)
    write(to, COLUMNS, rows)
    return to


def require_registered(plans: Sequence[Plan], path: Path = REGISTERED) -> None:
    """Raises ValueError where a run has no prediction yet: after the run it would be none."""
    known = set()
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            known = {row.get("run") for row in csv.DictReader(file) if row.get("predicted")}
    if missing := [plan.name for plan in plans if not plan.stage and plan.name not in known]:
        raise ValueError(
            f"{path} holds no prediction for {', '.join(missing)}: write it before the run that tests it, with "
            "`lab experiment prediction --out runs --register`."
        )
