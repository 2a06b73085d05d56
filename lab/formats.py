"""A report for other readers: a page without scripts, JSON with a schema, and SARIF, which code hosts show on lines."""

from __future__ import annotations

import html
import math
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .report import SEVERITIES, Finding, Report, Where, show

SCHEMA_VERSION = 2
FINDING = {
    "type": "object",
    "description": "One broken relation.",
    "properties": {
        "check": {"type": "string", "description": "The name of the check, as `lab diagnose --list` prints it."},
        "severity": {"enum": list(SEVERITIES), "description": "; ".join(f"{k}: {v}" for k, v in SEVERITIES.items())},
        "message": {"type": "string", "description": "What was seen, in one sentence."},
        "evidence": {
            "type": "object",
            "description": "What was measured, by name. Numbers are numbers; NaN and infinities are strings.",
            "additionalProperties": {
                "anyOf": [{"type": ["number", "string", "boolean", "null"]}, {"type": "array"}, {"type": "object"}]
            },
        },
        "where": {
            "type": ["object", "null"],
            "description": "Lines first..last of the file that holds the cause, and the function they are in.",
            "properties": {
                "path": {"type": "string"},
                "first": {"type": "integer", "minimum": 1},
                "last": {"type": "integer", "minimum": 1},
                "symbol": {"type": "string"},
            },
            "required": ["path", "first", "last", "symbol"],
            "additionalProperties": False,
        },
        "repair": {"type": "string", "description": "What to do."},
        "lesson": {"type": "string", "description": "The notebook that explains it."},
        "follows": {"type": "string", "description": "The check whose finding explains this one; empty for a root."},
        "fingerprint": {
            "type": "string",
            "pattern": "^[0-9a-f]{16}$",
            "description": "The same from one run to the next, whatever lines and numbers become.",
        },
    },
    "required": [
        "check", "severity", "message", "evidence", "where", "repair", "lesson", "follows", "fingerprint",
    ],
    "additionalProperties": False,
}  # fmt: skip
# What Report.to_json() writes (JSON Schema 2020-12). A change that a reader of version n would not understand makes
# version n + 1; what is only added does not.
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "What lab diagnose found",
    "type": "object",
    "properties": {
        "schema": {"const": SCHEMA_VERSION, "description": "The version of this schema."},
        "subject": {"type": "string", "description": "The name of what was diagnosed."},
        "worst": {"enum": [*list(SEVERITIES)[:-1], None], "description": "The severity of the worst finding."},
        "findings": {"type": "array", "items": {"$ref": "#/$defs/finding"}, "description": "P0 to P3, worst first."},
        "notes": {"type": "array", "items": {"$ref": "#/$defs/finding"}, "description": "Harmless, with a condition."},
        "known": {"type": "array", "items": {"$ref": "#/$defs/finding"}, "description": "Accepted by a baseline."},
        "passed": {"type": "array", "items": {"type": "string"}, "description": "The checks that found nothing."},
        "skipped": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The checks that were not asked, and what they lack.",
        },
        "errors": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The checks that broke, by a bug of this tool.",
        },
    },
    "required": ["schema", "subject", "worst", "findings", "notes", "known", "passed", "skipped", "errors"],
    "$defs": {"finding": FINDING},
}


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays and one-element tensors as numbers, NaN and infinities as strings."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def finding_dict(finding: Finding) -> dict[str, Any]:
    where = finding.where
    return {
        **{name.name: plain(getattr(finding, name.name)) for name in fields(finding) if name.name != "where"},
        "where": None if where is None else {name.name: getattr(where, name.name) for name in fields(where)},
        "fingerprint": finding.fingerprint,
    }


def as_dict(report: Report) -> dict[str, Any]:
    """The report as SCHEMA describes it."""
    return {
        "schema": SCHEMA_VERSION,
        "subject": report.subject,
        "worst": report.worst,
        **{kind: [finding_dict(f) for f in getattr(report, kind)] for kind in ("findings", "notes", "known")},
        "passed": list(report.passed),
        "skipped": dict(report.skipped),
        "errors": dict(report.errors),
    }


# HTML: folding by <details>, which browsers open on a click or a key; no style sheet and no script.


def as_html(report: Report) -> str:
    """The report as a fragment of HTML."""
    parts = [f"<h3>Findings on {html.escape(report.subject)}</h3>"]
    heading = ""
    for root, below in report.families():
        if root.severity != heading:
            heading = root.severity
            parts.append(f"<h4>{heading}: {SEVERITIES[heading]}</h4>")
        parts.append(finding_html(root, below, opened=True))
    if not report.findings:
        parts.append("<p>No finding.</p>")
    if report.notes:
        parts.append(f"<h4>Notes: {SEVERITIES['note']}</h4>" + "".join(finding_html(note) for note in report.notes))
    if report.known:
        parts.append("<h4>Known, and accepted by the baseline</h4>" + "".join(finding_html(f) for f in report.known))
    broken = [f"{name}: {why}" for name, why in report.errors.items()]
    parts.append(folded("ERRORS, bugs of this tool", broken, opened=True))
    parts.append(folded("Passed", report.passed))
    parts.append(folded("Skipped", [f"{name}: {why}" for name, why in report.skipped.items()]))
    return f'<section aria-label="Diagnosis">{"".join(parts)}</section>'


