"""The committed figures: each is drawn from its CSV byte for byte, and its CSV is what is measured."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import figures

FOLDER = Path(__file__).parents[1] / "figures"


@pytest.mark.parametrize("name", figures.FIGURES)
def test_committed_figure_is_drawn_from_its_csv_byte_for_byte(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{name}.csv").write_bytes((FOLDER / "data" / f"{name}.csv").read_bytes())
    fresh = figures.write(name, tmp_path)
    assert fresh.read_bytes() == (FOLDER / f"{name}.svg").read_bytes(), "run `make figures`"
    svg = fresh.read_text()
    assert re.search(r"<title>[^<]+</title>", svg)
    assert "<text" not in svg and "dc:date" not in svg
    assert ElementTree.fromstring(svg).get("aria-label") == figures.FIGURES[name].alt
    assert "url(#h" in svg or name == "report"  # a hatch


@pytest.mark.parametrize("name", figures.FIGURES)
def test_committed_csv_is_what_is_measured(name: str) -> None:
    fresh = figures.FIGURES[name].data()
    assert fresh == (FOLDER / "data" / f"{name}.csv").read_bytes(), "run `make figures ARGS=--recompute`"


def test_nothing_else_is_committed() -> None:
    measured = {"lost_dropout", "review_matrix"}  # the demo's own, which git ignores
    assert {path.stem for path in FOLDER.glob("*.*")} - measured == set(figures.FIGURES)
    assert {path.name for path in (FOLDER / "data").iterdir()} == {f"{name}.csv" for name in figures.FIGURES}


def test_a_csv_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"report\.csv; measure it with `lab figures --recompute`"):
        figures.write("report", tmp_path)


def test_drawing_imports_no_trainer_and_measures_nothing(tmp_path: Path) -> None:
    """`lab figures` alone reads the CSVs: it must not run a check."""
    (tmp_path / "data").mkdir()
    for path in (FOLDER / "data").iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    code = (
        "import sys; from lab import figures, diagnosis, matrix\n"
        "def stop(*a, **k): raise SystemExit('measured')\n"
        "figures.diagnose = diagnosis.diagnose = matrix.run = matrix.translator = stop\n"
        f"print(len(list(figures.write_all({str(tmp_path)!r}))))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == str(len(figures.FIGURES)), run.stderr
