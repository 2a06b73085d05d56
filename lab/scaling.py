"""Fits of scaling laws to runs, with intervals where the runs can justify one, and predictions of the next run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .config import unknown
from .fits import DELTA, FORMS, Array, Form, Problem, fit_many
from .isoflop import Envelope, IsoFlop, envelope, isoflop, parabola_bias
from .measured import LEVEL, Estimate, Runs, between, hoffmann_points, read, runs
from .published import Law, short
from .repeats import Repeats, fit_repeats

__all__ = [
    "Envelope", "Estimate", "Fit", "IsoFlop", "Prediction", "Repeats", "Runs", "envelope", "fit", "fit_repeats",
    "hoffmann_points", "isoflop", "parabola_bias", "predict", "read", "runs",
]  # fmt: skip
APART = 0.02  # sizes, or numbers of tokens, nearer than this share of each other test nothing new


@dataclass(frozen=True)
class Prediction:
    """What a fit expects of a run that it has not seen; low to high holds the loss of such a run at `level`.

    reason: why there is no interval, where low and high are None. outside: how the run is beyond those fitted.
    """

    parameters: float
    tokens: float
    loss: float
    low: float | None
    high: float | None
    level: float
    reason: str | None
    outside: str | None

    def as_row(self) -> dict[str, Any]:
        """For a CSV: parameters, tokens, predicted, low, high, level, outside, reason; None is an empty cell."""
        row = {"parameters": round(self.parameters), "tokens": round(self.tokens), "predicted": self.loss}
        return row | {name: getattr(self, name) for name in ("low", "high", "level", "outside", "reason")}


@dataclass(frozen=True)
class Fit:
    """A form fitted to runs.

    theta: the parameters as fitted, (P,), named by `form.names`. objective: the sum of Huber's losses. draws: the same
    of each resample, (B, P), None where no interval is justified, for `reason`. notes: what else one should know.
    """

    form: Form
    runs: Runs
    theta: Array
    objective: float
    draws: Array | None
    reason: str | None
    level: float = LEVEL
    notes: tuple[str, ...] = ()

    @cached_property
    def constants(self) -> dict[str, Estimate]:
        """By the names that they are published under."""
        values = self.form.natural(dict(zip(self.form.names, self.theta, strict=True)))
        if self.draws is None:
            return {name: Estimate(float(value), None, None) for name, value in values.items()}
        draws = self.form.natural(dict(zip(self.form.names, self.draws.T, strict=True)))
        return {name: Estimate(float(values[name]), *between(draws[name], self.level)) for name in values}

    def loss(self, parameters: Any, tokens: Any = 1.0) -> Array:
        """The fitted curve in nats per token, (n,)."""
        n, d = np.broadcast_arrays(np.atleast_1d(np.asarray(parameters, float)), np.asarray(tokens, float))
        return np.exp(self.form.log_loss(self.theta, n, d))

    def band(self, parameters: Any, tokens: Any = 1.0) -> tuple[Array, Array]:
        """Where the curve itself lies at `level`, (n,) and (n,). Raises ValueError where no interval is justified."""
        if self.draws is None:
            raise ValueError(f"this fit has no interval: {self.reason}.")
        n, d = np.broadcast_arrays(np.atleast_1d(np.asarray(parameters, float)), np.asarray(tokens, float))
        return between(np.exp(self.form.log_loss(self.draws, n, d)), self.level)

    @cached_property
    def residuals(self) -> Array:
        """log of measured over fitted loss, (n,)."""
        return np.log(self.runs.loss) - self.form.log_loss(self.theta, self.runs.parameters, self.runs.tokens)

    @property
    def law(self) -> Law:
        """As a published law is written, for its optimum and its repeats. Raises ValueError for other forms."""
        if self.form.name != "hoffmann":
            raise ValueError(f"{self.form.name} is {self.form.formula}; only the form hoffmann has both terms and E.")
        span = tuple((float(v.min()), float(v.max())) for v in (self.runs.parameters, self.runs.tokens))
        values = (self.constants[name].value for name in ("A", "B", "E", "alpha", "beta"))
        return Law(*values, f"a fit of {len(self.runs)} runs", span=span)

    def optimal_share(self) -> Estimate:
        """a in N_opt = k C^a at 6 N D = C: beta / (alpha + beta) (Hoffmann et al. 2022, equation 4)."""
        law = self.law
        value = law.beta / (law.alpha + law.beta)
        if self.draws is None:
            return Estimate(value, None, None)
        alpha, beta = (self.draws[:, self.form.names.index(name)] for name in ("alpha", "beta"))
        return Estimate(value, *between(beta / (alpha + beta), self.level))

    def text(self) -> str:
        """The formula, each constant with its interval, and what to know."""
        lines = [f"{self.form.formula}   ({self.form.source}; {len(self.runs)} runs)"]
        lines += [f"  {name:8} {estimate}" for name, estimate in self.constants.items()]
        lines += [f"  no interval: {self.reason}"] if self.reason else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def distinct_levels(values: Array) -> int:
    """How many values there are that are further apart than a fiftieth."""
    return 1 + int((np.diff(np.sort(np.log(values))) > APART).sum())


def obstacle(form: Form, sample: Runs) -> tuple[str | None, str | None]:
    """(why the form cannot be fitted to these runs, why its interval could not be justified), None where nothing is.

    A term with an exponent beside E has three unknowns, so three sizes let it pass through each: nothing is left over
    that could speak against it, and an interval would be made up.
    """
    floor = any(variable is None for _, variable, _ in form.terms)
    needed = 2 + floor
    what = {"N": ("sizes", sample.parameters), "D": ("numbers of tokens", sample.tokens)}
    reason = None
    for variable in form.variables:
        name, values = what[variable]
        levels = distinct_levels(values)
        if levels < needed:
            return f"{levels} {name} cannot determine the {needed} constants that they enter in {form.formula}", None
        if levels == needed:
            reason = f"{levels} {name} determine {needed} constants and cannot test them; an interval takes one more"
    n, p, families = len(sample), len(form.names), len(np.unique(sample.family))
    if n < p:
        return f"{n} runs cannot determine the {p} constants of {form.formula}", None
    if len(form.variables) == 2:
        left = residual_spread(np.log(sample.parameters), np.log(sample.tokens))
        if left < APART:
            return "tokens rise in step with parameters, so nothing tells one term from the other", None
    if reason is None and min(n, families) <= p:
        kind = "runs" if families == n else "families of runs"
        reason = f"{families} {kind} determine {p} constants and cannot test them; an interval takes one more"
    return None, reason


def residual_spread(x: Array, y: Array) -> float:
    """The standard deviation of y about its line over x."""
    return float((y - np.polyval(np.polyfit(x, y, 1), x)).std())


def fit(
    sample: Runs,
    form: str | Form = "hoffmann",
    *,
    bootstraps: int = 1000,
    level: float = LEVEL,
    delta: float = DELTA,
    seed: int = 0,
) -> Fit:
    """Fit a form of `fits.FORMS` by the sum of Huber's losses of log residuals, from several starts.

    Intervals are percentiles over resampled families of runs (Efron 1979), as Besiroglu et al. 2024 have them. They
    say nothing of what all runs share: one corpus, one recipe, one wrong form.

    Raises ValueError where the runs cannot determine the constants. Where they can and cannot test them, the Fit has
    no interval and says why.
    """
    form = FORMS.get(form, form) if isinstance(form, str) else form
    if not isinstance(form, Form):
        raise unknown("form", form, list(FORMS))
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it is a probability between 0 and 1, such as 0.95.")
    impossible, reason = obstacle(form, sample)
    if impossible:
        raise ValueError(f"{impossible}. Add runs, or fit a form with fewer constants.")
    problem, log_loss = Problem.of(form, sample.parameters, sample.tokens, delta), np.log(sample.loss)[None]
    starts = form.starts(sample.parameters, sample.tokens, sample.loss)
    theta, objective = fit_many(problem, starts, log_loss, np.ones((1, len(sample))))
    draws = None
    if reason is None and bootstraps:
        weights, reason = resampled(form, sample, bootstraps, np.random.default_rng(seed))
        if weights is not None:
            draws = fit_many(problem, theta, log_loss, weights)[0]
    elif reason is None:
        reason = "none was asked for (bootstraps=0)"
    return Fit(form, sample, theta[0], float(objective[0]), draws, reason, level, notes(form, sample, theta[0]))


def notes(form: Form, sample: Runs, theta: Array) -> tuple[str, ...]:
    found = []
    if "log E" in form.names and np.exp(theta[form.names.index("log E")]) < 0.01 * sample.loss.min():
        found.append("these runs show no floor: the best E is 0, and the law is a pure power there")
    if form.name in ("hoffmann", "kaplan") and len(np.unique(sample.family)) < 3 * len(form.names):
        families = len(np.unique(sample.family))
        found.append(f"{families} independent runs for {len(form.names)} constants: take the interval for a rough one")
    return tuple(found)


def resampled(form: Form, sample: Runs, count: int, rng: np.random.Generator) -> tuple[Array | None, str | None]:
    """How often each run counts in each resample of families, (count, n); or None, and why there is none.

    A resample that could not determine the constants is drawn again; where that is every other one, the interval
    would be of another experiment than the one that was run.
    """
    _, member = np.unique(sample.family, return_inverse=True)
    families = member.max() + 1
    kept: list[Array] = []
    drawn = 0
    while len(kept) < count:
        times = rng.multinomial(families, np.full(families, 1 / families))[member]
        drawn += 1
        if obstacle(form, sample.where(times > 0))[0] is None:
            kept.append(times.astype(float))
        if drawn >= 50 and len(kept) < drawn / 2:
            return None, f"of {families} resampled families, fewer than half determine the constants; add runs"
    return np.array(kept), None


def predict(fitted: Fit, parameters: float, tokens: float) -> Prediction:
    """The loss that a fit expects of a run that is not in it, with the interval that one such run should fall in.

    The interval holds both what resampling changes in the law and how far single runs lie from it (their residuals,
    widened for the constants that were fitted to them). Write `.as_row()` down before the run, and compare after.
    """
    for name, value in (("parameters", parameters), ("tokens", tokens)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} is {value}; it must be a number above 0.")
    n, d = np.array([parameters], float), np.array([tokens], float)
    loss = float(np.exp(fitted.form.log_loss(fitted.theta, n, d))[0])
    low = high = None
    if fitted.draws is not None:
        runs_, constants = len(fitted.runs), len(fitted.form.names)
        spread = fitted.residuals * np.sqrt(runs_ / (runs_ - constants))
        draws = fitted.form.log_loss(fitted.draws, n, d) + spread
        low, high = between(np.exp(draws.ravel()), fitted.level)
    return Prediction(
        float(parameters), float(tokens), loss, low, high, fitted.level, fitted.reason, beyond(fitted, n, d)
    )


def beyond(fitted: Fit, parameters: Array, tokens: Array) -> str | None:
    found = []
    for variable, name, value, values in (
        ("N", "parameters", parameters[0], fitted.runs.parameters),
        ("D", "tokens", tokens[0], fitted.runs.tokens),
    ):
        if variable in fitted.form.variables and not 0.98 * values.min() <= value <= 1.02 * values.max():
            factor = value / values.max() if value > values.max() else values.min() / value
            side = "above" if value > values.max() else "below"
            found.append(f"{short(value)} {name}, {factor:.3g} times {side} the runs fitted")
    return " and ".join(found) or None
