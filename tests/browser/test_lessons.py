"""Lessons as a learner meets them in JupyterLab: the whole of one run, its widgets moved, its questions answered."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from html_rules import html_of, unreadable
from jupyter_page import Page, violations

pytestmark = pytest.mark.browser


def opened(page: Page, name: str) -> Path:
    """The lesson's copy, open and run from its first cell to its last, without an error in any."""
    path = page.server.root / "notebooks" / f"{name}.ipynb"
    page.open(path)
    page.run_all()
    page.picture("run")
    assert page.errors() == []
    return path


def reading(explorer: Any) -> tuple[str, int]:
    """The drawing, and the leaks that the words count. (What is out of view has no inner_text in JupyterLab.)"""
    count = re.search(r"Leaks: (\d+) from real queries", explorer.text_content())
    return explorer.locator("svg[role=img]").inner_html(), int(count[1])


def both_change(page: Page, explorer: Any, before: tuple[str, int], how: str) -> tuple[str, int]:
    now = page.changes(lambda: reading(explorer), before, how)
    assert now[0] != before[0], f"the drawing is the same after {how}"
    assert now[1] != before[1], f"{now[1]} leaks as before, after {how}"
    return now


def test_masks_move_in_lesson_04(page: Page) -> None:
    path = opened(page, "04_attention_masks")
    page_of_it = html_of(path.read_text(encoding="utf-8"))
    assert unreadable(page_of_it) == []
    assert page_of_it.count("Leaks: ") >= 2  # where no kernel runs, there is the explorer's still twin

    explorer = page.cell("MaskExplorer(padding=").locator(".lab-explorer")
    explorer.scroll_into_view_if_needed()
    assert explorer.get_by_label("padding", exact=True).input_value() == "left"
    shown = reading(explorer)
    assert shown[1] == 0

    explorer.get_by_label("padding mask").focus()
    page.raw.keyboard.press("Space")
    shown = both_change(page, explorer, shown, "Space on the padding mask")
    page.picture("without_padding_mask")

    # One token more is a pad less to leak from, and one query more that it leaks to.
    slider = explorer.get_by_role("slider", name="tokens in sentence 1")
    slider.focus()
    page.raw.keyboard.press("ArrowRight")
    shown = both_change(page, explorer, shown, "ArrowRight on the sentence's length")
    page.picture("keyboard")
    page.drag(slider, 0.9)
    both_change(page, explorer, shown, "the mouse on the sentence's length")
    page.picture("mouse")

    outputs = page.raw.locator(".jp-Cell-outputArea")
    assert [line for output in outputs.all() for line in violations(output)] == []
    assert page.errors() == []


def test_a_prediction_in_lesson_01(page: Page) -> None:
    path = opened(page, "01_padding_crash")
    assert unreadable(html_of(path.read_text(encoding="utf-8"))) == []

    question = page.cell('"01-crash"')
    options = question.get_by_role("radio")
    names = [option.evaluate("e => e.labels[0].textContent.trim()") for option in options.all()]
    assert len(names) >= 3

    options.nth(0).click()
    assert chosen(page, 1) == [names[0]]
    page.raw.keyboard.press("Tab")
    page.raw.keyboard.press("Space")
    assert chosen(page, 2) == names[:2]
    assert [option.is_checked() for option in options.all()] == [at == 1 for at in range(len(names))]
    assert violations(question.locator(".jp-Cell-outputArea")) == []

    answer = page.cell('recall("01-crash"')
    answer.locator(".cm-content").click()
    page.raw.keyboard.press("Control+Enter")
    answer.locator(".jp-Cell-outputArea", has_text=f"predicted: {names[1]}").wait_for()
    page.idle()


def chosen(page: Page, count: int) -> list[str]:
    """The choices that were recorded, once there are as many."""
    file = page.server.predictions
    for _ in range(100):
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        if len(lines) >= count:
            break
        page.raw.wait_for_timeout(100)
    return [json.loads(line)["choice"] for line in lines]
