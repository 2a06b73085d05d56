"""The classroom: expected errors, recorded predictions, graded answers, and the student copy of a notebook."""

from __future__ import annotations

import importlib
import json
import linecache
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["expect", "grade", "grader", "predict", "recall", "student_copy"]

# ---------------------------------------------------------------------------------------------- expected errors


@dataclass
class Expected:
    """What `expect` yields: `.error` is the exception, once the block has ended."""

    error: BaseException | None = None


@contextmanager
def expect(error_type: type[BaseException], match: str) -> Iterator[Expected]:
    """The block must raise `error_type` with `match` in its message (a plain substring, case ignored).

    Prints the error as one line. Raises AssertionError if nothing was raised, or something else.
    """
    seen = Expected()
    wanted = f"{error_type.__name__} with {match!r} in its message"
    try:
        yield seen
    except (Exception, error_type) as error:
        seen.error = error
        if not isinstance(error, error_type) or match.lower() not in str(error).lower():
            raise AssertionError(f"expected {wanted}, but this was raised: {_one_line(error)}") from error
    else:
        raise AssertionError(f"expected {wanted}, but nothing was raised")
    print(_one_line(seen.error))


def _one_line(error: BaseException, width: int = 100) -> str:
    """`IndexError: index out of range in self`: the type and the first line of the message."""
    first = next(iter(str(error).strip().splitlines()), "")
    line = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return line if len(line) <= width else line[: width - 1] + "…"


# ---------------------------------------------------------------------------------------------- predictions

predictions: dict[str, str] = {}


def predict(key: str, question: str, options: Sequence[str]) -> None:
    """Ask what the learner expects. The choice is recorded, never graded; `recall` shows it again.

    The question and the options are printed as text, and in Jupyter radio buttons stand below them. If the environment
    variable LAB_PREDICTIONS names a file, each choice is appended to it as one line of JSON.
    """
    if len(set(options)) < 2 or len(set(options)) < len(options):
        raise ValueError(f"prediction {key!r} needs two or more different options, not {list(options)!r}")
    print(question)
    for number, option in enumerate(options, start=1):
        print(f"  {number}. {option}")
    if _in_jupyter():
        _show_choices(key, question, options)


def recall(key: str, outcome: str) -> None:
    """Print what was predicted beside what came out."""
    print(f"predicted: {predictions.get(key, 'no prediction made')}")
    print(f"outcome:   {outcome}")


def _in_jupyter() -> bool:
    """Is this code running in a kernel, which can show widgets?"""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _show_choices(key: str, question: str, options: Sequence[str]) -> None:
    from IPython.display import display
    from ipywidgets import RadioButtons

    earlier = predictions.get(key)
    buttons = RadioButtons(
        options=list(options),
        value=earlier if earlier in options else None,
        description="You say:",
        layout={"width": "max-content"},
    )
    buttons.observe(lambda change: _record(key, question, change["new"]), names="value")
    display(buttons)


def _record(key: str, question: str, choice: str) -> None:
    predictions[key] = choice
    if path := os.environ.get("LAB_PREDICTIONS"):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"at": now, "key": key, "question": question, "choice": choice}
        with Path(path).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------- graders


@dataclass(frozen=True)
class Grader:
    """One exercise's answer check: `run(answer)` raises AssertionError naming the learner's mistake."""

    key: str
    title: str
    run: Callable[[Any], None]


def require(condition: object, message: str) -> None:
    """What a grader asks of an answer; the message names the learner's mistake."""
    if not condition:
        raise AssertionError(message)


_graders: dict[str, Grader] = {}


