"""A scaling law with controls: what it expects of a model, and what else the same arithmetic would buy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from ..canvas import BLUE, GREEN, VERMILLION, number
from ..pens import Pen
from ..picture import Picture
from ..published import Law, short
from .base import Explorer, Traced

if TYPE_CHECKING:
    from pandas import DataFrame

LEAST, MOST = (4.0, 5.0), (12.0, 13.0)  # log10 of parameters and of tokens
STEP = 0.05
COUNT = 121  # sizes at equal FLOPs that are computed
ASIDE = 30  # how many times smaller and larger than chosen and optimum the picture goes
NONSENSE = 12.0  # nats: one who guesses among 160 thousand tokens has less
LEFT, TOP, WIDE, HIGH = 0.9, 0.85, 6.6, 2.9  # inches: where the curve stands


@dataclass(frozen=True)
class Spot:
    """One model on so many tokens, and the loss that the law expects."""

    parameters: float
    tokens: float
    loss: float


class ScalingExplorer(Explorer):
    """The loss that a law expects of sizes at equal FLOPs (6 N D), through the model that is chosen.

    Controls: law (a name in `laws`), parameters and tokens (log10), repeated (are only some tokens distinct?) and
    distinct (log10 of how many; for laws that know repeats). laws: {name: Law}. parameters, tokens, distinct: to begin
    with, rounded to a step of the sliders. Raises ValueError where there is no law, and for numbers off the sliders.
    """

    title = "Loss at equal FLOPs"

    def __init__(
        self,
        laws: Mapping[str, Law],
        parameters: float = 16e6,
        tokens: float = 118e6,
        distinct: float | None = None,
        *,
        theme: str | None = None,
    ) -> None:
        super().__init__(theme)
        if not laws or not all(isinstance(law, Law) for law in laws.values()):
            raise ValueError(f"laws is {laws!r}; give {{name: lab.published.Law}} with at least one.")
        self.laws = dict(laws)
        self.numbers: dict[str, float] = {}
        of_n, of_d = logarithm("parameters", parameters, 0), logarithm("tokens", tokens, 1)
        unique = of_d if distinct is None else logarithm("distinct", distinct, 1)
        self.controls = {
            "law": self.choice("law", list(self.laws), next(iter(self.laws))),
            "parameters": self.slider("log10 of parameters", of_n, LEAST[0], MOST[0], STEP),
            "tokens": self.slider("log10 of tokens", of_d, LEAST[1], MOST[1], STEP),
            "repeated": self.switch("tokens are repeated", distinct is not None),
            "distinct": self.slider("log10 of distinct tokens", unique, LEAST[1], MOST[1], STEP),
        }
        self.start()

    def adapt(self) -> None:
        """Repeats can be chosen where the law knows them."""
        knows = self.laws[self.controls["law"].value].r_data is not None
        self.controls["repeated"].disabled = not knows
        self.controls["distinct"].disabled = not (knows and self.controls["repeated"].value)

    def draw(
        self, law: str, parameters: float, tokens: float, repeated: bool, distinct: float
    ) -> tuple[Picture, list[str]]:
        chosen_law = self.laws[law]
        n, d = 10**parameters, 10**tokens
        unique = 10**distinct if repeated and chosen_law.r_data is not None else None
        flops = 6 * n * d

        def spot(size: float) -> Spot:
            return Spot(size, flops / (6 * size), chosen_law.loss(size, flops / (6 * size), unique))

        chosen, best = spot(n), spot(optimum(chosen_law, flops, unique))
        low, high = min(n, best.parameters) / ASIDE, max(n, best.parameters) * ASIDE
        sizes = {low * (high / low) ** (i / (COUNT - 1)) for i in range(COUNT)} | {n, best.parameters}
        spots = [spot(size) for size in sorted(sizes)]
        self.numbers = {
            "loss": chosen.loss, "flops": flops, "tokens_per_parameter": d / n, "optimal_parameters": best.parameters,
            "optimal_tokens": best.tokens, "optimal_loss": best.loss,
        }  # fmt: skip
        lines = said(chosen_law, chosen, best, flops, unique)
        return Isoflop(law, chosen_law, spots, chosen, best, flops, " ".join(lines)), lines


def logarithm(name: str, value: float, which: int) -> float:
    """log10, rounded to a step. Raises ValueError off the slider."""
    low, high = 10 ** LEAST[which], 10 ** MOST[which]
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}; the sliders go from {short(low)} to {short(high)}.")
    return round(round(math.log10(value) / STEP) * STEP, 2)


def optimum(law: Law, flops: float, distinct: float | None) -> float:
    """The size of the lowest loss where 6 N D = flops; searched for where tokens are repeated."""
    at = math.log(law.optimal(flops)[0])
    if distinct is None:
        return math.exp(at)
    reach = 12.0
    for _ in range(6):
        grid = [at + reach * (i / 20 - 1) for i in range(41)]
        at = min(grid, key=lambda x: law.loss(math.exp(x), flops / (6 * math.exp(x)), distinct))
        reach /= 10
    return math.exp(at)


def scientific(value: float) -> str:
    """1.14 × 10^16."""
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.2f} × 10^{power}"


def perplexity(loss: float) -> str:
    if loss >= NONSENSE:
        return "more than guessing costs"
    return f"perplexity {math.exp(loss):,.0f}" if loss > 7 else f"perplexity {math.exp(loss):.3g}"


def said(law: Law, chosen: Spot, best: Spot, flops: float, distinct: float | None) -> list[str]:
    lines = [
        f"{short(chosen.parameters)} parameters on {short(chosen.tokens)} tokens, "
        f"{short(chosen.tokens / chosen.parameters)} per parameter, {scientific(flops)} FLOPs (6 N D): "
        f"{chosen.loss:.3f} nats per token, {perplexity(chosen.loss)}."
    ]
    if distinct is not None:
        size, worth = law.worth(chosen.parameters, chosen.tokens, distinct)
        times = chosen.tokens / distinct
        lines.append(
            f"{short(distinct)} tokens are distinct, so "
            + (f"each is read {times:.3g} times: that is" if times > 1 else "none is read twice: they are")
            + f" worth {short(worth)} fresh tokens, and the parameters are worth {short(size)}."
        )
    gain = chosen.loss - best.loss
    lines.append(
        f"The law's optimum for these FLOPs: {short(best.parameters)} parameters on {short(best.tokens)} tokens, "
        f"{short(best.tokens / best.parameters)} per parameter, {best.loss:.3f} nats"
        + (f", {gain:.3f} less." if gain > 5e-4 else ": as good as what is chosen.")
    )
    outside = law.outside(chosen.parameters, chosen.tokens)
    lines.append(
        f"Outside the law, so a guess: {outside}." if outside else "Within the runs that the law was fitted to."
    )
    return [*lines, f"Source: {law.source or 'not named'}."]


class Isoflop(Traced):
    """Loss by size at equal FLOPs as a line, drawn by a pen on paper and on a page; hatched where the law was never
    tried."""

    size = LEFT + WIDE + 0.3, TOP + HIGH + 0.75

    def __init__(
        self, name: str, law: Law, spots: list[Spot], chosen: Spot, best: Spot, flops: float, alt: str
    ) -> None:
        self.law, self.spots, self.chosen, self.best = law, spots, chosen, best
        title = f"{name}, at {scientific(flops)} FLOPs"
        self.name = f"s{id(self):x}"
        super().__init__(self.on_paper, f"{title}: {alt}", self.frame, title)

    def frame(self) -> DataFrame:
        import pandas

        rows = [
            (s.parameters, s.tokens, s.loss, self.law.outside(s.parameters, s.tokens) is not None) for s in self.spots
        ]
        return pandas.DataFrame(rows, columns=["parameters", "tokens", "loss, nats per token", "outside the law"])

    def x(self, parameters: float) -> float:
        low, high = self.spots[0].parameters, self.spots[-1].parameters
        return LEFT + WIDE * math.log(parameters / low) / math.log(high / low)

    @property
    def reach(self) -> tuple[float, float]:
        """The losses at the bottom and at the top: what is higher than both marks by much is cut off."""
        span = max(self.chosen.loss - self.best.loss, 0.25 * self.best.loss)
        return max(0.0, self.best.loss - 0.25 * span), self.best.loss + 1.25 * span

    def y(self, loss: float) -> float:
        low, high = self.reach
        return TOP + HIGH * (1 - (loss - low) / (high - low))

    def trace(self, pen: Pen) -> None:
        look, (low, high) = pen.theme, self.reach
        pen.text(0, 0.1, self.title, 12, bold=True)
        pen.text(0, 0.38, "↑ loss, nats per token    → parameters, and below them the tokens that they leave", 10)
        self.hatch(pen)
        for loss in (loss for loss in MaxNLocator(5).tick_values(low, high) if low <= loss <= high):
            pen.lines([(LEFT, self.y(loss), LEFT + WIDE, self.y(loss))], look.tint("grey", 0.4), 0.6)
            pen.text(LEFT - 0.08, self.y(loss), number(loss), 10, anchor="end")
        product = self.chosen.parameters * self.chosen.tokens
        first, last = (math.log10(self.spots[end].parameters) for end in (0, -1))
        for power in range(math.ceil(first), math.floor(last) + 1):
            across = self.x(10**power)
            pen.lines([(across, TOP, across, TOP + HIGH)], look.tint("grey", 0.4), 0.6)
            pen.text(across, TOP + HIGH + 0.2, short(10**power), 10, anchor="middle")
            pen.text(across, TOP + HIGH + 0.42, short(product / 10**power), 10, anchor="middle")
        pen.lines([(LEFT, TOP, LEFT, TOP + HIGH), (LEFT, TOP + HIGH, LEFT + WIDE, TOP + HIGH)], look.ink, 0.8)
        points = [(self.x(spot.parameters), self.y(spot.loss)) for spot in self.spots if spot.loss <= high]
        pen.lines([(*a, *b) for a, b in zip(points, points[1:], strict=False)], look.readable(BLUE), 2)
        self.marks(pen)
        for here, after in zip(self.spots[::3], self.spots[3::3], strict=False):
            left, right = self.x(here.parameters), self.x(after.parameters)
            words = f"{short(here.parameters)} parameters, {short(here.tokens)} tokens: {here.loss:.3f} nats"
            pen.note(left, TOP, right - left, HIGH, words)

    def hatch(self, pen: Pen) -> None:
        """Where the law is asked beyond its runs."""
        if self.law.span is None:
            return
        outside = [self.law.outside(s.parameters, s.tokens) is not None for s in self.spots]
        start = None
        for at, is_out in enumerate([*outside, False]):
            if is_out and start is None:
                start = at
            if not is_out and start is not None:
                left = self.x(self.spots[start].parameters)
                right = self.x(self.spots[min(at, len(self.spots) - 1)].parameters)
                pen.rect(left, TOP, right - left, HIGH, hatch="/", width=0)
                start = None
        if any(outside):
            pen.text(LEFT + WIDE, 0.62, "hatched: outside the law's runs", 10, anchor="end")

    def marks(self, pen: Pen) -> None:
        """The chosen model as a square, the optimum as a cross; words above one and below the other."""
        look, paper = pen.theme, pen.theme.paper
        across, down = self.x(self.best.parameters), self.y(self.best.loss)
        cross = [(across - 0.08, down - 0.08, across + 0.08, down + 0.08)]
        cross += [(across - 0.08, down + 0.08, across + 0.08, down - 0.08)]
        pen.lines(cross, look.readable(GREEN), 2.5)
        pen.text(across, down + 0.24, f"lowest {self.best.loss:.3f}", 10, anchor="middle", behind=paper)
        across, down = self.x(self.chosen.parameters), self.y(self.chosen.loss)
        pen.rect(across - 0.06, down - 0.06, 0.12, 0.12, edge=look.readable(VERMILLION), width=2.5)
        pen.text(across, down - 0.24, f"chosen {self.chosen.loss:.3f}", 10, anchor="middle", behind=paper)
