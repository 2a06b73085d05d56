"""What a diagnosis says: findings by severity, what follows from them, what was not asked; and which are known."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from types import CodeType
from typing import Any

SEVERITIES = {
    "P0": "results are wrong everywhere",
    "P1": "training cannot work",
    "P2": "crashes or is wrong on ordinary batches",
    "P3": "degrades silently",
    "note": "harmless here; the condition that would wake it is named",
}
RANKS = {severity: rank for rank, severity in enumerate(SEVERITIES)}
FAIL_ON = ("P0", "P1", "P2", "P3", "none")
BASELINE_VERSION = 1
WIDTH = 110  # characters of a list in the text; sentences are left to the terminal


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

    @property
    def identity(self) -> dict[str, str]:
        """What names this finding from one run to the next: no line, no path and no number that a run measured."""
        named = {
            "check": self.check,
            "symbol": self.where.symbol if self.where else "",
            "module": str(self.evidence.get("module", "")),
        }
        if not named["symbol"] and not named["module"]:
            named["message"] = re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", self.message)
        return named

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def sentence(self) -> str:
        """`Sentence. File: labels.py lines 31–38 (shift_right).`"""
        return f"{self.message.rstrip('.')}." + (f" File: {self.where}." if self.where else "")

    def text(self) -> str:
        """`[P2] sentence. File: labels.py lines 31–38 (shift_right).`, then evidence, repair and lesson."""
        lines = [f"[{self.severity}] {self.sentence}"]
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
    """Findings (P0 to P3), notes, checks that passed, that were skipped (and why), and that broke (our bug).

    known: the findings that a baseline accepts.
    """

    subject: str = ""
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    known: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """File a finding by its severity, keeping the order of severities."""
        kept = self.notes if finding.severity == "note" else self.findings
        kept.append(finding)
        kept.sort(key=lambda f: RANKS[f.severity])

    def __bool__(self) -> bool:
        """True where something was found."""
        return bool(self.findings)

    def by_check(self, check: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.check == check]

    def at_least(self, severity: str) -> list[Finding]:
        """The findings of that severity and worse; none for "none". Raises ValueError for another severity."""
        if severity not in FAIL_ON:
            raise ValueError(f"fail_on is {severity!r}; it is one of {', '.join(FAIL_ON)}.")
        return [f for f in self.findings if severity != "none" and RANKS[f.severity] <= RANKS[severity]]

    def exit_code(self, fail_on: str = "P2") -> int:
        """1 where there is a finding of that severity or worse, else 0."""
        return int(bool(self.at_least(fail_on)))

    @property
    def worst(self) -> str | None:
        """The severity of the worst finding; None without any."""
        return min((f.severity for f in self.findings), key=RANKS.__getitem__, default=None)

    def families(self) -> list[tuple[Finding, list[Finding]]]:
        """Each root finding, by severity, and what follows from it. What follows from nothing listed is a root."""
        roots = {f.check for f in self.findings if not f.follows}
        folded = [f for f in self.findings if f.follows in roots - {f.check}]
        tree, seen = [], set()
        for root in (f for f in self.findings if f not in folded):
            # Two findings of one check: what follows is told once, under the first.
            below = [f for f in folded if f.follows == root.check] if root.check not in seen else []
            seen.add(root.check)
            tree.append((root, below))
        return tree

    def against(self, baseline: str | Path | Mapping[str, Any]) -> Report:
        """Move the findings that a baseline accepts to `known`, in this report, which is returned.

        As many of each as there are in the baseline, and none that has become worse. Raises ValueError where the file
        is no baseline, and OSError where it cannot be read.
        """
        accepted: dict[str, list[str]] = {}
        for entry in read_baseline(baseline)["findings"]:
            accepted.setdefault(entry["fingerprint"], []).append(entry["severity"])
        left: list[Finding] = []
        for finding in self.findings:
            mine = sorted(accepted.get(finding.fingerprint, ()), key=RANKS.__getitem__, reverse=True)
            as_bad = [severity for severity in mine if RANKS[severity] <= RANKS[finding.severity]]
            if as_bad:
                accepted[finding.fingerprint].remove(as_bad[0])
            (self.known if as_bad else left).append(finding)
        self.findings = left
        return self

    def baseline(self) -> dict[str, Any]:
        """What accepts every finding of this report, known ones included."""
        findings = [
            {"fingerprint": f.fingerprint, "severity": f.severity} | f.identity for f in self.findings + self.known
        ]
        return {"baseline": BASELINE_VERSION, "findings": sorted(findings, key=lambda entry: tuple(entry.values()))}

    def write_baseline(self, path: str | Path) -> None:
        """Write that as JSON, to be committed and given to `against`."""
        text = json.dumps(self.baseline(), indent=2, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def brief(self) -> str:
        """The findings alone, two lines each: the sentence and the repair. Empty where nothing was found."""
        return "\n".join(f"[{f.severity}] {f.message.rstrip('.')}.\n     repair: {f.repair}" for f in self.findings)

    def text(self) -> str:
        """The report as the review was written: by severity, what follows from a finding folded below it."""
        lines = [f"Findings on {self.subject} ({'new, ' if self.known else ''}ordered by severity)", ""]
        heading = ""
        for root, below in self.families():
            if root.severity != heading:
                heading = root.severity
                lines += [f"{heading}: {SEVERITIES[heading]}", ""]
            lines += [root.text()]
            lines += ["     follows from it:"] * bool(below)
            lines += [f"       [{f.severity}] {f.sentence} ({f.check})" for f in below]
            lines += [""]
        lines += ["none", ""] * (not self.findings)
        if self.notes:
            lines += [f"Notes: {SEVERITIES['note']}", "", *(note.text() + "\n" for note in self.notes)]
        if self.known:
            lines.append("Known, and accepted by the baseline:")
            lines += [f"     [{f.severity}] {f.sentence} ({f.check})" for f in self.known] + [""]
        hanging = {"subsequent_indent": "  ", "break_on_hyphens": False}
        if self.passed:
            lines.append(fill(f"Passed: {', '.join(self.passed)}.", WIDTH, **hanging))
        reasons: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            skipped = f"Skipped {', '.join(names)}: {why}"
            lines.append(skipped if len(names) == 1 else fill(skipped, WIDTH, **hanging))
        lines += [f"ERROR in {name} (a bug of this tool, please report it): {why}" for name, why in self.errors.items()]
        return "\n".join(lines).rstrip() + "\n"

    __str__ = text

    def to_dict(self) -> dict[str, Any]:
        """As lab.formats.SCHEMA describes it."""
        from .formats import as_dict

        return as_dict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """JSON as lab.formats.SCHEMA describes it; numbers stay numbers."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """A page of its own."""
        from .formats import as_page

        return as_page(self)

    def to_sarif(self, root: str | Path | None = None, fallback: Where | None = None) -> str:
        """SARIF 2.1.0 with paths relative to `root`, the working directory by default.

        fallback: the place of the findings that have none; code hosts show a result only where it has one.
        """
        from .formats import as_sarif

        return json.dumps(as_sarif(self, root, fallback), indent=2, ensure_ascii=False, allow_nan=False)

    def _repr_html_(self) -> str:
        from .formats import as_html

        return as_html(self)


def read_baseline(baseline: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """A baseline, from its file where it is a path. Raises ValueError where it is none."""
    if isinstance(baseline, Mapping):
        name, read = "baseline", baseline
    else:
        name = str(baseline)
        try:
            read = json.loads(Path(baseline).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name} is not JSON ({error}); make it with --write-baseline.") from error
    version = read.get("baseline") if isinstance(read, Mapping) else None
    entries = read.get("findings") if version == BASELINE_VERSION else None
    whole = isinstance(entries, list) and all(
        isinstance(e, Mapping) and isinstance(e.get("fingerprint"), str) and e.get("severity") in RANKS for e in entries
    )
    if not whole:
        raise ValueError(
            f"{name} is no baseline of version {BASELINE_VERSION} (its version is {version!r}); write it again with "
            f"--write-baseline."
        )
    return read
