"""The other two ways to a compute-optimal size: the lower envelope of training curves, and parabolas at equal FLOPs.

Hoffmann et al. 2022 call them approaches 1 and 2. Both end in N_opt = k C^a, a line through logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fits import Array
from .measured import LEVEL, Estimate, Runs, between
from .published import Law

FEWEST = 4  # sizes of a parabola, and of an envelope, that leave something over to test it with


@dataclass(frozen=True)
class Power:
    """y = k x^a. draws: (a, log k) of each resample, (B, 2), None where no interval is justified, for `reason`."""

    a: Estimate
    log_k: float
    draws: Array | None
    reason: str | None

    def at(self, x: float, level: float = LEVEL) -> Estimate:
        """y at x, with its interval."""
        value = float(np.exp(self.log_k + self.a.value * np.log(x)))
        if self.draws is None:
            return Estimate(value, None, None)
        return Estimate(value, *between(np.exp(self.draws[:, 1] + self.draws[:, 0] * np.log(x)), level))


def power(x: Array, y: Array, draws: Array | None, reason: str | None, level: float) -> Power:
    """The line through (log x, log y), (n,) each. draws: log y of each resample, (B, n), NaN where there was none."""
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    if draws is None or reason:
        return Power(Estimate(float(slope), None, None), float(intercept), None, reason)
    lines = np.array([lined(np.log(x)[ok], row[ok]) for row in draws for ok in [np.isfinite(row)] if ok.sum() >= 2])
    return Power(Estimate(float(slope), *between(lines[:, 0], level)), float(intercept), lines, None)


def lined(x: Array, y: Array) -> tuple[float, float]:
    centred = x - x.mean()
    slope = (centred @ y) / (centred @ centred)
    return slope, y.mean() - slope * x.mean()


@dataclass(frozen=True)
class Parabola:
    """loss = curve[0] x^2 + curve[1] x + curve[2] over x = log N at one number of FLOPs.

    parameters, tokens, loss: at its lowest point. inside: whether that lies between the sizes that were run; where it
    does not, it is left out of the power laws. runs: how many.
    """

    flops: float
    curve: Array
    parameters: float
    tokens: float
    loss: float
    inside: bool
    runs: int


@dataclass(frozen=True)
class IsoFlop:
    """parabolas, by FLOPs; parameters and tokens: N_opt = k C^a and D_opt = k C^b through their lowest points."""

    parabolas: tuple[Parabola, ...]
    parameters: Power
    tokens: Power


def isoflop(
    sample: Runs, *, apart: float = 0.1, bootstraps: int = 1000, level: float = LEVEL, seed: int = 0
) -> IsoFlop:
    """Approach 2: a parabola in log N through the losses at each number of FLOPs, and power laws through their lowest.

    apart: runs whose log FLOPs are nearer than this to the next one's have the same number. Intervals: the residuals
    of each parabola, widened for its three constants, are drawn anew. They do not hold its bias (see parabola_bias).

    Raises ValueError where fewer than two numbers of FLOPs have three sizes and a lowest point among them.
    """
    order = np.argsort(sample.flops)
    groups = np.split(order, 1 + np.flatnonzero(np.diff(np.log(sample.flops[order])) > apart))
    rng = np.random.default_rng(seed)
    found: list[Parabola] = []
    lows: list[Array] = []
    counts: list[int] = []
    for group in groups:
        x, y = np.log(sample.parameters[group]), sample.loss[group]
        sizes = len(np.unique(x.round(3)))
        if sizes < 3:
            continue
        parabola = fitted_parabola(sample, group)
        found.append(parabola)
        if parabola.inside:
            left = y - np.polyval(parabola.curve, x)
            spread = left * np.sqrt(len(x) / max(1, len(x) - 3))
            drawn = np.polyval(parabola.curve, x) + rng.choice(spread, size=(bootstraps, len(x)))
            lows.append(lowest(x, drawn))
            counts.append(sizes)
    used = [parabola for parabola in found if parabola.inside]
    if len(used) < 2:
        raise ValueError(
            f"{len(used)} numbers of FLOPs have three sizes or more and a lowest loss between them; a power law needs "
            f"two. Add sizes on both sides of the optimum at equal FLOPs."
        )
    flops, parameters, tokens = np.array([(p.flops, p.parameters, p.tokens) for p in used]).T
    draws = np.stack(lows, axis=1) if bootstraps else None
    reason = None if bootstraps else "none was asked for (bootstraps=0)"
    if len(used) < 3:
        reason = "2 numbers of FLOPs determine a power law and cannot test it; an interval takes one more"
    elif min(counts) < FEWEST:
        reason = f"{min(counts)} sizes determine a parabola and cannot test it; an interval takes one more"
    elif draws is not None and np.isnan(draws).mean() > 0.1:
        reason = "one parabola in ten has no lowest point once its residuals are drawn anew: the losses are too noisy"
    by_tokens = None if draws is None else np.log(flops) - draws - np.log(flops / (parameters * tokens))
    return IsoFlop(
        tuple(found),
        power(flops, parameters, draws, reason, level),
        power(flops, tokens, by_tokens, reason, level),
    )


def fitted_parabola(sample: Runs, group: Array) -> Parabola:
    x, y, flops = (
        np.log(sample.parameters[group]),
        sample.loss[group],
        float(np.exp(np.log(sample.flops[group]).mean())),
    )
    curve = np.polyfit(x, y, 2)
    at = -curve[1] / (2 * curve[0]) if curve[0] > 0 else x[y.argmin()]
    inside = bool(curve[0] > 0 and x.min() < at < x.max())
    at = float(np.clip(at, x.min() - 3, x.max() + 3))  # a nearly straight parabola has its lowest point anywhere
    # At equal FLOPs log D falls as log N rises: by as much at 6 N D, by less where the head counts.
    tokens = np.exp(np.polyval(np.polyfit(x, np.log(sample.tokens[group]), 1), at))
    return Parabola(flops, curve, float(np.exp(at)), float(tokens), float(np.polyval(curve, at)), inside, len(group))


def lowest(x: Array, losses: Array) -> Array:
    """log N of the lowest point of the parabola through each row of losses (B, n); NaN where it opens downwards."""
    a, b, _ = np.polyfit(x, losses.T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -b / (2 * a)
    return np.where((a > 0) & (x.min() - 1 < at) & (at < x.max() + 1), at, np.nan)


@dataclass(frozen=True)
class Bias:
    """Approach 2 without noise on a known law: found and true N_opt at each of `flops`, and both exponents a."""

    flops: Array
    found: Array
    true: Array
    exponent: float
    true_exponent: float

    def at(self, flops: float) -> float:
        """N_opt by the power law that was found, over the true one, at so many FLOPs."""
        slope, log_k = lined(np.log(self.flops), np.log(self.found))
        true = np.log(self.true[-1]) + self.true_exponent * np.log(flops / self.flops[-1])
        return float(np.exp(log_k + slope * np.log(flops) - true))


def parabola_bias(
    law: Law, flops: Sequence[float], *, width: float = 8.0, points: int = 9, drift: float = 1.0, off: float = 1.0
) -> Bias:
    """What approach 2 finds where the truth is `law`, without any noise.

    At each number of FLOPs `points` sizes from N/width to N x width are run, N being the true optimum times `off`,
    times `drift` for each next one. The loss over log N is no parabola where alpha and beta differ: its lowest point
    is off by a factor that grows with the width, and where the sizes drift the exponent is wrong too.
    """
    spots = np.geomspace(1 / width, width, points)
    true = np.array([law.optimal(c)[0] for c in flops])
    found = []
    for i, (c, n) in enumerate(zip(flops, true, strict=True)):
        sizes = n * off * drift**i * spots
        losses = np.array([law.loss(size, c / (6 * size)) for size in sizes])
        found.append(float(np.exp(lowest(np.log(sizes), losses[None])[0])))
    exponent = lined(np.log(np.array(flops, float)), np.log(found))[0]
    return Bias(np.array(flops, float), np.array(found), true, exponent, law.beta / (law.alpha + law.beta))


Curve = tuple[float, Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Envelope:
    """The lowest loss that any run had reached at each of `flops`, (n,), with that run's parameters, and its tokens.

    label: the run. power: N_opt = k C^a through it.
    """

    flops: Array
    loss: Array
    parameters: Array
    tokens: Array
    label: np.ndarray
    power: Power


def envelope(
    curves: Mapping[str, Curve], *, bins: int = 300, bootstraps: int = 300, level: float = LEVEL, seed: int = 0
) -> Envelope:
    """Approach 1: of runs that each went on for long, which was lowest at each number of FLOPs.

    curves: label -> (parameters, tokens so far, loss there), the losses smoothed; FLOPs are 6 x parameters x tokens.
    Where the smallest or the largest size is lowest the best may lie beyond it, so power laws leave that out.
    Losses before the end of a schedule are higher than those of a run that ends there (Hoffmann et al. 2022, 3.1).
    Intervals: sizes are drawn anew.

    Raises ValueError where fewer than two sizes between the smallest and the largest are ever lowest.
    """
    labels = list(curves)
    sizes = np.array([float(curves[label][0]) for label in labels])
    steps = [(np.log(6 * n * np.asarray(d, float)), np.asarray(y, float)) for n, d, y in curves.values()]
    if len(np.unique(sizes)) < FEWEST:
        raise ValueError(f"there are curves of {len(np.unique(sizes))} sizes; an envelope needs {FEWEST} or more.")
    grid = np.linspace(min(x[0] for x, _ in steps), max(x[-1] for x, _ in steps), bins)
    losses = np.array([np.interp(grid, x, y, left=np.inf, right=np.inf) for x, y in steps])  # (runs, bins)
    value, best, free = winners(losses, sizes)
    if len(np.unique(sizes[best[free]])) < 2:
        raise ValueError("fewer than two sizes are lowest anywhere between the smallest and the largest; add sizes.")
    rng, draws = np.random.default_rng(seed), np.full((bootstraps, bins), np.nan)
    for row in draws:
        chosen = np.unique(rng.integers(len(labels), size=len(labels)))
        if len(np.unique(sizes[chosen])) >= 3:
            _, which, ok = winners(losses[chosen], sizes[chosen])
            row[ok] = np.log(sizes[chosen][which[ok]])
    lines = [row for row in draws if len(np.unique(row[np.isfinite(row)])) >= 2]
    reason = None if bootstraps else "none was asked for (bootstraps=0)"
    if len(np.unique(sizes[best[free]])) < FEWEST:
        reason = f"{len(np.unique(sizes[best[free]]))} sizes are ever lowest between the smallest and the largest; an "
        reason += f"interval takes {FEWEST}"
    elif bootstraps and len(lines) < 0.9 * bootstraps:
        reason = "one draw of sizes in ten has no line through its envelope; add sizes"
    free_draws = np.array(lines)[:, free] if lines and reason is None else None
    through = power(np.exp(grid[free]), sizes[best[free]], free_draws, reason, level)
    reached = np.isfinite(value)
    flops, size = np.exp(grid[reached]), sizes[best[reached]]
    found: dict[str, Any] = {"flops": flops, "loss": value[reached], "parameters": size, "tokens": flops / (6 * size)}
    return Envelope(**found, label=np.array(labels)[best[reached]], power=through)


def winners(losses: Array, sizes: Array) -> tuple[Array, Array, Array]:
    """losses (R, bins) -> (bins,) each: the lowest, whose it is, whether that is neither the smallest nor largest."""
    best = losses.argmin(0)
    value = losses[best, np.arange(losses.shape[1])]
    return value, best, np.isfinite(value) & (sizes[best] > sizes.min()) & (sizes[best] < sizes.max())
