"""The learning rate of a run with controls: warmup, peak and shape, and in words what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..canvas import BLUE, VERMILLION, number
from ..config import TrainConfig
from ..pens import Pen
from ..picture import Picture
from ..schedule import SCHEDULES, rate_factor
from .base import Explorer, Traced

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLES = 2000  # of a longer run, no more steps are computed
LEFT, TOP, WIDE, HIGH = 0.9, 0.75, 6.4, 2.6  # inches: where the curve stands
HOVERS = 80  # places with words under the pointer


class ScheduleExplorer(Explorer):
    """The rate of each step of a run, as the kit's Trainer would set it (`lab.schedule.rate_factor`).

    Controls: steps, warmup_steps, peak (the learning rate), shape (a name of `lab.schedule.SCHEDULES`), final_rate (the
    share of the peak at the end). train: a TrainConfig to begin with; by default one of 1,000 steps.
    """

    title = "The learning rate by step"

    def __init__(self, train: TrainConfig | None = None, *, theme: str | None = None) -> None:
        super().__init__(theme)
        train = TrainConfig(1000) if train is None else train
        self.numbers: dict[str, float] = {}
        self.controls = {
            "steps": self.number("steps", train.steps, 1, max(1_000_000, train.steps)),
            "warmup_steps": self.slider(
                "warmup steps", train.warmup_steps, 0, max(2 * train.steps, train.warmup_steps)
            ),
            "peak": self.number("peak rate", float(train.learning_rate), 0.0, 1e3, 1e-4),
            "shape": self.choice("shape", list(SCHEDULES), train.schedule),
            "final_rate": self.number("share at the end", float(train.final_rate), 0.0, 1.0, 0.05),
        }
        self.start()

    def adapt(self) -> None:
        """Warmup may be twice as long as the run, to see what then happens."""
        warmup = self.controls["warmup_steps"]
        warmup.max = 2 * self.controls["steps"].value

    def draw(
        self, steps: int, warmup_steps: int, peak: float, shape: str, final_rate: float
    ) -> tuple[Picture, list[str]]:
        train = TrainConfig(steps, peak, shape, warmup_steps, final_rate)  # which checks them
        stride = -(-steps // SAMPLES)
        at = sorted({*range(0, steps, stride), steps - 1, *({warmup_steps - 1} if 0 < warmup_steps <= steps else ())})
        rates = [peak * rate_factor(step, shape, warmup_steps, steps, train.final_rate) for step in at]
        top = max(range(len(at)), key=lambda i: rates[i])
        mean = sum(rates) / steps if stride == 1 else weighted(at, rates)
        self.numbers = {
            "warmup_share": warmup_steps / steps,
            "peak_step": at[top],
            "highest": rates[top],
            "mean": mean,
            "last": rates[-1],
        }
        lines = said(self.numbers, steps, warmup_steps, peak, stride)
        title = f"{shape}, {steps:,} steps, {warmup_steps:,} of warmup"
        return Curve(at, rates, warmup_steps if warmup_steps < steps else steps, title, " ".join(lines)), lines


def weighted(at: Sequence[int], rates: Sequence[float]) -> float:
    """The mean over all steps, by straight lines between those that were computed."""
    area = sum((b - a) * (x + y) / 2 for a, b, x, y in zip(at, at[1:], rates, rates[1:], strict=False))
    return area / (at[-1] - at[0])


def said(n: dict[str, float], steps: int, warmup: int, peak: float, stride: int) -> list[str]:
    about = "" if stride == 1 else "about "
    lines = [
        f"Warmup takes {warmup:,} of {steps:,} steps, {n['warmup_share']:.1%}. The highest rate is {n['highest']:.4g}, "
        f"at step {n['peak_step']:,} (the first is 0); the mean is {about}{n['mean']:.4g}, {n['mean'] / peak:.1%} of "
        f"the peak; the last is {n['last']:.4g}."
    ]
    if warmup > steps:
        lines.append(
            f"The warmup is longer than the run: the rate rises to the end, reaches {n['highest'] / peak:.1%} of the "
            f"peak and never comes down. Shorten the warmup to less than {steps:,} steps, or train for longer."
        )
    return lines


class Curve(Traced):
    """Rates by step as a line, drawn by a pen on paper and on a page; the warmup is shaded."""

    size = LEFT + WIDE + 0.3, TOP + HIGH + 0.6

    def __init__(self, at: Sequence[int], rates: Sequence[float], warmup: int, title: str, alt: str) -> None:
        self.at, self.rates, self.warmup = list(at), list(rates), warmup
        super().__init__(self.on_paper, f"{title}: {alt}", self.frame, title)

    def frame(self) -> DataFrame:
        import pandas

        return pandas.DataFrame({"rate": self.rates}, index=pandas.Index(self.at, name="step"))

    def trace(self, pen: Pen) -> None:
        look, steps, highest = pen.theme, self.at[-1] + 1, max(self.rates)

        def x(step: float) -> float:
            return LEFT + WIDE * step / steps

        def y(rate: float) -> float:
            return TOP + HIGH * (1 - rate / highest / 1.05)

        pen.text(0, 0.1, self.title, 12, bold=True)
        pen.text(0, 0.4, "↑ learning rate    → step; the shaded part is the warmup", 10)
        if self.warmup:
            pen.rect(x(0), TOP, x(self.warmup) - x(0), HIGH, fill=look.tint("grey", 0.12), width=0)
        for part in range(5):
            rate, step = highest * part / 4, steps * part // 4
            pen.lines([(LEFT, y(rate), LEFT + WIDE, y(rate))], look.tint("grey", 0.4), 0.6)
            pen.text(LEFT - 0.08, y(rate), number(rate), 10, anchor="end")
            pen.text(x(step), TOP + HIGH + 0.2, f"{step:,}", 10, anchor="middle")
        pen.lines([(LEFT, TOP, LEFT, TOP + HIGH), (LEFT, TOP + HIGH, LEFT + WIDE, TOP + HIGH)], look.ink, 0.8)
        points = [(x(step), y(rate)) for step, rate in zip(self.at, self.rates, strict=True)]
        pen.lines([(*a, *b) for a, b in zip(points, points[1:] or points, strict=False)], look.readable(BLUE), 2)
        top = max(range(len(points)), key=lambda i: self.rates[i])
        across, down = points[top]
        pen.rect(across - 0.05, down - 0.05, 0.1, 0.1, edge=look.readable(VERMILLION), width=2)
        every = max(1, len(points) // HOVERS)
        for i in range(0, len(points), every):
            right = points[i + every][0] if i + every < len(points) else LEFT + WIDE
            pen.note(points[i][0], TOP, right - points[i][0], HIGH, f"step {self.at[i]:,}: {self.rates[i]:.4g}")