def grader(key: str, *, title: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the decorated function as the grader of exercise `key`."""

    def register(run: Callable[[Any], None]) -> Callable[[Any], None]:
        known = _graders.get(key)
        # The same function may come twice: a reloaded module, a cell that is run again.
        if known and (known.run.__module__, known.run.__qualname__) != (run.__module__, run.__qualname__):
            raise ValueError(f"two graders are named {key!r}: {known.run.__module__} and {run.__module__}; rename one")
        _graders[key] = Grader(key, title, run)
        return run

    return register


@cache
def _load_graders() -> None:
    """Import every module beside this one, so that its graders register."""
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")


def grade(key: str, answer: Any) -> None:
    """Check the learner's answer and print one verdict; whatever the answer does, this raises nothing.

    That is for a person. For CI the environment variable LAB_EXERCISES makes the verdict binding: with `solved` a
    failing answer raises AssertionError, with `unsolved` a passing one does.
    """
    mode = os.environ.get("LAB_EXERCISES", "")
    if mode not in ("", "solved", "unsolved"):
        raise ValueError(f"LAB_EXERCISES is {mode!r}; set it to 'solved' or 'unsolved', or leave it unset")
    _load_graders()
    if key not in _graders:
        raise ValueError(f"there is no exercise {key!r}; the exercises are {', '.join(sorted(_graders)) or 'none yet'}")
    chosen = _graders[key]
    error: BaseException | None = None
    try:
        chosen.run(answer)
    except (Exception, SystemExit) as caught:  # KeyboardInterrupt stays the learner's way out of an endless loop
        error = caught
    verdict = f"✘ {key} not yet: {_remark(error, chosen)}" if error else f"✔ {key} passed: {chosen.title}"
    print(verdict)
    if mode == "solved" and error is not None:
        raise AssertionError(f"LAB_EXERCISES=solved, but {verdict}") from error
    if mode == "unsolved" and error is None:
        raise AssertionError(f"LAB_EXERCISES=unsolved, but {verdict}")


def _remark(error: BaseException, chosen: Grader) -> str:
    """What to tell the learner about `error`."""
    if _from_stub(error):
        return "the stub is still there"
    frames = [item for item in traceback.walk_tb(error.__traceback__) if not _is_library(item[0].f_code.co_filename)]
    learners = [(frame, line) for frame, line in frames if not _is_ours(frame.f_code, chosen)]
    # An assertion of the grader is its verdict. One that the learner wrote is an error like any other.
    if isinstance(error, AssertionError) and not (learners and learners[-1] == frames[-1]):
        return str(error) or "the answer is not right, and the grader does not say why"
    if not learners:
        return _one_line(error)
    frame, line = learners[-1]
    source = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()
    return f"{_one_line(error)} (line {line}: {source})" if source else f"{_one_line(error)} (line {line})"


def _from_stub(error: BaseException | None) -> bool:
    """Did a `raise NotImplementedError` in the learner's code start this, also when others wrapped it since?

    torch raises the same type for operations that a device lacks; that is no stub.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, NotImplementedError) and error.__traceback__:
            raised = traceback.extract_tb(error.__traceback__)[-1]
            theirs = not _is_library(raised.filename) and not raised.filename.startswith(_PACKAGE)
            if theirs and (not raised.line or "NotImplementedError" in raised.line):
                return True
        error = error.__cause__ or error.__context__
    return False


_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _is_library(filename: str) -> bool:
    """The standard library, an installed package, or generated code such as a dataclass's `__init__`."""
    if filename.startswith("<"):
        return not filename.startswith("<ipython-input")
    return filename.startswith(_LIBRARIES) and not filename.startswith(_PACKAGE)


def _is_ours(code: Any, chosen: Grader) -> bool:
    return code.co_filename.startswith(_PACKAGE) or code is getattr(chosen.run, "__code__", None)


# ---------------------------------------------------------------------------------------------- the student copy


def student_copy(source: Path, destination: Path) -> list[Path]:
    """Write the notebooks of `source` (a file or a folder) to the folder `destination`, without solution cells.

    Everything else stays as it is, cell ids included. Returns the paths written.
    """
    source, destination = Path(source), Path(destination)
    folder = source if source.is_dir() else source.parent
    if folder.resolve() == destination.resolve():
        raise ValueError(f"the student copy would overwrite the notebooks in {folder}; name another folder")
    if not source.exists():
        raise FileNotFoundError(f"there is no notebook or folder {source}")
    destination.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(source.glob("*.ipynb")) if source.is_dir() else [source]:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"] = [cell for cell in notebook["cells"] if "solution" not in cell["metadata"].get("tags", [])]
        copy = destination / path.name
        copy.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(copy)
    return written
