"""A report as a page, as JSON and as SARIF: valid, complete, and true to what it was made of."""

import json
import math
import os
from html.parser import HTMLParser

import jsonschema
import numpy
import pytest
import torch

import lab
from lab import checks, formats, matrix
from lab.report import Finding, Report, Where


def full(path="/somewhere/labels.py"):
    made = Report("<a> model")
    crash = Finding(
        "padding-crash",
        "P2",
        "decoder_input_ids hold <b>-100</b>",
        {"wrong ids": 5, "share": 0.123456, "module": "decoder", "sizes": (1, 2)},
        Where(str(path), 31, 38, "shift_right"),
        "feed <pad_id>",
        "notebooks/01_padding_crash.ipynb",
    )
    for finding in (
        crash,
        Finding("attends-to-pads", "P0", "pads", {"x": math.nan, "y": -math.inf}, follows="padding-crash"),
        Finding("fully-masked-row", "note", "harmless", {"tensor": torch.tensor(2.5), "count": numpy.int64(3)}),
    ):
        made.add(finding)
    made.known.append(Finding("no-warmup", "P3", "known"))
    made.passed.append("stuck-in-eval")
    made.skipped["half-repaired-mode"] = "needs <evaluate>"
    made.errors["feed-forward-ratio"] = "KeyError: 'x'"
    return made


# JSON


def test_the_schema_is_one_and_every_field_is_described():
    jsonschema.Draft202012Validator.check_schema(formats.SCHEMA)
    for holder in (formats.SCHEMA, formats.FINDING):
        assert all("description" in field for field in holder["properties"].values())


@pytest.mark.parametrize("made", [full(), Report()], ids=["full", "empty"])
def test_json_follows_its_schema(made):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    jsonschema.validate(json.loads(made.to_json(), parse_constant=refuse), formats.SCHEMA)


def test_a_real_report_follows_its_schema():
    with lab.faults.get("padding-crash").inject():
        made = lab.diagnose(matrix.translator())
    assert made.findings
    jsonschema.validate(json.loads(made.to_json()), formats.SCHEMA)


def test_json_keeps_what_was_said():
    read = json.loads(full().to_json())
    assert read["schema"] == formats.SCHEMA_VERSION == 2 and read["worst"] == "P0"
    crash = next(f for f in read["findings"] if f["check"] == "padding-crash")
    assert crash["evidence"] == {"wrong ids": 5, "share": 0.123456, "module": "decoder", "sizes": [1, 2]}
    assert crash["where"] == {"path": "/somewhere/labels.py", "first": 31, "last": 38, "symbol": "shift_right"}
    follower = next(f for f in read["findings"] if f["check"] == "attends-to-pads")
    assert follower["follows"] == "padding-crash" and follower["evidence"] == {"x": "nan", "y": "-inf"}
    assert read["notes"][0]["evidence"] == {"tensor": 2.5, "count": 3}
    assert [f["check"] for f in read["known"]] == ["no-warmup"]


# HTML

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that every element is closed, and keeps the text inside each kind."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.inside = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.inside[tag] = self.inside.get(tag, "") + data


def test_the_page_is_whole_and_runs_nothing():
    page = Page(full().to_html())
    tags = {tag for tag, _ in page.seen}
    assert {"html", "title", "main", "details", "summary"} <= tags and not tags & {"script", "a", "b", "i"}
    assert dict(page.seen)["html"] == {"lang": "en"}
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)


def test_the_page_holds_evidence_repair_lesson_and_what_follows():
    page = Page(full()._repr_html_())
    for text in ("<b>-100</b>", "wrong ids 5", "feed <pad_id>", "01_padding_crash", "1 finding follows", "P2"):
        assert text in page.inside["details"], text
    assert "half-repaired-mode: needs <evaluate>" in page.inside["li"]
    assert "feed-forward-ratio: KeyError" in page.inside["li"]


def test_findings_are_open_and_the_rest_is_folded():
    html = full()._repr_html_()
    assert html.count("<details open>") == 2  # the root, and the errors
    assert html.index("<summary>Passed") > html.rindex("<details open>")


def test_details_are_opened_by_their_own_summary():
    """Without a summary as its first child, <details> shows a word of the browser's own."""
    html = full().to_html()
    assert html.count("<details") == html.count("<summary>")
    assert html.replace("<details open>", "<details>").count("<details><summary>") == html.count("<details")


