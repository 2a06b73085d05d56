"""What every explorer does: its controls are moved from code, its still twin is what is shown, and words go with it."""

import base64
import html
import re
import subprocess
import sys
from xml.etree import ElementTree

import ipywidgets
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from lab import seen
from lab.canvas import THEMES
from lab.widgets import AttentionExplorer, MaskExplorer, ScheduleExplorer, SoftmaxRowExplorer
from lab.widgets.base import Explorer

VIEW = "application/vnd.jupyter.widget-view+json"


def found(heads: int = 2, fill: float = 0.5) -> list[seen.Seen]:
    weights = torch.full((2, heads, 2, 2), fill)
    real, words = torch.zeros(2, 2, dtype=torch.bool), [["a", "b"]] * 2
    should = torch.ones(2, 2, 2, dtype=torch.bool).tril()
    return [seen.Seen("layer", "decoder", 0, weights, None, should, words, words, real, real)]


# What makes each, and a move that changes its picture.
EXPLORERS = {
    "mask": (MaskExplorer, {"padding_mask": False, "padding": "left"}),
    "attention": (lambda **how: AttentionExplorer(found(), healthy=found(fill=0.25), **how), {"model": "healthy"}),
    "softmax": (SoftmaxRowExplorer, {"blocked": (True, False, False, True)}),
    "schedule": (ScheduleExplorer, {"shape": "linear"}),
}
every = pytest.mark.parametrize(("make", "move"), EXPLORERS.values(), ids=EXPLORERS)


def unnamed(page: str) -> str:
    """Without the names of its hatches, of which each page has its own."""
    return re.sub(r"g[0-9a-f]{8}-", "", page)


def flat(explorer: Explorer) -> list[ipywidgets.Widget]:
    return [widget for name in explorer.controls for widget in explorer.of(name)]


def inside(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *(each for child in getattr(widget, "children", ()) for each in inside(child))]


@every
def test_a_move_changes_picture_table_and_still_twin_together(make, move):
    explorer = make()
    page, frame = explorer.page.value, explorer.as_frame()
    assert explorer.set(**move) is explorer
    assert {name: explorer.values[name] for name in move} == move
    assert explorer.page.value != page and not explorer.as_frame().equals(frame)
    assert explorer.still().as_frame().equals(explorer.as_frame())
    assert unnamed(explorer.still().on_page(explorer.theme)) == unnamed(explorer.page.value)
    assert make().set(**move).still().render("svg") == explorer.still().render("svg")


@every
def test_a_control_that_is_moved_by_hand_does_the_same_as_set(make, move):
    by_hand, from_code = make(), make().set(**move)
    for name, value in move.items():
        for widget, one in zip(by_hand.of(name), value if isinstance(value, tuple) else [value], strict=True):
            widget.value = one
    assert by_hand.page.value == from_code.page.value and by_hand.text == from_code.text


@every
def test_the_bundle_has_the_widget_a_twin_with_alt_text_and_words(make, move):
    explorer = make().set(**move)
    bundle = explorer._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {VIEW, "text/html", "text/plain"}
    assert bundle[VIEW]["model_id"] == explorer.box.model_id
    alt, source = re.search(
        r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', bundle["text/html"]
    ).groups()
    assert base64.b64decode(source) == explorer.still().render("svg")
    assert html.unescape(alt) == explorer.still().alt
    assert not re.search(r"<script|https?://", bundle["text/html"])
    for line in explorer.lines:
        assert html.escape(line) in bundle["text/html"] and line in bundle["text/plain"]
    assert explorer.settings() in bundle["text/plain"]


@every
def test_every_control_has_a_label_of_its_own_and_is_in_the_box(make, move):
    controls = flat(make())
    labels = [widget.description for widget in controls]
    assert all(labels) and len(set(labels)) == len(labels)
    explorer = make()
    shown = inside(explorer.box)
    assert all(any(widget is each for each in shown) for widget in (*flat(explorer), explorer.page, explorer.says))


