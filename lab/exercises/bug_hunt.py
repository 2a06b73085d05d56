"""Graders of lesson 09: anonymous patients. The learner names what is wrong with each, from what the checks say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from .. import faults, matrix
from ..diagnosis import diagnose
from ..report import Report
from ..subject import Subject
from . import grader

# What each has; read on only if you give up. Patients are the kit's own models.
PATIENTS: dict[int, tuple[str, ...]] = {
    1: ("sees-one-ahead",),
    2: ("pad-mask-one-late",),
    3: ("softmax-over-queries",),
    4: ("cache-values-one-late",),
    5: (),
    6: ("scaled-twice", "feeds-the-last-token-twice"),
}


@dataclass(frozen=True)
class Patient:
    """One of the kit's models with something wrong, or nothing. The place of a finding is kept back: it would tell."""

    subject: Subject

    def examine(self, **how: object) -> Report:
        """lab.diagnose, with `only` and `skip` as there; findings without file and lines."""
        report = diagnose(self.subject, **how)
        for kept in (report.findings, report.notes):
            kept[:] = [replace(finding, where=None) for finding in kept]
        return report


@contextmanager
def ill(names: Iterable[str]) -> Iterator[Subject]:
    """A subject with these faults in it."""
    chosen = [faults.get(name) for name in names]
    with ExitStack() as stack:
        for fault in chosen:
            stack.enter_context(fault.inject())
        yield matrix.SUBJECTS[chosen[0].on if chosen else "translator"]()


@contextmanager
def patient(number: int) -> Iterator[Patient]:
    """Inside, patient 1, 2, … can be examined. Raises ValueError for one that is not there."""
    if number not in PATIENTS:
        raise ValueError(f"there is no patient {number}; there are {', '.join(map(str, PATIENTS))}.")
    with ill(PATIENTS[number]) as subject:
        yield Patient(subject.replace(name=f"patient {number}"))


def suspects(report: Report) -> list[str]:
    """The faults that the report's root findings could come from, one line each: name and what it is."""
    found = {finding.check for finding in report.findings if not finding.follows}
    return [f"{fault.id}: {fault.summary}" for fault in faults.all() if fault.caught_by in found]


def symptoms(names: Iterable[str]) -> dict[str, dict]:
    """What the checks find where these faults are: check -> evidence."""
    with ill(names) as subject:
        return {finding.check: finding.evidence for finding in diagnose(subject).findings}


def hunt(number: int) -> Callable[[Callable[[], object]], None]:
    """The grader of one patient: compares the named faults with what is there, by what the checks say of both."""

    def run(answer: Callable[[], object]) -> None:
        told = answer()
        named = {told} if isinstance(told, str) else set(told or ())
        for name in named:
            faults.get(name)  # raises, with the nearest name
        truth = set(PATIENTS[number])
        if named == truth:
            return
        if not named:
            raise AssertionError("you call this patient healthy, but the checks find something: read its report again")
        if not truth:
            raise AssertionError(
                "the checks find nothing on this patient; did you find something that they cannot see?"
            )
        if named < truth:
            raise AssertionError(f"{', '.join(named)}: right, but one more thing is wrong with this patient")
        wrong = sorted(named - truth)[0]
        theirs, here = symptoms([wrong]), symptoms(truth)
        more, fewer = sorted(set(theirs) - set(here)), sorted(set(here) - set(theirs))
        if more:
            raise AssertionError(f"with {wrong} in the kit, {more[0]} fires too, and it passes on this patient")
        if fewer and len(named) >= len(truth):
            raise AssertionError(f"{wrong} does not explain the finding of {fewer[0]}")
        for check, evidence in theirs.items():
            for name, value in evidence.items():
                if here[check].get(name) != value:
                    raise AssertionError(
                        f"the same check fires, {check}, but with {wrong} it says {name} {value}, and here "
                        f"{here[check].get(name)}"
                    )
        raise AssertionError(f"it is not {wrong}, though the checks say the same of both: try both diffs in your head")

    return run


def register() -> None:
    for number in PATIENTS:
        grader(f"09{'abcdefgh'[number - 1]}", title=f"patient {number} has what you say")(hunt(number))


register()
