"""What a committed notebook must keep: each rule takes a path and a parsed notebook and yields what breaks it."""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat

Notebook = dict[str, Any]
Rule = Callable[[Path, Notebook], Iterator[str]]

MAX_LINES = 15
TAGS = {"exercise", "solution", "check"}
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    RULES.append(function)
    return function


def violations(path: Path, notebook: Notebook) -> list[str]:
    """`rule name: what is wrong`, for every rule that the notebook breaks."""
    return [f"{check.__name__}: {text}" for check in RULES for text in check(path, notebook)]


def source(cell: dict[str, Any]) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def cells(notebook: Notebook, kind: str) -> list[tuple[int, dict[str, Any]]]:
    return [(number, cell) for number, cell in enumerate(notebook["cells"]) if cell["cell_type"] == kind]


def prose(notebook: Notebook) -> Iterator[tuple[int, str]]:
    """The markdown cells without their code, in which a bracket is no link."""
    for number, cell in cells(notebook, "markdown"):
        yield number, re.sub(r"```.*?```|`[^`\n]*`", "", source(cell), flags=re.DOTALL)


@rule
def name(path: Path, notebook: Notebook) -> Iterator[str]:
    if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name):
        yield f"{path.name} is not NN_name.ipynb"


@rule
def valid(path: Path, notebook: Notebook) -> Iterator[str]:
    if (notebook.get("nbformat"), notebook.get("nbformat_minor", 0)) < (4, 5):
        yield "older than nbformat 4.5, which has no cell ids"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ids, which have a rule of their own
            nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError as error:
        yield str(error).splitlines()[0]


@rule
def ids(path: Path, notebook: Notebook) -> Iterator[str]:
    seen: set[str] = set()
    for number, cell in enumerate(notebook["cells"]):
        if not cell.get("id"):
            yield f"cell {number} has no id"
        elif cell["id"] in seen:
            yield f"cell {number} repeats the id {cell['id']!r}"
        else:
            seen.add(cell["id"])


@rule
def kernel(path: Path, notebook: Notebook) -> Iterator[str]:
    if (found := notebook["metadata"].get("kernelspec", {}).get("name")) != "python3":
        yield f"the kernelspec is {found!r}, not 'python3'"


@rule
def no_outputs(path: Path, notebook: Notebook) -> Iterator[str]:
    for number, cell in cells(notebook, "code"):
        if cell.get("outputs"):
            yield f"cell {number} has outputs"
        if cell.get("execution_count") is not None:
            yield f"cell {number} has an execution count"


@rule
def title(path: Path, notebook: Notebook) -> Iterator[str]:
    first = notebook["cells"][0] if notebook["cells"] else None
    if not first or first["cell_type"] != "markdown" or not source(first).startswith("# "):
        yield "the first cell is not a markdown title"


@rule
def short_cells(path: Path, notebook: Notebook) -> Iterator[str]:
    for number, cell in cells(notebook, "code"):
        if (lines := sum(bool(line.strip()) for line in source(cell).splitlines())) > MAX_LINES:
            yield f"cell {number} has {lines} lines; {MAX_LINES} is the most"


@rule
def known_tags(path: Path, notebook: Notebook) -> Iterator[str]:
    """A misspelt `solution` would leave the answer in the student copy."""
    for number, cell in enumerate(notebook["cells"]):
        if unknown := set(tags(cell)) - TAGS - {"raises-exception", "skip-execution"}:
            yield f"cell {number} has the unknown tag {', '.join(sorted(unknown))}"
        if cell["cell_type"] != "code" and TAGS & set(tags(cell)):
            yield f"cell {number} is tagged but is no code cell"


@rule
def exercises(path: Path, notebook: Notebook) -> Iterator[str]:
    """Among the code cells: exercise, solution, check, in a row, and the solution folded."""
    code = cells(notebook, "code")
    order = [next(iter(TAGS & set(tags(cell))), "") for _, cell in code] + [""]
    for at, (number, cell) in enumerate(code):
        if order[at] == "exercise" and order[at + 1] != "solution":
            yield f"cell {number} is an exercise, but the next code cell is no solution"
        if order[at] == "solution":
            if not cell["metadata"].get("jupyter", {}).get("source_hidden"):
                yield f"cell {number} is a solution with its source in view (jupyter.source_hidden is not true)"
            if at == 0 or order[at - 1] != "exercise":
                yield f"cell {number} is a solution, but the code cell before it is no exercise"
            if order[at + 1] != "check":
                yield f"cell {number} is a solution, but the next code cell is no check"
        if order[at] == "check" and not re.search(r"\bgrade\(", source(cell)):
            yield f"cell {number} is a check but does not call grade(...)"
    lesson = path.name[:2]
    if lesson.isdigit() and lesson != "00" and order.count("exercise") < 2:
        yield f"a lesson has two exercises or more, this one has {order.count('exercise')}"


@rule
def nothing_hides_a_failure(path: Path, notebook: Notebook) -> Iterator[str]:
    """What lets an exception through while the notebook's run stays green."""
    for number, cell in enumerate(notebook["cells"]):
        for tag in {"raises-exception", "skip-execution"} & set(tags(cell)):
            yield f"cell {number} is tagged {tag}; use `with expect(...)`"
        if "nbmake" in cell["metadata"]:
            yield f"cell {number} has nbmake metadata, which changes what is run"
    if notebook["metadata"].get("execution", {}).get("allow_errors"):
        yield "the notebook's metadata allows errors"
    outputs = {"Output"}
    for number, cell in cells(notebook, "code"):
        text = source(cell)
        if re.search(r"\binteract(ive|ive_output|_manual)?\s*\(|@(\w+\.)*interact", text):
            yield f"cell {number} uses interact; use observe"
        outputs |= set(re.findall(r"(\w+)\s*=\s*(?:\w+\.)*Output\(", text))
        if re.search(rf"\bwith\s+(\w+\.)*({'|'.join(outputs)})\b", text):
            yield f"cell {number} runs code inside an Output widget"


@rule
def alt_text(path: Path, notebook: Notebook) -> Iterator[str]:
    for number, text in prose(notebook):
        for target in re.findall(r"!\[\s*\]\(([^)]*)\)", text):
            yield f"cell {number}: the image {target} has no alt text"
        for image in re.findall(r"<img\b[^>]*>", text, flags=re.IGNORECASE):
            if not re.search(r"""\balt\s*=\s*["']\s*[^"'\s]""", image, flags=re.IGNORECASE):
                yield f"cell {number}: {image} has no alt text"


@rule
def links(path: Path, notebook: Notebook) -> Iterator[str]:
    """Links to notebooks, pictures and files of the project lead somewhere."""
    for number, text in prose(notebook):
        found = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"""(?:href|src)\s*=\s*["']([^"']+)["']""", text)
        for target in found:
            file = unquote(target.split("#")[0])
            if file and not re.match(r"[a-z]+:", file) and not (path.parent / file).exists():
                yield f"cell {number}: {target} leads nowhere"


@rule
def no_local_paths(path: Path, notebook: Notebook) -> Iterator[str]:
    for number, cell in enumerate(notebook["cells"]):
        pattern = r"(?<![\w./-])/(?:home|Users|root|work|tmp|mnt|opt|var|content)/\w\S*|\b[A-Z]:\\\w\S*"
        for found in re.findall(pattern, source(cell)):
            yield f"cell {number}: {found} is a path on one machine"