def finding_html(finding: Finding, below: list[Finding] | None = None, opened: bool = False) -> str:
    """One finding, folded: its sentence; inside, the numbers, the repair, the lesson and what follows from it."""
    rows = {"repair": finding.repair, "place": str(finding.where or ""), "evidence": show(finding.evidence)}
    rows |= {"lesson": finding.lesson, "check": finding.check}
    terms = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items() if value)
    count = len(below or ())
    follow = "".join(finding_html(f) for f in below or ())
    tail = f"<p>{count} finding{'s follow' if count > 1 else ' follows'} from it:</p>{follow}" if count else ""
    return (
        f"<details{' open' if opened else ''}><summary><strong>{finding.severity}</strong> "
        f"{html.escape(finding.message.rstrip('.'))}.</summary>"
        f'<div style="margin-left:1.5em"><dl>{terms}</dl>{tail}</div></details>'
    )


def folded(name: str, lines: list[str], opened: bool = False) -> str:
    """A list behind its name and length; nothing where it is empty."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    opened_ = " open" if opened else ""
    return f"<details{opened_}><summary>{name} ({len(lines)})</summary><ul>{items}</ul></details>" if lines else ""


def as_page(report: Report) -> str:
    """The report as a whole page."""
    title = f"Findings on {html.escape(report.subject)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>body{{font-family:sans-serif;line-height:1.5;max-width:60em;margin:2em auto;padding:0 1em}}"
        f"dt{{font-weight:bold}}</style></head><body><main>{as_html(report)}</main></body></html>\n"
    )


# SARIF 2.1.0

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"P0": "error", "P1": "error", "P2": "warning", "P3": "note", "note": "none"}


def as_sarif(report: Report, root: str | Path | None = None, fallback: Where | None = None) -> dict[str, Any]:
    """The report as a SARIF log of one run; see Report.to_sarif."""
    base = Path(root or ".").resolve()
    rules = [rule_of(name) for name in dict.fromkeys(check_ids(report))]
    index = {rule["id"]: number for number, rule in enumerate(rules)}
    results = [result_of(f, index, base, fallback) for f in report.findings + report.notes]
    for finding in report.known:
        suppressed = {"suppressions": [{"kind": "external", "justification": "accepted by the baseline"}]}
        results.append(result_of(finding, index, base, fallback) | suppressed)
    broken = [
        {"level": "error", "message": {"text": f"the check {name} broke: {why}"}, "descriptor": {"id": name}}
        for name, why in report.errors.items()
    ]
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "lab diagnose", "version": version(), "rules": rules}},
                "invocations": [{"executionSuccessful": not broken, "toolExecutionNotifications": broken}],
                "results": results,
                "columnKind": "unicodeCodePoints",
                "properties": {"subject": report.subject, "skipped": dict(report.skipped)},
            }
        ],
    }


def version() -> str:
    try:
        return metadata.version("transformer-lab")
    except metadata.PackageNotFoundError:
        return "0"


def check_ids(report: Report) -> list[str]:
    found = [finding.check for finding in report.findings + report.notes + report.known]
    return [*found, *report.passed, *report.skipped, *report.errors]


def rule_of(name: str) -> dict[str, Any]:
    """What a code host shows beside a result: the relation, why nobody notices, the repair, the lesson."""
    from . import checks

    check = checks.REGISTRY.get(name)
    if check is None:
        return {"id": name, "shortDescription": {"text": name}, "help": {"text": name}}
    parts = {"Why nobody notices": check.silent, "Repair": check.repair, "Lesson": check.lesson}
    told = [check.summary, check.details, *(f"{name}: {text}." for name, text in parts.items() if text)]
    text = "\n\n".join(" ".join(part.split()).replace("..", ".") for part in told if part)
    return {
        "id": name,
        "shortDescription": {"text": check.summary},
        "fullDescription": {"text": " ".join((check.details or check.summary).split())},
        "help": {"text": text, "markdown": text},
        "defaultConfiguration": {"level": LEVELS[check.severity]},
        "properties": {"tags": [check.family], "severity": check.severity},
    }


def result_of(finding: Finding, index: dict[str, int], base: Path, fallback: Where | None) -> dict[str, Any]:
    parts = [f"[{finding.severity}] {finding.message.rstrip('.')}."]
    if finding.evidence:
        parts.append(f"Evidence: {show(finding.evidence)}.")
    if finding.repair:
        parts.append(f"Repair: {finding.repair}.")
    if finding.follows:
        parts.append(f"It follows from {finding.follows}.")
    result: dict[str, Any] = {
        "ruleId": finding.check,
        "ruleIndex": index[finding.check],
        "level": LEVELS[finding.severity],
        "kind": "informational" if finding.severity == "note" else "fail",
        "message": {"text": " ".join(parts)},
        "partialFingerprints": {"finding/v1": finding.fingerprint},
        "properties": {"severity": finding.severity, "evidence": plain(finding.evidence)},
    }
    for where in (finding.where, fallback):
        if where is not None and Path(where.path).is_file():  # not a notebook's cell
            result["locations"] = [location_of(where, base)]
            break
    return result


def location_of(where: Where, base: Path) -> dict[str, Any]:
    """Relative to `base` where the file is below it, else absolute."""
    path = Path(where.path).resolve()
    if path.is_relative_to(base):
        artifact = {"uri": quote(path.relative_to(base).as_posix()), "uriBaseId": "%SRCROOT%"}
    else:
        artifact = {"uri": path.as_uri()}
    return {
        "physicalLocation": {
            "artifactLocation": artifact,
            "region": {"startLine": where.first, "endLine": max(where.first, where.last)},
        },
        "logicalLocations": [{"fullyQualifiedName": where.symbol, "kind": "function"}],
    }
