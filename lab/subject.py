"""What is under test, and how to call it: a model and, where given, its batch, collate, generate, evaluate."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .labels import IGNORE_INDEX

# The keys that batches usually have, the more telling first.
SOURCE = ("encoder_input_ids", "input_ids", "src", "source", "src_ids")
DECODER = ("decoder_input_ids", "tgt", "target", "tgt_ids", "tgt_in", "decoder_ids")
CAUSAL = ("input_ids", "idx", "ids", "tokens", "x", "input")
LABELS = ("labels", "targets", "y", "tgt_out", "label", "target_ids")
MASKS = {
    "source": ("attention_mask", "encoder_attention_mask", "src_mask", "src_key_padding_mask"),
    "target": ("decoder_attention_mask", "attention_mask", "tgt_mask", "tgt_key_padding_mask"),
}
# What a model's config may call a number that the subject lacks.
CONFIG = {
    "pad_id": ("pad_id", "pad_token_id"),
    "eos_id": ("eos_id", "eos_token_id"),
    "vocab_size": ("vocab_size",),
    "max_seq_len": ("max_seq_len", "n_positions", "max_position_embeddings", "block_size"),
}


class Missing(Exception):  # noqa: N818 - it is a reason to skip, not an error
    """The subject lacks what a check needs; the message says which keyword to give."""


@dataclass
class Subject:
    """A model and what is known about it. Everything but the model may be left out: checks that need it are skipped.

    model: any nn.Module. batch: what one training step is fed, a mapping (by keyword) or a tuple (by position).
    kind: "causal_lm", "seq2seq" or "encoder". forward(model, batch) -> logits (B, T, V). loss(model, batch) -> ().
    generate(model, batch) -> ids, or a generator of them. evaluate(model): the user's own evaluation.
    collate(examples) -> batch, with raw examples. streams: {"source" | "target": (ids key, mask key or None)}; a key is
    a name, or an index where the batch is a tuple. Masks may be True = attend, True = blocked or additive.

    The plan of the training: rates, the learning rate of each step; lengths, the tokens of each document or row, before
    any is cut; packed, whether they are packed into full blocks (True) or cut at max_seq_len (False); train_tokens, the
    distinct target tokens of the training data; step_tokens, the tokens of one step.
    """

    model: nn.Module
    batch: Mapping[str, Any] | Sequence[Any] | None = None
    kind: str | None = None
    forward: Callable[[nn.Module, Any], Tensor] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    generate: Callable[[nn.Module, Any], Any] | None = None
    evaluate: Callable[[nn.Module], Any] | None = None
    collate: Callable[[Any], Any] | None = None
    examples: Any = None
    streams: dict[str, tuple[str | int, str | int | None]] | None = None
    labels_key: str | int | None = field(default=None)
    pad_id: int | None = None
    eos_id: int | None = None
    ignore_index: int = IGNORE_INDEX
    vocab_size: int | None = None
    max_seq_len: int | None = None
    rates: Sequence[float] | None = None
    lengths: Sequence[int] | None = None
    packed: bool | None = None
    train_tokens: int | None = None
    step_tokens: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model is a {type(self.model).__name__}; give a torch.nn.Module.")
        if self.batch is None and self.collate is not None and self.examples is not None:
            self.batch = self.collate(self.examples)
        if isinstance(self.batch, Tensor):
            self.batch = (self.batch,)
        if self.batch is not None and not isinstance(self.batch, Mapping | tuple | list):
            raise TypeError(
                f"batch is a {type(self.batch).__name__}; give a mapping or a tuple, as the model is called."
            )
        self.name = self.name or type(self.model).__name__
        keys = self.keys()
        if self.labels_key is None:
            self.labels_key = next((k for k in LABELS if k in keys), 1 if self.is_tuple(2) else None)
        if self.streams is None:
            self.streams = self.find_streams(keys)
        for ids, mask in self.streams.values():
            for key in (ids, mask):
                if key is not None and self.batch is not None and key not in keys:
                    raise ValueError(f"streams names {key!r}, which the batch lacks; its keys are {keys}.")
        if self.kind is None:
            self.kind = "seq2seq" if "source" in self.streams or self.takes_decoder_ids() else "causal_lm"
        self.check_plan()
        config = getattr(self.model, "config", None)
        for name, theirs in CONFIG.items():
            if getattr(self, name) is None:
                found = (getattr(config, key, None) for key in theirs)
                # Some configs write -1 for none.
                setattr(self, name, next((value for value in found if isinstance(value, int) and value >= 0), None))

    def check_plan(self) -> None:
        """Raises ValueError for a plan of no step, no row or no token, and for numbers that are none."""
        for name, kind in (("rates", np.float64), ("lengths", np.int64)):
            if getattr(self, name) is None:
                continue
            values = np.asarray(getattr(self, name))
            if values.ndim != 1 or not values.size or values.dtype.kind not in "iuf":
                raise ValueError(f"{name} has shape {values.shape} of {values.dtype}; give a list of numbers.")
            wrong = values[~(np.isfinite(values) & (values >= 0))]
            if wrong.size or not values.any():
                raise ValueError(f"{name} holds {wrong[0] if wrong.size else 'zeros alone'}; give numbers above 0.")
            setattr(self, name, values.astype(kind))
        for name in ("max_seq_len", "train_tokens", "step_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def takes_decoder_ids(self) -> bool:
        """Without a batch to tell: whether the model's forward has decoder ids among its arguments."""
        return self.batch is None and any(key in inspect.signature(self.model.forward).parameters for key in DECODER)

    def keys(self) -> list[str | int]:
        if self.batch is None:
            return []
        return list(self.batch) if isinstance(self.batch, Mapping) else list(range(len(self.batch)))

    def is_tuple(self, length: int) -> bool:
        return self.batch is not None and not isinstance(self.batch, Mapping) and len(self.batch) >= length

    def find_streams(self, keys: list[str | int]) -> dict[str, tuple[str | int, str | int | None]]:
        """The ids that each side is fed, by the usual names; a tuple's first is taken for a language model's input."""
        decoder = next((k for k in DECODER if k in keys), None)
        if decoder is not None:
            names = {"source": next((k for k in SOURCE if k in keys), None), "target": decoder}
        elif getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
            names = {
                "source": next((k for k in SOURCE if k in keys), None)
            }  # it makes its decoder inputs of the labels
        else:
            names = {"target": next((k for k in CAUSAL if k in keys), 0 if self.is_tuple(1) else None)}
        taken: set[Any] = set()
        streams = {}
        for stream, ids in names.items():
            if ids is None:
                continue
            mask = next((k for k in MASKS[stream] if k in keys and k not in taken), None)
            taken.add(mask)
            streams[stream] = (ids, mask)
        return streams

    def ids(self, stream: str, batch: Any = None) -> Tensor:
        """The ids of a stream, (B, T). Raises Missing where the batch has none."""
        if self.batch is None:
            raise Missing("needs a batch: give batch=")
        if stream not in self.streams:
            raise Missing(
                f"the batch has no {stream} ids by a usual name: give streams={{'{stream}': (key, mask key)}}"
            )
        return (self.batch if batch is None else batch)[self.streams[stream][0]]

    def labels(self, batch: Any = None) -> Tensor | None:
        return None if self.labels_key is None else (self.batch if batch is None else batch)[self.labels_key]

    def real(self, stream: str) -> Tensor:
        """Which positions of the user's batch hold tokens and not padding, (B, T), by pad_id, else by the mask."""
        ids, mask_key = self.ids(stream), self.streams[stream][1]
        mask = tensors_of(self.batch).get(mask_key)
        if self.pad_id is not None and bool((ids == self.pad_id).any() | (ids == self.ignore_index).any()):
            return (ids != self.pad_id) & (ids != self.ignore_index)  # a label left over from padding is padding
        if mask is None or mask.shape != ids.shape:
            return torch.ones_like(ids, dtype=torch.bool)
        # Without a pad id the mask alone tells, and most of a batch is not padding.
        often = mask == mask.flatten().mode().values
        return often if not mask.is_floating_point() else mask >= 0

    def call(self, model: nn.Module, batch: Any) -> Any:
        """The model's own output on a batch; keys that its forward does not take are left out."""
        if not isinstance(batch, Mapping):
            return model(*batch)
        parameters = inspect.signature(model.forward).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            batch = {key: value for key, value in batch.items() if key in parameters}
        return model(**batch)

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(B, T, V): `forward`, or what the model's output holds. Raises Missing where none is to be found."""
        if self.forward is not None:
            return self.forward(model, batch)
        found = find_logits(self.call(model, batch))
        if found is None:
            raise Missing("no logits (B, T, V) in the model's output: give forward=lambda model, batch: logits")
        return found

    def replace(self, **changes: Any) -> Subject:
        return dataclasses.replace(self, **changes)


