"""Every notebook keeps the rules, and every rule can fail."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from notebook_rules import RULES, violations

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_keeps_the_rules(path: Path) -> None:
    assert violations(path, json.loads(path.read_text(encoding="utf-8"))) == []


def cell(text: str, *tags: str, kind: str = "code", **metadata: Any) -> dict[str, Any]:
    if tags:
        metadata["tags"] = list(tags)
    made = {"cell_type": kind, "id": "", "metadata": metadata, "source": text}
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def exercise(number: int) -> list[dict[str, Any]]:
    return [
        cell(f"def answer_{number}():\n    raise NotImplementedError", "exercise"),
        cell("<details><summary>Hint</summary>Look again.</details>", kind="markdown"),
        cell(f"def answer_{number}():\n    return {number}", "solution", jupyter={"source_hidden": True}),
        cell(f"grade('01{'ab'[number]}', answer_{number})", "check"),
    ]


def good() -> dict[str, Any]:
    """Title 0, text 1, code 2, then two exercises: 3 to 6 and 7 to 10."""
    made = [
        cell("# A title", kind="markdown"),
        cell("[next](02_next.ipynb#why) ![a mask](mask.svg) [web](https://a.org/home/x) `[t](s)`", kind="markdown"),
        cell("\n\n".join(f"a = {line}" for line in range(15))),
        *exercise(0),
        *exercise(1),
    ]
    for number, entry in enumerate(made):
        entry["id"] = f"cell-{number}"
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernelspec}, "cells": made}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "02_next.ipynb").touch()
    (tmp_path / "mask.svg").touch()
    return tmp_path / "01_good.ipynb"


def put(number: int, text: str) -> Callable[[dict[str, Any]], Any]:
    return lambda notebook: notebook["cells"][number].update(source=text)


def mark(number: int, **metadata: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda notebook: notebook["cells"][number]["metadata"].update(metadata)


def drop(number: int) -> Callable[[dict[str, Any]], Any]:
    return lambda notebook: notebook["cells"].pop(number)


STREAM = {"output_type": "stream", "name": "stdout", "text": "2"}
MUTANTS: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
    ("valid", "4.5", lambda notebook: notebook.update(nbformat_minor=4)),
    ("valid", "", lambda notebook: notebook["cells"][2].pop("outputs")),
    ("ids", "no id", lambda notebook: notebook["cells"][2].pop("id")),
    ("ids", "repeats", lambda notebook: notebook["cells"][2].update(id="cell-1")),
    ("kernel", "'other'", lambda notebook: notebook["metadata"]["kernelspec"].update(name="other")),
    ("kernel", "None", lambda notebook: notebook["metadata"].pop("kernelspec")),
    ("no_outputs", "outputs", lambda notebook: notebook["cells"][2].update(outputs=[STREAM])),
    ("no_outputs", "count", lambda notebook: notebook["cells"][2].update(execution_count=1)),
    ("title", "title", put(0, "A title without its sign")),
    ("title", "title", drop(0)),
    ("title", "title", lambda notebook: notebook["cells"].insert(0, cell("# a comment") | {"id": "x"})),
    ("short_cells", "16 lines", put(2, "\n".join(f"a = {line}" for line in range(16)))),
    ("known_tags", "solutions", mark(2, tags=["solutions"])),
    ("known_tags", "no code cell", mark(1, tags=["solution"])),
    ("exercises", "in view", mark(5, jupyter={})),
    ("exercises", "before it is no exercise", mark(3, tags=[])),
    ("exercises", "next code cell is no check", mark(6, tags=[])),
    ("exercises", "next code cell is no check", drop(10)),
    ("exercises", "next code cell is no solution", drop(9)),
    ("exercises", "does not call grade", put(6, "answer_0()")),
    ("exercises", "has 1", lambda notebook: notebook.update(cells=notebook["cells"][:7])),
    ("nothing_hides_a_failure", "raises-exception", mark(2, tags=["raises-exception"])),
    ("nothing_hides_a_failure", "skip-execution", mark(2, tags=["skip-execution"])),
    ("nothing_hides_a_failure", "nbmake", mark(2, nbmake={"mock": {"a": 1}})),
    ("nothing_hides_a_failure", "allows errors", lambda n: n["metadata"].update(execution={"allow_errors": True})),
    ("nothing_hides_a_failure", "interact", put(2, "widgets.interact(draw, layer=3)")),
    ("nothing_hides_a_failure", "interact", put(2, "@widgets.interact\ndef draw(layer=3): ...")),
    ("nothing_hides_a_failure", "Output", put(2, "with widgets.Output():\n    draw()")),
    ("nothing_hides_a_failure", "Output", put(2, "panel = Output()\nwith panel:\n    draw()")),
    ("alt_text", "mask.svg", put(1, "![](mask.svg)")),
    ("alt_text", "<img", put(1, '<img src="mask.svg">')),
    ("alt_text", "<img", put(1, '<img src="mask.svg" alt="">')),
    ("links", "03_gone.ipynb", put(1, "[next](03_gone.ipynb)")),
    ("links", "gone.svg", put(1, "![a mask](gone.svg)")),
    ("links", "gone.ipynb", put(1, '<a href="gone.ipynb">next</a>')),
    ("no_local_paths", "/ho" + "me/", put(2, "open('/ho" + "me/someone/text.txt')")),
    ("no_local_paths", "C:", put(1, "See C:\\Users\\someone.")),
]


def test_the_good_notebook_breaks_no_rule(path: Path) -> None:
    assert violations(path, good()) == []


@pytest.mark.parametrize(("name", "text", "mutate"), MUTANTS, ids=[f"{n}-{t}" for n, t, _ in MUTANTS])
def test_a_mutant_breaks_its_rule(name: str, text: str, mutate: Callable[[dict[str, Any]], Any], path: Path) -> None:
    notebook = copy.deepcopy(good())
    mutate(notebook)
    found = violations(path, notebook)
    assert any(line.startswith(f"{name}: ") and text in line for line in found), found


def test_a_misnamed_notebook_breaks_its_rule(path: Path) -> None:
    assert [line.split(":")[0] for line in violations(path.with_name("good.ipynb"), good())] == ["name"]


def test_every_rule_has_a_mutant() -> None:
    assert {name for name, _, _ in MUTANTS} | {"name"} == {rule.__name__ for rule in RULES}
