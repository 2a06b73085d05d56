"""A prepared corpus: one stream of tokens a split, memory-mapped, and the blocks that a language model reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .cache import fingerprint
from .pairs import check_start
from .splits import SPLITS
from .tokenizer import load_tokenizer

FORMAT = 1  # of the folder: raise it when a change makes other files of the same corpus
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"


@dataclass(frozen=True)
class Prepared:
    """A folder that `prepare` made: {train,validation,test}.bin, tokenizer.json and manifest.json.

    A .bin holds little-endian ids of the manifest's dtype: the documents in order, each followed by `eos_id`.
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], verify: bool = False) -> Prepared:
        """The prepared corpus in a folder. The sizes of its files are compared with its manifest, and with `verify`
        their sha256 too.

        Raises FileNotFoundError for a folder without a manifest, ValueError for a manifest that is not ours or is of
        another format, and for a file that is missing, cut or changed.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no prepared corpus: it has no {MANIFEST}; prepare one, or give another."
            )
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            made = manifest["format"], manifest["splits"]["train"]["tokens"], manifest["settings"]["corpus"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the manifest of a prepared corpus ({error!r}); {_REMEDY}") from error
        if made[0] != FORMAT:
            raise ValueError(f"{path} has format {made[0]}, this version reads {FORMAT}; {_REMEDY}")
        prepared = cls(folder, manifest)
        prepared._check(verify)
        return prepared

    def _check(self, verify: bool) -> None:
        for split in SPLITS:
            path, counts = self._path(split), self.counts(split)
            expected = counts["tokens"] * np.dtype(self.manifest["dtype"]).itemsize
            size = path.stat().st_size if path.is_file() else None
            if size != expected:
                found = "is missing" if size is None else f"has {size} bytes"
                raise ValueError(f"{path} {found}, its manifest says {expected} bytes; {_REMEDY}")
            if verify and file_sha256(path) != counts["sha256"]:
                raise ValueError(f"{path} was changed: its sha256 is not the manifest's; {_REMEDY}")
        path = self.folder / TOKENIZER
        if not path.is_file() or file_sha256(path) != self.manifest["tokenizer"]["sha256"]:
            raise ValueError(f"{path} is missing or was changed: it is not the tokenizer of these ids; {_REMEDY}")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the ids, set to encode any text as text (see `tokenizer.plain`)."""
        return load_tokenizer(self.folder / TOKENIZER)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id there is."""
        return self.manifest["vocab_size"]

    @property
    def eos_id(self) -> int:
        """The id behind every document."""
        return self.manifest["special_ids"]["eos_id"]

    @property
    def hash(self) -> str:
        """A short hash of tokenizer and ids, for checkpoints: another corpus or tokenizer has another."""
        ids = [self.counts(split)["sha256"] for split in SPLITS]
        return fingerprint("prepared", self.manifest["tokenizer"]["sha256"], *ids)[:16]

    def counts(self, split: str) -> dict[str, Any]:
        """documents, tokens (an EOS a document included), bytes of UTF-8, words (None where they are not known)."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; give one of {', '.join(SPLITS)}.")
        return self.manifest["splits"][split]

    def tokens(self, split: str) -> np.memmap:
        """The ids of a split (N,), read-only and mapped: only what is looked at comes into memory."""
        shape = (self.counts(split)["tokens"],)
        return np.memmap(
            self._path(split), dtype=np.dtype(self.manifest["dtype"]).newbyteorder("<"), mode="r", shape=shape
        )

    def loader(
        self, split: str, context: int, batch_size: int, *, shuffle: bool | None = None, seed: int = 0
    ) -> DataLoader:
        """Batches {"input_ids" (B, T), "labels" (B, T)}, int64, T = `context`, labels one ahead; see `BlockSampler`.

        shuffle: None for "train" alone. Raises ValueError for a context or a batch that the split cannot fill.
        """
        shuffle = split == "train" if shuffle is None else shuffle
        tokens = self.tokens(split)
        try:
            sampler = BlockSampler(len(tokens), context, batch_size, shuffle=shuffle, seed=seed)
        except ValueError as error:
            raise ValueError(f"split {split!r} of {self.folder}: {error}") from error
        # Without a generator of its own a loader draws from the global one at every iteration (see pairs.pair_loader).
        generator = torch.Generator().manual_seed(seed)
        dataset = Blocks(tokens, context, self.eos_id)
        return DataLoader(dataset, batch_sampler=sampler, collate_fn=_as_it_is, generator=generator)

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}.bin"


