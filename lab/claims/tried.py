"""Claims that a few lines of code answer at once: what two bugs change, and what a checkpoint needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import torch

from .. import faults, labels
from ..config import ModelConfig
from ..language_model import LanguageModel
from .arithmetic import SELF
from .base import DOES_NOT_HOLD, HOLDS, Claim

IDS = {"pad_id": 1, "bos_id": 0, "eos_id": 2}
CONFIG = ModelConfig(64, d_model=32, num_heads=2, num_layers=2, d_ff=128, max_seq_len=16, dropout=0.0, **IDS)


def model(**changes: Any) -> LanguageModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return LanguageModel(CONFIG.replace(**changes)).eval()


def same_training(side: Literal["left", "right"]) -> bool:
    """Whether loss and every gradient of a padded batch are the same, to the last bit, with the mask of padding and
    without it."""
    found, batch = [], labels.collate_texts([[5, 6, 7, 8, 9], [10, 11]], side=side, **IDS)
    for context in (nullcontext(), faults.get("attends-to-pads").inject()):
        subject = model()
        with context:
            loss = subject(**batch).loss
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in subject.parameters() if p.grad is not None)])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def heads_are_in_the_weights() -> tuple[int, bool]:
    """(tensors of a model that load into one of twice the heads, whether the logits are then the same)."""
    one, other = model(num_heads=2), model(num_heads=4)
    weights = one.state_dict()
    other.load_state_dict(weights)  # strict: every name and shape fits
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        return len(weights), torch.allclose(one(ids).logits, other(ids).logits, atol=1e-4)


def rows() -> Iterator[Claim]:
    right, left = same_training("right"), same_training("left")
    same = {True: "the same to the last bit", False: "different"}
    yield Claim(
        "The padding mask bug costs perplexity",
        "Closing summary 1",
        f"with the mask and without it, loss and gradients of a batch padded at the right are {same[right]}; padded at "
        f"the left they are {same[left]}. Behind a causal mask, with right padding and ignored labels, it costs "
        "nothing",
        "loss and gradients of one batch",
        DOES_NOT_HOLD if right else HOLDS,
        SELF.format("The padding mask"),
    )
    tensors, alike = heads_are_in_the_weights()
    yield Claim(
        "Save the model config in checkpoints (currently missing)",
        "Other improvements 5",
        f"the {tensors} tensors of a model with 2 heads load without an error into one with 4, and the logits are "
        f"{'the same' if alike else 'others'}: the number of heads is not in the weights. No loss changes by it, so it "
        "is no cause of 70",
        "logits of one batch",
        DOES_NOT_HOLD if alike else HOLDS,
        SELF.format("Save the model config"),
    )
