"""The committed figures: each is drawn from its CSV byte for byte, and its CSV is what is measured."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import figures
from lab.results import Chart

FOLDER = Path(__file__).parents[1] / "figures"


CHARTS = {name for name, figure in figures.FIGURES.items() if isinstance(figure, Chart)}
# Measured by experiments too, and shown in notebooks alone.
OTHER_TABLES = {"rates", "rates_curves", "prediction_runs_curves", "sizes_curves"}


def copied(name: str, to: Path) -> Path:
    """The CSVs of a figure in a folder of their own."""
    (to / "data").mkdir(exist_ok=True)
    for table in figures.tables(name):
        (to / "data" / f"{table}.csv").write_bytes((FOLDER / "data" / f"{table}.csv").read_bytes())
    return to


@pytest.mark.parametrize("name", figures.FIGURES)
def test_committed_figure_is_drawn_from_its_csv_byte_for_byte(name: str, tmp_path: Path) -> None:
    fresh = figures.write(name, copied(name, tmp_path))
    assert fresh.read_bytes() == (FOLDER / f"{name}.svg").read_bytes(), "run `make figures`"
    svg = fresh.read_text()
    assert re.search(r"<title>[^<]+</title>", svg)
    assert "<text" not in svg and "dc:date" not in svg
    label = ElementTree.fromstring(svg).get("aria-label")
    if name in CHARTS:
        assert re.search(r"\d", label) and re.search(r"nats|parameters|tokens|probability", label)
    else:
        assert label == figures.FIGURES[name].alt
        assert "url(#h" in svg or name == "report"  # a hatch


@pytest.mark.parametrize("name", sorted(set(figures.FIGURES) - CHARTS))
def test_committed_csv_is_what_is_measured(name: str) -> None:
    fresh = figures.FIGURES[name].data()
    assert fresh == (FOLDER / "data" / f"{name}.csv").read_bytes(), "run `make figures ARGS=--recompute`"


def test_nothing_else_is_committed() -> None:
    measured = {"lost_dropout", "review_matrix"}  # the demo's own, which git ignores
    assert {path.stem for path in FOLDER.glob("*.*")} - measured - {"claims"} == set(figures.FIGURES)
    used = {table for name in figures.FIGURES for table in figures.tables(name)}
    assert {path.stem for path in (FOLDER / "data").iterdir()} - OTHER_TABLES == used


def test_a_csv_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"report\.csv; measure it with `lab figures --recompute`"):
        figures.write("report", tmp_path)


def test_drawing_imports_no_trainer_and_measures_nothing(tmp_path: Path) -> None:
    """`lab figures` alone reads the CSVs: it must not run a check."""
    for name in figures.FIGURES:
        copied(name, tmp_path)
    code = (
        "import sys; from lab import figures, diagnosis, matrix\n"
        "def stop(*a, **k): raise SystemExit('measured')\n"
        "figures.diagnose = diagnosis.diagnose = matrix.run = matrix.translator = stop\n"
        f"print(len(list(figures.write_all({str(tmp_path)!r}))))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == str(len(figures.FIGURES)), run.stderr