_REMEDY = "delete the folder and prepare it again, or give another."


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Blocks(Dataset):
    """Blocks of a stream of N ids, each by the position of its first label: that label, and `context` - 1 more or what
    is left. The input is one behind; before the first token of the stream it is an EOS, as before every document."""

    def __init__(self, tokens: np.ndarray, context: int, eos_id: int) -> None:
        self.tokens, self.context, self.eos_id = tokens, context, eos_id

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, start: int) -> dict[str, Tensor]:
        return {name: ids[0] for name, ids in self.__getitems__([start]).items()}

    def __getitems__(self, starts: list[int]) -> dict[str, Tensor]:
        """One whole batch, gathered at once; torch's loaders ask for this where it is there."""
        first = np.asarray(starts, dtype=np.int64)[:, None]
        length = min(self.context, len(self.tokens) - int(first.max()))
        positions = first + np.arange(-1, length)  # (B, T + 1)
        ids = self.tokens[positions.clip(min=0)].astype(np.int64)
        ids[positions < 0] = self.eos_id
        return {"input_ids": torch.from_numpy(ids[:, :-1].copy()), "labels": torch.from_numpy(ids[:, 1:].copy())}


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


class BlockSampler(Sampler[list[int]]):
    """Batches of the starts of blocks of `context` tokens in a stream of `tokens`.

    With `shuffle`, each epoch cuts the stream from another offset and goes through the blocks in a random order, which
    `seed` and the epoch alone decide (call `set_epoch`). Less than two blocks at the ends, and the blocks that fill no
    whole batch, are left to other epochs. No global random state is read or moved. Without, in order, and every token
    is predicted exactly once: the last block, where it is shorter, is a batch of its own. The number of batches is the
    same in every epoch.

    Raises ValueError for a context or a batch that is under 1 or that the stream cannot fill.
    """

    def __init__(self, tokens: int, context: int, batch_size: int, shuffle: bool = True, seed: int = 0) -> None:
        for name, value in (("context", context), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if context > tokens:
            raise ValueError(
                f"context is {context}, but there are {tokens} tokens; give at most {tokens}, or more text."
            )
        self.tokens, self.context, self.batch_size = tokens, context, batch_size
        self.shuffle, self.seed, self.epoch, self.start = shuffle, seed, 0, 0
        # Shuffled: so few that the offset has at least `context` values; from the largest, the blocks reach the end.
        self._blocks = max(1, (tokens - context + 1) // context) if shuffle else tokens // context
        if shuffle and self._blocks < batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but {tokens} tokens make {self._blocks} blocks of context {context}; "
                "give a smaller batch or context, or more text."
            )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the order of the next iteration, which leaves out the first `start` batches: a run goes on there.

        Raises ValueError for a `start` that is no number of batches of an epoch.
        """
        self.epoch, self.start = epoch, check_start(start, len(self))

    def __iter__(self) -> Iterator[list[int]]:
        blocks, offset = np.arange(self._blocks), 0
        if self.shuffle:
            generator = np.random.default_rng([self.seed, self.epoch])
            offset = int(generator.integers(self.tokens - self._blocks * self.context + 1))
            blocks = generator.permutation(blocks)
        starts = offset + blocks * self.context
        for first in range(self.start * self.batch_size, len(starts), self.batch_size):
            batch = starts[first : first + self.batch_size].tolist()
            if len(batch) == self.batch_size or not self.shuffle:
                yield batch
        if self._rest and self.start < len(self):
            yield [self._blocks * self.context]

    @property
    def _rest(self) -> bool:
        return not self.shuffle and self.tokens % self.context > 0

    def __len__(self) -> int:
        """Batches of a whole epoch, also where an iteration begins later."""
        if self.shuffle:
            return self._blocks // self.batch_size
        return -(-self._blocks // self.batch_size) + self._rest
