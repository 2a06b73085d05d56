"""Checks: relations observed from outside, on anybody's model. One file a family."""

from __future__ import annotations

from ..config import unknown
from . import (  # noqa: F401 - importing a family registers its checks
    attention,
    checkpoints,
    data,
    endings,
    generation,
    heads,
    labels,
    leftovers,
    logits,
    loop,
    loss,
    mask_arguments,
    masks,
    mixing,
    modes,
    numerics,
    parameters,
    paths,
    positions,
    randomness,
    sharing,
    sizing,
    weights,
)
from .base import REGISTRY, Check


def all() -> list[Check]:  # noqa: A001 - reads as `checks.all()`
    """Every check, in the order in which they are asked."""
    return list(REGISTRY.values())


def get(name: str) -> Check:
    """The check of that name. Raises ValueError naming those there are."""
    if name not in REGISTRY:
        raise unknown("check", name, list(REGISTRY))
    return REGISTRY[name]


def family(name: str) -> list[str]:
    """The names of a family's checks, as `diagnose(only=...)` takes them. Raises ValueError naming the families."""
    families = list(dict.fromkeys(check.family for check in all()))
    if name not in families:
        raise unknown("family of checks", name, families)
    return [check.id for check in all() if check.family == name]
