"""Power laws as sums of exponentials in log space, and the damped Newton's method that fits many of them at once.

Every law here is log L = s log(sum over terms k of exp(z_k)), where z_k is linear in the parameters: E is a constant
term, A / N^alpha the term log A - alpha log N, and s is 1 but in Kaplan's L(N, D). So one formula gives values,
gradients and second derivatives of all of them, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.3: of Huber's loss on residuals of log L


@dataclass(frozen=True)
class Form:
    """A law in N (parameters) and D (tokens).

    formula: as text. terms: of each, (its constant's name or None, variable "N", "D" or None, its exponent's name or
    None for 1). power: the name of s, None where it is 1. natural: parameters as fitted -> constants as published.
    """

    name: str
    formula: str
    source: str
    terms: tuple[tuple[str, str | None, str | None], ...]
    natural: Callable[[Mapping[str, Array]], dict[str, Array]]
    power: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters as they are fitted, in order: logarithms of constants, exponents, s."""
        of_terms = [name for constant, _, exponent in self.terms for name in (constant, exponent) if name]
        return (*of_terms, *([self.power] if self.power else []))

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(variable for _, variable, _ in self.terms if variable)

    def design(self, parameters: Array, tokens: Array) -> tuple[Array, Array]:
        """z = offset + design @ theta: N (n,), D (n,) -> design (n, K, P), offset (n, K)."""
        logs = {"N": np.log(parameters), "D": np.log(tokens)}
        n = len(logs["N"])
        design, offset = np.zeros((n, len(self.terms), len(self.names))), np.zeros((n, len(self.terms)))
        for k, (constant, variable, exponent) in enumerate(self.terms):
            design[:, k, self.names.index(constant)] = 1
            if variable and exponent:
                design[:, k, self.names.index(exponent)] = -logs[variable]
            elif variable:
                offset[:, k] = -logs[variable]
        return design, offset

    def log_loss(self, theta: Array, parameters: Array, tokens: Array) -> Array:
        """theta (..., P), N and D (n,) -> log L (..., n)."""
        design, offset = self.design(np.atleast_1d(parameters), np.atleast_1d(tokens))
        flat = np.atleast_2d(theta)
        value = _log_sum(np.einsum("nkp,bp->bnk", design, flat) + offset)[0]
        value = value * flat[:, -1:] if self.power else value
        return value.reshape(*np.shape(theta)[:-1], -1)

    def starts(self, parameters: Array, tokens: Array, loss: Array) -> Array:
        """Where to start from, (S, P): shares of the loss that cannot be reduced, and exponents."""
        n, d = np.log(parameters).mean(), np.log(tokens).mean()
        middle, lowest = float(np.exp(np.log(loss).mean())), float(loss.min())
        found = []
        for share in (0.3, 0.7, 0.95):
            for alpha in (0.1, 0.35, 1.0):
                for beta in (0.1, 0.35, 1.0):
                    rest = (middle - share * lowest) / 2
                    at = {"log E": np.log(share * lowest), "alpha": alpha, "beta": beta}
                    at |= {"log A": np.log(rest) + alpha * n, "log B": np.log(rest) + beta * d}
                    if self.power:  # (A / N^u + Dc / D)^s
                        half = np.log(middle / 2) / beta
                        at |= {"s": beta, "u": alpha / beta, "log C": half + alpha / beta * n, "log Dc": half + d}
                    found.append([at[name] for name in self.names])
        return np.unique(np.array(found), axis=0)


