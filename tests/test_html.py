"""Every notebook as HTML has words for its pictures and headings in order; and each of these rules can fail."""

from pathlib import Path

import nbformat
import pytest
from html_rules import html_of, unreadable
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DRAWING = '<svg role="img" aria-label="a mask"><g><svg><path d="M0 0"/></svg></g></svg>'
GOOD = f"""<h1>Title</h1><h2>One</h2><h3>Deeper</h3><h2>Two</h2><img src="a.svg" alt="a mask">
    <a href="b.html"><img src="b.svg" alt="the next mask"></a>{DRAWING}
    <svg role="img"><title>a mode</title></svg><span aria-hidden="true"><svg></svg></span>"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_as_html_can_be_read_without_seeing_it(path: Path) -> None:
    assert unreadable(html_of(path.read_text(encoding="utf-8"))) == []


def test_a_good_page_breaks_no_rule() -> None:
    assert unreadable(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (' alt="a mask"', "", "no alt text: <img"),
        (' alt="a mask"', ' alt=" "', "no alt text: <img"),
        (' alt="the next mask"', "", "no alt text: <img"),
        (' role="img" aria-label', " aria-label", "without role=img"),
        (' aria-label="a mask"', "", "without aria-label or title"),
        ("<title>a mode</title>", "<title> </title>", "without aria-label or title"),
        ("<title>a mode</title>", "<g><title>a cell</title></g>", "without aria-label or title"),
        ("<span aria-hidden", "<span aria-busy", "without role=img"),
        ("<h1>Title</h1>", "", "0 headings of the first level"),
        ("<h2>Two</h2>", "<h1>Two</h1>", "2 headings of the first level"),
        ("<h2>One</h2>", "", "h3 after h1: Deeper"),
        ("<h2>Two</h2>", "<h5>Two</h5>", "h5 after h3: Two"),
    ],
)
def test_a_bad_page_breaks_its_rule(old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert any(said in line for line in unreadable(GOOD.replace(old, new)))


def test_outputs_are_read_too() -> None:
    shown = new_output("display_data", data={"text/html": '<img src="data:image/png;base64,">'})
    cells = [new_markdown_cell("# Title\n\n![a mask](a.svg)"), new_code_cell("draw()", outputs=[shown])]
    (said,) = unreadable(html_of(nbformat.writes(new_notebook(cells=cells))))
    assert said.startswith("no alt text: <img") and "data:image/png" in said
