"""What the explorers share: labelled controls, a picture that follows them, a still twin for where no kernel runs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from .. import canvas
from ..config import unknown
from ..pens import Page, Paper, Pen
from ..picture import Picture

# ipywidgets gives the handle of a slider no name, so a screen reader would say "slider, 5" and not of what; and it
# renders an HTML widget anew with each value, so a live region inside it would be gone before it was read. Neither can
# be mended from Python. JupyterLab takes arrow keys and letters away from a closed dropdown (ipywidgets #3912). The
# page does not run a <script> that is put in later, but it tells a <style> that it loaded.
ON_LOAD = """
const style = this; let left = 40;
(function name() {
  const root = style.closest('.lab-explorer');
  if (root) {
    root.querySelectorAll('select, input, [role=slider]').forEach(
      control => control.dataset.lmSuppressShortcuts = 'true');
    root.querySelectorAll('[role=slider]').forEach(handle => {
      const label = handle.closest('.jupyter-widgets').querySelector('label');
      if (label) handle.setAttribute('aria-label', label.textContent);
    });
    const says = root.querySelector('.lab-says .widget-html-content');
    if (says) says.setAttribute('aria-live', 'polite');
  }
  if (left--) setTimeout(name, 250);
})();
"""
NAMES = f'<style onload="{html.escape(" ".join(ON_LOAD.split()))}"></style>'
Control = ipywidgets.ValueWidget


class Traced(Picture):
    """A picture that a pen traces, on matplotlib's paper and on a page. size: width and height in inches.

    name: of its hatches on a page, which other pictures there must not share.
    """

    size = (0.0, 0.0)
    name = ""

    def trace(self, pen: Pen) -> None:
        raise NotImplementedError

    def on_paper(self, theme: canvas.Theme) -> Figure:
        figure = Figure(figsize=self.size, facecolor=theme.paper)
        axes = figure.add_axes((0, 0, 1, 1))
        self.trace(Paper(axes, theme))
        axes.set_axis_off()
        axes.set(xlim=(0, self.size[0]), ylim=(self.size[1], 0))
        return figure

    def on_page(self, theme: str | None = None) -> str:
        page = Page(canvas.theme(theme), self.name)
        self.trace(page)
        return page.svg(*self.size, self.alt)


class Explorer:
    """Controls over a picture and some numbers in words; as the last line of a cell it shows itself.

    A subclass adds its controls in `__init__`, then calls `start()`; its `draw(**values)` returns a picture that has
    `on_page`, and lines of text. The controls are observed, and `set` reaches them from code, without a browser:
    `explorer.set(padding="left").still()`. Where no kernel runs, and on GitHub, the picture of the moment is shown.

    theme: "light" or "dark"; None is the one that LAB_THEME names, or light. Raises ValueError for another.
    """

    title = ""

    def __init__(self, theme: str | None = None) -> None:
        self.theme = canvas.theme(theme).name
        self.controls: dict[str, Control | list[Control]] = {}
        self.quiet = False
        self.lines: list[str] = []
        self.picture: Any = None
        self.page, self.says = ipywidgets.HTML(), ipywidgets.HTML()
        self.says.add_class("lab-says")

    def draw(self, **values: Any) -> tuple[Picture, list[str]]:
        """The picture and the lines of text for these values of the controls."""
        raise NotImplementedError

    def adapt(self) -> None:
        """Fit the controls to each other, where the range of one hangs on another's value."""

    # Controls

    def slider(self, label: str, value: float, low: float, high: float, step: float = 1) -> Control:
        kind = ipywidgets.IntSlider if all(isinstance(part, int) for part in (value, step)) else ipywidgets.FloatSlider
        return described(kind, label, value=value, min=low, max=high, step=step)

    def number(self, label: str, value: float, low: float, high: float, step: float = 1) -> Control:
        """A field to type in."""
        whole = isinstance(value, int)
        return described(
            ipywidgets.BoundedIntText if whole else ipywidgets.BoundedFloatText,
            label,
            value=value,
            min=low,
            max=high,
            step=step,
        )

    def choice(self, label: str, options: Sequence[Any] | Mapping[str, Any], value: Any) -> Control:
        options = list(options.items()) if isinstance(options, Mapping) else [(str(each), each) for each in options]
        return described(ipywidgets.Dropdown, label, options=options, value=value)

    def switch(self, label: str, value: bool) -> Control:
        return described(ipywidgets.Checkbox, label, value=value, indent=False)

    def start(self) -> None:
        """Put the controls over the picture, watch them, and draw the first one."""
        flat = [widget for name in self.controls for widget in self.of(name)]
        for name in self.controls:
            for widget in self.of(name):
                check(name, widget, widget.value)
        for widget in flat:
            widget.observe(lambda change: self.refresh(), names="value")
        names = ipywidgets.HTML(NAMES, layout={"display": "none"})
        controls = ipywidgets.Box(flat, layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([controls, self.says, self.page, names])
        self.box.add_class("lab-explorer")
        self.refresh()

    def of(self, name: str) -> list[Control]:
        widget = self.controls[name]
        return widget if isinstance(widget, list) else [widget]

    @property
    def values(self) -> dict[str, Any]:
        """What the controls say: a value each, or a tuple for several of a kind."""
        return {
            name: tuple(widget.value for widget in control) if isinstance(control, list) else control.value
            for name, control in self.controls.items()
        }

    def set(self, **values: Any) -> Explorer:
        """Move controls by name, and draw once; returns itself.

        Raises ValueError for a name that is no control's and for a value that the control cannot take; then nothing is
        moved.
        """
        for name in values:
            if name not in self.controls:
                raise unknown("control", name, list(self.controls))
        before = self.values
        try:
            for name in self.controls:
                if name in values:
                    self.move(name, values[name])
        except ValueError:
            for name, value in before.items():
                self.move(name, value)
            raise
        self.refresh()
        return self

    def move(self, name: str, value: Any) -> None:
        """Without drawing."""
        control = self.controls[name]
        given = list(value) if isinstance(control, list) and isinstance(value, Sequence) else [value]
        if len(given) != len(self.of(name)):
            raise ValueError(f"{name} is {value!r}; give a value for each of the {len(self.of(name))}.")
        with self.quietly():
            for widget, one in zip(self.of(name), given, strict=True):
                check(name, widget, one)
                widget.value = one
            self.adapt()

    @contextmanager
    def quietly(self) -> Any:
        """Inside, controls move without a drawing for each."""
        before, self.quiet = self.quiet, True
        try:
            yield
        finally:
            self.quiet = before

    # What is shown

    def refresh(self) -> None:
        """Draw what the controls say. An error is shown too: raised where a control was moved, it is seen nowhere."""
        if self.quiet:
            return
        try:
            with self.quietly():
                self.adapt()
            self.picture, self.lines = self.draw(**self.values)
        except Exception as error:
            self.says.value = f"<p>{html.escape(f'{type(error).__name__}: {error}')}</p>"
            raise
        self.page.value = self.picture.on_page(self.theme)
        self.says.value = f'<div aria-live="polite">{paragraphs(self.lines)}</div>'

    @property
    def text(self) -> str:
        """The numbers of now, in words."""
        return " ".join(self.lines)

    def settings(self) -> str:
        """What the controls say, in words."""
        flat = [widget for name in self.controls for widget in self.of(name)]
        return " · ".join(f"{widget.description}: {word_of(widget)}" for widget in flat)

    def still(self) -> Picture:
        """The picture of now, which needs neither kernel nor widgets."""
        return self.picture

    def as_frame(self) -> Any:
        """The picture of now as a table, in words and numbers."""
        return self.still().as_frame()

    def __repr__(self) -> str:
        return f"{self.title}. {self.settings()}\n{self.text}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget; for who cannot show it, the still twin as HTML; and the words."""
        still = self.still().bundle(self.theme)["text/html"]
        words = f"<p>{html.escape(self.settings())}</p>{paragraphs(self.lines)}"
        view = self.box._repr_mimebundle_()
        return {**view, "text/html": f"<div>{words}{still}</div>", "text/plain": repr(self)}


def described(kind: type[Control], label: str, **how: Any) -> Control:
    """A control with its label beside it, which is never cut."""
    style = {} if kind is ipywidgets.Checkbox else {"description_width": "initial"}
    wide = "340px" if kind in (ipywidgets.IntSlider, ipywidgets.FloatSlider) else "auto"  # a track has no own width
    return kind(description=label, style=style, layout={"width": wide, "margin": "2px 16px 2px 2px"}, **how)


def check(name: str, widget: Control, value: Any) -> None:
    """Raises ValueError for what the control cannot show; ipywidgets itself would cut it silently to its range."""
    if isinstance(widget, ipywidgets.Dropdown):
        known = [known for _, known in widget.options]
        if value not in known:
            raise unknown(f"{name}:", value, [str(each) for each in known])
    elif isinstance(widget, ipywidgets.Checkbox):
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it is True or False.")
    else:
        whole = isinstance(widget.value, int)
        wanted = "a whole number" if whole else "a number"
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not widget.min <= value <= widget.max:
            raise ValueError(f"{name} is {value!r}; it must be {wanted} from {widget.min} to {widget.max}.")
        if isinstance(widget, ipywidgets.FloatSlider) and abs(value / widget.step - round(value / widget.step)) > 1e-6:
            # The browser would move it to the next step, and tell the kernel so.
            raise ValueError(f"{name} is {value!r}; it must be a multiple of {widget.step}.")


def word_of(widget: Control) -> str:
    if isinstance(widget, ipywidgets.Checkbox):
        return "on" if widget.value else "off"
    return str(widget.label if isinstance(widget, ipywidgets.Dropdown) else widget.value)


def paragraphs(lines: Sequence[str]) -> str:
    return "".join(f'<p style="margin:0 0 .3em;line-height:1.4">{html.escape(line)}</p>' for line in lines)
