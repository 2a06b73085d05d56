"""diagnose(): put every check to a subject, in order, and collect what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from . import checks
from .probe import Probe, restored
from .report import Report
from .subject import Missing, Subject


def diagnose(
    model: nn.Module | Subject,
    batch: Any = None,
    *,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
) -> Report:
    """Every check on a model (and the batch that one training step is fed), or on a Subject.

    only, skip: names of checks. The model and the batch are afterwards what they were, to the last bit.
    Raises ValueError for an unknown check.
    """
    subject = model if isinstance(model, Subject) else Subject(model, batch)
    chosen = [checks.get(name) for name in only] if only is not None else checks.all()
    left_out = {checks.get(name).id for name in skip}
    report = Report(subject.name)
    for check in chosen:
        if check.id in left_out:
            report.skipped[check.id] = "as asked"
            continue
        ended, severities = True, set()
        try:
            with restored(subject.model):
                for finding in check.run(Probe(subject, check, seed)):
                    report.add(finding)  # at once: what comes after it may have to be skipped
                    severities.add(finding.severity)
        except Missing as reason:
            ended, report.skipped[check.id] = False, str(reason)
        except Exception as error:  # a check that breaks is our bug, and must not hide the others' findings
            ended, report.errors[check.id] = False, f"{type(error).__name__}: {error}"
        if ended and severities <= {"note"}:
            report.passed.append(check.id)
    return report
