"""Lesson 06: grade a perplexity in other units (06a), and a judgement on two arms by their seeds (06b)."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ..results.causes import critical
from ..units import PER_BYTE, PER_TOKEN, PER_WORD, convert
from . import grader, require

# (perplexity per token, tokens, words, bytes): near WikiText's own, of characters, of words, and guessing.
TEXTS = (
    (70.0, 295_937, 245_569, 1_256_449),
    (2.5, 1_256_000, 245_569, 1_256_449),
    (133.0, 245_569, 245_569, 1_290_590),
    (4096.0, 1000, 800, 4500),
)
ANSWERS = {"holds", "unit error", "does not hold"}


def a_number(given: Any, of: str) -> float:
    require(isinstance(given, int | float) and not isinstance(given, bool), f"{of} gave {given!r}; return a number")
    require(math.isfinite(given), f"{of} gave {given}; there is a finite number for each of these texts")
    return float(given)


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


@grader("06a", title="one loss per word and per byte, and the claim that is a unit error")
def units(answer: Any) -> None:
    """answer: (per_word, bits_per_byte, verdict)."""
    require(isinstance(answer, tuple | list) and len(answer) == 3, "give the three: (per_word, bits_per_byte, verdict)")
    per_word, bits_per_byte, verdict = answer
    for perplexity, tokens, words, size in TEXTS:
        per_word_is_right(per_word, perplexity, tokens, words)
        bits_are_right(bits_per_byte, perplexity, tokens, size)
    verdict_is_right(verdict)


def per_word_is_right(answer: Callable, ppl: float, tokens: int, words: int) -> None:
    right = convert(ppl, PER_TOKEN, PER_WORD, tokens=tokens, words=words)
    given, ratio = a_number(answer(ppl, tokens, words), "per_word"), tokens / words
    mistakes = {
        "it multiplies by tokens / words: nats add up over the tokens of a word, so perplexities multiply, and the "
        "ratio is an exponent": ppl * ratio,
        "its ratio is upside down: a word has more tokens than one, the exponent is tokens / words": ppl ** (1 / ratio),
        "it gives nats, not a perplexity: take exp at the end": math.log(ppl) * ratio,
        "it gives bits, not a perplexity: take 2 ** at the end": math.log2(ppl) * ratio,
        "it mixes bases: log2 goes with 2 **, log with exp": math.exp(min(700, math.log2(ppl) * ratio)),
        "it mixes the bases: log goes with exp, log2 with 2 **": 2 ** (math.log(ppl) * ratio),
        "it is the perplexity per token again": ppl,
    }
    if close(given, right):
        return
    named = next((text for text, wrong in mistakes.items() if close(given, wrong)), f"it should be {right:.6g}")
    raise AssertionError(f"per_word({ppl:g}, {tokens}, {words}) is {given:.6g}: {named}")


def bits_are_right(answer: Callable, ppl: float, tokens: int, size: int) -> None:
    right = convert(ppl, PER_TOKEN, PER_BYTE, tokens=tokens, size=size)
    given, nats = a_number(answer(ppl, tokens, size), "bits_per_byte"), math.log(ppl)
    mistakes = {
        "it is nats per byte: divide by ln 2, or take log2": nats * tokens / size,
        "it multiplies by ln 2: a nat is 1 / ln 2 = 1.44 bits": nats * math.log(2) * tokens / size,
        "it divides by ln 2 twice: log2 is in bits already": right / math.log(2),
        "its log is to base 10": math.log10(ppl) * tokens / size,
        "it is bits per token: share them out among the bytes": math.log2(ppl),
        "it is bits per bit: there are bytes below, not 8 of them each": right / 8,
        "its ratio is upside down: tokens times bits each, over the bytes": math.log2(ppl) * size / tokens,
        "it takes no logarithm: a perplexity is no number of bits": ppl * tokens / size,
        "it is a perplexity per byte: take its log2": 2**right,
    }
    if close(given, right):
        return
    named = next((text for text, wrong in mistakes.items() if close(given, wrong)), f"it should be {right:.6g}")
    raise AssertionError(f"bits_per_byte({ppl:g}, {tokens}, {size}) is {given:.6g}: {named}")


def verdict_is_right(answer: Callable) -> None:
    """The claimed range against a perplexity that was measured per token."""
    cases = (
        ((35, 40), 23.7, 1.2, "does not hold", "it is 23.7 per token and 44.6 per word, both outside"),
        ((40, 45), 23.7, 1.2, "unit error", "it is in the range per word, and not per token"),
        ((60, 80), 70.0, 1.2, "unit error", "it is in the range per token, and not per word"),
        ((60, 200), 70.0, 1.2, "holds", "it is in the range in both units"),
        ((30, 40), 130.0, 1.2, "does not hold", "it is above the range in both units"),
        ((80, 120), 70.0, 1.2, "does not hold", "per token it is below the range and per word above it"),
        ((30, 40), 8.0, 1.15, "does not hold", "it is below the range in both units"),
    )
    for (low, high), perplexity, ratio, right, why in cases:
        tokens, words = round(1000 * ratio), 1000
        given = answer(low, high, perplexity, tokens, words)
        require(given in ANSWERS, f"verdict gave {given!r}; it is one of {', '.join(sorted(ANSWERS))}")
        require(
            given == right,
            f"verdict says {given!r} of a claim of {low} to {high}, where {perplexity:g} per token was measured and "
            f"{words} words have {tokens} tokens: {why}, so {right!r}",
        )


LABELS = ("better", "worse", "cannot tell")


def arms(generator: random.Random, apart: float, spread: float, seeds: tuple[int, int]) -> tuple[list[float], ...]:
    """Losses of a base and of an arm that lie `apart` on average, each with exactly that standard deviation."""
    made = []
    for count, centre in zip(seeds, (6.0, 6.0 + apart), strict=True):
        drawn = [generator.gauss(0, 1) for _ in range(count)]
        mean, width = statistics.fmean(drawn), statistics.stdev(drawn)
        made.append([centre + spread * (value - mean) / width for value in drawn])
    return tuple(made)


def judged(base: Sequence[float], arm: Sequence[float]) -> str:
    """What the exercise asks for."""
    difference = statistics.fmean(arm) - statistics.fmean(base)
    error = math.sqrt(statistics.variance(base) / len(base) + statistics.variance(arm) / len(arm))
    if abs(difference) <= critical(len(base) + len(arm) - 2) * error:
        return "cannot tell"
    return "worse" if difference > 0 else "better"


@grader("06b", title="a difference of two arms is real where it exceeds what their seeds allow")
def judge(answer: Callable[[list[float], list[float]], str]) -> None:
    def ask(base: Sequence[float], arm: Sequence[float]) -> str:
        given = answer(list(base), list(arm))
        require(given in LABELS, f"your function returned {given!r}; return one of {', '.join(map(repr, LABELS))}")
        return given

    generator = random.Random(0)
    far = arms(generator, 0.5, 0.01, (3, 3))
    verdicts = ask(*far), ask(*far[::-1])
    require(verdicts != ("better", "worse"), "its sign is swapped: these are losses, and the arm with more is worse")
    require(verdicts[0] != "cannot tell", "it cannot tell 6.0 from 6.5 with a spread of 0.01, a fiftieth of that")
    require(verdicts == ("worse", "better"), "it answers the same when base and arm change places")
    for base, arm, which in (([6.0], far[1], "base"), (far[0], [6.5], "arm"), ([6.0], [6.5], "both")):
        try:
            given = ask(base, arm)
        except (ValueError, ZeroDivisionError, statistics.StatisticsError) as error:
            raise AssertionError(
                f"it raises for one seed ({type(error).__name__}: {error}): ask how many there are first, and say "
                f"'cannot tell'"
            ) from None
        require(
            given == "cannot tell",
            f"one seed ({which}) and it says {given!r}: of one run nobody knows how far the next one lies. Say "
            f"'cannot tell' below two seeds",
        )
    near = arms(generator, 0.02, 0.2, (3, 3))
    require(ask(*near) == "cannot tell", "it ignores the spread: 0.02 apart, and the seeds of one arm are 0.2 apart")
    alike = [6.0, 6.0, 6.0]
    try:
        same = ask(alike, alike)
    except ZeroDivisionError:
        raise AssertionError("it divides by a spread of 0: compare the difference with the bound instead") from None
    require(same == "cannot tell", "two arms with the same losses differ, it says: 0 must not exceed a bound of 0")
    many = arms(generator, 0.1, 0.1, (20, 20))
    require(
        ask(*many) == "worse",
        "twenty seeds a side, 0.1 apart with a deviation of 0.1, and it cannot tell: what counts is the error of the "
        "mean, which falls with the root of the number of seeds; do ranges have to stay apart in your rule?",
    )
    lucky = [5.8, *[6.0] * 10], [5.8, *[6.2] * 10]
    require(
        ask(*lucky) == "worse",
        "it goes by the best seed of each arm: both have one lucky seed at 5.8, all others lie apart. Compare means",
    )
    wide_base, wide_arm = ([5.4, 6.0, 6.6], [6.4, 6.41, 6.39]), ([6.0, 6.01, 5.99], [5.8, 6.4, 7.0])
    for pair, text in ((wide_base, "the base's"), (wide_arm, "the arm's")):
        require(
            ask(*pair) == "cannot tell",
            f"it looks at one arm's spread alone: {text} is 0.6, and the difference 0.4. Both count",
        )
    require(
        ask([6.0, 6.1, 6.2], [6.19, 6.29, 6.39]) == "cannot tell",
        "three seeds a side with a deviation of 0.1, 0.19 apart, and it is sure: 2.33 standard errors. With four "
        "degrees of freedom it takes critical(4) = 2.776, and the variance is over n - 1, not n",
    )
    for _ in range(300):
        seeds = generator.choice([(2, 2), (3, 3), (3, 5), (8, 8)])
        pair = arms(generator, generator.uniform(-0.4, 0.4), 0.1, seeds)
        right, given = judged(*pair), ask(*pair)
        require(
            given == right,
            f"for {rounded(pair[0])} and {rounded(pair[1])} it says {given!r}, and it is {right!r}: bound the "
            f"difference of the means by critical(n + m - 2) times sqrt(variance / n + variance / m)",
        )


def rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]
