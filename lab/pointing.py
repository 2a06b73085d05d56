"""`lab diagnose TARGET`: somebody's function, in a file or a module, to the subject that it returns, and its report."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, indent
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is imported when there is something to diagnose
    from .report import Report
    from .subject import Subject

FORMATS = ("text", "html", "json", "sarif")
FORM = "path/to/file.py:function or package.module:function"
RETURNS = "a model (torch.nn.Module), a pair (model, batch) or a lab.Subject"


@dataclass(frozen=True)
class Target:
    """A function by name: in a file, or in a module that Python finds from the working directory."""

    place: str
    function: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises ValueError for what is not of the form, and FileNotFoundError where there is no such file."""
        place, colon, function = text.rpartition(":")
        if not colon or not place or not all(part.isidentifier() for part in function.split(".")):
            raise ValueError(f"target is {text!r}; name a function as {FORM}.")
        target = cls(place, function)
        if target.is_file:
            if not Path(place).is_file():
                raise FileNotFoundError(f"there is no file {place}; name a function as {FORM}.")
        elif not all(part.isidentifier() for part in place.split(".")):
            raise ValueError(f"{place!r} is neither a file that ends in .py nor a module; name a function as {FORM}.")
        return target

    @property
    def is_file(self) -> bool:
        return self.place.endswith(".py")

    def __str__(self) -> str:
        return f"{self.function}() in {self.place}"


@contextmanager
def as_guest() -> Iterator[None]:
    """Inside, imports write no byte code beside the user's files, and what their code prints goes to stderr."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.dont_write_bytecode = before


def load_module(target: Target) -> ModuleType:
    """Import the file or the module as Python itself would run it. Raises ValueError naming what their code raised."""
    if not target.is_file:
        name, root = target.place, Path.cwd()
    else:
        path = Path(target.place).resolve()
        name, root = path.stem, path.parent
        while (root / "__init__.py").is_file():  # inside a package: relative imports need its name
            name, root = f"{root.name}.{name}", root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        if not target.is_file or "." in name:
            return importlib.import_module(name)
        # Another module may have the file's name.
        spec = importlib.util.spec_from_file_location(name if name not in sys.modules else f"{name}_by_path", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        raise ValueError(f"importing {target.place} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """`KeyError: 'x' (model.py line 12)`: the last line of the traceback that is not the import system's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({Path(error.filename).name} line {error.lineno})"
        return f"{type(error).__name__}: {error.msg}{place}"
    return f"{type(error).__name__}: {error}{place}; LAB_TRACEBACK=1 shows the traceback."


def load_target(text: str, announce: Callable[[str], Any] = lambda line: print(line, file=sys.stderr)) -> Callable:
    """The function named `path/to/file.py:function` or `package.module:function`.

    announce: is told, before anything is imported, that this runs the user's code.
    Raises ValueError, naming what is wrong with the name, or what their code raised.
    """
    target = Target.parse(text)
    announce(f"lab diagnose imports {target.place} and calls {target.function}(): that runs its code.")
    module = load_module(target)
    found: Any = module
    for part in target.function.split("."):
        if not hasattr(found, part):
            names = [n for n, value in vars(module).items() if inspect.isfunction(value) and not n.startswith("_")]
            raise ValueError(f"{target.place} has no {target.function!r}; its functions: {', '.join(names) or 'none'}.")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(
            f"{target.function} in {target.place} is no function but {type(found).__name__}; name one that returns "
            f"{RETURNS}."
        )
    return found