def find_logits(output: Any) -> Tensor | None:
    """The tensor called `logits`, else the first floating one of three dimensions."""
    if isinstance(output, Tensor):
        return output if output.dim() == 3 and output.is_floating_point() else None
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((item for item in items if isinstance(item, Tensor) and find_logits(item) is not None), None)


def tensors_of(batch: Any) -> dict[Any, Tensor]:
    """The tensors of a batch by key."""
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return {key: value for key, value in items if isinstance(value, Tensor)}


def clone(batch: Any, device: torch.device | str | None = None) -> Any:
    """A copy of a batch whose tensors share nothing with it; on another device where one is named."""
    if isinstance(batch, Tensor):
        return batch.to(batch.device if device is None else device, copy=True)
    if isinstance(batch, Mapping):
        return {key: clone(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(clone(value, device) for value in batch)
    return batch


def attend_to(mask: Tensor, real: Tensor) -> Callable[[Tensor], Tensor]:
    """How a model spells its padding mask: from one example, a function from `real` (True = attend) to such a mask.

    mask and real are (B, T) of the same batch; which value stands at the real positions decides.
    """
    blocked = mask[~real]
    if mask.is_floating_point() and blocked.numel() and bool((blocked < -1).all()):
        return lambda real: torch.zeros(real.shape, dtype=mask.dtype).masked_fill(~real, float(blocked.min()))
    value = mask[real]
    inverted = bool((value == 0).all()) if value.numel() else False
    return lambda real: (~real if inverted else real).to(mask.dtype)
