"""Answer checks of 00_start_here."""

from __future__ import annotations

from collections.abc import Callable

from .. import checks, faults, matrix
from ..report import Finding, Report
from ..subject import Subject
from . import grader


@grader("00a", title="the most severe findings of a report")
def most_severe(worst: Callable[[Report], list[str]]) -> None:
    report = Report("made up")
    assert worst(report) == [], f"a report without findings gives {worst(report)!r}; there is nothing in it, so []"
    report.add(Finding("harmless", "note", "a note"))
    assert worst(report) == [], "a note is not a finding: look at report.findings alone"
    for check, severity in (("slow", "P3"), ("crash", "P2"), ("crash", "P2"), ("leak", "P2")):
        report.add(Finding(check, severity, "a sentence"))
    answer = worst(report)
    assert isinstance(answer, list), f"worst() returned {type(answer).__name__}; give a list of names"
    assert answer != ["crash", "crash", "leak"], "one check found two things; name it once"
    assert "slow" not in answer, "a P3 is in your list, and there are P2s: only those of the highest severity"
    assert answer == ["crash", "leak"], f"expected ['crash', 'leak'], in the report's order, and got {answer!r}"
    report.add(Finding("everything", "P0", "a sentence"))
    assert worst(report) == ["everything"], f"with a P0 in the report, worst() gave {worst(report)!r}"


@grader("00b", title="find the hidden fault")
def hidden_fault(name_the_fault: Callable[[Subject], str | None]) -> None:
    healthy = name_the_fault(matrix.translator())
    assert healthy is None, f"a healthy subject, and you named {healthy!r}: return None where nothing is found"
    for name in ("padding-crash", "attends-to-pads", "stuck-in-eval-language-model", "minus-infinity"):
        fault = faults.get(name)
        with fault.inject():
            answer = name_the_fault(matrix.SUBJECTS[fault.on]())
        known = [check.id for check in checks.all()]
        assert answer is not None, "there was a fault in it, and you returned None: what does diagnose() say?"
        assert answer in known, f"you returned {answer!r}; give the name of a check: {', '.join(known)}"
        assert answer == fault.caught_by, f"you said {answer!r}; the most severe finding came from another check"
