"""What a check is, and the registry of all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..probe import Probe
from ..report import Finding


@dataclass(frozen=True)
class Check:
    """A relation that every correct transformer keeps.

    run: probe -> findings; none is a PASS. It raises calling.Missing where it cannot be asked, which is a SKIP.
    silent: why nobody notices without it. repair: what to do, unless a finding knows better. after: the checks that it
    rests on; where one of them found something, this one is not asked. explains: the checks whose findings follow from
    one of this, and are folded below it.
    """

    id: str
    severity: str
    family: str
    lesson: str
    run: Callable[[Probe], Iterator[Finding]]
    silent: str = ""
    repair: str = ""
    after: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()
    opt_in: bool = False

    @property
    def summary(self) -> str:
        """The relation, in one sentence: the first line of the docstring."""
        return (self.run.__doc__ or "").strip().splitlines()[0]

    @property
    def details(self) -> str:
        """The rest of the docstring."""
        return inspect.cleandoc(self.run.__doc__ or "").partition("\n")[2].strip()


REGISTRY: dict[str, Check] = {}


def check(name: str, *, severity: str, family: str, lesson: str, **more: str | bool | tuple[str, ...]) -> Callable:
    """Register a generator function of findings as the check of that name. Returns the function itself.

    more: silent, repair, after, explains, opt_in, as in Check.
    """

    def register(run: Callable[[Probe], Iterator[Finding]]) -> Callable:
        REGISTRY[name] = Check(name, severity, family, f"notebooks/{lesson}.ipynb", run, **more)
        return run

    return register