def load_subject(text: str, function: Callable) -> Subject:
    """What the function named `text` returns, as a subject. Raises ValueError naming file, function and exception."""
    from torch import nn

    from .subject import Subject

    target = Target.parse(text)
    try:
        needed = [
            name
            for name, p in inspect.signature(function).parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # a builtin
        needed = []
    if needed:
        raise ValueError(f"{target} needs {', '.join(needed)}; name a function without arguments.")
    try:
        made = function()
        if isinstance(made, nn.Module):
            made = Subject(made)
        elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
            made = Subject(*made)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{target} raised {told(error)}") from error
    if not isinstance(made, Subject):
        raise ValueError(f"{target} returned {type(made).__name__}; it should return {RETURNS}.")
    return made


def names_of(given: Sequence[str]) -> list[str]:
    """The checks that `--only` and `--skip` name: checks and families, repeated or parted by commas.

    Raises ValueError for what is neither.
    """
    from . import checks

    families = {check.family for check in checks.all()}
    names = [name.strip() for part in given for name in part.split(",") if name.strip()]
    return [id for name in names for id in (checks.family(name) if name in families else [checks.get(name).id])]


def diagnose_target(
    text: str,
    *,
    format: str = "text",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    fail_on: str = "P2",
    baseline: Path | None = None,
    write_baseline: bool = False,
    out: Path | None = None,
    seed: int = 0,
) -> int:
    """Diagnose what a function returns, write the report to `out` or stdout, and return the exit status.

    Raises ValueError for bad usage and for what the user's code raises, OSError for files that cannot be used.
    """
    if format not in FORMATS:
        raise ValueError(f"--format is {format!r}; it is one of {', '.join(FORMATS)}.")
    if write_baseline and baseline is None:
        raise ValueError("--write-baseline needs --baseline FILE, the file to write.")
    Target.parse(text)
    from .report import Report, Where, read_baseline

    # All that can be wrong with the question comes before the user's code is run, and before torch, a second's work.
    Report().exit_code(fail_on)
    known = read_baseline(baseline) if baseline is not None and not write_baseline else None
    chosen = names_of(only) if only else None, names_of(skip)
    with as_guest():
        function = load_target(text)
        subject = load_subject(text, function)
        from .diagnosis import diagnose

        report = diagnose(subject, only=chosen[0], skip=chosen[1], seed=seed)
    if write_baseline:
        report.write_baseline(baseline)
        print(f"{baseline} accepts {len(report.findings)} findings.", file=sys.stderr)
        known = report.baseline()
    if known is not None:
        report.against(known)
    written = rendered(report, format, Where.of(inspect.unwrap(function)))
    if out is None:
        print(written, end="" if written.endswith("\n") else "\n")
    else:
        out.write_text(written, encoding="utf-8")
        print(f"{summary(report)} The report is in {out}.", file=sys.stderr)
    return report.exit_code(fail_on)


def rendered(report: Report, format: str, place: Any = None) -> str:
    if format == "sarif":
        return report.to_sarif(fallback=place)
    return {"text": report.text, "html": report.to_html, "json": report.to_json}[format]()


def summary(report: Report) -> str:
    counts = {
        "findings": len(report.findings),
        "known": len(report.known),
        "notes": len(report.notes),
        "passed": len(report.passed),
        "skipped": len(report.skipped),
        "errors": len(report.errors),
    }
    named = {name: name.removesuffix("s") if n == 1 else name for name, n in counts.items()}
    return ", ".join(f"{n} {named[name]}" for name, n in counts.items() if n or name == "findings") + "."


def listing() -> str:
    """Every check: name, severity, family, relation."""
    from . import checks

    rows = [(c.id, c.severity, c.family, c.summary + (" (slow: --only)" if c.opt_in else "")) for c in checks.all()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(" ".join(f"{cell:{w}}" for cell, w in zip(row, (*widths, 0), strict=True)) for row in rows)


def explanation(name: str) -> str:
    """What a check looks at, why nobody notices without it, how to repair, and where it is taught.

    Raises ValueError for an unknown check.
    """
    from . import checks, faults

    check = checks.get(name)
    shown = [fault.id for fault in faults.all() if fault.caught_by == check.id]
    rows = {
        "Why nobody notices": check.silent,
        "Repair": check.repair,
        "Lesson": check.lesson,
        "Asked only where these find nothing": ", ".join(check.after),
        "What follows from it": ", ".join(check.explains),
        "Faults that it catches (lab faults show NAME)": ", ".join(shown),
    }
    parts = [f"{check.id} ({check.severity}, {check.family})", fill(check.summary, 100)]
    parts += [fill(paragraph, 100) for paragraph in check.details.split("\n\n") if paragraph]
    parts += [f"{title}:\n{indent(fill(text, 96), '    ')}" for title, text in rows.items() if text]
    return "\n\n".join(parts)
