"""Faults in what the loss trains: the wrong token, padding, no EOS, or another function than the cross entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..labels import IGNORE_INDEX, cross_entropy, pad, shift_right
from ..loss import linear_cross_entropy
from .base import fault

LESSON = "08_diagnose_your_model"
ALIGNMENT = {"caught_by": "target-alignment", "lesson": LESSON}
LANGUAGE_MODEL, TRANSFORMER = "lab.language_model:head_and_loss", "lab.transformer:head_and_loss"
DIVIDED = {"accumulation-scale": "micro-batches are weighed by their labels, and the loss divides by another number"}
CROSS_ENTROPY = {"of": "lab.loss:cross_entropy", "lesson": LESSON}


@fault("shifted-twice", of=TRANSFORMER)
@fault("shifted-twice", of=LANGUAGE_MODEL, **ALIGNMENT, on="language model", also=DIVIDED)
def shifted_again(
    head: nn.Linear, hidden: Tensor, labels: Tensor | None, config: ModelConfig, training: bool
) -> tuple[Tensor | None, Tensor | None]:
    """the labels are one ahead in the batch, and the loss shifts them again: the next token itself is never learned"""
    smoothing = config.label_smoothing if training else 0.0
    if labels is None:
        return head(hidden), None
    if config.loss_chunk is not None:
        return None, linear_cross_entropy(hidden, head, labels, config.loss_chunk, smoothing)
    logits = head(hidden)
    return logits, cross_entropy(logits[:, :-1], labels[:, 1:], smoothing)


@fault("shifted-twice-flattened", of=LANGUAGE_MODEL, **ALIGNMENT, on="language model", also=DIVIDED)
def shifted_across_rows(
    head: nn.Linear, hidden: Tensor, labels: Tensor | None, config: ModelConfig, training: bool
) -> tuple[Tensor | None, Tensor | None]:
    """the loss shifts labels that are ahead already, and flattened: a row's end is trained on the next row's start"""
    smoothing = config.label_smoothing if training else 0.0
    if labels is None:
        return head(hidden), None
    if config.loss_chunk is not None:
        return None, linear_cross_entropy(hidden, head, labels, config.loss_chunk, smoothing)
    logits = head(hidden)
    return logits, cross_entropy(logits.flatten(0, 1)[None, :-1], labels.flatten()[None, 1:], smoothing)


@fault("not-shifted", of="lab.labels:collate_texts", **ALIGNMENT, on="language model")
def texts_not_shifted(
    texts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """labels are the inputs, for a model that does not shift them: it learns to copy, with a loss of almost nothing"""
    labels = pad([[*text, eos_id] for text in texts], IGNORE_INDEX, side)
    return {"input_ids": labels.masked_fill(labels == IGNORE_INDEX, pad_id), "labels": labels}


@fault("decoder-fed-its-labels", of="lab.labels:collate_pairs", **ALIGNMENT)
def pairs_not_shifted(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """the decoder is fed the tokens that it has to predict at the same positions: it learns to copy"""
    if pairs and not any(len(source) or len(target) for source, target in pairs):
        raise ValueError(f"a batch of all padding: none of its {len(pairs)} pairs holds a token; drop empty pairs.")
    labels = pad([[*target, eos_id] for _, target in pairs], IGNORE_INDEX, side)
    return {
        "input_ids": pad([[*source, eos_id] for source, _ in pairs], pad_id, side),
        "decoder_input_ids": labels.masked_fill(labels == IGNORE_INDEX, pad_id),
        "labels": labels,
    }


@fault("shifted-the-wrong-way", of="lab.labels:shift_right", **ALIGNMENT)
def shift_left(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    """decoder inputs are rolled to the left: each position is fed the token after the one that it has to predict"""
    real = labels != IGNORE_INDEX
    tokens = labels.masked_fill(~real, pad_id)
    shifted = tokens.roll(-1, dims=1)
    shifted[:, -1] = start_id
    return shifted.masked_fill(~real, pad_id)


@fault(
    "pad-is-eos",
    of="lab.labels:collate_texts",
    caught_by="eos-never-a-target",
    lesson="05_never_stops",
    on="language model",
)
def texts_padded_with_eos(
    texts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """rows are padded with EOS, and wherever a label is EOS it is ignored: the real ones go with the padding"""
    labels = pad([[*text, eos_id] for text in texts], eos_id, side)
    return {
        "input_ids": shift_right(labels, bos_id, pad_id),
        "labels": labels.masked_fill(labels == eos_id, IGNORE_INDEX),
    }


@fault(
    "pads-are-labels", of="lab.labels:collate_texts", caught_by="loss-counts-pads", lesson=LESSON, on="language model"
)
def texts_with_pads_as_labels(
    texts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, Tensor]:
    """labels of padding are pad_id and not ignored: predicting padding is part of the loss, and the easiest part"""
    labels = pad([[*text, eos_id] for text in texts], IGNORE_INDEX, side)
    return {
        "input_ids": shift_right(labels, bos_id, pad_id),
        "labels": labels.masked_fill(labels == IGNORE_INDEX, pad_id),
    }


@fault("mean-over-all-positions", **CROSS_ENTROPY, caught_by="loss-counts-pads", also=DIVIDED)
def divided_by_all(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """the summed loss is divided by all positions, padding included: the more padding, the smaller the step"""
    if logits.dim() != 3 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}: need (B, T, V), (B, T)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # half precision is too coarse
    how = {"ignore_index": IGNORE_INDEX, "reduction": "sum", "label_smoothing": label_smoothing}
    total = F.cross_entropy(logits, labels.flatten(), **how)
    return total / labels.numel()


@fault("mean-over-no-label", **CROSS_ENTROPY, caught_by="all-ignored-batch")
def plain_mean(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """the mean over the labels that count is 0 / 0 where none does: one such batch makes every weight NaN"""
    if logits.dim() != 3 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}: need (B, T, V), (B, T)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # half precision is too coarse
    how = {"ignore_index": IGNORE_INDEX, "reduction": "sum", "label_smoothing": label_smoothing}
    total = F.cross_entropy(logits, labels.flatten(), **how)
    return total / (labels != IGNORE_INDEX).sum()


@fault("softmax-before-the-loss", **CROSS_ENTROPY, caught_by="loss-is-cross-entropy")
def of_probabilities(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """cross_entropy is given probabilities and takes the softmax of them again: the loss cannot come far below ln V"""
    if logits.dim() != 3 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}: need (B, T, V), (B, T)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # half precision is too coarse
    how = {"ignore_index": IGNORE_INDEX, "reduction": "sum", "label_smoothing": label_smoothing}
    total = F.cross_entropy(logits.softmax(-1), labels.flatten(), **how)
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


@fault("likelihood-without-log", **CROSS_ENTROPY, caught_by="loss-is-cross-entropy")
def without_logarithm(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """nll_loss is given the softmax and not its logarithm: tokens that the model holds unlikely are hardly learned"""
    if logits.dim() != 3 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}: need (B, T, V), (B, T)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # half precision is too coarse
    how = {"ignore_index": IGNORE_INDEX, "reduction": "sum"}
    total = F.nll_loss(logits.softmax(-1), labels.flatten(), **how)
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


@fault("relu-on-logits", of=LANGUAGE_MODEL, caught_by="logits-are-logits", lesson=LESSON, on="language model")
def clipped(
    head: nn.Linear, hidden: Tensor, labels: Tensor | None, config: ModelConfig, training: bool
) -> tuple[Tensor | None, Tensor | None]:
    """a ReLU follows the head: what would be below 0 is 0, and gets no gradient"""
    smoothing = config.label_smoothing if training else 0.0
    if labels is None:
        return head(hidden).relu(), None
    if config.loss_chunk is not None:
        return None, linear_cross_entropy(hidden, head, labels, config.loss_chunk, smoothing)
    logits = head(hidden).relu()
    return logits, cross_entropy(logits, labels, smoothing)


@fault("softmax-on-logits", of=LANGUAGE_MODEL, caught_by="logits-are-logits", lesson=LESSON, on="language model")
def probabilities(
    head: nn.Linear, hidden: Tensor, labels: Tensor | None, config: ModelConfig, training: bool
) -> tuple[Tensor | None, Tensor | None]:
    """the model hands on probabilities as its logits, and the loss takes the softmax of them again"""
    smoothing = config.label_smoothing if training else 0.0
    if labels is None:
        return head(hidden).softmax(-1), None
    if config.loss_chunk is not None:
        return None, linear_cross_entropy(hidden, head, labels, config.loss_chunk, smoothing)
    logits = head(hidden).softmax(-1)
    return logits, cross_entropy(logits, labels, smoothing)


@fault(
    "initialised-wide",
    of="lab.language_model:initialise",
    caught_by="initial-loss",
    lesson=LESSON,
    on="language model",
)
def deviation_of_one(model: nn.Module, config: ModelConfig) -> None:
    """embeddings start with a deviation of 1, PyTorch's default, and the head shares them: the first logits are huge"""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight"):
            nn.init.normal_(parameter, std=1.0)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
