"""The one idea: every check passes on the healthy kit; every fault trips its own check, and no unrelated one."""

import pytest
import torch

from lab import checks, faults, labels, matrix
from lab.faults.base import code_of, substituted

# What cannot be asked of the healthy kit, and a word of the reason.
SKIPPED = {
    "translator": {
        "too-little-data": "language models",
        "too-small-for-the-data": "language models",
        "past-the-context": "write its whole context",
    },
    "language model": {"source-ignored": "encoder–decoders"},
}


@pytest.mark.parametrize("name", list(matrix.SUBJECTS))
def test_every_check_passes_on_the_healthy_kit(name):
    report = matrix.healthy(name).report
    assert not report.findings and not report.notes and not report.errors, report.text()
    assert report.skipped.keys() == SKIPPED[name].keys(), report.text()
    assert all(word in report.skipped[check] for check, word in SKIPPED[name].items())
    assert sorted(report.passed) == sorted(check for check in matrix.columns() if check not in SKIPPED[name])


@pytest.mark.parametrize("fault", faults.all(), ids=lambda fault: fault.id)
def test_every_fault_trips_its_own_check_and_no_unrelated_one(fault):
    row = matrix.broken(fault.id)
    assert fault.caught_by in row.found, row.report.text()
    assert not row.unexplained, row.report.text()
    assert set(fault.also) <= row.found, "an explanation that explains nothing"
    assert not row.report.errors, row.report.errors


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
    assert any(line.startswith(("+ ", "- ")) for line in text.splitlines())  # a fault may leave out, or add, alone


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
    modes = {"stuck-in-eval", "half-repaired-mode", "random-in-eval", "dropout-dead", "generates-with-dropout"}
    assert set(checks.family("modes")) == modes
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


def asked(name, *only):
    """The findings of those checks on that fault."""
    fault = faults.get(name)
    with fault.inject():
        return matrix.diagnose(matrix.SUBJECTS[fault.on](), only=only).findings


@pytest.mark.parametrize("name", [fault.id for fault in faults.all() if fault.family == "modes"])
def test_the_place_is_the_line_that_switches(name):
    findings = asked(name, "stuck-in-eval", "half-repaired-mode")
    assert findings
    for finding in findings:
        with open(finding.where.path) as file:
            lines = file.read().splitlines()
        number = next(value for key, value in finding.evidence.items() if key.endswith("called at line"))
        assert ".eval()" in lines[number - 1] or ".train(" in lines[number - 1]
        assert finding.where.first <= number <= finding.where.last


def test_the_place_of_the_crash_is_the_function_that_built_the_inputs():
    (finding,) = asked("padding-crash", "padding-crash")
    assert finding.where.symbol == "keeps_ignore_index"
    assert finding.evidence["of them -100"] == 5


def test_an_update_of_the_matrix_is_one_step_of_the_trainer():
    """Over all micro-batches, at the plan's rate; the model that is under test stays as it is."""
    subject = matrix.language_model()
    kept = [parameter.detach().clone() for parameter in subject.model.parameters()]
    model, optimizer, trainer = subject.build()
    for rate in subject.rates[:2]:
        subject.train_step(model, optimizer, trainer, [subject.batch, subject.batch])
        assert optimizer.param_groups[0]["lr"] == rate
    assert trainer.progress.step == 2
    assert trainer.progress.tokens == 4 * labels.count_targets(subject.batch["labels"])
    assert all(torch.equal(a, b) for a, b in zip(subject.model.parameters(), kept, strict=True))


@pytest.mark.parametrize("name", list(matrix.SUBJECTS))
def test_token_by_token_the_matrix_gives_the_logits_of_one_pass(name):
    subject = matrix.SUBJECTS[name]()
    model = subject.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            subject.step_by_step(model, subject.batch), subject.logits(model, subject.batch), atol=1e-6, rtol=1e-5
        )
