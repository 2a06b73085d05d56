"""`lab diagnose TARGET`: somebody's function is found, called and diagnosed, and what is wrong with it is said."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import pytest

import lab
from lab import checks, formats, pointing
from lab.report import Where

MODEL = """
    import os
    import torch
    from torch import nn
    from lab import Subject

    print("noise on stdout")

    class Rows(nn.Module):
        def __init__(self, leak):
            super().__init__()
            self.embedding, self.head, self.leak = nn.Embedding(50, 16), nn.Linear(16, 50), leak

        def forward(self, input_ids):
            x = self.embedding(input_ids)
            return self.head(nn.functional.dropout(x) if self.leak else x)

    BATCH = {"input_ids": torch.arange(5, 21).reshape(2, 8), "labels": torch.arange(6, 22).reshape(2, 8)}
    table = {}

    def model(): return Rows(False)
    def pair(): return Rows(False), BATCH
    def subject(): return Subject(Rows(False), BATCH, name="by name")
    def broken(): return Rows(True), BATCH
    def needs(something): return something
    def returns_nothing(): pass
    def fails(): return table["no such key"]
    def leaves(): raise SystemExit(3)
    def wrong_batch(): return Rows(False), 3
    class Holder:
        @staticmethod
        def inside(): return Rows(False), BATCH
"""
ONLY = ["--only", "random-in-eval"]


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The working directory, with a file of functions, forgotten after the test."""
    (tmp_path / "somebody.py").write_text(textwrap.dedent(MODEL))
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def diagnose(target, **how):
    return pointing.diagnose_target(target, only=["random-in-eval"], **how)


@pytest.mark.parametrize("place", ["somebody.py", "./somebody.py", "somebody"])
@pytest.mark.parametrize("function", ["pair", "subject", "Holder.inside"])
def test_a_function_in_a_file_or_a_module(there, capsys, place, function):
    assert diagnose(f"{place}:{function}") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Findings on {'by name' if function == 'subject' else 'Rows'} ") and "Passed" in out
    assert "noise on stdout" in err and "noise" not in out


def test_a_model_alone_is_diagnosed_as_far_as_it_goes(there, capsys):
    assert diagnose("somebody.py:model") == 0
    assert "Skipped random-in-eval: needs a batch" in capsys.readouterr().out


