"""The one idea: every check passes on the healthy kit; every fault trips its own check, and no unrelated one."""

import pytest
import torch

from lab import checks, faults, labels, matrix
from lab.faults.base import code_of, substituted


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in matrix.run()}


@pytest.mark.parametrize(
    ("name", "skipped"),
    [("healthy translator", ["too-little-data", "too-small-for-the-data"]), ("healthy language model", [])],
)
def test_every_check_passes_on_the_healthy_kit(rows, name, skipped):
    report = rows[name].report
    assert report.passed == [check for check in matrix.columns() if check not in skipped], report.text()
    assert list(report.skipped) == skipped and all("language models" in why for why in report.skipped.values())
    assert not report.findings and not report.notes and not report.errors


@pytest.mark.parametrize("fault", faults.all(), ids=lambda fault: fault.id)
def test_every_fault_trips_its_own_check_and_no_unrelated_one(rows, fault):
    row = rows[fault.id]
    assert fault.caught_by in row.found, row.report.text()
    assert not row.unexplained, row.report.text()
    assert set(fault.also) <= row.found, "an explanation that explains nothing"
    assert not row.report.errors


def test_every_check_catches_some_fault():
    assert {check.id for check in checks.all()} == {fault.caught_by for fault in faults.all()}


@pytest.mark.parametrize("fault", faults.all(), ids=lambda fault: fault.id)
def test_injection_is_undone_also_after_an_exception(fault):
    def current():
        return [getattr(*faults.base.locate(twin.target)) for twin in fault.twins]

    before = current()
    with pytest.raises(KeyError), fault.inject():
        assert current() == [twin.broken for twin in fault.twins]
        raise KeyError
    assert current() == before == [twin.healthy for twin in fault.twins]


@pytest.mark.parametrize("fault", faults.all(), ids=lambda fault: fault.id)
def test_twins_differ_in_code_and_share_name_and_signature(fault):
    for twin in fault.twins:
        healthy, broken = twin.sources()
        assert healthy != broken
        assert healthy.splitlines()[0] == broken.splitlines()[0]
    text = str(fault.diff())
    assert any(line.startswith("+ ") for line in text.splitlines())
    assert any(line.startswith("- ") for line in text.splitlines())


def test_the_diff_escapes_code_for_html():
    page = faults.get("clamp-to-zero").diff()._repr_html_()
    assert "-&gt; Tensor" in page and "<th scope='col'>broken</th>" in page


def test_code_of_leaves_docstring_and_decorators_out():
    code = code_of(labels.shift_right)
    assert code.startswith("def shift_right(") and '"""' not in code


def test_unknown_fault_names_those_there_are():
    with pytest.raises(ValueError, match="Did you mean 'padding-crash'.*attends-to-pads"):
        faults.get("padding-crsh")


def test_unknown_check_names_those_there_are():
    with pytest.raises(ValueError, match="unknown check 'pads'.*stuck-in-eval"):
        checks.get("pads")


def test_a_family_is_the_names_of_its_checks():
    assert checks.family("modes") == ["stuck-in-eval", "half-repaired-mode"]
    assert sorted(check for family in {c.family for c in checks.all()} for check in checks.family(family)) == sorted(
        matrix.columns()
    )
    with pytest.raises(ValueError, match="unknown family of checks 'size'.*Did you mean 'sizing'"):
        checks.family("size")


@pytest.mark.parametrize("target", ["lab.masks:nothing", "lab.nowhere:decoder", "no target"])
def test_a_substitution_of_nothing_is_refused(target):
    with pytest.raises(ValueError, match="there is no function"), substituted(target, lambda: None):
        pass


def test_a_mask_one_late_is_caught_too():
    """A second mutant of the mask: it exposes exactly one pad."""
    from lab import masks

    def one_late(ids, pad_id, last=None):
        pads = ids == pad_id
        hidden = pads & torch.nn.functional.pad(pads, (0, 1))[:, 1:]  # the last pad of a run stays visible
        return masks.causal(ids.size(1), last) & ~hidden[:, None, None, :]

    with substituted("lab.masks:decoder", one_late):
        report = matrix.diagnose(matrix.translator(), only=["attends-to-pads"])
    assert report.by_check("attends-to-pads")


@pytest.mark.parametrize("name", [fault.id for fault in faults.all() if fault.family == "modes"])
def test_the_place_is_the_line_that_switches(rows, name):
    for finding in rows[name].report.findings:
        with open(finding.where.path) as file:
            lines = file.read().splitlines()
        number = next(value for key, value in finding.evidence.items() if key.endswith("called at line"))
        assert ".eval()" in lines[number - 1] or ".train()" in lines[number - 1]
        assert finding.where.first <= number <= finding.where.last


def test_the_place_of_the_crash_is_the_function_that_built_the_inputs(rows):
    (finding,) = rows["padding-crash"].report.findings
    assert finding.where.symbol == "keeps_ignore_index"
    assert finding.evidence["of them -100"] == 5
