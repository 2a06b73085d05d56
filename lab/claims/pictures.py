"""The review's perplexities by size beside published ones, all per word: the same numbers, read in two units."""

from __future__ import annotations

from collections.abc import Sequence

from ..charts import Points, chart
from ..picture import Picture
from ..units import PER_TOKEN, PER_WORD
from . import quoted
from .arithmetic import OPTION_A, OPTION_C, REPORTED, sized

CLAIMED = {REPORTED: (70.0, 70.0), OPTION_A: (50.0, 60.0), OPTION_C: (35.0, 40.0)}


def points(label: str, sizes: Sequence[float], ranges: Sequence[tuple[float, float]]) -> Points:
    """A mark in the middle of each range, on a logarithmic axis."""
    middle = [(low * high) ** 0.5 for low, high in ranges]
    return Points(label, sizes, middle, *zip(*ranges, strict=True))


def by_size() -> Picture:
    """Perplexity per word, by parameters; converted by the tokens per word of the test text."""
    sizes = [sized(preset).parameters for preset in CLAIMED]
    converted = [(quoted.per_word(low)[0], quoted.per_word(high)[1]) for low, high in CLAIMED.values()]
    on_103 = [one for one in quoted.ALL if "WikiText-2" not in one.name and one.parameters]
    series = [
        points("the review, read as per word", sizes, list(CLAIMED.values())),
        points("the review, read as per token", sizes, converted),
    ]
    for unit, label in ((PER_WORD, "published per word"), (PER_TOKEN, "published per token, converted")):
        chosen = [one for one in on_103 if one.unit == unit]
        series.append(points(label, [one.parameters for one in chosen], [one.per_word() for one in chosen]))
    epochs = ", ".join(one.name.split(", ")[1].removesuffix(" epochs") for one in quoted.FROM_SCRATCH)
    sources = "; ".join(dict.fromkeys(f"{one.source}" for one in on_103))
    ratios = " to ".join(f"{n / quoted.TEST_WORDS:.3f}" for n in (quoted.TEST_TOKENS_RAW, quoted.TEST_TOKENS))
    return chart(
        series,
        xlabel="parameters, all of them",
        ylabel="perplexity per word",
        title="Size and perplexity on WikiText-103",
        logx=True,
        logy=True,
        note=f"Bars: the review's ranges, and {ratios} GPT-2 tokens a word ({quoted.COUNTED}). "
        f"The log's, from above: after {epochs} epochs. Published: {sources}.",
        alt="; ".join(
            f"{preset} {low:g} to {high:g} is {a:.0f} to {b:.0f} per word if it is per token"
            for (preset, (low, high)), (a, b) in zip(CLAIMED.items(), converted, strict=True)
        )
        + ".",
    )
