"""Lesson 07: grade a fit of a power law with a floor (07a), and a judge that refuses an interval made up (07b)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import scaling
from ..fits import HOFFMANN, Array
from . import grader, require

# 07a

NAMES = ("E", "A", "alpha")
LADDER = np.geomspace(5e4, 4e6, 8)
# (what it tries, sizes, E, A, alpha)
KNOWN = (
    ("a small ladder", LADDER, 2.5, 60.0, 0.28),
    ("a steep law, and a floor near the losses", LADDER, 5.0, 4e3, 0.75),
    ("large models", np.geomspace(1e7, 1e10, 6), 1.7, 400.0, 0.34),
    ("a low floor", np.geomspace(1e3, 1e6, 7), 0.2, 9.0, 0.15),
)


def power_law(sizes: Array, e: float, a: float, alpha: float) -> Array:
    return e + a * sizes**-alpha


def objective(constants: Sequence[float], sizes: Array, losses: Array) -> float:
    """The sum of squares of log fitted - log measured; infinite where the fitted loss is not above 0."""
    fitted = power_law(sizes, *constants)
    return float(((np.log(fitted) - np.log(losses)) ** 2).sum()) if (fitted > 0).all() else np.inf


def least(sizes: Array, losses: Array) -> float:
    """The lowest that the objective gets: Huber's loss with a bend that no residual reaches is half the square."""
    found = scaling.fit(scaling.runs(sizes, np.ones(len(sizes)), losses), "size", bootstraps=0, delta=1.0)
    return 2 * found.objective


def asked(answer: Callable, sizes: Array, losses: Array) -> tuple[float, float, float]:
    given_n, given_l = sizes.copy(), losses.copy()
    given: Any = answer(given_n, given_l)
    same = np.array_equal(given_n, sizes) and np.array_equal(given_l, losses)
    require(same, "it changes the sizes or the losses that it was given: work on a copy")
    wanted = "return three numbers, E, A, alpha"
    try:
        constants = tuple(float(value) for value in given)
    except (TypeError, ValueError):
        raise AssertionError(f"it returned {given!r}; {wanted}") from None
    require(len(constants) == 3, f"it returned {len(constants)} numbers; {wanted}")
    require(all(np.isfinite(constants)), f"it returned {constants}: not a number among them; is a loss below your E?")
    return constants


def named(given: Sequence[float], sizes: Array, losses: Array, truth: Sequence[float]) -> str:
    """Which typical mistake gives these constants."""
    e, a, alpha = truth
    slope, intercept = np.polyfit(np.log(sizes), np.log(losses), 1)
    near_floor = np.polyfit(np.log(sizes), np.log(losses - 0.99 * losses.min()), 1)
    mistakes = {
        "that is the straight line through log N and log L: a pure power law, which has no floor": (
            0.0, np.exp(intercept), -slope),
        "alpha has the wrong sign: a line's slope over log N is -alpha": (e, a, -alpha),
        "A is still a logarithm: the line's intercept is log A": (e, np.log(a), alpha),
        "A is a power of ten of an intercept in natural logarithms, or the reverse": (e, 10 ** np.log(a), alpha),
        "E is still a logarithm": (np.log(e), a, alpha),
        "the order is E, A, alpha": (a, e, alpha),
        "E is a share of the lowest loss: that run has not reached the floor, so E has to be searched for": (
            0.99 * losses.min(), np.exp(near_floor[1]), -near_floor[0]),
    }  # fmt: skip
    for text, wrong in mistakes.items():
        if np.allclose(given, wrong, rtol=0.01, atol=1e-6):
            return text
    if given[0] >= losses.min():
        return "E is not below every measured loss: no run can be under the floor"
    return "is a range of E or alpha, or a number of steps, written into it that does not hold here?"


@grader("07a", title="the constants of L = E + A / N^alpha, floor and all, from exact and from noisy runs")
def power_law_fit(answer: Callable) -> None:
    for text, sizes, *truth in KNOWN:
        losses = power_law(sizes, *truth)
        given = asked(answer, sizes, losses)
        right = abs(given[0] / truth[0] - 1) < 0.05 and abs(given[2] / truth[2] - 1) < 0.02
        if not right or objective(given, sizes, losses) > 1e-6 * len(sizes):
            pairs = ", ".join(f"{name} {value:.4g}" for name, value in zip(NAMES, given, strict=True))
            known = ", ".join(f"{name} {value:.4g}" for name, value in zip(NAMES, truth, strict=True))
            raise AssertionError(
                f"{text}, without noise: {pairs}, and the truth is {known}: {named(given, sizes, losses, truth)}"
            )
    for seed in range(3):
        sizes = np.repeat(LADDER, 3)
        noise = 0.01 * np.random.default_rng(seed).standard_normal(len(sizes))
        losses = power_law(sizes, 2.5, 60.0, 0.28) * np.exp(noise)
        given = asked(answer, sizes, losses)
        ratio = objective(given, sizes, losses) / least(sizes, losses)
        require(
            ratio < 1.01,
            f"with noise of 1 % its sum of squares of log L is {ratio:.3g} times the lowest: compare candidates by how "
            f"far the fitted loss is from the measured one. log(L - E) is another yardstick for every E, and it "
            f"stretches the runs that are near the floor",
        )
    losses = power_law(LADDER, 2.5, 60.0, 0.28)
    again = asked(answer, LADDER[::-1].copy(), losses[::-1].copy())
    require(
        np.allclose(again, asked(answer, LADDER, losses), rtol=1e-3),
        "runs in another order give other constants: does it take the last run for the largest?",
    )


