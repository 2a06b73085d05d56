"""The report reads like the review, survives HTML and JSON, and is ordered."""

import json
import re

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


def test_json_round_trip():
    made = Report("a model")
    made.add(CRASH)
    read = json.loads(made.to_json())
    assert read["schema"] == 1
    assert read["findings"][0]["evidence"]["wrong ids"] == 5
    assert read["findings"][0]["where"]["first"] == 31


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
