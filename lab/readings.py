"""What is read off a running model: what depends on what, what the loss teaches, and how attention was computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .report import Where


@dataclass
class Dependency:
    """How far changing one token moves each position: by[j, t] is the largest change of a logit at t (T), float.

    by: (T or S, T), changes of the token at j. noise: the same between two rows that are equal. scale: the largest
    change of all. A change counts where it is above `floor`.
    """

    by: Tensor
    noise: float
    scale: float
    relative: float

    @property
    def floor(self) -> float:
        return max(self.relative * self.scale, 10 * self.noise)

    def seen(self) -> Tensor:
        """(T or S, T): whether position t depends on token j."""
        return self.by > self.floor


@dataclass
class Teaching:
    """What the loss trains on one batch, read off its gradient g (B, T, V) with respect to the logits (B, T, V).

    counts (B, T): where g is not zero. targets (B, T): the token that the loss pulls up there; -1 where it does none.
    ids (B, T): what the (decoder's) model was fed.
    """

    logits: Tensor
    gradient: Tensor
    loss: float
    ids: Tensor

    @property
    def counts(self) -> Tensor:
        return self.gradient.abs().amax(-1) > 0

    @property
    def targets(self) -> Tensor:
        least = self.gradient.min(-1)
        return least.indices.masked_fill(~(least.values < 0), -1)


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: the last projection, a product of two projections (scores), or weights of values.

    kind: "projection", "scores", "weights" or "out". before, after: the numbers that multiplied it before and since the
    product. clear: False where something other than a number scaled it, such as a norm. chosen: whether a number did.
    float32: whether it was cast to that. blocked: the masks put on the scores, True = blocked, each with how.
    attention: what it belongs to, from the product on.
    """

    kind: str
    where: Where
    before: float = 1.0
    after: float = 1.0
    width: int = 0
    clear: bool = True
    chosen: bool = False
    float32: bool = False
    blocked: tuple[tuple[str, Tensor], ...] = ()
    attention: Attention | None = None


@dataclass
class Attention:
    """One softmax over scores, or one call of scaled_dot_product_attention.

    module: the name of the innermost module around it. width: the size over which query and key are contracted.
    before, after: the numbers that the product was multiplied by, before it (as in a scaled query) and after it.
    clear: whether these are all that scaled it. chosen: whether a scale was written, be it 1. float32: whether query
    and key were cast to that. norms: of query and key, without `before`. blocked: (how, mask) of each mask on the
    scores, True = blocked. query, key, value: as given, where seen. weights: after the softmax, over axis dim. used,
    axis: what meets the values, and the axis that is summed then. out: what comes of it. merged: what the next
    projection is given. made: where query, key and value were last worked on.
    """

    module: str
    where: Where
    fused: bool = False
    width: int = 0
    before: float = 1.0
    after: float = 1.0
    clear: bool = True
    chosen: bool = False
    float32: bool = False
    norms: tuple[float, float] = (0.0, 0.0)
    blocked: tuple[tuple[str, Tensor], ...] = ()
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    weights: Tensor | None = None
    dim: int = -1
    used: Tensor | None = None
    axis: int = -1
    out: Tensor | None = None
    merged: Tensor | None = None
    merged_where: Where | None = None
    made: dict[str, Where] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self.before * self.after
