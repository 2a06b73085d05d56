"""No false alarm: the whole battery on healthy models that nobody here wrote finds nothing but what is true.

As a script it prints the silence table: python tests/test_silence.py > figures/data/silence.csv
"""

import csv
import os
import sys
import warnings

import pytest
import zoo

import lab

# (a subject's name or None for all, the side of its padding or None for both, check): why the warning is true.
TRUE: dict[tuple[str | None, str | None, str], str] = {
    (None, None, "generates-with-dropout"): "generate() of transformers keeps the mode: in train mode it drops out",
    ("mt5", None, "initial-loss"): "its head, untied, starts with a deviation of 1: its logits with sqrt(d_model)",
    ("prophetnet", None, "padding-amount"): "its n-gram stream lays out its relative positions by the length",
    ("nanogpt", None, "stuck-in-eval"): "its generate() ends in train(), which it does not reach when it raises",
    ("nanogpt", None, "half-repaired-mode"): "its generate() ends in train(), whatever it found",
}
HEADER = ("architecture", "attention", "side", "findings", "notes", "skipped", "errors")


def diagnosed(name: str, attention: str, side: str) -> lab.Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models' own
        return lab.diagnose(zoo.make(name, attention, side))


def reason(name: str, side: str, check: str) -> str:
    """Why a warning of that check is true there; empty where it is a false alarm."""
    places = [(who, where) for who in (name, None) for where in (side, None)]
    return next((TRUE[(*place, check)] for place in places if (*place, check) in TRUE), "")


def asked() -> list[tuple[str, str, str]]:
    """Each architecture with either attention and either side; all four combinations with LAB_SILENCE=all."""
    if os.environ.get("LAB_SILENCE") == "all":
        return zoo.subjects()
    two = [s for s in zoo.subjects() if s[1:] in (("eager", "right"), ("sdpa", "left"))]
    one_attention = {name for name, *_ in two} - {name for name, attention, _ in two if attention == "sdpa"}
    return two + [s for s in zoo.subjects() if s[0] in one_attention and s[2] == "left"]


@pytest.mark.parametrize(("name", "attention", "side"), asked())
def test_nothing_but_what_is_true(name, attention, side):
    report = diagnosed(name, attention, side)
    assert not report.errors, report.text()
    false = {finding.check for finding in report.findings if not reason(name, side, finding.check)}
    assert not false, report.text()
    # A battery that skips everything is silent too.
    assert len(report.passed) >= len(report.skipped), report.text()


@pytest.mark.parametrize("name", ["gpt2", "bart", "bert", "mamba", "torch-pre-norm", "nanogpt"])
def test_a_model_alone_is_diagnosed_as_far_as_it_goes(name):
    """Without a batch; what needs one says so."""
    report = lab.diagnose(zoo.make(name).model)
    assert not report.errors and not report.findings, report.text()
    assert any("batch=" in why for why in report.skipped.values()), report.text()


def test_the_zoo_is_large_enough():
    names = {name for name, *_ in zoo.subjects()}
    assert sum(bool(zoo.ANIMALS[name].model) for name in names) >= 25
    assert {"torch-post-norm", "torch-pre-norm", "x-rotary", "x-alibi", "x-relative", "x-no-positions"} <= names
    assert {"mixtral", "qwen2-moe", "x-grouped", "mamba", "bert-decoder", "roformer"} <= names


@pytest.mark.parametrize(("name", "side", "check"), TRUE)
def test_every_excuse_is_needed(name, side, check):
    report = lab.diagnose(zoo.make(name or "gpt2", side=side or "right"), only=[check])
    assert report.by_check(check), report.text()


def main() -> None:
    """Print the silence table as CSV, one subject a line, as they are done."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    for subject in zoo.subjects():
        report = diagnosed(*subject)
        found = [f"{f.severity} {f.check}" for f in report.findings]
        notes = [note.check for note in report.notes]
        writer.writerow([*subject, *(" ".join(x) for x in (found, notes, report.skipped, report.errors))])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
