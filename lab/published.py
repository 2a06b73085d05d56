"""Published scaling laws: the loss that they expect of a model on so many tokens, with an interval and a warning."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Z95 = 1.959964  # of a normal distribution


def short(number: float) -> str:
    """Three digits: 15M, 2.39M, 118M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


@dataclass(frozen=True)
class Errors:
    """How uncertain a law is: standard errors and correlations of log E, log of the size term at `parameters`, log of
    the data term at `tokens`, alpha and beta. The terms there are far less correlated than log A and log B."""

    parameters: float
    tokens: float
    standard: tuple[float, ...]
    correlations: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Law:
    """loss = e + a / parameters^alpha + b / tokens^beta, in nats per token of web text.

    r_data, r_parameters: R*_D and R*_N of Muennighoff et al. 2023, how many repeated epochs and excess parameters are
    worth. span: the least and most parameters, then tokens, of the runs that it was fitted to; None: not known.
    """

    a: float
    b: float
    e: float
    alpha: float
    beta: float
    source: str = ""
    r_data: float | None = None
    r_parameters: float | None = None
    span: tuple[tuple[float, float], tuple[float, float]] | None = None
    errors: Errors | None = None

    def terms(self, parameters: float, tokens: float) -> tuple[float, float]:
        """What the model's size and what the data's add to the loss."""
        return self.a / parameters**self.alpha, self.b / tokens**self.beta

    def loss(self, parameters: float, tokens: float, distinct: float | None = None) -> float:
        """Nats per token. distinct: how many of the tokens differ, where they are repeated."""
        return self.e + sum(self.terms(*self.worth(parameters, tokens, distinct)))

    def worth(self, parameters: float, tokens: float, distinct: float | None) -> tuple[float, float]:
        """Parameters and tokens that would do as much if none were in excess (Muennighoff et al. 2023, eq. 5 and 6).

        distinct None: no token is repeated and no parameter held to be in excess, as in the runs that laws without
        repeats are fitted to. Raises ValueError for repeated tokens where the law says nothing of them.
        """
        if distinct is None:
            return parameters, tokens
        unique = min(distinct, tokens)
        if tokens > distinct and self.r_data is None:
            raise ValueError(
                f"{short(tokens)} tokens repeat {short(distinct)}, and {self.source or 'this law'} knows no repeats; "
                f"give it r_data, or take MUENNIGHOFF_2023."
            )
        d = tokens if tokens <= distinct else saturated(unique, tokens, self.r_data)
        if self.r_parameters is None:
            return parameters, d
        return saturated(min(parameters, self.optimal_parameters(unique)), parameters, self.r_parameters), d

    def optimal(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the least loss where 6 x parameters x tokens = flops (Hoffmann et al. 2022, 4)."""
        both = self.alpha + self.beta
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        return g * (flops / 6) ** (self.beta / both), (flops / 6) ** (self.alpha / both) / g

    def optimal_parameters(self, tokens: float) -> float:
        """The size that those tokens are the optimal number for."""
        return (self.alpha * self.a / (self.beta * self.b) * tokens**self.beta) ** (1 / self.alpha)

    def balanced_tokens(self, parameters: float) -> float:
        """The tokens with which both terms are equal."""
        return (self.b / self.terms(parameters, 1)[0]) ** (1 / self.beta)

    def balanced_parameters(self, tokens: float) -> float:
        return (self.a / self.terms(1, tokens)[1]) ** (1 / self.alpha)

    def standard_error(self, parameters: float, tokens: float) -> float | None:
        """Of the loss, None where the source gives too little to say.

        To first order in the constants: in the middle of the runs up to 1.7 times what resampling gives.
        """
        if self.errors is None:
            return None
        size, data = self.terms(parameters, tokens)
        n, d = math.log(parameters / self.errors.parameters), math.log(tokens / self.errors.tokens)
        slopes = (self.e, size, data, -size * n, -data * d)
        parts = [slope * error for slope, error in zip(slopes, self.errors.standard, strict=True)]
        rows = self.errors.correlations
        return math.sqrt(sum(p * q * rows[i][j] for i, p in enumerate(parts) for j, q in enumerate(parts)))

    def outside(self, parameters: float, tokens: float) -> str | None:
        """A sentence where the law is asked beyond the runs that it was fitted to, else None."""
        if self.span is None:
            return "what its runs ranged over is not known"
        names = ("parameters", "tokens")
        wrong = [
            f"{short(n)} {name}, where its runs had {short(low)} to {short(high)}"
            for n, name, (low, high) in zip((parameters, tokens), names, self.span, strict=True)
            if not low <= n <= high
        ]
        return " and ".join(wrong) or None


def saturated(distinct: float, seen: float, rate: float) -> float:
    """What `seen` of a thing are worth where only `distinct` differ: at most 1 + rate times these."""
    repeats = max(0.0, seen / distinct - 1)
    return min(seen, distinct) + distinct * rate * (1 - math.exp(-repeats / rate))


# Parameters and tokens of the 245 runs that Besiroglu et al. 2024 read off Hoffmann's figure 4.
RANGE = (57e6, 16.2e9), (245e6, 318e9)
HOFFMANN_2022 = Law(406.4, 410.7, 1.69, 0.34, 0.28, "Hoffmann et al. 2022, approach 3", span=RANGE)
# Of 6,000 bootstraps of the refit by scaling.fit: that paper's errors are of single constants, and say too little.
REFIT_ERRORS = Errors(
    parameters=1e9,
    tokens=2e10,
    standard=(0.01395, 0.05986, 0.06747, 0.01492, 0.02039),
    correlations=(
        (1.0, -0.5487, -0.5964, 0.5830, 0.6179),
        (-0.5487, 1.0, -0.3395, -0.9875, 0.2949),
        (-0.5964, -0.3395, 1.0, 0.2866, -0.9874),
        (0.5830, -0.9875, 0.2866, 1.0, -0.2522),
        (0.6179, 0.2949, -0.9874, -0.2522, 1.0),
    ),
)
BESIROGLU_2024 = Law(
    482.01, 2085.43, 1.8172, 0.3478, 0.3658, "Besiroglu et al. 2024, a refit", span=RANGE, errors=REFIT_ERRORS
)
MUENNIGHOFF_2023 = Law(
    520.8, 1487.7, 1.869, 0.3527, 0.3527, "Muennighoff et al. 2023", 15.39, 5.31, span=((14e6, 9e9), (100e6, 900e9))
)
LAWS = (HOFFMANN_2022, BESIROGLU_2024, MUENNIGHOFF_2023)
REPEATS = MUENNIGHOFF_2023.r_data


def worth(distinct: float, seen: float) -> float:
    """How many distinct tokens `seen` tokens are worth that repeat `distinct` ones (Muennighoff et al. 2023)."""
    return saturated(distinct, seen, REPEATS)


@dataclass(frozen=True)
class Expected:
    """What one law expects. low, high: 95 % of its own uncertainty, None where its source gives none (`reason`).

    outside: how it is beyond the law's runs, None within them. worth: parameters and tokens after repeats.
    """

    source: str
    loss: float
    low: float | None
    high: float | None
    reason: str | None
    outside: str | None
    worth: tuple[float, float]


def expected_loss(parameters: float, tokens: float, distinct: float | None = None) -> list[Expected]:
    """What each published law expects of a model of so many parameters (all of them) on so many tokens of web text.

    distinct: how many of the tokens differ, where they are read more than once; laws that know no repeats are then
    given Muennighoff's. Of another corpus or tokenizer expect another loss: for 124M parameters after 1.1 epochs of
    WikiText-103 the laws say perplexity 100 to 122, and 48.6 was measured. Raises ValueError for what is not above 0.
    """
    for name, value in (("parameters", parameters), ("tokens", tokens), ("distinct", distinct)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a number above 0.")
    found = []
    for law in LAWS:
        if law.r_data is None:
            law = replace(law, r_data=REPEATS)
        n, d = law.worth(parameters, tokens, distinct)
        loss, error = law.loss(n, d), law.standard_error(n, d)
        interval = (None, None) if error is None else (loss - Z95 * error, loss + Z95 * error)
        reason = None if error is not None else "its source gives no joint uncertainty of its constants"
        found.append(Expected(law.source, loss, *interval, reason, law.outside(parameters, d), (n, d)))
    return found
