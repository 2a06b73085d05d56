"""What repeated epochs and excess parameters are worth: Muennighoff's two constants, fitted to runs of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .fits import DELTA, Array, huber
from .measured import LEVEL, Estimate, Runs, between
from .published import Law

LEAST, MOST, STEPS = 0.1, 1000.0, 120  # of a constant, and of the grid between


@dataclass(frozen=True)
class Repeats:
    """law: the base with r_data and r_parameters. r_data, r_parameters: these, with intervals; r_parameters is None
    where it was not fitted. objective: the sum of Huber's losses. reason: why there are no intervals."""

    law: Law
    r_data: Estimate
    r_parameters: Estimate | None
    objective: float
    reason: str | None


def fit_repeats(
    base: Law,
    sample: Runs,
    *,
    excess: bool = False,
    bootstraps: int = 1000,
    level: float = LEVEL,
    delta: float = DELTA,
    seed: int = 0,
) -> Repeats:
    """R*_D, and with `excess` R*_N, of runs that repeat `sample.distinct` tokens; the base law's constants stay.

    So Muennighoff et al. 2023 (appendix A) do it. Both constants are searched on a grid, of which the best cell is
    divided further: with one or two that finds the optimum, wherever it lies. Excess parameters are those above the
    base law's optimum for the distinct tokens.

    Raises ValueError where the runs repeat nothing.
    """
    if sample.distinct is None or not (sample.tokens > 1.02 * sample.distinct).any():
        raise ValueError("no run reads a token twice; give runs with distinct= below their tokens.")
    found, values, cells = search(base, sample, excess, delta)
    repeating = sample.tokens > 1.02 * sample.distinct
    times = len(np.unique((sample.tokens / sample.distinct)[repeating].round(1)))
    families = len(np.unique(sample.family[repeating]))
    reason = None if bootstraps else "none was asked for (bootstraps=0)"
    if times < 2 + excess or families < 4:
        reason = f"{families} independent runs with {times} numbers of epochs cannot test a curve over epochs"
    elif found[0] in (LEAST, MOST):
        reason = f"the best R*_D lies at the end of what is searched, {LEAST:g} to {MOST:g}: the runs say only that"
    intervals = [(None, None), (None, None)]
    if reason is None:
        _, member = np.unique(sample.family, return_inverse=True)
        count = member.max() + 1
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=bootstraps)[:, member]
        rough = np.log(values[(weights @ cells).argmin(1)])
        step = np.log(MOST / LEAST) / (STEPS if excess else 20 * STEPS)
        values = grid(rough.min(0) - step, rough.max(0) + step, STEPS if excess else 20 * STEPS)
        draws = values[(weights @ huber(residuals_on(base, sample, values), delta)).argmin(1)]
        intervals = [between(draws[:, i], level) for i in range(1 + excess)]
    r_data = Estimate(found[0], *intervals[0])
    law = replace(base, r_data=found[0], r_parameters=found[1] if excess else None)
    objective = float(huber(residuals(law, sample), delta).sum())
    return Repeats(law, r_data, Estimate(found[1], *intervals[1]) if excess else None, objective, reason)


def search(base: Law, sample: Runs, excess: bool, delta: float) -> tuple[list[float], Array, Array]:
    """The best constants; and for the coarse grid the constants of each cell (G, 1 or 2) and its losses (n, G)."""
    low, high = np.full(1 + excess, np.log(LEAST)), np.full(1 + excess, np.log(MOST))
    coarse: tuple[Array, Array] | None = None
    steps = STEPS if excess else 20 * STEPS
    for _ in range(12):
        count = steps if coarse is None else 21
        values = grid(low, high, count)
        losses = huber(residuals_on(base, sample, values), delta)
        coarse = coarse or (values, losses)
        at = np.log(values[losses.sum(0).argmin()])
        step = (high - low) / (count - 1)
        low, high = np.maximum(at - step, np.log(LEAST)), np.minimum(at + step, np.log(MOST))
    return [float(v) for v in np.exp(at)], *coarse


def grid(low: Array, high: Array, count: int) -> Array:
    """All combinations of `count` values of each constant from exp(low) to exp(high), (count^P, P)."""
    axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
    return np.exp(np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1))


def residuals_on(base: Law, sample: Runs, values: Array) -> Array:
    """log of expected over measured loss, (n, G), for the constants of each cell (G, 1 or 2)."""
    n, d, unique = (
        sample.parameters[:, None],
        sample.tokens[:, None],
        np.minimum(sample.distinct, sample.tokens)[:, None],
    )
    data = worth(unique, d, values[:, 0])
    if values.shape[1] == 2:
        justified = np.minimum(n, base.optimal_parameters(unique))
        n = worth(justified, n, values[:, 1])
    return np.log(base.e + base.a / n**base.alpha + base.b / data**base.beta) - np.log(sample.loss)[:, None]


def residuals(law: Law, sample: Runs) -> Array:
    columns = zip(sample.parameters, sample.tokens, sample.distinct, strict=True)
    return np.log([law.loss(*run) for run in columns]) - np.log(sample.loss)


def worth(distinct: Array, seen: Array, rate: Array) -> Array:
    """published.saturated, for arrays."""
    repeats = np.maximum(0.0, seen / distinct - 1)
    return distinct + distinct * rate * -np.expm1(-repeats / rate)
