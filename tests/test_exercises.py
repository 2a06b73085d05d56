"""What a learner sees, and what CI proves."""

import json
import linecache
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import exercises
from lab.exercises import expect, grade, grader, predict, recall, student_copy


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graders but the test's own, no earlier predictions, no mode."""
    monkeypatch.setattr(exercises, "_graders", {})
    monkeypatch.setattr(exercises, "_load_graders", lambda: None)
    monkeypatch.setattr(exercises, "predictions", {})
    monkeypatch.delenv("LAB_EXERCISES", raising=False)
    monkeypatch.delenv("LAB_PREDICTIONS", raising=False)


def learner(code: str) -> Callable[..., Any]:
    """The function `answer` of a notebook cell."""
    filename = f"/cells/{abs(hash(code))}.py"
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    cell: dict[str, Any] = {"torch": torch}
    exec(compile(code, filename, "exec"), cell)
    return cell["answer"]


@pytest.fixture
def doubles() -> str:
    @grader("99a", title="double a number")
    def check(answer: Callable[[int], int]) -> None:
        if answer(3) != 6:
            raise AssertionError("3 became 9: did you square it?" if answer(3) == 9 else "3 did not become 6")

    return "99a"


RIGHT = "def answer(n):\n    return 2 * n\n"
WRONG = "def answer(n):\n    return n + 1\n"
STUB = "def answer(n):\n    raise NotImplementedError\n"


# expect


def test_expect_prints_one_line_and_keeps_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    with expect(IndexError, "OUT of range") as seen:
        raise IndexError("index out of range in self\nand a second line")
    assert isinstance(seen.error, IndexError)
    assert capsys.readouterr().out == "IndexError: index out of range in self\n"


def test_expect_shortens_a_long_message(capsys: pytest.CaptureFixture[str]) -> None:
    with expect(ValueError, "x"):
        raise ValueError("x" * 500)
    assert len(capsys.readouterr().out.strip()) == 100


def test_expect_takes_a_subclass() -> None:
    with expect(LookupError, "") as seen:
        raise KeyError("k")
    assert isinstance(seen.error, KeyError)


def test_expect_fails_where_nothing_is_raised() -> None:
    with pytest.raises(AssertionError, match="nothing was raised"), expect(IndexError, "range"):
        pass


@pytest.mark.parametrize("error", [KeyError("out of range"), IndexError("too many indices"), IndexError()])
def test_expect_fails_on_another_error_and_chains_it(error: Exception) -> None:
    with pytest.raises(AssertionError, match="expected IndexError") as caught, expect(IndexError, "out of range"):
        raise error
    assert caught.value.__cause__ is error


def test_expect_reads_match_as_plain_text() -> None:
    with expect(ValueError, "shape (2, *)"):
        raise ValueError("got shape (2, *)")


# predict and recall


def test_predict_is_plain_text_outside_jupyter(capsys: pytest.CaptureFixture[str]) -> None:
    predict("p", "What happens?", ["It raises.", "Nothing."])
    assert capsys.readouterr().out == "What happens?\n  1. It raises.\n  2. Nothing.\n"
    recall("p", "it raised")
    assert capsys.readouterr().out == "predicted: no prediction made\noutcome:   it raised\n"


@pytest.mark.parametrize("options", [[], ["one"], ["same", "same"]])
def test_predict_wants_different_options(options: list[str]) -> None:
    with pytest.raises(ValueError, match="two or more"):
        predict("p", "What?", options)


def test_a_choice_is_recorded_and_recalled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(exercises, "_in_jupyter", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv("LAB_PREDICTIONS", str(tmp_path / "said.jsonl"))
    predict("p", "What happens?", ["It raises.", "Nothing."])
    assert "1. It raises." in capsys.readouterr().out
    assert shown[0].value is None
    shown[0].value = "Nothing."
    shown[0].value = "It raises."
    recall("p", "it raised")
    assert "predicted: It raises.\n" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(row["key"], row["choice"]) for row in rows] == [("p", "Nothing."), ("p", "It raises.")]
    predict("p", "What happens?", ["It raises.", "Nothing."])
    assert shown[1].value == "It raises."


# grade, for a learner


def verdict(capsys: pytest.CaptureFixture[str], key: str, answer: Any) -> str:
    grade(key, answer)
    return capsys.readouterr().out.strip()