def _constants(*logs: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """log E -> E and so on; exponents as they are."""
    return lambda p: {name.removeprefix("log "): np.exp(p[name]) if name in logs else p[name] for name in p}


def _kaplan(constant: str, exponent: str, published: tuple[str, str]) -> Callable[..., dict[str, Array]]:
    """A / N^alpha = (Nc / N)^alpha, so log Nc = log A / alpha."""
    return lambda p: {published[0]: np.exp(p[constant] / p[exponent]), published[1]: p[exponent]}


E_TERM, N_TERM, D_TERM = ("log E", None, None), ("log A", "N", "alpha"), ("log B", "D", "beta")
HOFFMANN = Form(
    "hoffmann",
    "L = E + A / N^alpha + B / D^beta",
    "Hoffmann et al. 2022, approach 3",
    (E_TERM, N_TERM, D_TERM),
    _constants("log E", "log A", "log B"),
)
SIZE = Form("size", "L = E + A / N^alpha", "Henighan et al. 2020", (E_TERM, N_TERM), _constants("log E", "log A"))
DATA = Form("data", "L = E + B / D^beta", "Henighan et al. 2020", (E_TERM, D_TERM), _constants("log E", "log B"))
KAPLAN_SIZE = Form(
    "kaplan-size",
    "L = (N_c / N)^alpha_N",
    "Kaplan et al. 2020, equation 1.1",
    (N_TERM,),
    _kaplan("log A", "alpha", ("N_c", "alpha_N")),
)
KAPLAN_DATA = Form(
    "kaplan-data",
    "L = (D_c / D)^alpha_D",
    "Kaplan et al. 2020, equation 1.2",
    (D_TERM,),
    _kaplan("log B", "beta", ("D_c", "alpha_D")),
)
KAPLAN = Form(
    "kaplan",
    "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    "Kaplan et al. 2020, equation 1.5",
    (("log C", "N", "u"), ("log Dc", "D", None)),
    lambda p: {
        "N_c": np.exp(p["log C"] / p["u"]),
        "alpha_N": p["u"] * p["s"],
        "D_c": np.exp(p["log Dc"]),
        "alpha_D": p["s"],
    },
    power="s",
)
FORMS = {form.name: form for form in (HOFFMANN, SIZE, DATA, KAPLAN, KAPLAN_SIZE, KAPLAN_DATA)}


def huber(residual: Array, delta: float = DELTA) -> Array:
    """Half the square up to delta, beyond it linear (Huber 1964)."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def _log_sum(z: Array) -> tuple[Array, Array]:
    """z (..., K) -> log of the sum of exp(z) (...), and the share of each term (..., K)."""
    top = z.max(-1, keepdims=True)
    p = np.exp(z - top)
    total = p.sum(-1, keepdims=True)
    return (top + np.log(total))[..., 0], p / total


@dataclass
class Problem:
    """The runs that a form is fitted to, B times at once, to losses and weights of its own each time.

    log_loss (B, n). weights (B, n): how often each run counts.
    """

    form: Form
    design: Array
    offset: Array
    delta: float

    @classmethod
    def of(cls, form: Form, parameters: Array, tokens: Array, delta: float = DELTA) -> Problem:
        return cls(form, *form.design(parameters, tokens), delta)

    def objective(self, theta: Array, log_loss: Array, weights: Array) -> Array:
        """The sum over runs of Huber's loss of the residuals: (B, P), (B, n), (B, n) -> (B,)."""
        z = np.einsum("nkp,bp->bnk", self.design, theta) + self.offset
        value = _log_sum(z)[0]
        value = value * theta[:, -1:] if self.form.power else value
        return (weights * huber(value - log_loss, self.delta)).sum(-1)

    def derivatives(self, theta: Array, log_loss: Array, weights: Array) -> tuple[Array, Array, Array]:
        """Of the objective: gradient (B, P), Hessian (B, P, P), and a matrix of Gauss and Newton's kind that is above
        it wherever the law is nearly linear: that of the quadratics which touch Huber's loss from above (B, P, P)."""
        z = np.einsum("nkp,bp->bnk", self.design, theta) + self.offset
        value, share = _log_sum(z)
        n, k, p = self.design.shape
        jacobian = (share[:, :, None] @ self.design)[:, :, 0]  # (B, n, P), of the log of the sum
        power = theta[:, -1, None, None] if self.form.power else 1.0
        predicted, full = value, jacobian
        if self.form.power:
            predicted, full = value * theta[:, -1:], jacobian * power
            full[:, :, -1] += value
        residual = predicted - log_loss
        slope = weights * np.clip(residual, -self.delta, self.delta)
        inside = weights * (np.abs(residual) <= self.delta)
        above = weights * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))
        gradient = (slope[:, None] @ full)[:, 0]
        # The curvature of a log of a sum is the covariance of the terms' rows under their shares.
        curved = slope[:, :, None] * power
        spread = (share * curved).reshape(len(theta), n * k, 1) * self.design.reshape(n * k, p)
        hessian = self.design.reshape(n * k, p).T @ spread - _square(jacobian, curved)
        if self.form.power:
            mixed = (slope[:, None] @ jacobian)[:, 0]
            hessian[:, -1] += mixed
            hessian[:, :, -1] += mixed
        return gradient, hessian + _square(full, inside[:, :, None]), _square(full, above[:, :, None])


def _square(rows: Array, weights: Array) -> Array:
    return (rows * weights).transpose(0, 2, 1) @ rows


def minimise(problem: Problem, theta: Array, log_loss: Array, weights: Array, steps: int = 500) -> tuple[Array, Array]:
    """Newton's method, damped by the upper matrix until a step goes down: (B, P), (B, n) -> optimum, objective (B,).

    Every fit of the B has a damping of its own (Levenberg 1944) and is left alone once it has converged.
    """
    theta = np.array(theta, float)
    log_loss, weights = (np.broadcast_to(of, (len(theta), len(problem.design))) for of in (log_loss, weights))
    best = problem.objective(theta, log_loss, weights)
    damping, still, active = np.ones(len(theta)), np.zeros(len(theta), int), np.arange(len(theta))
    ridge = 1e-12 * np.eye(theta.shape[1])
    for _ in range(steps):
        here = log_loss[active], weights[active]
        gradient, hessian, upper = problem.derivatives(theta[active], *here)
        scale = np.trace(upper, axis1=1, axis2=2)[:, None, None] + 1e-300
        matrix = hessian + damping[active, None, None] * upper + scale * ridge
        try:
            step = np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
        except np.linalg.LinAlgError:
            step = (np.linalg.pinv(matrix) @ gradient[:, :, None])[:, :, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            trial = theta[active] - step
            value = problem.objective(trial, *here)
        down = np.isfinite(value) & (value < best[active])
        gain = np.where(down, best[active] - value, 0.0)
        rows = active[down]
        theta[rows], best[rows] = trial[down], value[down]
        damping[active] = np.where(down, damping[active] / 5, damping[active] * 4).clip(1e-12, 1e12)
        still[active] = np.where(gain > 1e-10 * best[active], 0, still[active] + 1)
        active = active[still[active] < 12]
        if not len(active):
            break
    return theta, best


def fit_many(problem: Problem, starts: Array, log_loss: Array, weights: Array) -> tuple[Array, Array]:
    """From each of S starts, for each of B rows, the best: (S, P), (B, n), (B, n) -> (B, P), (B,)."""
    s, b = len(starts), len(weights)
    theta, value = minimise(problem, np.repeat(starts, b, axis=0), np.tile(log_loss, (s, 1)), np.tile(weights, (s, 1)))
    best = value.reshape(s, b).argmin(0)
    return theta.reshape(s, b, -1)[best, np.arange(b)], value.reshape(s, b)[best, np.arange(b)]
