"""A picture of a training: live in a notebook, `lab.fit(..., on_step=LossPlot(steps=...))`, or of one that is over."""

from __future__ import annotations

import base64
import html
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import runlog

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ..canvas import Theme
    from ..picture import Picture

Points = list[tuple[int, float]]
DRAWING = 0.05  # the most of a training's time that may go into its pictures


class LossPlot:
    """The training loss while it falls, its running mean, the validation loss, and the numbers of now in words.

    Call it with each step's record: `step` and `loss`, and where there are any `validation`, `rate`, `gradient_norm`,
    `tokens`, `tokens_per_second`. In a notebook it is one picture with alt text, drawn again at most once in
    `every_seconds` and never for more than a twentieth of the time; it is drawn a last time at step `steps`, at the
    end of the cell, or by `finish()`. What stays in the file is that still, which needs neither kernel nor widgets.
    Elsewhere, a line of text is printed after each validation and at the end. theme: "light" or "dark".

    A record whose step is not after the last one begins again from there, as a resumed run does.
    """

    def __init__(
        self,
        steps: int | None = None,
        every_seconds: float = 1.0,
        *,
        title: str = "Training",
        theme: str | None = None,
    ) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; give the number of steps of the training, or None if it is unknown.")
        if not every_seconds >= 0:
            raise ValueError(f"every_seconds is {every_seconds}; it must be 0 or more.")
        self.steps, self.every_seconds, self.title, self.theme = steps, every_seconds, title, theme
        self.records: list[runlog.Record] = []
        self.pictures = 0  # how many were drawn
        self.stale = False  # was something recorded since?
        self.next_at = 0.0
        self.handle: Any = None  # of the picture in the notebook

    @classmethod
    def of(cls, run: str | os.PathLike[str], *, theme: str | None = None) -> LossPlot:
        """What the log in a run's folder holds; as the last line of a cell it shows itself.

        Raises FileNotFoundError where there is no log, ValueError for one without a step, and as `runlog.read`.
        """
        if not os.path.exists(os.path.join(run, runlog.LOG)):
            raise FileNotFoundError(f"there is no {runlog.LOG} in {run}; give the --out of a training.")
        plot, seen = cls(title=f"Training in {os.path.basename(os.path.normpath(run))}", theme=theme), 0
        for record in runlog.read(run):
            if record["loss"] is None:  # what is not finite is null in the log
                record["loss"] = math.nan
            if record["event"] == "validation":
                plot.records[-1]["validation"] = record["loss"]
                continue
            seen, tokens = record["tokens"], record["tokens"] - seen  # the log counts them up
            plot.records.append({**record, "tokens": tokens})
        if not plot.records:
            raise ValueError(f"the log in {run} has no step yet; wait for the first one.")
        return plot

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one step, and draw if that is due. Raises ValueError for a record without step and loss."""
        if missing := {"step", "loss"} - record.keys():
            raise ValueError(f"the record {dict(record)} lacks {', '.join(sorted(missing))}; give both.")
        if self.records and record["step"] <= self.records[-1]["step"]:
            self.records = [kept for kept in self.records if kept["step"] < record["step"]]
        self.records.append(dict(record))
        self.stale = True
        if record["step"] == self.steps:
            self.finish()
        elif in_notebook():
            if time.perf_counter() >= self.next_at:
                self.refresh()
        elif "validation" in record:
            self.refresh()

    def refresh(self) -> None:
        """Draw what there is, in the place of the picture before."""
        self.stale, self.pictures = False, self.pictures + 1
        if not in_notebook():
            print(self.numbers())
            return
        from IPython import display, get_ipython

        from .. import draw  # noqa: F401 - seconds at its first import, which are not those of a drawing

        start = time.perf_counter()
        if self.handle is None:
            self.handle = display.display(self, display_id=True)
            get_ipython().events.register("post_run_cell", self.finish)
        else:
            self.handle.update(self)
        now = time.perf_counter()
        self.next_at = now + max(self.every_seconds, (now - start) / DRAWING)

    def finish(self, _: Any = None) -> None:
        """Draw the last state, and leave it as it is: what comes after is drawn anew. IPython hands a cell's result."""
        if self.stale:
            self.refresh()
        if self.handle is not None:
            from IPython import get_ipython

            get_ipython().events.unregister("post_run_cell", self.finish)
        self.handle, self.next_at = None, 0.0

    def as_frame(self) -> DataFrame:
        """A row for each step: what its record held."""
        import pandas

        return pandas.DataFrame(self.records).set_index("step") if self.records else pandas.DataFrame()

    @property
    def training(self) -> Points:
        return [(record["step"], record["loss"]) for record in self.records]

    @property
    def validation(self) -> Points:
        return [(record["step"], record["validation"]) for record in self.records if "validation" in record]

    def still(self) -> Picture:
        """As it is now. Raises ValueError before the first step."""
        return losses(self.training, self.validation, steps=self.steps, title=self.title)

    def numbers(self) -> str:
        """Where the training is, in a line."""
        if not self.records:
            return "no step yet"
        last = self.records[-1]
        parts = [f"step {last['step']:,}" + (f" of {self.steps:,}" if self.steps else "")]
        parts.append(f"loss {last['loss']:.4f}, mean {running_mean([loss for _, loss in self.training])[-1]:.4f}")
        if self.validation:
            step, loss = self.validation[-1]
            parts.append(f"validation {loss:.4f} at step {step:,}")
        names = {
            "rate": "rate {:.3g}",
            "gradient_norm": "gradient norm {:.3g}",
            "tokens_per_second": "{:,.0f} tokens/s",
        }
        parts += [text.format(last[name]) for name, text in names.items() if last.get(name) is not None]
        return " · ".join(parts)

    def alt(self) -> str:
        """What the picture shows, in a sentence or two."""
        return in_words(self.training, self.validation)

    def __repr__(self) -> str:
        return f"{self.title}: {self.numbers()}\n{self.alt()}" if self.records else f"{self.title}: {self.numbers()}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """For IPython: the picture as HTML, which every reader of notebooks shows, and the text."""
        if not self.records:
            return {"text/plain": repr(self)}
        source = f"data:image/png;base64,{base64.b64encode(self.still().render('png', self.theme)).decode()}"
        image = f'<img alt="{html.escape(self.alt())}" src="{source}" style="max-width:100%; width:700px">'
        return {"text/html": f"{image}<p>{html.escape(self.numbers())}</p>", "text/plain": repr(self)}


def in_notebook() -> bool:
    """Does this code run in a kernel, which can show pictures?"""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def running_mean(values: Iterable[float]) -> list[float]:
    """At each value, the exponential mean over about a twentieth of those before; one that is not finite is skipped."""
    means, total, weight = [], 0.0, 0.0
    for count, value in enumerate(values, start=1):
        keep = 1 - 1 / max(5.0, count / 20)
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight if weight else value)
    return means


def described(name: str, points: Points) -> str:
    """First, last and best of a curve in a sentence; nothing where there is no point."""
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if not finite:
        return f"{name}: no finite value in {len(points)} steps." if points else ""
    (first, begin), (last, end) = finite[0], finite[-1]
    best, lowest = min(finite, key=lambda point: point[1])
    lost = len(points) - len(finite)
    text = f"{name} by step: {begin:.4f} at step {first:,}"
    if len(finite) > 1:
        text += f", {end:.4f} at step {last:,}, the lowest {lowest:.4f} at step {best:,}"
    return text + (f"; {lost} value{'s are' if lost > 1 else ' is'} not finite." if lost else ".")


def losses(
    training: Sequence[tuple[int, float]],
    validation: Sequence[tuple[int, float]] = (),
    *,
    steps: int | None = None,
    title: str = "",
) -> Picture:
    """The loss of each step, faint, with its running mean, and the points of validation. Each is (step, loss).

    steps: of the whole training, for the axis. Raises ValueError where there is no step.
    """
    if not training:
        raise ValueError("there is no step to draw; give (step, loss) of at least one.")
    from ..canvas import BLUE, VERMILLION, number
    from ..picture import Picture
    from ..plots import plot

    def make(theme: Theme) -> Figure:
        figure, axes = plot(theme, title, 3.6, xlabel="step", ylabel="loss, nats per token")
        at, values = zip(*training, strict=True)
        blue = theme.readable(BLUE)
        mark = "." if len(at) == 1 else ""  # a line through one point is not seen
        axes.plot(at, values, color=theme.tint(blue, 0.45), linewidth=0.9, marker=mark, label="training")
        axes.plot(at, running_mean(values), color=blue, linewidth=2.2, label="training, running mean")
        if validation:
            how = {"color": theme.readable(VERMILLION), "linestyle": "--", "marker": "s", "markersize": 5}
            axes.plot(*zip(*validation, strict=True), **how, label="validation")
        if steps is not None:
            axes.set_xlim(0, steps * 1.02)
        axes.xaxis.set_major_formatter(number)
        axes.grid(linewidth=0.6)
        axes.legend(frameon=False)
        return figure

    def table() -> DataFrame:
        import pandas

        columns = {"loss": training, "running mean": means, "validation": validation}
        frame = pandas.DataFrame({name: pandas.Series(dict(points), dtype=float) for name, points in columns.items()})
        return frame.rename_axis("step")

    means = list(zip([step for step, _ in training], running_mean(loss for _, loss in training), strict=True))
    return Picture(make, in_words(training, validation), table, title)


def in_words(training: Points, validation: Points) -> str:
    """What the picture shows, in a sentence or two."""
    said = [described("Training loss", training), described("Validation loss", validation)]
    return " ".join(text for text in said if text) or "A plot of a training without a step yet."
