"""What a fault is: a broken twin of one healthy function, its injection and its diff."""

from __future__ import annotations

import ast
import difflib
import html
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any


def locate(target: str) -> tuple[Any, str]:
    """`lab.module:Class.function` -> (what holds it, its name). Raises ValueError where there is no such function."""
    module, _, path = target.partition(":")
    try:
        holder: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            holder = getattr(holder, parent)
        getattr(holder, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no function {target!r}; name it as 'package.module:Class.function'.") from error
    return holder, name


@contextmanager
def substituted(target: str, function: Callable) -> Iterator[None]:
    """Inside, everybody who calls `target` through its module or class calls `function` instead."""
    holder, name = locate(target)
    original = holder.__dict__[name]
    setattr(holder, name, function)
    try:
        yield
    finally:
        setattr(holder, name, original)


def code_of(function: Callable) -> str:
    """The source of a function without decorators and docstring: what differs between twins is the code."""
    lines, _ = inspect.getsourcelines(function)
    source = textwrap.dedent("".join(lines))
    node = ast.parse(source).body[0]
    kept = source.splitlines()
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1:
        del kept[first.lineno - 1 : first.end_lineno]
    return "\n".join(line for line in kept[node.lineno - 1 :]).rstrip() + "\n"


@dataclass(frozen=True)
class Twin:
    """A healthy function of the kit, by `lab.module:Class.function`, and its broken twin."""

    target: str
    broken: Callable
    healthy: Callable = field(init=False)

    def __post_init__(self) -> None:
        holder, name = locate(self.target)
        object.__setattr__(self, "healthy", getattr(holder, name))

    def sources(self) -> tuple[str, str]:
        """(healthy, broken) code; the twin appears under the healthy function's name."""
        return code_of(self.healthy), code_of(self.broken).replace(
            f"def {self.broken.__name__}(", f"def {self.healthy.__name__}(", 1
        )


@dataclass(frozen=True)
class Diff:
    """The difference between broken and healthy code: unified text, or side by side in a notebook."""

    pairs: tuple[tuple[str, str, str], ...]  # target, healthy, broken

    def __str__(self) -> str:
        parts = []
        for target, healthy, broken in self.pairs:
            lines = difflib.unified_diff(
                broken.splitlines(), healthy.splitlines(), f"{target} (broken)", f"{target} (healthy)", "", "", 99, ""
            )
            parts.append("\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def _repr_html_(self) -> str:
        """Broken at the left, healthy at the right; - and + mark the lines, so that colour is not needed."""
        tables = []
        for target, healthy, broken in self.pairs:
            rows = []
            for left, right in side_by_side(broken.splitlines(), healthy.splitlines()):
                mark = left != right
                rows.append(
                    f"<tr>{cell(left, '- ' if mark and left is not None else '  ', '#fbe3d6' if mark else '')}"
                    f"{cell(right, '+ ' if mark and right is not None else '  ', '#d6ebf7' if mark else '')}</tr>"
                )
            tables.append(
                f"<table style='border-collapse:collapse'><caption><code>{html.escape(target)}</code></caption>"
                f"<thead><tr><th scope='col'>broken</th><th scope='col'>healthy</th></tr></thead>"
                f"<tbody>{''.join(rows)}</tbody></table>"
            )
        return "".join(tables)


def cell(line: str | None, mark: str, colour: str) -> str:
    style = "text-align:left;padding:0 .6em;font-size:85%" + (f";background:{colour};color:#000" if colour else "")
    code = "margin:0;background:none;color:inherit;font-family:monospace;white-space:pre-wrap"
    return f"<td style='{style}'><pre style='{code}'>{mark}{html.escape(line or '')}</pre></td>"


def side_by_side(left: list[str], right: list[str]) -> Iterator[tuple[str | None, str | None]]:
    """Pairs of lines; None where a side has none."""
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for _, l0, l1, r0, r1 in matcher.get_opcodes():
        for i in range(max(l1 - l0, r1 - r0)):
            yield left[l0 + i] if l0 + i < l1 else None, right[r0 + i] if r0 + i < r1 else None


@dataclass(frozen=True)
class Fault:
    """One bug: what it is, the twins that make it, the check that catches it, the lesson.

    also: other checks that it trips, and why. on: which of the kit's models shows it. half_repair: it is what people
    write to repair another fault.
    """

    id: str
    summary: str
    family: str
    caught_by: str
    lesson: str
    twins: tuple[Twin, ...]
    on: str = "translator"
    also: dict[str, str] = field(default_factory=dict)
    half_repair: bool = False

    @contextmanager
    def inject(self) -> Iterator[None]:
        """Inside, the kit has this bug; after, it is healthy again, whatever happened."""
        with ExitStack() as stack:
            for twin in self.twins:
                stack.enter_context(substituted(twin.target, twin.broken))
            yield

    def diff(self) -> Diff:
        """What to change to get from broken to healthy."""
        return Diff(tuple((twin.target.removeprefix("lab."), *twin.sources()) for twin in self.twins))


REGISTRY: dict[str, Fault] = {}


def fault(name: str, *, of: str, caught_by: str = "", lesson: str = "", **more: Any) -> Callable:
    """Register a broken twin of the function `of` as the fault of that name; its docstring is the summary.

    A fault with several twins names the rest, `on`, `also` and `half_repair` once, at the first.
    """

    def register(broken: Callable) -> Callable:
        twin = Twin(of, broken)
        if name in REGISTRY:
            REGISTRY[name] = replace(REGISTRY[name], twins=(*REGISTRY[name].twins, twin))
            return broken
        family = broken.__module__.rpartition(".")[2]
        summary = " ".join((broken.__doc__ or "").split())
        REGISTRY[name] = Fault(name, summary, family, caught_by, f"notebooks/{lesson}.ipynb", (twin,), **more)
        return broken

    return register
