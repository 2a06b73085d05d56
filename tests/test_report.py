"""The report reads like the review, survives HTML and JSON, and is ordered."""

import re
from dataclasses import replace

import pytest

from lab.report import SEVERITIES, Finding, Report, Where

CRASH = Finding(
    "padding-crash",
    "P2",
    "decoder_input_ids hold <b>-100</b>",
    {"wrong ids": 5, "share": 0.123456},
    Where("/somewhere/labels.py", 31, 38, "shift_right"),
    "feed pad_id",
    "notebooks/01_padding_crash.ipynb",
)


def report():
    made = Report("a model")
    for severity in ("P3", "note", "P0", "P2"):
        made.add(Finding("c-" + severity, severity, "sentence."))
    made.skipped["other"] = "give batch="
    made.errors["broken"] = "KeyError"
    made.passed.append("fine")
    return made


def test_text_reads_like_the_review():
    first = CRASH.text().splitlines()[0]
    assert first == "[P2] decoder_input_ids hold <b>-100</b>. File: labels.py lines 31–38 (shift_right)."
    assert "evidence: wrong ids 5; share 0.123" in CRASH.text()


def test_findings_are_ordered_by_severity_and_notes_stand_apart():
    text = report().text()
    assert re.findall(r"\[(\w+)\]", text) == ["P0", "P2", "P3", "note"]
    assert re.findall(r"^(\w+): (.*)", text, re.MULTILINE)[:3] == [(s, SEVERITIES[s]) for s in ("P0", "P2", "P3")]
    assert "Skipped other: give batch=" in text and "ERROR in broken" in text and "Passed: fine." in text


def test_a_report_is_true_where_something_was_found():
    only_a_note = Report()
    only_a_note.add(Finding("c", "note", "harmless"))
    assert report() and not only_a_note


def test_html_escapes_what_it_is_told():
    made = Report("<i>")
    made.add(CRASH)
    page = made._repr_html_()
    assert "&lt;b&gt;-100" in page and "<b>" not in page and "<i>" not in page and "<script" not in page


def test_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="P9.*P0"):
        Finding("c", "P9", "sentence")
    assert list(SEVERITIES) == ["P0", "P1", "P2", "P3", "note"]


def test_where_of_a_function_covers_its_lines():
    where = Where.of(report)
    with open(where.path) as file:
        lines = file.read().splitlines()
    assert lines[where.first - 1].startswith("def report") and "return made" in lines[where.last - 1]
    assert Where.of(len) is None


def of(check, severity="P2", symbol="", follows="", message="sentence.", **evidence):
    where = Where("/somewhere/model.py", 3, 9, symbol) if symbol else None
    return Finding(check, severity, message, evidence, where, follows=follows)


def reported(*findings):
    made = Report("a model")
    for finding in findings:
        made.add(finding)
    return made


def test_what_follows_is_folded_below_its_root():
    made = reported(of("root", "P2"), of("consequence", "P0", follows="root"), of("other", "P1"))
    assert [(root.check, [f.check for f in below]) for root, below in made.families()] == [
        ("other", []),
        ("root", ["consequence"]),
    ]
    lines = made.text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("[P2]"))
    below = next(i for i, line in enumerate(lines) if "(consequence)" in line)
    assert below > first and lines[below].startswith("       [P0]") and "P0: results" not in made.text()


def test_a_consequence_of_nothing_listed_stands_for_itself():
    made = reported(of("consequence", "P0", follows="root"))
    assert [root.check for root, _ in made.families()] == ["consequence"]
    assert "[P0] sentence." in made.text().splitlines()


def test_every_finding_is_told_once():
    twice = reported(of("root", symbol="a"), of("root", symbol="b"), of("consequence", follows="root"))
    assert twice.text().count("(consequence)") == 1
    told = [f for root, below in twice.families() for f in (root, *below)]
    assert sorted(map(id, told)) == sorted(map(id, twice.findings))


@pytest.mark.parametrize(
    ("severity", "fail_on", "code"),
    [("P2", "P2", 1), ("P3", "P2", 0), ("P0", "P2", 1), ("P3", "P3", 1), ("P0", "none", 0), ("note", "P3", 0)],
)
def test_the_exit_code_is_1_from_fail_on_upwards(severity, fail_on, code):
    assert reported(of("c", severity)).exit_code(fail_on) == code


def test_errors_of_the_tool_do_not_fail_a_users_build():
    made = Report("a model", errors={"c": "KeyError"})
    assert made.exit_code("P3") == 0 and made.worst is None


def test_an_unknown_fail_on_is_refused():
    with pytest.raises(ValueError, match="'P4'.*P0, P1, P2, P3, none"):
        Report().exit_code("P4")


def test_the_worst_is_the_worst():
    assert reported(of("a", "P3"), of("b", "P1")).worst == "P1"


def test_a_fingerprint_outlives_lines_numbers_and_folders():
    finding = of("c", symbol="Model.forward", module="layers.0", effect=0.12)
    moved = replace(
        finding, where=Where("/else/model.py", 30, 90, "Model.forward"), evidence={"module": "layers.0", "effect": 0.3}
    )
    assert finding.fingerprint == moved.fingerprint
    assert len({finding.fingerprint, *(replace(finding, **change).fingerprint for change in (
        {"check": "d"}, {"evidence": {"module": "layers.1"}}, {"where": Where("/a.py", 1, 2, "Model.generate")}
    ))}) == 4  # fmt: skip
    assert of("c", message="3 of 10 rows, 1.2e-3").fingerprint == of("c", message="5 of 12 rows, 7.1").fingerprint
    assert of("c", message="rows").fingerprint != of("c", message="heads").fingerprint


def test_a_baseline_accepts_what_it_holds_and_nothing_else(tmp_path):
    path = tmp_path / "baseline.json"
    reported(of("old", symbol="f"), of("old", symbol="g")).write_baseline(path)
    assert "somewhere" not in path.read_text() and not re.search(r"\b(3|9)\b", path.read_text())
    later = reported(of("old", symbol="f"), of("old", symbol="h"), of("new", "P3")).against(path)
    assert [f.where.symbol for f in later.known] == ["f"]
    assert [f.check for f in later.findings] == ["old", "new"]
    assert later.exit_code() == 1 and "(new, ordered" in later.text() and "Known" in later.text()
    assert reported(of("old", symbol="f")).against(path).exit_code("P3") == 0


def test_a_baseline_accepts_no_more_than_it_counted_and_nothing_worse():
    baseline = reported(of("c", "P2")).baseline()
    twice = reported(of("c", "P2"), of("c", "P2")).against(baseline)
    assert len(twice.known) == len(twice.findings) == 1
    assert reported(of("c", "P3")).against(baseline).known
    worse = reported(of("c", "P0")).against(baseline)
    assert not worse.known and worse.findings


def test_a_baseline_written_over_keeps_what_was_known():
    baseline = reported(of("c"), of("d")).baseline()
    assert reported(of("c"), of("d")).against(baseline).baseline() == baseline


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"baseline": 99, "findings": []}', '{"baseline": 1}'])
def test_what_is_no_baseline_is_refused(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="wrong.json.*--write-baseline"):
        Report().against(path)
