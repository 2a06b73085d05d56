"""One loss in every unit: nats and perplexity per token, perplexity per word, bits per byte.

Perplexity is a unit, not a number: per token it depends on the tokenizer, and only per word or per byte can models
with different tokenizers be compared.
"""

from __future__ import annotations

import math

from .config import unknown

NATS, PER_TOKEN, PER_WORD, PER_BYTE = (
    "nats per token",
    "perplexity per token",
    "perplexity per word",
    "bits per byte",
)
UNITS = (NATS, PER_TOKEN, PER_WORD, PER_BYTE)


def convert(
    value: float,
    unit: str,
    to: str,
    *,
    tokens: float | None = None,
    words: float | None = None,
    size: float | None = None,
) -> float:
    """A loss in another unit: the same negative log likelihood of the same text, shared out otherwise.

    tokens, words, size (bytes of UTF-8): of the text that was evaluated, or any numbers in the same proportion. The
    words of WikiText count one end-of-line a line. What neither unit needs may be left out.

    >>> convert(70, "perplexity per token", "perplexity per word", tokens=283_000, words=245_569)  # doctest: +ELLIPSIS
    133.76...

    Raises ValueError for a unit that is none of UNITS, a value that no model can have, and a count that is missing.
    """
    for name in (unit, to):
        if name not in UNITS:
            raise unknown("unit", name, list(UNITS))
    least = 1 if unit in (PER_TOKEN, PER_WORD) else 0
    if not least <= value < math.inf:
        raise ValueError(f"{value} {unit} is not possible; it must be {least} or more, and finite.")
    if {unit, to} <= {NATS, PER_TOKEN}:
        share = 1.0
    else:
        share = _parts(unit, tokens, words, size) / _parts(to, tokens, words, size)
    each = (math.log(value) if least else value) * share
    if to in (NATS, PER_BYTE):
        return each
    return math.exp(each) if each < 700 else math.inf


def _parts(unit: str, tokens: float | None, words: float | None, size: float | None) -> float:
    """Nats of the whole text in one nat, or one bit, for each part that the unit counts by."""
    name, count = {PER_WORD: ("words", words), PER_BYTE: ("size", size)}.get(unit, ("tokens", tokens))
    if count is None:
        raise ValueError(f"{unit} needs the {'bytes' if name == 'size' else name} of the text: give {name}=.")
    if not 0 < count < math.inf:
        raise ValueError(f"{name} is {count}; a text has a number above 0 of them.")
    return count * math.log(2) if unit == PER_BYTE else count
