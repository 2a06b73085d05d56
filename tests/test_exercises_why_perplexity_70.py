"""Lesson 06: its solutions pass, and each typical mistake is called by its name."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from lab.exercises.why_perplexity_70 import judge, units
from lab.results.causes import critical


def per_word(ppl, tokens, words):
    return ppl ** (tokens / words)


def bits_per_byte(ppl, tokens, size):
    return math.log2(ppl) * tokens / size


def verdict(low, high, ppl, tokens, words):
    inside = [low <= value <= high for value in (ppl, per_word(ppl, tokens, words))]
    return "holds" if all(inside) else "unit error" if any(inside) else "does not hold"


def test_the_units_pass() -> None:
    units((per_word, bits_per_byte, verdict))


PER_WORD: list[tuple[str, Callable[..., Any]]] = [
    ("multiplies by tokens / words", lambda p, t, w: p * t / w),
    ("ratio is upside down", lambda p, t, w: p ** (w / t)),
    ("gives nats", lambda p, t, w: math.log(p) * t / w),
    ("gives bits", lambda p, t, w: math.log2(p) * t / w),
    ("log2 goes with 2 **", lambda p, t, w: math.exp(min(700, math.log2(p) * t / w))),
    ("log goes with exp", lambda p, t, w: 2 ** (math.log(p) * t / w)),
    ("per token again", lambda p, t, w: p),
    ("it should be", lambda p, t, w: p ** (t / w) + 1),
    ("return a number", lambda p, t, w: None),
    ("finite", lambda p, t, w: math.inf),
]
BITS: list[tuple[str, Callable[..., Any]]] = [
    ("nats per byte", lambda p, t, s: math.log(p) * t / s),
    ("multiplies by ln 2", lambda p, t, s: math.log(p) * math.log(2) * t / s),
    ("divides by ln 2 twice", lambda p, t, s: math.log2(p) / math.log(2) * t / s),
    ("base 10", lambda p, t, s: math.log10(p) * t / s),
    ("bits per token", lambda p, t, s: math.log2(p)),
    ("not 8 of them", lambda p, t, s: math.log2(p) * t / (8 * s)),
    ("ratio is upside down", lambda p, t, s: math.log2(p) * s / t),
    ("takes no logarithm", lambda p, t, s: p * t / s),
    ("a perplexity per byte", lambda p, t, s: p ** (t / s)),
    ("it should be", lambda p, t, s: math.log2(p) * t / s + 1),
]


def token_alone(low, high, ppl, tokens, words):
    return "holds" if low <= ppl <= high else "does not hold"


def word_alone(low, high, ppl, tokens, words):
    return "holds" if low <= per_word(ppl, tokens, words) <= high else "does not hold"


def any_unit(low, high, ppl, tokens, words):
    return "does not hold" if verdict(low, high, ppl, tokens, words) == "does not hold" else "holds"


def spans(low, high, ppl, tokens, words):
    """Holds where the two readings span the range."""
    found = verdict(low, high, ppl, tokens, words)
    return "unit error" if ppl < low and high < per_word(ppl, tokens, words) else found


def always_unit(low, high, ppl, tokens, words):
    return "unit error"


VERDICTS: list[tuple[str, Callable[..., Any]]] = [
    ("says 'does not hold' of a claim of 40 to 45", token_alone),
    ("says 'holds' of a claim of 40 to 45", word_alone),
    ("so 'unit error'", any_unit),
    ("both outside", spans),
    ("so 'does not hold'", always_unit),
    ("it is one of", lambda *_: True),
]


@pytest.mark.parametrize(("text", "answer"), PER_WORD, ids=[text for text, _ in PER_WORD])
def test_a_wrong_perplexity_per_word_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="per_word") as raised:
        units((answer, bits_per_byte, verdict))
    assert text in str(raised.value)


@pytest.mark.parametrize(("text", "answer"), BITS, ids=[text for text, _ in BITS])
def test_wrong_bits_per_byte_are_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="bits_per_byte") as raised:
        units((per_word, answer, verdict))
    assert text in str(raised.value)


@pytest.mark.parametrize(("text", "answer"), VERDICTS, ids=[text for text, _ in VERDICTS])
def test_a_wrong_verdict_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="verdict") as raised:
        units((per_word, bits_per_byte, answer))
    assert text in str(raised.value)


def test_one_function_is_not_three() -> None:
    with pytest.raises(AssertionError, match="give the three"):
        units(per_word)


def told(difference: float, bound: float) -> str:
    return "cannot tell" if abs(difference) <= bound else "worse" if difference > 0 else "better"


def right(base, arm):
    if min(len(base), len(arm)) < 2:
        return "cannot tell"
    error = math.sqrt(statistics.variance(base) / len(base) + statistics.variance(arm) / len(arm))
    return told(statistics.fmean(arm) - statistics.fmean(base), critical(len(base) + len(arm) - 2) * error)


def seeds(base, arm) -> bool:
    return min(len(base), len(arm)) >= 2


def swapped(base, arm):
    return right(arm, base)


def absolute(base, arm):
    return "cannot tell" if right(base, arm) == "cannot tell" else "worse"


def never(base, arm):
    return "cannot tell"


def takes_one_seed(base, arm):
    return right(base, arm) if seeds(base, arm) else told(arm[0] - base[0], 0)


def raises_for_one_seed(base, arm):
    statistics.variance(base), statistics.variance(arm)
    return right(base, arm)


def no_spread(base, arm):
    return told(statistics.fmean(arm) - statistics.fmean(base), 0) if seeds(base, arm) else "cannot tell"


def divides(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    error = math.sqrt(statistics.variance(base) / len(base) + statistics.variance(arm) / len(arm))
    ratio = (statistics.fmean(arm) - statistics.fmean(base)) / error
    return told(ratio, critical(len(base) + len(arm) - 2))


def at_least(base, arm):
    found = right(base, arm)
    return "worse" if seeds(base, arm) and base == arm else found


def one_arm(which: int) -> Callable[..., str]:
    def answer(base, arm):
        if not seeds(base, arm):
            return "cannot tell"
        error = math.sqrt(2 * statistics.variance((base, arm)[which]) / len(base))
        return told(statistics.fmean(arm) - statistics.fmean(base), critical(len(base) + len(arm) - 2) * error)

    return answer


def ranges(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    return "worse" if min(arm) > max(base) else "better" if max(arm) < min(base) else "cannot tell"


def deviation(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    bound = 2 * max(statistics.stdev(base), statistics.stdev(arm))
    return told(statistics.fmean(arm) - statistics.fmean(base), bound)


def best_seed(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    error = math.sqrt(statistics.variance(base) / len(base) + statistics.variance(arm) / len(arm))
    return told(min(arm) - min(base), critical(len(base) + len(arm) - 2) * error)


def over_n(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    error = math.sqrt(statistics.pvariance(base) / len(base) + statistics.pvariance(arm) / len(arm))
    return told(statistics.fmean(arm) - statistics.fmean(base), critical(len(base) + len(arm) - 2) * error)


def two_errors(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    error = math.sqrt(statistics.variance(base) / len(base) + statistics.variance(arm) / len(arm))
    return told(statistics.fmean(arm) - statistics.fmean(base), 2 * error)


def always_four(base, arm):
    if not seeds(base, arm):
        return "cannot tell"
    error = math.sqrt(statistics.variance(base) / len(base) + statistics.variance(arm) / len(arm))
    return told(statistics.fmean(arm) - statistics.fmean(base), critical(4) * error)


JUDGES: list[tuple[str, Callable[..., Any]]] = [
    ("sign is swapped", swapped),
    ("change places", absolute),
    ("cannot tell 6.0 from 6.5", never),
    ("one seed (base)", takes_one_seed),
    ("raises for one seed", raises_for_one_seed),
    ("ignores the spread", no_spread),
    ("divides by a spread of 0", divides),
    ("0 must not exceed a bound of 0", at_least),
    ("the base's is 0.6", one_arm(1)),
    ("the arm's is 0.6", one_arm(0)),
    ("ranges have to stay apart", ranges),
    ("the error of the mean", deviation),
    ("best seed", best_seed),
    ("n - 1, not n", over_n),
    ("critical(4) = 2.776", two_errors),
    ("critical(n + m - 2)", always_four),
    ("return one of", lambda base, arm: True),
]


def test_the_judge_passes() -> None:
    judge(right)


@pytest.mark.parametrize(("text", "answer"), JUDGES, ids=[text for text, _ in JUDGES])
def test_a_wrong_judge_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        judge(answer)
    assert text in str(raised.value)