def test_it_says_what_it_runs_before_it_runs_it(there):
    (there / "loud.py").write_text("print('imported')\ndef make(): print('called')\n")
    result = subprocess.run(
        [sys.executable, "-m", "lab", "diagnose", "loud.py:make"], capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(Path(lab.__file__).parents[1])},
    )  # fmt: skip
    lines = result.stderr.splitlines()
    assert lines[:3] == ["lab diagnose imports loud.py and calls make(): that runs its code.", "imported", "called"]
    assert result.returncode == 2 and "make() in loud.py returned NoneType" in lines[3] and not result.stdout


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("somebody.py", "name a function as path/to/file.py:function"),
        ("somebody.py:", "name a function"),
        ("a folder:function", "'a folder' is neither"),
        ("somebody.py:nothing", "somebody.py has no 'nothing'; its functions: .*pair"),
        ("somebody.py:table", "table in somebody.py is no function but dict"),
        ("somebody.py:needs", r"needs\(\) in somebody.py needs something; name a function without"),
        ("somebody.py:returns_nothing", r"returns_nothing\(\) in somebody.py returned NoneType; it should return"),
        ("somebody.py:fails", r"fails\(\) in somebody.py raised KeyError: 'no such key' \(somebody.py line \d+\)"),
        ("somebody.py:leaves", r"leaves\(\) in somebody.py raised SystemExit: 3"),
        ("somebody.py:wrong_batch", r"wrong_batch\(\) in somebody.py raised TypeError: batch is a int"),
        ("no_such_module:make", "importing no_such_module raised ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_is_named(there, target, message):
    with pytest.raises(ValueError, match=message):
        diagnose(target)


def test_a_file_that_is_not_there(there):
    with pytest.raises(FileNotFoundError, match="no file nowhere.py"):
        diagnose("nowhere.py:make")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = = 1", r"importing other.py raised SyntaxError: invalid syntax \(other.py line 1\)"),
        ("\nraise KeyError('k')", r"importing other.py raised KeyError: 'k' \(other.py line 2\)"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("import sys; sys.exit(1)", "importing other.py raised SystemExit: 1"),
    ],
)
def test_a_file_that_cannot_be_imported(there, code, message):
    (there / "other.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        diagnose("other.py:make")


def test_bad_usage_is_found_before_the_users_code_is_run(there):
    (there / "never.py").write_text("raise AssertionError('was run')")
    for how in (
        {"fail_on": "P9"},
        {"format": "xml"},
        {"skip": ["no-such-check"]},
        {"baseline": Path("none.json")},
        {"write_baseline": True},
    ):
        with pytest.raises((ValueError, OSError)) as raised:
            diagnose("never.py:make", **how)
        assert "was run" not in str(raised.value)


def test_a_file_inside_a_package_keeps_its_relative_imports(there, capsys):
    package = there / "pack" / "inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "models.py").write_text(textwrap.dedent(MODEL))
    (package / "make.py").write_text("from ..models import pair\ndef make(): return pair()\n")
    assert diagnose("pack/inner/make.py:make") == 0


def test_a_file_may_have_the_name_of_a_known_module(there, capsys):
    (there / "json.py").write_text(textwrap.dedent(MODEL))
    assert diagnose("json.py:pair") == 0
    assert sys.modules["json"] is json


def test_nothing_is_written_beside_the_users_files(there, capsys, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = sorted(there.rglob("*"))
    diagnose("somebody.py:pair")
    diagnose("somebody:pair")
    assert sorted(there.rglob("*")) == before


def test_names_are_checks_and_families():
    assert pointing.names_of(["modes,padding-crash", "masks"]) == [
        *checks.family("modes"),
        "padding-crash",
        *checks.family("masks"),
    ]
    with pytest.raises(ValueError, match="unknown check 'mask'"):
        pointing.names_of(["mask"])


# Status, formats, baselines


@pytest.mark.parametrize(("fail_on", "status"), [("P2", 1), ("P0", 0), ("none", 0)])
def test_the_status_is_1_where_something_is_found(there, capsys, fail_on, status):
    assert diagnose("somebody.py:broken", fail_on=fail_on) == status
    assert "[P1]" in capsys.readouterr().out


def test_each_format_alone_on_stdout(there, capsys):
    texts = {}
    for format in pointing.FORMATS:
        diagnose("somebody.py:broken", format=format)
        texts[format] = capsys.readouterr().out
    jsonschema.validate(json.loads(texts["json"]), formats.SCHEMA)
    assert texts["html"].startswith("<!DOCTYPE html>") and texts["text"].startswith("Findings on")
    (result,) = json.loads(texts["sarif"])["runs"][0]["results"]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "somebody.py"


def test_a_finding_without_a_place_is_shown_at_the_function_that_was_pointed_at(there):
    report = lab.Report(findings=[lab.Finding("c", "P2", "sentence")])
    place = Where(str(there / "somebody.py"), 3, 4, "pair")
    (result,) = json.loads(pointing.rendered(report, "sarif", place))["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["region"] == {"startLine": 3, "endLine": 4}


def test_out_writes_the_report_there(there, capsys):
    assert diagnose("somebody.py:broken", format="json", out=there / "report.json") == 1
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].startswith("1 finding. The report is in") and "report.json" in err
    jsonschema.validate(json.loads((there / "report.json").read_text()), formats.SCHEMA)


def test_a_baseline_lets_known_findings_pass_and_new_ones_not(there, capsys):
    baseline = there / "known.json"
    assert diagnose("somebody.py:broken", baseline=baseline, write_baseline=True) == 0
    assert diagnose("somebody.py:broken", baseline=baseline) == 0
    assert "Known, and accepted" in capsys.readouterr().out
    baseline.write_text(json.dumps(lab.Report().baseline()))
    assert diagnose("somebody.py:broken", baseline=baseline) == 1


def test_every_check_is_listed_and_explained():
    listed = pointing.listing()
    for check in checks.all():
        assert check.id in listed and check.summary in listed
        told = " ".join(pointing.explanation(check.id).split())
        for text in (check.summary, check.silent, check.repair, check.lesson):
            assert " ".join(text.split()) in told
    with pytest.raises(ValueError, match="unknown check"):
        pointing.explanation("no-such-check")


def test_the_faults_that_a_check_catches_are_named():
    assert "clamp-to-zero" in pointing.explanation("padding-crash")