@every
@pytest.mark.parametrize("name", THEMES)
def test_the_picture_is_in_the_theme_and_tells_the_pointer_its_numbers(make, move, name):
    explorer = make(theme=name).set(**move)
    picture = ElementTree.fromstring(explorer.page.value)
    assert picture.get("role") == "img" and len(picture.get("aria-label")) > 40
    assert f'fill="{THEMES[name].paper}"' in explorer.page.value
    assert len(picture.findall(".//{*}title")) > 3
    assert not re.search(r"(href|src)=", explorer.page.value)
    alone = explorer._repr_mimebundle_()["text/html"]
    assert base64.b64decode(re.search(r"base64,([^\"]+)", alone)[1]) == explorer.still().render("svg", name)


@every
def test_the_live_line_says_what_changes(make, move):
    explorer = make()
    before = explorer.says.value
    assert 'aria-live="polite"' in before
    explorer.set(**move)
    assert explorer.says.value != before
    assert all(html.escape(line) in explorer.says.value for line in explorer.lines)


@every
def test_it_refuses_what_no_control_takes_and_moves_nothing(make, move):
    explorer = make()
    values, page = explorer.values, explorer.page.value
    name = list(explorer.controls)[-1]
    with pytest.raises(ValueError, match="unknown control 'colour'"):
        explorer.set(colour="red")
    with pytest.raises(ValueError, match=f"{name}"):
        explorer.set(**move | {name: "nothing like it"})
    assert explorer.values == values and explorer.page.value == page
    with pytest.raises(ValueError, match="theme is 'pink'"):
        make(theme="pink")


@pytest.mark.parametrize(
    ("move", "message"),
    [
        ({"lengths": (7, 99, 5)}, "lengths is 99; it must be a whole number from 0 to 12"),
        ({"lengths": (7, 2)}, r"lengths is \(7, 2\); give a value for each of the 3"),
        ({"lengths": (7, 2.5, 5)}, "lengths is 2.5"),
        ({"causal": 1}, "causal is 1; it is True or False"),
        ({"padding": "up"}, "'up'.* There are: right, left, middle"),
        ({"row": 3}, "row: 3"),
    ],
)
def test_a_value_out_of_range_is_named_and_not_cut_to_it(move, message):
    explorer = MaskExplorer()
    with pytest.raises(ValueError, match=message):
        explorer.set(**move)
    assert explorer.values == MaskExplorer().values


def test_several_moves_are_drawn_once():
    explorer = ScheduleExplorer()
    drawn = []
    draw = explorer.draw
    explorer.draw = lambda **values: drawn.append(values) or draw(**values)
    explorer.set(steps=50, warmup_steps=80, shape="wsd", peak=0.01)
    assert len(drawn) == 1 and drawn[0]["warmup_steps"] == 80


def test_an_error_in_a_drawing_is_shown_where_the_numbers_stand():
    explorer = ScheduleExplorer()

    def draw(**values):
        raise RuntimeError("no <pen>")

    explorer.draw = draw
    with pytest.raises(RuntimeError):
        explorer.set(peak=0.01)
    assert "RuntimeError: no &lt;pen&gt;" in explorer.says.value


def test_a_page_without_kernel_shows_the_twin():
    """As nbconvert and GitHub do it: outputs alone, without the state of widgets."""
    cells = ["from lab.widgets import MaskExplorer", "MaskExplorer().set(padding='left', padding_mask=False)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(notebook, kernel_name="python3", timeout=120, store_widget_state=False).execute()
    (output,) = notebook["cells"][1]["outputs"]
    assert VIEW in output["data"]
    page = HTMLExporter(template_name="basic").from_notebook_node(notebook)[0]
    assert MaskExplorer().set(padding="left", padding_mask=False).lines[0] in html.unescape(page)
    assert re.search(r'<img alt="[^"]*12 leak', page) and "widget-view" not in page


def test_loading_one_loads_no_other():
    code = (
        "import sys; from lab.widgets import LossPlot; print({'ipywidgets', 'matplotlib', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
