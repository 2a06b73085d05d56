"""What a person does in JupyterLab, in Playwright's words, and a watch over what goes wrong meanwhile."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What Chromium's console says that is no fault of ours: a pattern, and why it may pass.
HARMLESS: dict[str, str] = {}
SLOW = 420_000  # milliseconds: a notebook's whole run, on two cores that others use too


@dataclass(frozen=True)
class Server:
    url: str  # with a slash at its end
    token: str
    root: Path  # the folder that it shows
    predictions: Path  # the file of LAB_PREDICTIONS


class Watch:
    """Errors in the console, exceptions, answers that are errors, and requests that leave this machine."""

    def __init__(self, context: Any, home: str) -> None:
        self.problems: list[str] = []
        context.on("console", self.said)
        context.on("weberror", lambda error: self.problems.append(f"exception: {error.error}"))
        context.on("response", self.answered)
        context.route(lambda url: not url.startswith((home, "data:", "blob:")), self.left)

    def said(self, message: Any) -> None:
        # A failed request is in the console too, without the address that `answered` notes.
        text = f"{message.text} ({message.location.get('url', '')})"
        known = any(re.search(pattern, text) for pattern in HARMLESS)
        if message.type == "error" and not known:
            self.problems.append(f"console: {text}")

    def answered(self, response: Any) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status} for {response.url}")

    def left(self, route: Any) -> None:
        self.problems.append(f"request to {route.request.url}")
        route.abort()


class Page:
    """One window of JupyterLab. `raw` is Playwright's page."""

    def __init__(self, raw: Any, server: Server, pictures: Path, name: str) -> None:
        self.raw, self.server, self.pictures = raw, server, pictures
        self.name = re.sub(r"\W+", "_", name).strip("_")
        self.path = Path()

    def open(self, path: Path) -> None:
        """Show a notebook, given by its path on the disk, and wait for its kernel."""
        self.path = path
        where = path.relative_to(self.server.root).as_posix()
        self.raw.goto(f"{self.server.url}lab/tree/{where}?reset&token={self.server.token}", timeout=60_000)
        self.raw.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        self.idle(60_000)

    def idle(self, timeout: float = SLOW) -> None:
        """Wait until the kernel is there, has nothing to do, and no cell waits for it."""
        idle = """() => {
            const kernel = window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel;
            const waiting = [...document.querySelectorAll('.jp-InputPrompt')].some(at => at.textContent.includes('*'));
            return kernel?.connectionStatus === 'connected' && kernel.status === 'idle' && !waiting;
        }"""
        self.raw.wait_for_function(idle, timeout=timeout)

    def run_all(self) -> None:
        """Menu Run, Run All Cells; then wait for all of them."""
        self.raw.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
        self.raw.locator(".lm-Menu-item", has_text=re.compile("^Run All Cells")).click()
        # A cell has its number once it has run; after an error no other runs. Folded cells show none, so ask the app.
        done = """() => {
            const cells = window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model)
                .filter(cell => cell.type === 'code' && cell.sharedModel.source.trim());
            const failed = cell => Array.from({length: cell.outputs.length}, (_, at) => cell.outputs.get(at))
                .some(output => output.type === 'error');
            return cells.every(cell => cell.executionCount) || cells.some(failed);
        }"""
        self.raw.wait_for_function(done, timeout=SLOW)
        self.idle()

    def saved(self) -> dict[str, Any]:
        """Menu File, Save Notebook; then read the file."""
        self.raw.locator(".lm-MenuBar-item", has_text=re.compile("^File$")).click()
        self.raw.locator(".lm-Menu-item[data-command='docmanager:save']").click()
        written = "() => !window.jupyterapp.shell.currentWidget.context.model.dirty"
        self.raw.wait_for_function(written, timeout=60_000)
        return json.loads(self.path.read_text(encoding="utf-8"))

    def cell(self, code: str) -> Any:
        """The code cell with this text in it."""
        return self.raw.locator(".jp-CodeCell", has=self.raw.locator(".jp-Editor", has_text=code)).first

    def errors(self) -> list[str]:
        """The notebook is saved; what its cells show of errors, and what they wrote to the standard error stream."""
        outputs = [output for cell in self.saved()["cells"] for output in cell.get("outputs", [])]
        wrong = [f"{out['ename']}: {out['evalue']}" for out in outputs if out["output_type"] == "error"]
        return wrong + ["".join(out["text"]) for out in outputs if out.get("name") == "stderr"]

    def drag(self, slider: Any, share: float) -> None:
        """Take a slider's handle with the mouse to this share of its way."""
        slider.scroll_into_view_if_needed()
        track = slider.locator("xpath=ancestor::*[contains(@class, 'noUi-base')]").bounding_box()
        handle = slider.bounding_box()
        mouse, y = self.raw.mouse, track["y"] + track["height"] / 2
        mouse.move(handle["x"] + handle["width"] / 2, y)
        mouse.down()
        mouse.move(track["x"] + share * track["width"], y, steps=8)
        mouse.up()

    def changes(self, read: Callable[[], Any], before: Any, how: str) -> Any:
        """What is read once it is no longer what it was and the kernel rests; how: by what it should change."""
        for _ in range(100):
            if read() != before:
                self.idle()
                return read()
            self.raw.wait_for_timeout(100)
        raise AssertionError(f"10 s after {how} there still is: {str(before)[:500]}")

    def picture(self, what: str) -> Path:
        """A screenshot for a person to look at."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{self.name}-{what}.png"
        self.raw.screenshot(path=path)
        return path


def violations(where: Any) -> list[str]:
    """What axe-core finds serious or critical in the element of this locator: rule, impact, the HTML, the remedy."""
    where.page.evaluate(axe())
    found = where.evaluate("element => axe.run(element, {resultTypes: ['violations']})")
    return [
        f"{rule['id']} ({rule['impact']}): {node['html']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
        if (node["impact"] or rule["impact"]) in ("serious", "critical")
    ]


def axe() -> str:
    """axe-core, as the package axe-playwright-python brings it along."""
    (folder,) = importlib.util.find_spec("axe_playwright_python").submodule_search_locations
    return (Path(folder) / "axe.min.js").read_text(encoding="utf-8")
