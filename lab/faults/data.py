"""Faults in the batch and in the tables that read it: rows without an end, cut rows, much padding, too few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..labels import IGNORE_INDEX, pad, shift_right
from .base import fault

LESSON = "08_diagnose_your_model"
TABLE = {"caught_by": "embedding-range", "lesson": LESSON, "on": "language model"}


@fault("token-table-one-short", of="lab.blocks:token_table", **TABLE)
def one_row_short(config: ModelConfig) -> nn.Embedding:
    """the embedding has a row less than the tokenizer has ids: the token that was added last crashes it"""
    return nn.Embedding(config.vocab_size - 1, config.d_model)


@fault("position-table-short", of="lab.blocks:position_table", **TABLE)
def half_the_positions(config: ModelConfig) -> nn.Embedding:
    """max_seq_len was doubled, and the table of positions was not: rows of more than half of it crash"""
    return nn.Embedding(config.max_seq_len // 2, config.d_model)


@fault(
    "eos-not-appended",
    of="lab.labels:collate_texts",
    caught_by="eos-missing",
    lesson="05_never_stops",
    on="language model",
)
def texts_without_eos(
    texts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """no row ends in EOS, so the model never learns to stop"""
    labels = pad([[*text] for text in texts], IGNORE_INDEX, side)
    return {"input_ids": shift_right(labels, bos_id, pad_id), "labels": labels}


@fault("eos-cut-off", of="lab.labels:collate_pairs", caught_by="truncation", lesson="05_never_stops")
def cut_after_eos(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """rows are cut after EOS was appended: a long target loses its EOS with its end"""
    if pairs and not any(len(source) or len(target) for source, target in pairs):
        raise ValueError(f"a batch of all padding: none of its {len(pairs)} pairs holds a token; drop empty pairs.")
    labels = pad([[*target, eos_id][:4] for _, target in pairs], IGNORE_INDEX, side)
    return {
        "input_ids": pad([[*source, eos_id] for source, _ in pairs], pad_id, side),
        "decoder_input_ids": shift_right(labels, bos_id, pad_id),
        "labels": labels,
    }


@fault(
    "padded-to-the-context",
    of="lab.labels:pad",
    caught_by="padding-waste",
    lesson="06_why_perplexity_70",
    on="language model",
)
def pad_to_64(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right") -> Tensor:
    """every row is padded to the longest that there may be, and not to the longest of its batch"""
    if not rows:
        raise ValueError("the batch has no row; give at least one sequence.")
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; it is 'left' or 'right'.")
    out = torch.full((len(rows), 64), value, dtype=torch.long)
    for b, row in enumerate(rows):
        ids = torch.as_tensor(row, dtype=torch.long)
        if side == "right":
            out[b, : len(row)] = ids
        else:
            out[b, out.size(1) - len(row) :] = ids
    return out
