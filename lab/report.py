"""What a diagnosis says: findings ordered by severity, as text, HTML and JSON."""

from __future__ import annotations

import html
import inspect
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

SEVERITIES = {
    "P0": "results are wrong everywhere",
    "P1": "training cannot work",
    "P2": "crashes or is wrong on ordinary batches",
    "P3": "degrades silently",
    "note": "harmless here; the condition that would wake it is named",
}
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Where:
    """Lines first..last of a file, and the name of the function that they are in."""

    path: str
    first: int
    last: int
    symbol: str

    @classmethod
    def of_code(cls, code: CodeType) -> Where:
        lines = [line for *_, line in code.co_lines() if line]
        return cls(code.co_filename, code.co_firstlineno, max(lines, default=code.co_firstlineno), code.co_qualname)

    @classmethod
    def of(cls, function: Any) -> Where | None:
        """Where a Python function is written; None for a builtin."""
        code = getattr(inspect.unwrap(function), "__code__", None)
        return None if code is None else cls.of_code(code)

    def __str__(self) -> str:
        lines = f"line {self.first}" if self.first == self.last else f"lines {self.first}–{self.last}"
        name = "a cell of this notebook," if "ipykernel_" in self.path else Path(self.path).name
        return f"{name} {lines} ({self.symbol})"


@dataclass(frozen=True)
class Finding:
    """One broken relation: what a check saw, the numbers it saw, the place, the repair, the lesson (a notebook).

    follows: the check whose finding explains this one; empty where it is a root.
    """

    check: str
    severity: str
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    where: Where | None = None
    repair: str = ""
    lesson: str = ""
    follows: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity is {self.severity!r}; it is one of {', '.join(SEVERITIES)}.")

    def text(self) -> str:
        """`[P2] sentence. File: labels.py lines 31–38 (shift_right).`, then evidence, repair and lesson."""
        place = f" File: {self.where}." if self.where else ""
        lines = [f"[{self.severity}] {self.message.rstrip('.')}.{place}"]
        rows = {"check": self.check, "evidence": show(self.evidence), "repair": self.repair, "lesson": self.lesson}
        return "\n".join(lines + [f"     {name}: {value}" for name, value in rows.items() if value])


def show(evidence: dict[str, Any]) -> str:
    """`name value; name value`, floats to three digits, large counts with commas."""
    parts = []
    for name, value in evidence.items():
        how = ".3g" if isinstance(value, float) else "," if isinstance(value, int) and abs(value) >= 10_000 else ""
        parts.append(f"{name} {value:{how}}" if how else f"{name} {value}")
    return "; ".join(parts)


@dataclass
class Report:
    """Findings (P0 to P3), notes, checks that passed, that were skipped (and why), and that broke (our bug)."""

    subject: str = ""
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """File a finding by its severity, keeping the order of severities."""
        kept = self.notes if finding.severity == "note" else self.findings
        kept.append(finding)
        kept.sort(key=lambda f: list(SEVERITIES).index(f.severity))

    def __bool__(self) -> bool:
        """True where something was found."""
        return bool(self.findings)

    def by_check(self, check: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.check == check]

    def brief(self) -> str:
        """The findings alone, two lines each: the sentence and the repair. Empty where nothing was found."""
        return "\n".join(f"[{f.severity}] {f.message.rstrip('.')}.\n     repair: {f.repair}" for f in self.findings)

    def text(self) -> str:
        """The report as the review was written, by severity."""
        lines = [f"Findings on {self.subject} (ordered by severity)", ""]
        lines += [finding.text() + "\n" for finding in self.findings] or ["none\n"]
        if self.notes:
            lines += ["Notes", "", *(note.text() + "\n" for note in self.notes)]
        if self.passed:
            lines.append(f"Passed: {', '.join(self.passed)}.")
        lines += [f"Skipped {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"ERROR in {name} (a bug of this tool, please report it): {why}" for name, why in self.errors.items()]
        return "\n".join(lines).rstrip() + "\n"

    __str__ = text

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    def to_json(self, indent: int | None = 2) -> str:
        """schema (its version), subject, findings, notes, passed, skipped, errors; numbers stay numbers."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, default=str)

    def _repr_html_(self) -> str:
        """A table that needs neither style sheet nor script."""
        rows, left = [], "text-align:left;vertical-align:top"
        for finding in self.findings + self.notes:
            place = f"<br><small>{html.escape(str(finding.where))}</small>" if finding.where else ""
            details = "".join(
                f"<br><small>{name}: {html.escape(value)}</small>"
                for name, value in (("repair", finding.repair), ("lesson", finding.lesson))
                if value
            )
            cells = [
                f'<code style="white-space:nowrap">{html.escape(finding.check)}</code>',
                f"{html.escape(finding.message)}{place}{details}",
                html.escape(show(finding.evidence)),
            ]
            row = "".join(f'<td style="{left}">{cell}</td>' for cell in cells)
            rows.append(f'<tr><th scope="row" style="{left}">{finding.severity}</th>{row}</tr>')
        head = "".join(
            f'<th scope="col" style="{left}">{name}</th>' for name in ("severity", "check", "finding", "evidence")
        )
        body = "".join(rows) or '<tr><td colspan="4">no finding</td></tr>'
        foot = "".join(f"<br>{html.escape(name)} skipped: {html.escape(why)}" for name, why in self.skipped.items())
        foot += "".join(f"<br>ERROR in {html.escape(name)}: {html.escape(why)}" for name, why in self.errors.items())
        return (
            f"<table><caption>Findings on {html.escape(self.subject)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table><small>passed: {html.escape(', '.join(self.passed) or 'none')}{foot}</small>"
        )