# 07b

SIZES = np.array([1.9e5, 3.2e5, 4.7e5, 7.3e5, 1.1e6, 1.7e6])
TOKENS = np.array([2.6e5, 5.2e5, 1.05e6, 2.1e6, 4.2e6])


def crossed(sizes: Sequence[float], tokens: Sequence[float], seeds: int = 2) -> scaling.Runs:
    """Every size on every number of tokens; runs of one size and seed share their beginning, and are a family."""
    rows = [(n, d, f"{n:.0f}-{seed}") for seed in range(seeds) for n in sizes for d in tokens]
    return made(rows)


def made(rows: Sequence[tuple[float, float, str]]) -> scaling.Runs:
    n, d, family = zip(*rows, strict=True)
    losses = 2.2 + 30 * np.array(n) ** -0.3 + 900 * np.array(d) ** -0.42
    return scaling.runs(n, d, losses, family=family)


def fewer_for_large() -> scaling.Runs:
    """As a ladder is run: the larger the model, the shorter its longest budget."""
    rows = [(n, d, f"{n:.0f}-{seed}") for seed in (0, 1) for i, n in enumerate(SIZES) for d in TOKENS[: 5 - i // 2]]
    return made(rows)


def in_step(noise: float) -> scaling.Runs:
    """Twenty tokens for each parameter, which is what a compute-optimal series is."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e5, 1e7, 12)
    return made([(n, 20 * n * np.exp(noise * rng.standard_normal()), f"{n:.0f}") for n in sizes])


def blurred(values: Array) -> list[float]:
    """Each thrice, half a percent apart, as counts of parameters are that differ by a few biases."""
    return [float(value * factor) for value in values for factor in (0.995, 1.0, 1.005)]


JUSTIFIED = {
    "6 sizes on 5 numbers of tokens, twice each": crossed(SIZES, TOKENS),
    "a ladder whose large sizes have fewer budgets": fewer_for_large(),
    "4 sizes on 4 numbers of tokens, twice each": crossed(SIZES[:4], TOKENS[:4]),
}
REFUSED = {
    "2 sizes, 40 runs": (crossed(SIZES[:2], TOKENS, 4), "is N looked at? And count sizes, not runs"),
    "3 sizes on 5 numbers of tokens, 60 runs": (
        crossed(SIZES[:3], TOKENS, 4),
        "E, A and alpha go through any three sizes, so nothing is left over to be wrong. Sizes count, not runs; one "
        "more than three"),
    "6 sizes on 3 numbers of tokens": (
        crossed(SIZES, TOKENS[:3]),
        "the term of the data has three unknowns as well: ask the same of D"),
    "9 sizes, of which three and three differ by half a percent": (
        crossed(blurred(SIZES[:3]), TOKENS),
        "sizes within 2 % of each other test nothing new: count levels, not different numbers"),
    "9 numbers of tokens, of which three and three differ by half a percent": (
        crossed(SIZES, blurred(TOKENS[:3])),
        "numbers of tokens within 2 % of each other test nothing new: count levels, not different numbers"),
    "12 sizes, each on 20 tokens a parameter": (
        in_step(0.0),
        "tokens rise in step with parameters, so A / N^alpha and B / D^beta cannot be told apart"),
    "12 sizes, each on 20 tokens a parameter, give or take half a percent": (
        in_step(0.005),
        "tokens rise in step with parameters but for half a percent; is equality asked for?"),
    "20 runs of 4 families": (
        crossed(SIZES[:4], TOKENS, 1),
        "runs of one family share a beginning and its luck, and are resampled together: 4 families cannot test 5 "
        "constants, however many runs they have"),
    "25 runs of 5 families": (
        crossed(SIZES[:5], TOKENS, 1),
        "5 families determine 5 constants and cannot test them: it takes one more"),
}  # fmt: skip


def scaling_says(sample: scaling.Runs) -> str | None:
    """What lab.scaling has against an interval of Hoffmann's form for these runs."""
    impossible, reason = scaling.obstacle(HOFFMANN, sample)
    return impossible or reason


@grader("07b", title="an interval is refused wherever the runs cannot test the law")
def judge(answer: Callable) -> None:
    def ask(sample: scaling.Runs, text: str) -> str | None:
        given = answer(sample)
        fits = given is None or (isinstance(given, str) and given.strip())
        require(fits, f"for {text} it returned {given!r}; return None, or a sentence that says why not")
        return given

    for text, sample in JUSTIFIED.items():
        said = ask(sample, text)
        require(
            said is None,
            f"{text}: refused ({said!r}), though they can test the law. Tokens that fall as sizes rise are not in "
            f"step; and one level more than a term has constants is enough",
        )
    wrong = [f"{text}: allowed. {why}" for text, (sample, why) in REFUSED.items() if ask(sample, text) is None]
    if len(wrong) == len(REFUSED):
        raise AssertionError("it never refuses: begin with the number of different sizes")
    require(not wrong, next(iter(wrong), ""))
