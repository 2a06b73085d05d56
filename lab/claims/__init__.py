"""The claims of the review, each with what arithmetic, literature or runs say of it, and a verdict by rule."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import shipped
from ..config import unknown
from . import arithmetic, runs, tried
from .base import COLUMNS, DOES_NOT_HOLD, HOLDS, NOT_TESTED, UNIT_ERROR, VERDICTS, Claim

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "COLUMNS", "DOES_NOT_HOLD", "HOLDS", "NOT_TESTED", "PATH", "UNIT_ERROR", "VERDICTS", "Claim", "as_csv", "as_text",
    "claims", "matching", "table", "tables",
]  # fmt: skip
PATH = shipped.FOLDER.parent / "claims.csv"
PARTS = (
    "Root cause 1", "Root cause 2", "Root cause 3", "Option A", "Option B", "Option C", "Other improvements", "Closing",
)  # fmt: skip
USED = ("causes", "ladder", "sizes")


def tables() -> dict[str, DataFrame | None]:
    """The shipped tables that claims rest on, None for one that is not there yet."""
    found: dict[str, DataFrame | None] = {}
    for name in USED:
        try:
            found[name] = shipped.table(name)
        except FileNotFoundError:
            found[name] = None
    return found


def claims(given: Mapping[str, DataFrame | None] | None = None) -> list[Claim]:
    """Every row, made now, in the order of the review.

    given: the tables of runs {causes, ladder, sizes}; by default the shipped ones.
    """
    given = tables() if given is None else given
    filled = {name: frame if frame is not None and len(frame) else None for name, frame in given.items()}
    found = [*arithmetic.rows(), *runs.rows(filled), *tried.rows()]
    return sorted(found, key=lambda one: next(i for i, part in enumerate(PARTS) if one.source.startswith(part)))


def matching(found: Sequence[Claim], text: str) -> list[Claim]:
    """Those whose claim or verdict has the text in it. Raises ValueError where none has."""
    kept = [one for one in found if text.lower() in one.claim.lower() or text == one.verdict]
    if not kept:
        raise unknown("claim", text, [one.claim for one in found])
    return kept


def as_csv(found: Sequence[Claim]) -> str:
    """The same bytes on every machine."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(one, name) for name in COLUMNS] for one in found)
    return file.getvalue()


def as_text(found: Sequence[Claim], width: int = 110) -> str:
    """A paragraph a claim, and how many there are of each verdict."""
    parts = []
    for one in found:
        lines = [f"{one.verdict.upper()}: {one.claim}  [{one.source}]"]
        how = {"initial_indent": "    ", "subsequent_indent": "    ", "break_on_hyphens": False}
        lines += textwrap.wrap(f"{one.measured}.", width, **how)
        lines += [f"    unit: {one.unit}", f"    $ {one.command}"]
        parts.append("\n".join(lines))
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in VERDICTS}
    parts.append("; ".join(f"{verdict} {count}" for verdict, count in counts.items()))
    return "\n\n".join(parts)


def table(path: Path = PATH) -> DataFrame:
    """The committed table as a DataFrame. Raises FileNotFoundError, with the command that makes it."""
    import pandas

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; make it with `python -m lab claims --out {path.name}`.")
    return pandas.read_csv(path)
