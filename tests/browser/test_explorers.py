"""Each explorer in JupyterLab: every control by the keyboard, sliders by the mouse, and what axe-core says of it."""

from collections.abc import Callable
from typing import Any

import nbformat
import pytest
from jupyter_page import Page, violations
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = pytest.mark.browser

ATTENTION = """
import lab
from lab import faults, labels, matrix, seen

model = lab.Transformer(matrix.config()).eval()
pairs = [([5, 6, 7], [8, 9, 10]), ([11, 12], [13])]
batch = labels.collate_pairs(pairs, **matrix.SPECIAL)
with faults.get("attends-to-pads").inject():
    faulty = seen.seen(model, batch)
AttentionExplorer({"faulty": faulty, "healthy": seen.seen(model, batch)})
"""
EXPLORERS = {
    "MaskExplorer": "MaskExplorer()",
    "AttentionExplorer": ATTENTION.strip(),
    "SoftmaxRowExplorer": "SoftmaxRowExplorer()",
    "ScheduleExplorer": "ScheduleExplorer()",
    "ScalingExplorer": "from lab.published import MUENNIGHOFF_2023 as law\nScalingExplorer({'one': law, 'two': law})",
}
CONTROLS = "[role=slider], select, input"


def show(page: Page, name: str) -> Any:
    """The explorer alone, in a notebook of its own."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    code = f"from lab.widgets import {name}\n{EXPLORERS[name]}"
    path = page.server.root / "notebooks" / f"{name}.ipynb"
    nbformat.write(new_notebook(metadata=metadata, cells=[new_markdown_cell(f"# {name}"), new_code_cell(code)]), path)
    page.open(path)
    page.run_all()
    explorer = page.raw.locator(".lab-explorer")
    explorer.locator("svg[role=img]").wait_for()
    return explorer


def reader(explorer: Any) -> Callable[[], str]:
    """Reads the picture and the words."""
    return lambda: "".join(part.inner_html() for part in explorer.locator(".widget-html-content").all())


def enabled(control: Any) -> bool:
    return control.evaluate("e => !e.closest('[disabled]')")


def kind(control: Any) -> str:
    return control.evaluate("e => e.getAttribute('role') || e.type")


def name_of(control: Any) -> str:
    """As a screen reader would say it."""
    return control.evaluate("e => e.ariaLabel || [...e.labels].map(label => label.textContent).join(' ')")


def key_for(control: Any) -> str:
    """The key that moves it, away from its end where it stands there."""
    if kind(control) == "checkbox":
        return "Space"
    if kind(control) == "slider":
        at_end = control.evaluate("e => e.ariaValueNow === e.ariaValueMax")
        return "ArrowLeft" if at_end else "ArrowRight"
    if kind(control) == "select-one":
        return "ArrowUp" if control.evaluate("e => e.selectedIndex === e.length - 1") else "ArrowDown"
    return "ArrowUp"  # a number


@pytest.mark.parametrize("name", EXPLORERS)
def test_explorer(page: Page, name: str) -> None:
    explorer = show(page, name)
    read, keyboard = reader(explorer), page.raw.keyboard
    controls = [each for each in explorer.locator(CONTROLS).all() if enabled(each)]
    assert len(controls) >= 2

    # Tab goes through all of them, in their order; a slider's number, which can be typed over, is on the way.
    controls[0].focus()
    for control in controls[1:]:
        for _ in range(2):
            keyboard.press("Tab")
            if control.evaluate("e => e === document.activeElement"):
                break
        else:
            raise AssertionError(f"Tab does not reach {control.evaluate('e => e.outerHTML')}")

    shown = read()
    for control in sorted(controls, key=lambda control: kind(control) == "slider"):  # what is blocked hides a score
        control.focus()
        keyboard.press(key_for(control))
        keyboard.press("Tab")  # a number counts when it is left
        shown = page.changes(read, shown, f"{key_for(control)} on {name_of(control)}")
    page.picture("keyboard")

    for slider in filter(enabled, explorer.get_by_role("slider").all()):
        at = float(slider.get_attribute("aria-valuenow")) / float(slider.get_attribute("aria-valuemax"))
        page.drag(slider, 0.2 if at > 0.5 else 0.8)
        shown = page.changes(read, shown, f"the mouse on {slider.get_attribute('aria-label')}")
    page.picture("mouse")

    assert violations(explorer) == []
    assert page.errors() == []
