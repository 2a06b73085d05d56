"""diagnose(): put every check to a subject, those that others rest on first, and trace findings to their roots."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from . import checks
from .calling import Missing
from .checks import Check
from .probe import Probe, Shared
from .report import Finding, Report
from .restore import Snapshot
from .subject import Subject


def diagnose(
    model: nn.Module | Subject,
    batch: Any = None,
    *,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
) -> Report:
    """Every check on a model (and the batch that one training step is fed), or on a Subject.

    only, skip: names of checks; the slow ones, which train a copy, are asked only where `only` names them. The model,
    the batch, the optimizer and all random states are afterwards what they were, to the last bit.
    Raises ValueError for an unknown check.
    """
    subject = model if isinstance(model, Subject) else Subject(model, batch)
    chosen = chosen_checks(only, skip)
    snapshot = Snapshot(subject.model, subject.optimizer, subject.scheduler)
    report, shared = Report(subject.name), Shared(snapshot.protect)
    try:
        for check in in_order(chosen):
            reason = stopped(check, report)
            if reason:
                report.skipped[check.id] = reason
                continue
            put(check, Probe(subject, check, seed, shared), report)
            snapshot.restore()
    finally:
        snapshot.restore()
    for check in checks.all():
        if check not in chosen and (only is None or check.id in list(skip)):
            report.skipped[check.id] = "as asked" if check.id in set(skip) else f"slow: ask for it, only=[{check.id!r}]"
    fold(report)
    return report


def chosen_checks(only: Iterable[str] | None, skip: Iterable[str]) -> list[Check]:
    left_out = {checks.get(name).id for name in skip}
    asked = [check for check in checks.all() if not check.opt_in] if only is None else [checks.get(n) for n in only]
    return [check for check in asked if check.id not in left_out]


def in_order(chosen: list[Check]) -> list[Check]:
    """Each after those that it rests on, else in the order given."""
    known, ordered = {check.id: check for check in chosen}, {}

    def visit(check: Check) -> None:
        for name in check.after:
            if name in known and name not in ordered:
                visit(known[name])
        ordered.setdefault(check.id, check)

    for check in chosen:
        visit(check)
    return list(ordered.values())


def stopped(check: Check, report: Report) -> str:
    """Why a check is not asked: what it rests on has given way. Empty where it stands."""
    broken = [name for name in check.after if report.by_check(name)]
    return f"rests on {broken[0]}, which found something: repair that first" if broken else ""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, what a model warns of is not shown: it would be, at each of hundreds of calls."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def put(check: Check, probe: Probe, report: Report) -> None:
    """Ask one check, and file what it says."""
    ended, severities = True, set()
    try:
        with quiet():
            for finding in check.run(probe):
                report.add(finding)  # at once: what comes after it may have to be skipped
                severities.add(finding.severity)
    except Missing as reason:
        ended, report.skipped[check.id] = False, str(reason)
    except Exception as error:  # a check that breaks is our bug, and must not hide the others' findings
        ended, report.errors[check.id] = False, f"{type(error).__name__}: {error}"
    if ended and severities <= {"note"}:
        report.passed.append(check.id)


def fold(report: Report) -> None:
    """Mark each finding that another explains: its check says so, or it breaks first in the same module."""

    def root_of(finding: Finding) -> str:
        for other in report.findings:
            if other.check != finding.check and finding.check in checks.get(other.check).explains:
                return other.check
        return ""

    marked = [replace(finding, follows=root_of(finding)) for finding in report.findings]
    followed = {finding.check for finding in marked if finding.follows}
    # A circle has no root: what is followed must itself stand.
    report.findings = [replace(f, follows="") if f.follows in followed else f for f in marked]