# SARIF

LOCATION = {
    "type": "object",
    "required": ["physicalLocation"],
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation", "region"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {"uri": {"type": "string"}, "uriBaseId": {"type": "string"}},
                },
                "region": {
                    "type": "object",
                    "required": ["startLine"],
                    "properties": {
                        "startLine": {"type": "integer", "minimum": 1},
                        "endLine": {"type": "integer", "minimum": 1},
                    },
                },
            },
        }
    },
}
MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
# What SARIF 2.1.0 demands of the parts used here, and GitHub's code scanning beside it (ruleId, rules with help).
SARIF = {
    "type": "object",
    "required": ["version", "runs", "$schema"],
    "properties": {
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["tool", "results"],
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name", "rules"],
                                "properties": {
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id", "shortDescription", "help"],
                                            "properties": {"shortDescription": MESSAGE, "help": MESSAGE},
                                        },
                                    }
                                },
                            }
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {
                            "required": ["executionSuccessful"],
                            "properties": {
                                "toolExecutionNotifications": {"items": {"required": ["message"]}},
                            },
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["ruleId", "message", "level", "partialFingerprints"],
                            "properties": {
                                "message": MESSAGE,
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "kind": {"enum": ["fail", "informational"]},
                                "ruleIndex": {"type": "integer", "minimum": 0},
                                "partialFingerprints": {"additionalProperties": {"type": "string"}},
                                "locations": {"type": "array", "items": LOCATION},
                                "suppressions": {
                                    "items": {
                                        "required": ["kind"],
                                        "properties": {"kind": {"enum": ["external", "inSource"]}},
                                    }
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


@pytest.mark.parametrize("made", [full(), Report()], ids=["full", "empty"])
def test_sarif_has_what_the_standard_demands(made):
    jsonschema.validate(json.loads(made.to_sarif()), SARIF)


def run_of(made, **how):
    return json.loads(made.to_sarif(**how))["runs"][0]


def test_each_result_names_its_rule_and_level():
    run = run_of(full())
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    levels = {r["ruleId"]: (r["level"], r["kind"]) for r in run["results"]}
    assert levels == {
        "padding-crash": ("warning", "fail"),
        "attends-to-pads": ("error", "fail"),
        "fully-masked-row": ("none", "informational"),  # the standard: no level where it is no failure
        "no-warmup": ("note", "fail"),
    }


def test_what_is_known_is_suppressed_and_what_broke_is_told():
    run = run_of(full())
    assert [r["ruleId"] for r in run["results"] if r.get("suppressions")] == ["no-warmup"]
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    assert "feed-forward-ratio" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_every_check_explains_itself_as_a_rule():
    for check in checks.all():
        rule = formats.rule_of(check.id)
        assert check.summary in rule["help"]["text"] and check.lesson in rule["help"]["text"]
        assert " ".join(check.repair.split()) in rule["help"]["text"]


def located(made, **how):
    return next(r for r in run_of(made, **how)["results"] if r["ruleId"] == "padding-crash").get("locations")


def test_places_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    path = tmp_path / "my code" / "labels.py"
    path.parent.mkdir()
    path.write_text("pass\n" * 40)
    monkeypatch.chdir(tmp_path)
    (location,) = located(full(path))
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "my%20code/labels.py", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 31, "endLine": 38},
    }
    assert str(tmp_path) not in full(path).to_sarif()
    monkeypatch.chdir(path.parent)
    (tmp_path / "elsewhere").mkdir()
    (location,) = located(full(path), root=tmp_path / "elsewhere")
    assert location["physicalLocation"]["artifactLocation"] == {"uri": path.as_uri()}


def test_a_place_that_is_no_file_gives_way_to_the_fallback(tmp_path):
    """A notebook's cell, or code that was never in a file; code hosts want a place for each result."""
    path = tmp_path / "made.py"
    path.write_text("pass\n")
    fallback = Where(str(path), 1, 1, "subject")
    assert located(full()) is None
    (location,) = located(full(), fallback=fallback, root=tmp_path)
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "made.py"


@pytest.mark.skipif("SARIF_SCHEMA" not in os.environ, reason="give the standard's own schema: SARIF_SCHEMA=file")
def test_sarif_follows_the_standards_own_schema():
    with open(os.environ["SARIF_SCHEMA"]) as file:
        jsonschema.validate(json.loads(full(__file__).to_sarif()), json.load(file))
