"""Labels: which positions count in the loss, what the decoder is fed, and the collation of padded pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""A label that the loss skips; `torch.nn.functional.cross_entropy` has the same default. Never a valid input id."""


def shift_right(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """What the decoder is fed to predict `labels`: each label's predecessor, `start_id` before the first.

    labels (B, T), IGNORE_INDEX where the loss looks away -> decoder_input_ids (B, T), which holds `pad_id` there:
    IGNORE_INDEX is for the loss alone, and no embedding table has such a row. Left, right and inner padding are kept.
    """
    real = labels != IGNORE_INDEX
    tokens = labels.masked_fill(~real, pad_id)
    shifted = tokens.roll(1, dims=1)
    shifted[:, 0] = pad_id
    first = real & (real.cumsum(dim=1) == 1)
    return shifted.masked_fill(first, start_id)


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right") -> Tensor:
    """Rows of unequal length -> (B, longest), filled with `value` on that side."""
    if not rows:
        raise ValueError("the batch has no row; give at least one sequence.")
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; it is 'left' or 'right'.")
    out = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.long)
    for b, row in enumerate(rows):
        ids = torch.as_tensor(row, dtype=torch.long)
        if side == "right":
            out[b, : len(row)] = ids
        else:
            out[b, out.size(1) - len(row) :] = ids
    return out


def collate_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """(source ids, target ids) pairs -> one batch: input_ids (B, S), decoder_input_ids (B, T), labels (B, T).

    Source and target end in `eos_id`, so that the model learns to stop; labels are IGNORE_INDEX on padding.
    Raises ValueError for a batch with no row, and for one in which no pair holds a token.
    """
    if pairs and not any(len(source) or len(target) for source, target in pairs):
        raise ValueError(f"a batch of all padding: none of its {len(pairs)} pairs holds a token; drop empty pairs.")
    labels = pad([[*target, eos_id] for _, target in pairs], IGNORE_INDEX, side)
    return {
        "input_ids": pad([[*source, eos_id] for source, _ in pairs], pad_id, side),
        "decoder_input_ids": shift_right(labels, bos_id, pad_id),
        "labels": labels,
    }


def collate_texts(
    texts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """Rows of ids -> one batch for a language model: input_ids (B, T) and labels (B, T), already one ahead."""
    labels = pad([[*text, eos_id] for text in texts], IGNORE_INDEX, side)
    return {"input_ids": shift_right(labels, bos_id, pad_id), "labels": labels}


def count_targets(labels: Tensor) -> int:
    """How many positions the loss counts. Raises ValueError where there is none: such a batch teaches nothing."""
    count = int((labels != IGNORE_INDEX).sum())
    if not count:
        shape = tuple(labels.shape)
        raise ValueError(f"every label of this {shape} batch is {IGNORE_INDEX} (ignored); drop it, or label a token.")
    return count


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean negative log likelihood in nats over the labels that count: logits (B, T, V), labels (B, T) -> ().

    Zero, not NaN, where none counts: a NaN would spoil every average that the loss enters. label_smoothing: the share
    of each target that is spread over the whole vocabulary (Szegedy et al. 2016, 7).
    """
    if logits.dim() != 3 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}: need (B, T, V), (B, T)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # half precision is too coarse
    how = {"ignore_index": IGNORE_INDEX, "reduction": "sum", "label_smoothing": label_smoothing}
    total = F.cross_entropy(logits, labels.flatten(), **how)
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)
