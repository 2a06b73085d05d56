"""A row of the claims table, and the rules by which a number gives its verdict."""

from __future__ import annotations

from dataclasses import dataclass

from ..results.causes import Difference
from .quoted import per_token, per_word

HOLDS, UNIT_ERROR, DOES_NOT_HOLD, NOT_TESTED = "holds", "unit error", "does not hold", "not tested"
VERDICTS = (HOLDS, UNIT_ERROR, DOES_NOT_HOLD, NOT_TESTED)
COLUMNS = ("claim", "source", "measured", "unit", "verdict", "command")
TOLERANCE = 0.05  # a count that is claimed may be off by so much
MATTERS = 0.05  # nats: a twentieth of perplexity; what surely costs less makes no difference


@dataclass(frozen=True)
class Claim:
    """claim: the review's, in its words where they are short. source: where in the review. measured: what arithmetic,
    literature or runs say. unit: of the numbers that decide. verdict: one of VERDICTS. command: prints them.

    Raises ValueError for another verdict and for a cell that is empty.
    """

    claim: str
    source: str
    measured: str
    unit: str
    verdict: str
    command: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict is {self.verdict!r}; it is one of {', '.join(VERDICTS)}.")
        if empty := [name for name in COLUMNS if not getattr(self, name).strip()]:
            raise ValueError(f"{empty[0]} of the claim {self.claim!r} is empty; every cell says something.")


def counted(value: float, low: float, high: float | None = None) -> str:
    """A count holds within TOLERANCE of what is claimed, one number or a range."""
    high = low if high is None else high
    return HOLDS if low * (1 - TOLERANCE) <= value <= high * (1 + TOLERANCE) else DOES_NOT_HOLD


def in_either(claimed: float, values: dict[str, float]) -> str:
    """A count that the claim does not say of what: it holds, or holds of one kind alone (a unit error), or of none."""
    found = {counted(value, claimed) for value in values.values()}
    return found.pop() if len(found) == 1 else UNIT_ERROR


def in_both_units(claimed: tuple[float, float], token: tuple[float, float], word: tuple[float, float]) -> str:
    """A perplexity that the claim does not say of what, against one that is known per token and per word.

    In the claimed range by both: holds. By one alone: a unit error, for a reader cannot know which. By none: does not
    hold. token, word: lowest and highest.
    """
    inside = [low <= claimed[1] and claimed[0] <= high for low, high in (token, word)]
    return HOLDS if all(inside) else UNIT_ERROR if any(inside) else DOES_NOT_HOLD


def from_token(claimed: tuple[float, float], perplexity: float) -> str:
    """in_both_units, of a perplexity that was measured per token of the WikiText test text."""
    return in_both_units(claimed, (perplexity, perplexity), per_word(perplexity))


def from_word(claimed: tuple[float, float], perplexity: float) -> str:
    return in_both_units(claimed, per_token(perplexity), (perplexity, perplexity))


def costs(found: Difference | None) -> str:
    """The claim that an arm has a higher loss than its reference.

    Above by more than chance: holds. Below by more than chance, or surely less than MATTERS above: does not hold.
    Otherwise, and with one seed or none: not tested, for the seeds do not tell.
    """
    if found is None or found.low is None:
        return NOT_TESTED
    if found.low > 0:
        return HOLDS
    return DOES_NOT_HOLD if found.high < MATTERS else NOT_TESTED


def gains(found: Difference | None) -> str:
    """The claim that an arm has a lower loss than its reference, by the same rule."""
    if found is None or found.low is None:
        return NOT_TESTED
    return costs(Difference(-found.mean, -found.high, -found.low, found.seeds))
