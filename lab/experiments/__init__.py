"""Experiments: many runs of the trainer by name, gone on with where they were stopped, and collected into CSV files."""

from __future__ import annotations

from collections.abc import Callable

from ..config import unknown
from .causes import causes
from .collect import collect
from .ladder import ladder, prediction, rates
from .plan import Data, Plan, budgets, chosen
from .registered import register, require_registered
from .runner import run_all, status
from .sizes import sizes

EXPERIMENTS: dict[str, Callable[[str], list[Plan]]] = {
    "rates": lambda device: rates(),
    "ladder": lambda device: ladder(),
    "prediction": lambda device: prediction(),
    "causes": lambda device: causes(),
    "sizes": sizes,
}

__all__ = [
    "EXPERIMENTS", "Data", "Plan", "budgets", "chosen", "collect", "names", "plans_of", "register",
    "require_registered", "run_all", "status",
]  # fmt: skip


def names() -> list[str]:
    return list(EXPERIMENTS)


def plans_of(experiment: str, device: str = "cpu") -> list[Plan]:
    """The runs of an experiment in their order. Raises ValueError naming those there are."""
    if experiment not in EXPERIMENTS:
        raise unknown("experiment", experiment, names())
    plans = EXPERIMENTS[experiment](device)
    twice = {plan.name for plan in plans if sum(plan.name == other.name for other in plans) > 1}
    if twice:
        raise ValueError(f"experiment {experiment!r} has two runs named {sorted(twice)[0]!r}; give each its own.")
    return plans
