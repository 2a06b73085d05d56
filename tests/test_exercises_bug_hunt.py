"""Lesson 09: the right names pass, and a wrong one is answered with what the checks say of it."""

import pytest

from lab import faults
from lab.exercises.bug_hunt import PATIENTS, hunt, patient, suspects


@pytest.mark.parametrize("number", PATIENTS)
def test_the_right_answer_passes(number):
    hunt(number)(lambda: set(PATIENTS[number]))


@pytest.mark.parametrize(
    ("number", "answer", "message"),
    [
        (1, "no-causal-mask", "the same check fires, sees-the-future, but with no-causal-mask it says"),
        (1, "mask-transposed", "with mask-transposed in the kit, blind-to-the-past fires too"),
        (1, "attends-to-pads", "with attends-to-pads in the kit, attends-to-pads fires too, and it passes"),
        (2, set(), "you call this patient healthy"),
        (3, "softmax-over-heads", "the same check fires"),
        (5, "no-warmup", "the checks find nothing on this patient"),
        (6, "scaled-twice", "right, but one more thing is wrong"),
    ],
)
def test_a_wrong_answer_is_told_why(number, answer, message):
    with pytest.raises(AssertionError, match=message):
        hunt(number)(lambda: answer)


def test_a_name_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="sees-one-ahead"):
        hunt(1)(lambda: "sees-one-ahed")


def test_there_is_no_patient_seven():
    with pytest.raises(ValueError, match="there is no patient 7; there are 1, 2"), patient(7):
        pass


def test_a_report_keeps_the_place_back_and_leads_to_the_cause():
    with patient(1) as one:
        report = one.examine(only=["sees-the-future"])
    assert report.findings and all(finding.where is None for finding in report.findings)
    assert any(line.startswith("sees-one-ahead: ") for line in suspects(report))
    assert len(suspects(report)) < len(faults.all()) / 2
