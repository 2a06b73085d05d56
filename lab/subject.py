"""What is under test, and how to call it: a model and, where given, its batch, collate, generate, evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .calling import (
    Missing,
    call,
    default_generate,
    default_incremental,
    find_logits,
    find_loss,
    parameters_of,
    replaced,
    tensors_of,
)
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


KINDS = ("causal_lm", "seq2seq", "encoder")


@dataclass
class Subject:
    """A model and what is known about it. Everything but the model may be left out: checks that need it are skipped.

    model: any nn.Module. batch: what one training step is fed, a mapping (by keyword) or a tuple (by position).
    kind: "causal_lm", "seq2seq" or "encoder". forward(model, batch) -> logits (B, T, V). loss(model, batch) -> ().
    generate(model, batch) -> ids, greedy: prompt and continuation, or the decoder's ids; or a generator of them.
    incremental(model, batch) -> logits (B, T, V), token by token through the cache. evaluate(model): the user's own.
    collate(examples) -> batch, with raw examples. streams: {"source" | "target": (ids key, mask key or None)}; a key is
    a name, or an index where the batch is a tuple. Masks may be True = attend, True = blocked or additive.

    build() -> (model, optimizer, scheduler or None), a fresh set for the checks that step; train_step(model, optimizer,
    scheduler, micro_batches): one update over a list of batches. optimizer, scheduler: those in use, of `model`.
    checkpoint: what was saved for the model, a file or a folder; load(path) -> model rebuilds it.

    The plan of the training: rates, the learning rate of each step; lengths, the tokens of each document or row, before
    any is cut; packed, whether they are packed into full blocks (True) or cut at max_seq_len (False); train_tokens, the
    distinct target tokens of the training data; step_tokens, the tokens of one step. tied: whether the head shares the
    embedding's weight; None asks the model's config.
    """

    model: nn.Module
    batch: Mapping[str, Any] | Sequence[Any] | None = None
    kind: str | None = None
    forward: Callable[[nn.Module, Any], Tensor] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    generate: Callable[[nn.Module, Any], Any] | None = None
    evaluate: Callable[[nn.Module], Any] | None = None
    incremental: Callable[[nn.Module, Any], Tensor] | None = None
    collate: Callable[[Any], Any] | None = None
    examples: Any = None
    build: Callable[[], tuple[nn.Module, Any, Any]] | None = None
    train_step: Callable[[nn.Module, Any, Any, list[Any]], Any] | None = None
    optimizer: Any = None
    scheduler: Any = None
    checkpoint: Any = None
    load: Callable[[Any], nn.Module] | None = None
    streams: dict[str, tuple[str | int, str | int | None]] | None = None
    labels_key: str | int | None = None
    pad_id: int | None = None
    eos_id: int | None = None
    ignore_index: int | None = None
    vocab_size: int | None = None
    max_seq_len: int | None = None
    tied: bool | None = None
    rates: Sequence[float] | None = None
    lengths: Sequence[int] | None = None
    packed: bool | None = None
    train_tokens: int | None = None
    step_tokens: int | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise TypeError(f"model is a {type(self.model).__name__}; give a torch.nn.Module.")
        self.model = getattr(self.model, "_orig_mod", self.model)  # torch.compile's; each new shape would be compiled
        if any(tensor.is_meta for tensor in (*self.model.parameters(), *self.model.buffers())):
            raise ValueError("the model is on the meta device and has no weights; load or initialise it on another.")
        if self.batch is None and self.collate is not None and self.examples is not None:
            self.batch = self.collate(self.examples)
        if isinstance(self.batch, Tensor):
            self.batch = (self.batch,)
        if self.batch is not None and not isinstance(self.batch, Mapping | tuple | list):
            raise TypeError(
                f"batch is a {type(self.batch).__name__}; give a mapping or a tuple, as the model is called."
            )
        self.name = self.name or type(self.model).__name__
        self.add_decoder_ids()
        keys = self.keys()
        tensors = [] if self.batch is None else list(tensors_of(self.batch))
        if self.labels_key is None:
            second = 1 if self.is_tuple(2) and 1 in tensors else None
            self.labels_key = next((k for k in LABELS if k in tensors), second)
        if self.streams is None:
            self.streams = self.find_streams(tensors)
        for ids, mask in self.streams.values():
            for key in (ids, mask):
                if key is not None and self.batch is not None and key not in keys:
                    raise ValueError(f"streams names {key!r}, which the batch lacks; its keys are {keys}.")
        if self.kind is None:
            self.kind = self.find_kind()
        elif self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it is one of {', '.join(KINDS)}.")
        self.check_plan()
        config = getattr(self.model, "config", None)
        for name, theirs in CONFIG.items():
            if getattr(self, name) is None:
                found = (getattr(config, key, None) for key in theirs)
                # Some configs write -1 for none.
                setattr(self, name, next((value for value in found if isinstance(value, int) and value >= 0), None))
        if self.ignore_index is None:
            # nanoGPT and others write -1. No valid label is negative, so any negative label is one that is ignored.
            labels = self.labels() if self.batch is not None else None
            lowest = int(labels.min()) if isinstance(labels, Tensor) and labels.numel() else 0
            self.ignore_index = lowest if lowest < 0 else IGNORE_INDEX

    def add_decoder_ids(self) -> None:
        """Where the model makes its decoder inputs of the labels, have it done here: then they can be changed."""
        prepare = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if prepare is None or not isinstance(self.batch, Mapping) or "labels" not in self.batch:
            return
        if not any(key in self.batch for key in DECODER):
            self.batch = {**self.batch, "decoder_input_ids": prepare(self.batch["labels"])}

    def find_kind(self) -> str:
        """By what the batch holds, what the forward takes, and what a Hugging Face config says."""
        config = getattr(self.model, "config", None)
        if "source" in self.streams or getattr(config, "is_encoder_decoder", False) or self.takes_decoder_ids():
            return "seq2seq"
        if hasattr(self.model, "can_generate") and not self.model.can_generate():
            return "encoder"
        labels, ids = self.labels(), self.ids("target") if self.batch is not None and self.streams else None
        if labels is None or ids is None:
            return "causal_lm"
        if labels.shape != ids.shape:
            return "encoder"  # one label a row
        # A masked language model is asked for a few positions, at which its input holds neither the token nor the last.
        counts = labels >= 0
        ahead, here = (labels[:, :-1] == ids[:, 1:])[counts[:, :-1]], (labels == ids)[counts]
        few = 0 < int(counts.sum()) < 0.5 * counts.numel()
        return "encoder" if few and not ahead.float().mean() > 0.2 and not here.float().mean() > 0.5 else "causal_lm"

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
        return self.batch is None and any(key in parameters_of(self.model) for key in DECODER)

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
            names = {"target": next((k for k in CAUSAL if k in keys), 0 if 0 in keys else None)}
        taken: set[Any] = set()
        streams = {}
        for stream, ids in names.items():
            if ids is None:
                continue
            # A mask over queries and keys is another thing: see Probe.square_masks.
            like = tensors_of(self.batch)
            fits = [k for k in MASKS[stream] if ids in like and k in like and like[k].shape == like[ids].shape]
            mask = next((k for k in fits if k not in taken), None)
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
            real = (ids != self.pad_id) & (ids != self.ignore_index)  # a label left over from padding is padding
            if stream == "target" and self.kind == "seq2seq" and bool((ids[:, 0] == self.pad_id).all()):
                real[:, 0] = True  # T5 and others start every row with the padding id
            return real
        if mask is None or mask.shape != ids.shape:
            return torch.ones_like(ids, dtype=torch.bool)
        # Without a pad id the mask alone tells, and most of a batch is not padding.
        often = mask == mask.flatten().mode().values
        return often if not mask.is_floating_point() else mask >= 0

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(B, T, V): `forward`, or what the model's output holds. Raises Missing where none is to be found."""
        if self.forward is not None:
            return self.forward(model, batch)
        found = find_logits(call(model, batch))
        length = self.length(batch)
        if found is None or (length not in (None, 1) and found.dim() == 3 and found.size(1) == 1):
            # Some give logits only without targets, others those of the last position alone unless given targets.
            other = find_logits(call(model, self.with_or_without_labels(batch)))
            found = found if other is None else other
        if found is None or found.dim() != 3:
            raise Missing("no logits (B, T, V) in the model's output: give forward=lambda model, batch: logits")
        if length is not None and found.size(1) == 1 < length:
            raise Missing("logits of the last position alone: give forward=lambda model, batch: logits of all")
        return found

    def length(self, batch: Any) -> int | None:
        ids = batch[self.streams["target"][0]] if "target" in self.streams else None
        return ids.size(1) if isinstance(ids, Tensor) and ids.dim() == 2 else None

    def with_or_without_labels(self, batch: Any) -> Any:
        """The batch without its labels; where it has none, with its ids in their place."""
        named = isinstance(batch, Mapping)
        if self.labels_key is not None and self.labels_key in (batch if named else range(len(batch))):
            if named:
                return {key: value for key, value in batch.items() if key != self.labels_key}
            return tuple(value for i, value in enumerate(batch) if i != self.labels_key)
        if "target" not in self.streams:
            return batch
        ids = batch[self.streams["target"][0]]
        name = next((name for name in LABELS if name in parameters_of(self.model)), None)
        if name is None:
            return batch
        if named:
            return {**batch, name: ids}
        return (*batch, ids) if list(parameters_of(self.model))[len(batch) :][:1] == [name] else batch

    def loss_of(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss (): `loss`, or what the model's output holds. Raises Missing where there is none."""
        if self.loss is not None:
            return self.loss(model, batch)
        if self.labels_key is None:
            raise Missing("the batch has no labels by a usual name: give loss=lambda model, batch: scalar")
        found = find_loss(call(model, batch))
        if found is None:
            raise Missing("no loss in the model's output: give loss=lambda model, batch: scalar")
        return found

    def generated(self, model: nn.Module, batch: Any, new: int = 4) -> Any:
        """What `generate` gives, or the model's own method, greedy, `new` tokens. Raises Missing without either."""
        return default_generate(model, batch, self, new) if self.generate is None else self.generate(model, batch)

    def can_generate(self) -> bool:
        return self.generate is not None or hasattr(self.model, "generate")

    def step_by_step(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits (B, T, V) token by token through the cache. Raises Missing where it is not known how."""
        if self.incremental is not None:
            return self.incremental(model, batch)
        return default_incremental(model, batch, self)

    def few_rows(self, rows: int = 2) -> Any:
        """The first rows of the user's batch. Raises Missing without a batch."""
        if self.batch is None:
            raise Missing("needs a batch: give batch=")
        count = {len(t) for t in tensors_of(self.batch).values() if t.dim()}
        size = max(count, default=0)
        if size <= rows or len(count - {size}) > 1:
            return self.batch
        cut = {k: t[:rows] for k, t in tensors_of(self.batch).items() if t.dim() and len(t) == size}
        return replaced(self.batch, cut)

    def replace(self, **changes: Any) -> Subject:
        return dataclasses.replace(self, **changes)
