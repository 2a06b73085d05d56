"""What a run reads: blocks of a prepared corpus, or its lines, packed or each padded to the context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import Prepared, prepare
from ..data.packed import Blocks, BlockSampler
from ..evaluation import Evaluation
from ..labels import IGNORE_INDEX, pad
from .plan import Data, Plan

EVALUATION_TOKENS = 4096  # positions of a batch that is only evaluated


@dataclass(frozen=True)
class Reading:
    """Batches of one run, and what they are made of.

    tokens: how many there are to train on. size: UTF-8 bytes of what is validated; count: its tokens.
    rows: lines of the validation, ids without EOS, where the layout is one of rows. about: for the checkpoint.
    """

    prepared: Prepared
    train: Iterable[Mapping[str, Tensor]]
    validation: Iterable[Mapping[str, Tensor]]
    tokens: int
    count: int
    size: int
    rows: list[list[int]]
    about: dict[str, Any]

    def units(self, result: Evaluation) -> dict[str, float]:
        """Perplexity per token, and bits per byte of the text that was validated."""
        bits = result.loss * self.count / (self.size * math.log(2))
        return {"perplexity": result.perplexity, "bits_per_byte": bits}


def open_prepared(data: Data, data_dir: str | None = None) -> Prepared:
    """The corpus of a run, tokenised if it is not yet; a folder or a file is taken as `prepare` takes it."""
    how = {"tokenizer": "gpt2"} if data.tokenizer == "gpt2" else {"vocab_size": data.vocab_size}
    return prepare(data.corpus, data_dir=data_dir, **how)


def read(plan: Plan, prepared: Prepared) -> Reading:
    """The batches of a run. Raises ValueError where it would read its data more often than it may."""
    data, train, context = plan.data, plan.train, plan.model["max_seq_len"]
    if train.batch_tokens < context:
        raise ValueError(f"batch_tokens of {plan.name} is {train.batch_tokens}, under its context of {context}.")
    size, seed = train.batch_tokens // context, train.seed
    eos = prepared.eos_id
    if data.layout == "articles":
        stream, _ = whole_documents(prepared, "train", data.train_tokens)
        held, text = whole_documents(prepared, "validation", data.validation_tokens)
        rows: list[list[int]] = []
    else:
        lines, _ = text_rows(prepared, "train", data.train_tokens)
        rows, text = text_rows(prepared, "validation", data.validation_tokens)
        stream, held = joined(lines, eos), joined(rows, eos)
    if data.layout == "padded":
        collate = partial(padded, context=context, eos_id=eos, cut=data.cut, eos=data.eos)
        # Shuffled without a generator of its own: the trainer seeds the global one for each epoch, and resumes so.
        loader = DataLoader(lines, batch_size=size, shuffle=True, drop_last=True, collate_fn=collate)
    else:
        loader = blocks(stream, context, size, eos, shuffle=True, seed=seed)
    if data.max_epochs is not None and plan.tokens > data.max_epochs * len(stream):
        raise ValueError(
            f"{plan.name} trains on {plan.tokens:,} tokens, and {data.corpus} has {len(stream):,} to read "
            f"{data.max_epochs:g} times; take fewer steps, a larger corpus, or set max_epochs=None."
        )
    return Reading(
        prepared=prepared,
        train=loader,
        validation=blocks(held, context, max(1, EVALUATION_TOKENS // context), eos, shuffle=False),
        tokens=len(stream),
        count=len(held),
        size=text,
        rows=rows,
        about={"place": str(prepared.folder), "name": data.corpus, "kind": "text", "hash": prepared.hash},
    )


def blocks(stream: np.ndarray, context: int, size: int, eos_id: int, *, shuffle: bool, seed: int = 0) -> DataLoader:
    """Batches of blocks of a stream of ids, as `Prepared.loader` makes them of a whole split."""
    sampler = BlockSampler(len(stream), context, size, shuffle=shuffle, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        Blocks(stream, context, eos_id), batch_sampler=sampler, collate_fn=lambda x: x, generator=generator
    )


def whole_documents(prepared: Prepared, split: str, tokens: int | None) -> tuple[np.ndarray, int]:
    """The first documents of a split that together have at least so many tokens, or all -> (ids (N,), their bytes)."""
    ids = prepared.tokens(split)
    if tokens is None or tokens >= len(ids):
        return ids, prepared.counts(split)["bytes"]
    ends = np.flatnonzero(ids == prepared.eos_id) + 1
    end = int(ends[min(np.searchsorted(ends, tokens), len(ends) - 1)])
    size = sum(len(text.encode()) for text in texts(prepared, ids[:end]))
    return ids[:end], size


def texts(prepared: Prepared, ids: np.ndarray) -> list[str]:
    """The documents of a stream of ids, each of which ends in an EOS."""
    ends = np.flatnonzero(ids == prepared.eos_id)
    parts = np.split(np.asarray(ids), ends + 1)
    return prepared.tokenizer.decode_batch([part[:-1].tolist() for part in parts if len(part)])


@cache
def rows_of(prepared_folder: str, split: str, tokens: int) -> tuple[list[list[int]], int]:
    prepared = Prepared.open(prepared_folder)
    ids, _ = whole_documents(prepared, split, tokens)
    lines = [line.strip() for text in texts(prepared, ids) for line in text.splitlines()]
    lines = [line for line in lines if line]
    encoded = prepared.tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    return [encoding.ids for encoding in encoded], sum(len(line.encode()) for line in lines)


def text_rows(prepared: Prepared, split: str, tokens: int) -> tuple[list[list[int]], int]:
    """The lines of the first documents of a split, each encoded alone, without EOS -> (rows of ids, their bytes)."""
    return rows_of(str(prepared.folder), split, tokens)


def joined(rows: list[list[int]], eos_id: int) -> np.ndarray:
    """Rows of ids as one stream (N,), an EOS after each."""
    return np.array([token for row in rows for token in (*row, eos_id)], dtype=np.int64)


def padded(
    rows: list[list[int]], *, context: int, eos_id: int, cut: int | None = None, eos: str = "learned"
) -> dict[str, Tensor]:
    """Rows of ids -> input_ids and labels (B, context): each row and its EOS, cut, and padded at the right.

    What is cut off takes the EOS with it. The input is filled up with EOS, which nothing real attends to behind a
    causal mask, and the labels with IGNORE_INDEX.
    """
    kept = [[*row, eos_id][: min(cut or context, context)] for row in rows]
    labels = pad(kept, IGNORE_INDEX)
    labels = F.pad(labels, (0, context - labels.size(1)), value=IGNORE_INDEX)
    inputs = F.pad(labels.masked_fill(labels == IGNORE_INDEX, eos_id), (1, -1), value=eos_id)
    if eos == "ignored":
        labels = labels.masked_fill(labels == eos_id, IGNORE_INDEX)
    return {"input_ids": inputs, "labels": labels}


def windows(rows: list[list[int]], context: int, eos_id: int) -> list[dict[str, Tensor]]:
    """Batches in which every token of every row and its EOS is predicted once, from its own row alone.

    A row longer than the context goes on in a window of its own. By length, so that little is padding.
    """
    pieces = []
    for row in rows:
        labels, inputs = [*row, eos_id], [eos_id, *row]
        pieces += [(inputs[i : i + context], labels[i : i + context]) for i in range(0, len(labels), context)]
    pieces.sort(key=lambda piece: len(piece[0]))
    batches = []
    while pieces:
        size = max(1, EVALUATION_TOKENS // len(pieces[-1][0]))
        part, pieces = pieces[-size:], pieces[:-size]
        inputs, labels = zip(*part, strict=True)
        batches.append({"input_ids": pad(inputs, eos_id), "labels": pad(labels, IGNORE_INDEX)})
    return batches