def test_right(doubles: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(capsys, doubles, learner(RIGHT)) == "✔ 99a passed: double a number"


def test_wrong_answers_are_told_apart(doubles: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(capsys, doubles, learner(WRONG)) == "✘ 99a not yet: 3 did not become 6"
    squared = learner("def answer(n):\n    return n * n\n")
    assert verdict(capsys, doubles, squared) == "✘ 99a not yet: 3 became 9: did you square it?"


@pytest.mark.parametrize(
    "code",
    [
        STUB,
        "def answer(n):\n    raise NotImplementedError('write the repair')\n",
        "def stub(n):\n    raise NotImplementedError\ndef answer(n):\n    try:\n        stub(n)\n"
        "    except Exception as error:\n        raise RuntimeError('wrapped') from error\n",
        "def answer(n):\n    try:\n        raise NotImplementedError\n    finally:\n        {}['k']\n",
    ],
)
def test_stub(doubles: str, capsys: pytest.CaptureFixture[str], code: str) -> None:
    assert verdict(capsys, doubles, learner(code)) == "✘ 99a not yet: the stub is still there"


def test_a_stub_wrapped_by_the_grader(capsys: pytest.CaptureFixture[str]) -> None:
    @grader("99b", title="")
    def check(answer: Callable[[int], int]) -> None:
        try:
            answer(1)
        except Exception as error:
            raise AssertionError("your function crashed") from error

    assert "stub is still there" in verdict(capsys, "99b", learner(STUB))


def test_not_implemented_by_torch_is_no_stub(doubles: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "def answer(n):\n    return torch.nn.Module()(n)\n"
    said = verdict(capsys, doubles, learner(code))
    assert "stub" not in said and "forward" in said and "(line 2: return torch.nn.Module()(n))" in said


def test_other_errors_name_the_learners_line(doubles: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "def helper(n):\n    return [0][n]\n\ndef answer(n):\n    return helper(n)\n"
    expected = "✘ 99a not yet: IndexError: list index out of range (line 2: return [0][n])"
    assert verdict(capsys, doubles, learner(code)) == expected


def test_the_line_is_the_learners_also_inside_a_library(doubles: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = "def answer(n):\n    table = torch.nn.Embedding(2, 2)\n    return table(torch.tensor(-100))\n"
    assert verdict(capsys, doubles, learner(code)).endswith("(line 3: return table(torch.tensor(-100)))")


def test_the_learners_own_assertion_is_an_error(doubles: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = verdict(capsys, doubles, learner("def answer(n):\n    assert n == 7\n"))
    assert said == "✘ 99a not yet: AssertionError (line 2: assert n == 7)"


def test_an_assertion_that_the_grader_borrows_is_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    @grader("99b", title="")
    def check(answer: Callable[[int], int]) -> None:
        torch.testing.assert_close(torch.tensor(answer(2)), torch.tensor(4))

    assert "line" not in verdict(capsys, "99b", learner(WRONG))


@pytest.mark.parametrize("answer", [None, 3, lambda: 4, learner("def answer(n):\n    raise SystemExit(2)\n")])
def test_nothing_escapes(doubles: str, capsys: pytest.CaptureFixture[str], answer: Any) -> None:
    assert verdict(capsys, doubles, answer).startswith("✘ 99a not yet: ")


def test_an_endless_loop_can_be_interrupted(doubles: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        grade(doubles, learner("def answer(n):\n    raise KeyboardInterrupt\n"))


def test_unknown_key_lists_the_keys(doubles: str) -> None:
    with pytest.raises(ValueError, match="no exercise 'nope'; the exercises are 99a"):
        grade("nope", None)


def test_a_key_names_one_grader(doubles: str) -> None:
    with pytest.raises(ValueError, match="two graders are named '99a'"):

        @grader("99a", title="another")
        def check_again(answer: Any) -> None: ...


def test_graders_beside_the_package_are_found() -> None:
    """In a process of its own: the first `grade` imports every lesson's module."""
    code = "from lab.exercises import grade\ntry: grade('nope', None)\nexcept ValueError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = Path(exercises.__file__).parent.glob("[a-z]*.py")
    keys = {key for path in modules for key in re.findall(r'^@grader\("(\w+)"', path.read_text(), re.MULTILINE)}
    assert "no exercise 'nope'" in said
    assert [key for key in keys if key not in said] == []


# grade, for CI


@pytest.mark.parametrize(
    ("mode", "code", "raises"),
    [
        ("", RIGHT, False),
        ("", WRONG, False),
        ("", STUB, False),
        ("solved", RIGHT, False),
        ("solved", WRONG, True),
        ("solved", STUB, True),
        ("unsolved", RIGHT, True),
        ("unsolved", WRONG, False),
        ("unsolved", STUB, False),
    ],
)
def test_modes(doubles: str, monkeypatch: pytest.MonkeyPatch, mode: str, code: str, raises: bool) -> None:
    monkeypatch.setenv("LAB_EXERCISES", mode)
    if raises:
        with pytest.raises(AssertionError, match=f"LAB_EXERCISES={mode}, but . 99a"):
            grade(doubles, learner(code))
    else:
        grade(doubles, learner(code))


def test_a_misspelt_mode_is_an_error(doubles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_EXERCISES", "solve")
    with pytest.raises(ValueError, match="'solve'"):
        grade(doubles, learner(RIGHT))


# student_copy


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Titre é\n", "text"]},
        {"cell_type": "code", "id": "b", "metadata": {"tags": ["exercise"]}, "source": "x = 0"},
        {"cell_type": "code", "id": "c", "metadata": {"tags": ["solution"]}, "source": "x = 1"},
        {"cell_type": "code", "id": "d", "metadata": {"tags": ["check"]}, "source": "assert x"},
    ]
    path = tmp_path / "full" / "01_a.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"k": 1}, "cells": cells}))
    return path


def test_student_copy_drops_the_solutions_only(notebook: Path, tmp_path: Path) -> None:
    (copy,) = student_copy(notebook.parent, tmp_path / "build" / "student")
    before, after = json.loads(notebook.read_text()), json.loads(copy.read_text(encoding="utf-8"))
    assert after.pop("cells") == [cell for cell in before.pop("cells") if cell["id"] != "c"]
    assert after == before
    assert student_copy(notebook, tmp_path / "one") == [tmp_path / "one" / "01_a.ipynb"]


def test_student_copy_keeps_the_originals(notebook: Path) -> None:
    before = notebook.read_text()
    for source in (notebook, notebook.parent):
        with pytest.raises(ValueError, match="overwrite"):
            student_copy(source, notebook.parent)
    assert notebook.read_text() == before


def test_student_copy_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        student_copy(tmp_path / "gone", tmp_path / "out")


def test_student_copy_from_the_command_line(notebook: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab.exercises", str(notebook.parent), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().endswith("01_a.ipynb")
