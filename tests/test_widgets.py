"""The live loss plot: in a kernel one picture with alt text, few drawings, the last state; elsewhere lines of text."""

import base64
import html
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas
import pytest
import torch
from matplotlib.image import imread
from nbclient import NotebookClient

import lab
from lab import labels, matrix, runlog
from lab.canvas import render
from lab.widgets import LossPlot, described, losses, running_mean

BATCH = labels.collate_pairs([([5, 6, 7], [8, 9, 10]), ([11, 12], [13])], **matrix.SPECIAL)


def train(steps: int = 6, **how) -> lab.trainer.History:
    torch.manual_seed(0)
    config = lab.TrainConfig(steps, eval_every=3)
    return lab.fit(lab.Transformer(matrix.config()), [BATCH], config, validation=[BATCH], **how)


def records(*values: float, start: int = 1) -> list[dict]:
    return [{"step": step, "loss": loss} for step, loss in enumerate(values, start)]


def fed(*values: float, **how) -> LossPlot:
    plot = LossPlot(**how)
    for record in records(*values):
        plot(record)
    return plot


def picture(output: dict) -> tuple[bytes, str]:
    """The PNG and its alt text."""
    found = re.search(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', output["data"]["text/html"])
    assert found
    return base64.b64decode(found[2]), html.unescape(found[1])


# Without a kernel


def test_it_prints_a_line_after_each_validation_and_the_last_step(capsys):
    plot = LossPlot(steps=6)
    history = train(on_step=plot)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 3 of 6", "step 6 of 6"]
    assert f"loss {history.steps[-1]['loss']:.4f}" in lines[-1]
    assert f"validation {history.evaluations[-1]['loss']:.4f} at step 6" in lines[-1]
    assert "tokens/s" in lines[-1]


def test_a_training_that_stops_early_prints_its_end_on_demand_and_once(capsys):
    plot = fed(3.0, 2.0, steps=10)
    assert capsys.readouterr().out == ""
    plot.finish()
    plot.finish()
    assert capsys.readouterr().out == "step 2 of 10 · loss 2.0000, mean 2.4444\n"


def test_its_frame_is_the_history_and_training_is_the_same_with_it():
    plot = LossPlot()
    history = train(on_step=plot)
    pandas.testing.assert_frame_equal(plot.as_frame(), pandas.DataFrame(history.steps).set_index("step"))
    assert [row["loss"] for row in train().steps] == plot.as_frame()["loss"].tolist()
    assert LossPlot().as_frame().empty


def test_of_a_finished_run_it_is_the_same(tmp_path: Path):
    live = LossPlot(title="Training in first")
    train(on_step=live, out=tmp_path / "first")
    still = LossPlot.of(tmp_path / "first")
    columns = live.as_frame().columns
    pandas.testing.assert_frame_equal(still.as_frame()[columns], live.as_frame(), check_exact=True)
    assert repr(still) == repr(live)
    assert still._repr_mimebundle_()["text/html"] == live._repr_mimebundle_(include=None)["text/html"]


def test_of_a_run_whose_validation_was_not_finite(tmp_path: Path):
    rows = [{"event": "step", "step": 1, "loss": 3.0, "tokens": 8}, {"event": "validation", "step": 1, "loss": None}]
    (tmp_path / runlog.LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert LossPlot.of(tmp_path).alt().endswith("Validation loss: no finite value in 1 steps.")
    picture({"data": LossPlot.of(tmp_path)._repr_mimebundle_()})


def test_of_a_run_without_a_step_says_so(tmp_path: Path):
    (tmp_path / runlog.LOG).touch()
    with pytest.raises(ValueError, match="has no step yet"):
        LossPlot.of(tmp_path)
    with pytest.raises(FileNotFoundError, match="no log.jsonl in .*nowhere"):
        LossPlot.of(tmp_path / "nowhere")


# What is said and drawn


def test_alt_text_names_first_last_and_lowest():
    plot = fed(4.0, 2.5, 3.0)
    assert plot.alt() == "Training loss by step: 4.0000 at step 1, 3.0000 at step 3, the lowest 2.5000 at step 2."
    plot({"step": 4, "loss": 2.75, "validation": 3.5})
    assert plot.alt().endswith(" Validation loss by step: 3.5000 at step 4.")


@pytest.mark.parametrize("values", [(3.0,), (3.0, 2.0), (float("nan"), 3.0, float("inf"), 2.0), (float("nan"),)])
def test_short_unvalidated_and_broken_trainings_are_drawn(values):
    plot = fed(*values)
    content, alt = picture({"data": plot._repr_mimebundle_()})
    assert content.startswith(b"\x89PNG")
    assert "validation" not in plot.numbers() + alt
    finite = [value for value in values if value == value and abs(value) < 1e9]
    assert ("not finite" in alt or "no finite" in alt) == (len(finite) < len(values))
    assert f"{finite[-1]:.4f}" in alt if finite else "in 1 steps" in alt


def test_one_step_can_be_seen(tmp_path: Path):
    def dark(figure, name):
        (tmp_path / name).write_bytes(render(figure, "png"))
        return int((imread(tmp_path / name)[..., :3].sum(-1) < 2.5).sum())

    seen, blank = (losses([(1, 3.0)], steps=100).figure("light") for _ in range(2))
    for line in blank.axes[0].lines:
        line.set_visible(False)
    assert dark(seen, "seen.png") > dark(blank, "blank.png")


def test_curves_differ_by_more_than_colour_and_the_axis_is_the_whole_training():
    axes = losses([(1, 3.0), (2, 2.0)], [(2, 2.5)], steps=100).figure().axes[0]
    looks = {(line.get_linewidth(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()][-1] == "validation"
    assert axes.get_xlim()[1] >= 100
    with pytest.raises(ValueError, match="no step to draw"):
        losses([])


def test_running_mean_of_a_constant_is_it_and_skips_what_is_not_finite():
    assert running_mean([2.0] * 50) == pytest.approx([2.0] * 50)
    assert running_mean([2.0, float("nan"), 2.0]) == pytest.approx([2.0] * 3)
    noisy = running_mean([3.0, 1.0] * 200)
    assert max(noisy[100:]) - min(noisy[100:]) < 0.25


def test_described_says_nothing_of_nothing():
    assert described("Validation loss", []) == ""


# What it takes


def test_a_step_again_begins_again_from_there():
    plot = fed(4.0, 3.0, 2.0)
    plot({"step": 2, "loss": 3.5})
    assert plot.training == [(1, 4.0), (2, 3.5)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"every_seconds": -1.0}, "every_seconds is -1.0"),
        ({"every_seconds": float("nan")}, "every_seconds is nan"),
    ],
)
def test_it_refuses(how, message):
    with pytest.raises(ValueError, match=message):
        LossPlot(**how)


def test_a_record_without_a_loss_is_named():
    with pytest.raises(ValueError, match="lacks loss"):
        LossPlot()({"step": 3})


def test_import_is_cheap():
    heavy = "{'matplotlib', 'pandas', 'ipywidgets', 'IPython', 'torch'}"
    code = f"import sys, lab.widgets; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# In a kernel

FEED = """
def feed(plot, start, stop, pause=0.0):
    for step in range(start, stop + 1):
        plot({"step": step, "loss": 4 - step / 100})
        time.sleep(pause)
    return plot
"""
CELLS = {
    "setup": f"import json, time\nfrom lab.widgets import LossPlot, loss_plot\n{FEED}",
    "whole": "plot = feed(LossPlot(steps=60, every_seconds=1e9), 1, 60)\nprint(plot.pictures)",
    "early": "plot = LossPlot(steps=60, every_seconds=1e9); feed(plot, 1, 7);",
    "error": "plot = LossPlot(steps=60, every_seconds=1e9); feed(plot, 1, 8); 1 / 0",
    "again": "feed(plot, 9, 12);",
    "value": "plot",
    "quick": "print(feed(LossPlot(every_seconds=0), 1, 2000).pictures)",
    "often": "plot, loss_plot.DRAWING, start = LossPlot(every_seconds=0.2), 1, time.perf_counter()\n"
    "while plot.pictures < 5: feed(plot, len(plot.records) + 1, len(plot.records) + 1, 0.01)\n"
    "print(json.dumps([plot.pictures, time.perf_counter() - start]))",
}


@pytest.fixture(scope="module")
def outputs() -> dict[str, list[dict]]:
    """What each cell showed, at the end, to a reader without a kernel."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS.values()])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=120).execute()
    return dict(zip(CELLS, (cell["outputs"] for cell in notebook["cells"]), strict=True))


def shown(outputs: list[dict]) -> list[str]:
    """The alt texts of the pictures in a cell's outputs."""
    return [picture(output)[1] for output in outputs if "text/html" in output.get("data", {})]


def printed(outputs: list[dict]) -> str:
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def test_a_cell_holds_one_picture_of_the_last_step(outputs):
    assert outputs["setup"] == []
    assert ["3.4000 at step 60" in alt for alt in shown(outputs["whole"])] == [True]
    assert printed(outputs["whole"]) == "2\n"  # the first and the last
    bundle = next(output for output in outputs["whole"] if "data" in output)["data"]
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<p>step 60 of 60 · loss 3.4000" in bundle["text/html"]
    assert "3.4000 at step 60" in bundle["text/plain"]


@pytest.mark.parametrize(("cell", "step"), [("early", 7), ("error", 8)])
def test_a_training_that_stops_early_is_drawn_at_the_end_of_its_cell(outputs, cell, step):
    assert [f"at step {step}, the lowest" in alt for alt in shown(outputs[cell])] == [True]


def test_what_goes_on_in_another_cell_is_drawn_there(outputs):
    assert ["4.0000" not in alt and "at step 12, the lowest" in alt for alt in shown(outputs["again"])] == [True]
    assert ["at step 8, the lowest" in alt for alt in shown(outputs["error"])] == [True]


def test_it_draws_no_more_often_than_asked(outputs):
    pictures, seconds = json.loads(printed(outputs["often"]))
    assert pictures <= seconds / 0.2 + 2


def test_drawing_takes_a_small_part_of_the_time_however_quick_the_steps(outputs):
    assert int(printed(outputs["quick"])) < 20


def test_as_a_value_it_shows_itself(outputs):
    assert outputs["value"][0]["output_type"] == "execute_result"
    assert ["at step 12, the lowest" in alt for alt in shown(outputs["value"])] == [True]
