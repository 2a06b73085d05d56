"""What a check is, and the registry of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..probe import Probe
from ..report import Finding


@dataclass(frozen=True)
class Check:
    """A relation that every correct transformer keeps.

    run: probe -> findings; none is a PASS. It raises subject.Missing where it cannot be asked, which is a SKIP.
    """

    id: str
    severity: str
    family: str
    lesson: str
    run: Callable[[Probe], Iterator[Finding]]

    @property
    def summary(self) -> str:
        """The relation, in one sentence: the first line of the docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


REGISTRY: dict[str, Check] = {}


def check(name: str, *, severity: str, family: str, lesson: str) -> Callable:
    """Register a generator function of findings as the check of that name. Returns the function itself."""

    def register(run: Callable[[Probe], Iterator[Finding]]) -> Callable:
        REGISTRY[name] = Check(name, severity, family, f"notebooks/{lesson}.ipynb", run)
        return run

    return register
