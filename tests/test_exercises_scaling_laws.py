"""Lesson 07: its solutions pass, and each typical mistake is called by its name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lab import scaling
from lab.exercises import scaling_laws
from lab.exercises.scaling_laws import JUSTIFIED, REFUSED, judge, power_law_fit

# 07a


def line(sizes, losses, floor):
    """A and alpha by the line through log(L - E)."""
    slope, intercept = np.polyfit(np.log(sizes), np.log(losses - floor), 1)
    return np.exp(intercept), -slope


def solution(sizes, losses):
    """For a fixed alpha the rest is linear."""

    def fit(alpha):
        rows = np.stack([1 / losses, sizes**-alpha / losses], axis=1)
        e, a = np.linalg.lstsq(rows, np.ones(len(losses)), rcond=None)[0]
        fitted = e + a * sizes**-alpha
        return ((np.log(fitted) - np.log(losses)) ** 2).sum() if (fitted > 0).all() else np.inf, e, a, alpha

    _, e, a, alpha = min(fit(alpha) for alpha in np.arange(0.02, 2, 0.005))
    return e, a, alpha


def by_the_library(sizes, losses):
    found = scaling.fit(scaling.runs(sizes, np.ones(len(sizes)), losses), "size", bootstraps=0, delta=1.0).constants
    return found["E"].value, found["A"].value, found["alpha"].value


@pytest.mark.parametrize("right", [solution, by_the_library])
def test_a_fit_that_finds_the_constants_passes(right: Callable[..., Any]) -> None:
    power_law_fit(right)


def straight(sizes, losses):
    return 0.0, *line(sizes, losses, 0.0)


def share_of_the_lowest(sizes, losses):
    return 0.99 * losses.min(), *line(sizes, losses, 0.99 * losses.min())


def other_yardstick(sizes, losses):
    """The floor by how straight log(L - E) is."""
    floors = losses.min() * (1 - np.geomspace(1e-4, 1, 4000))

    def off(floor):
        a, alpha = line(sizes, losses, floor)
        return ((np.log(losses - floor) - np.log(a) + alpha * np.log(sizes)) ** 2).sum()

    floor = min(floors, key=off)
    return floor, *line(sizes, losses, floor)


def changed(how):
    return lambda sizes, losses: how(*solution(sizes, losses))


def narrow(sizes, losses):
    """A grid for one ladder."""
    floor = min(np.arange(2.0, 3.0, 0.001), key=lambda e: off_loss(sizes, losses, e))
    return floor, *line(sizes, losses, min(floor, 0.999 * losses.min()))


def off_loss(sizes, losses, floor):
    if floor >= losses.min():
        return np.inf
    a, alpha = line(sizes, losses, floor)
    return ((np.log(floor + a * sizes**-alpha) - np.log(losses)) ** 2).sum()


def in_place(sizes, losses):
    found = solution(sizes, losses)
    losses -= found[0]
    return found


def by_the_ends(sizes, losses):
    """Takes the order for granted."""
    e, a, alpha = solution(sizes, losses)
    return (e, a, alpha) if sizes[-1] == sizes.max() else (0.9 * e, a, alpha)


FITS: list[tuple[str, Callable[..., Any]]] = [
    ("a pure power law, which has no floor", straight),
    ("E is a share of the lowest loss", share_of_the_lowest),
    ("another yardstick for every E", other_yardstick),
    ("alpha has the wrong sign", changed(lambda e, a, alpha: (e, a, -alpha))),
    ("A is still a logarithm", changed(lambda e, a, alpha: (e, np.log(a), alpha))),
    ("a power of ten", changed(lambda e, a, alpha: (e, 10 ** np.log(a), alpha))),
    ("E is still a logarithm", changed(lambda e, a, alpha: (np.log(e), a, alpha))),
    ("the order is E, A, alpha", changed(lambda e, a, alpha: (a, e, alpha))),
    ("is a range of E or alpha", narrow),
    ("E is not below every measured loss", lambda sizes, losses: (losses.min() + 0.1, 1.0, 0.3)),
    ("work on a copy", in_place),
    ("returned 2 numbers", changed(lambda e, a, alpha: (a, alpha))),
    ("return three numbers", lambda sizes, losses: None),
    ("not a number", changed(lambda e, a, alpha: (e, a, np.nan))),
    ("in another order", by_the_ends),
]


@pytest.mark.parametrize(("text", "answer"), FITS, ids=[text for text, _ in FITS])
def test_a_wrong_fit_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        power_law_fit(answer)
    assert text in str(raised.value)


# 07b


def levels(values):
    return 1 + int((np.diff(np.sort(np.log(values))) > 0.02).sum())


def judged(*, sizes=4, tokens=4, count=levels, apart=0.02, families=6, of=lambda runs: len(np.unique(runs.family))):
    """The solution, with parts that can be spoilt."""

    def answer(runs):
        for name, values, least in (("sizes", runs.parameters, sizes), ("tokens", runs.tokens, tokens)):
            if count(values) < least:
                return f"{count(values)} {name}"
        x, y = np.log(runs.parameters), np.log(runs.tokens)
        if (y - np.polyval(np.polyfit(x, y, 1), x)).std() < apart:
            return "in step"
        return f"{of(runs)} families" if of(runs) < families else None

    return answer


def by_correlation(runs):
    """Refuses also what falls in step."""
    if abs(np.corrcoef(np.log(runs.parameters), np.log(runs.tokens))[0, 1]) > 0.2:
        return "correlated"
    return judged()(runs)


def test_the_solution_and_the_library_pass() -> None:
    judge(judged())
    judge(lambda runs: scaling_laws.scaling_says(runs))


JUDGES: list[tuple[str, Callable[..., Any]]] = [
    ("it never refuses", lambda runs: None),
    ("refused", lambda runs: "no"),
    ("return None, or a sentence", lambda runs: True),
    ("return None, or a sentence", lambda runs: ""),
    ("is N looked at", judged(sizes=1)),
    ("any three sizes", judged(sizes=3)),
    ("count sizes, not runs", judged(count=len)),
    ("ask the same of D", judged(tokens=1)),
    ("ask the same of D", judged(tokens=3)),
    ("sizes within 2 %", judged(count=lambda values: len(np.unique(values)))),
    (
        "numbers of tokens within 2 %",
        lambda runs: judged(tokens=1)(runs) or (len(set(runs.tokens)) < 4 and "few") or None,
    ),
    ("in step with parameters, so", judged(apart=-1.0)),
    ("is equality asked for", judged(apart=1e-9)),
    ("4 families cannot test 5", judged(families=1)),
    ("4 families cannot test 5", judged(of=len)),
    ("it takes one more", judged(families=5)),
    ("are not in step", by_correlation),
    ("one level more", judged(sizes=5)),
]


@pytest.mark.parametrize(("text", "answer"), JUDGES, ids=[f"{i}: {text}" for i, (text, _) in enumerate(JUDGES)])
def test_a_wrong_judge_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        judge(answer)
    assert text in str(raised.value)


def test_the_cases_are_judged_as_the_library_judges_them() -> None:
    for sample in JUSTIFIED.values():
        assert scaling_laws.scaling_says(sample) is None
    for sample, _ in REFUSED.values():
        assert scaling_laws.scaling_says(sample)
