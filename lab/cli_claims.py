"""`lab claims`: the claims table on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def claims(
    only: Annotated[str | None, typer.Option(help="Those whose claim has this text, or of this verdict.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table there as CSV, and print no text.")] = None,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count the rows of WikiText-2 again, beside what is quoted, and stop.")
    ] = False,
    data_dir: Annotated[str | None, typer.Option(help="Where WikiText lies; else $LAB_DATA, ../shared/data.")] = None,
) -> None:
    """The claims of the review, each with what was measured or published, a verdict, and the command that shows it."""
    from . import claims
    from .claims import quoted

    if recount:
        for name, number in quoted.recount(data_dir).items():
            print(f"{name:22} {number:>12,}, quoted {quoted.COUNTS[name]:>12,}")
        return
    found = claims.claims()
    found = found if only is None else claims.matching(found, only)
    if out is None:
        print(claims.as_text(found))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(claims.as_csv(found), encoding="utf-8", newline="")
    print(out)
