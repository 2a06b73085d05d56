"""The command line. What needs torch is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Reproduce, catch, explain and repair what makes a transformer train badly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
faults_app = typer.Typer(
    help="The faults: broken twins of healthy functions. Without a command, the list.", invoke_without_command=True
)
app.add_typer(faults_app, name="faults")

Out = Annotated[Path, typer.Option("--out", help="Where the figures go.")]


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A few training steps only.")] = False,
    out: Out = Path("figures"),
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Watch the review's four findings happen on real data, be caught, and be repaired; then train a translator."""
    from .demo import run

    run(quick=quick, out=out, device=device)


@faults_app.callback()
def list_faults(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return
    from . import faults

    for fault in faults.all():
        kind = "half-repair" if fault.half_repair else "fault"
        print(f"{fault.id:30} {kind:12} {fault.summary}")
        print(f"{'':30} {'':12} caught by {fault.caught_by}; taught in {fault.lesson}")


@faults_app.command("show")
def show_fault(name: Annotated[str, typer.Argument(help="A name from `lab faults`.")]) -> None:
    """The difference between the broken code and the healthy code."""
    from . import faults

    fault = faults.get(name)
    print(f"{fault.id}: {fault.summary}\n\n{fault.diff()}")


@app.command()
def figures(out: Out = Path("figures")) -> None:
    """Draw every committed picture again."""
    from .draw import write_all

    for path in write_all(out):
        print(path)


def main() -> None:
    """Run the command line; an error that names what to do is shown alone (LAB_TRACEBACK=1 adds its traceback)."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("LAB_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
