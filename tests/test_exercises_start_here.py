"""Notebook 00's graders accept the answer and name the mistake of each wrong one."""

import pytest

import lab
from lab.exercises import start_here


def worst(report):
    top = [finding.check for finding in report.findings if finding.severity == report.findings[0].severity]
    return list(dict.fromkeys(top))


def name_the_fault(subject):
    report = lab.diagnose(subject)
    return report.findings[0].check if report.findings else None


def test_the_answers_pass():
    start_here.most_severe(worst)
    start_here.hidden_fault(name_the_fault)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda report: [f.check for f in report.findings + report.notes], "a note is not a finding"),
        (lambda report: [f.check for f in report.findings], "highest severity"),
        (lambda report: [f.check for f in report.findings if f.severity == "P2"], "name it once"),
        (lambda report: sorted({f.check for f in report.findings if f.severity == "P2"}), "with a P0"),
        (lambda report: None, "so \\[\\]"),
    ],
)
def test_a_wrong_reading_is_named(wrong, message):
    with pytest.raises(AssertionError, match=message):
        start_here.most_severe(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda subject: "padding-crash", "a healthy subject"),
        (lambda subject: None, "you returned None"),
        (lambda subject: lab.diagnose(subject).text() if lab.diagnose(subject).findings else None, "name of a check"),
        (lambda subject: "stuck-in-eval" if lab.diagnose(subject).findings else None, "came from another check"),
    ],
)
def test_a_wrong_name_is_named(wrong, message):
    with pytest.raises(AssertionError, match=message):
        start_here.hidden_fault(wrong)
