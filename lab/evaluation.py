"""Mean loss over batches, each target token counting once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .labels import count_targets


@dataclass(frozen=True)
class Evaluation:
    """loss: mean negative log likelihood per target token, in nats; tokens: how many targets it is the mean of."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Per token: comparable only under the same tokenizer."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Evaluation:
    """The loss of `model(**batch).loss` over all batches, in whatever mode the model is in.

    Batches of unequal size count by their tokens. Raises ValueError without a batch, and for one without a target.
    """
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for batch in batches:
        count = count_targets(batch["labels"])
        loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
        total += float(loss) * count
        tokens += count
    if not tokens:
        raise ValueError("there is no batch to evaluate on; the data is empty or its iterator is used up.")
    return Evaluation(total / tokens, tokens)
