"""Faults: broken twins of healthy functions of the kit. One file a family, as in checks."""

from __future__ import annotations

from ..config import unknown
from . import (  # noqa: F401 - importing a family registers its faults
    attention,
    data,
    generation,
    labels,
    loop,
    loss,
    masks,
    mixing,
    modes,
    numerics,
    parameters,
    randomness,
    sizing,
    weights,
)
from .base import REGISTRY, Diff, Fault, Twin, substituted

__all__ = ["Diff", "Fault", "Twin", "all", "get", "substituted"]


def all() -> list[Fault]:  # noqa: A001 - reads as `faults.all()`
    """Every fault, family by family."""
    return list(REGISTRY.values())


def get(name: str) -> Fault:
    """The fault of that name. Raises ValueError naming those there are."""
    if name not in REGISTRY:
        raise unknown("fault", name, list(REGISTRY))
    return REGISTRY[name]
