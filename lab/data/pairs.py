"""Sentence pairs as ids, in batches of similar length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Sampler

from .cache import cache_dir as resolve_cache_dir
from .cache import fingerprint, writing_to

if TYPE_CHECKING:
    from datasets import Dataset

Pair = tuple[Sequence[int], Sequence[int]]
_FORMAT = "1"  # raise it when a change of this file changes the columns


def encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, cache_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """A `datasets.Dataset`, row for row the pairs: `source` and `target` ids without BOS and EOS, and `length`.

    `length` counts the columns that a row fills in a batch: the longer side, and one for the EOS of collation. Kept
    under the hash of pairs and tokenizer. Raises ValueError for no pair, OSError for a cache folder that cannot be
    written.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("no pair to encode; give at least one (source, target).")
    settings = (_FORMAT, tokenizer.to_str(), str(tokenizer.encode_special_tokens))  # the last is not in to_str
    key = fingerprint("pairs", *settings, *(text for pair in pairs for text in pair))
    path = resolve_cache_dir(cache_dir) / "pairs" / f"{key}.arrow"
    if (cached := _read(path, len(pairs))) is not None:
        return cached

    from datasets import Dataset, Features, Value

    def encode(rows: dict[str, list[str]]) -> dict[str, list]:
        source, target = (
            [encoding.ids for encoding in tokenizer.encode_batch(rows[side], add_special_tokens=False)]
            for side in ("source", "target")
        )
        length = [max(len(a), len(b)) + 1 for a, b in zip(source, target, strict=True)]
        return {"source": source, "target": target, "length": length}

    columns = {"source": [source for source, _ in pairs], "target": [target for _, target in pairs]}
    with writing_to(path.parent), _no_progress_bars():
        # Its own fingerprint of `encode` would hash a pickled tokenizer; ours is the content. The file is written
        # beside its place and moved there, so that an interrupted run leaves none.
        return Dataset.from_dict(columns).map(
            encode,
            batched=True,
            features=Features({"source": [Value("int32")], "target": [Value("int32")], "length": Value("int32")}),
            cache_file_name=str(path),
            load_from_cache_file=False,
            new_fingerprint=key,
        )


def _read(path: Path, rows: int) -> Dataset | None:
    """The dataset in a cache file, None where there is none that is whole."""
    if not path.exists():
        return None
    from datasets import Dataset

    try:
        dataset = Dataset.from_file(str(path))
    except Exception:  # OSError, ArrowInvalid and others, by where the damage is
        return None
    return dataset if len(dataset) == rows and {"source", "target", "length"} <= set(dataset.column_names) else None


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of indices of similar length, each index once an epoch, none over `max_tokens` with its padding.

    The cost of a batch is its longest row times its rows. With `shuffle`, equal lengths change places and the batches
    come in a random order, which `seed` and the epoch alone decide (call `set_epoch`); without, in order of length.
    No global random state is read or moved. The number of batches is the same in every epoch.

    Raises ValueError for no length and for one over `max_tokens`.
    """

    def __init__(self, lengths: Sequence[int], max_tokens: int, shuffle: bool = True, seed: int = 0) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.max_tokens, self.shuffle, self.seed, self.epoch, self.start = max_tokens, shuffle, seed, 0, 0
        if not self.lengths.size:
            raise ValueError("no lengths to batch: the dataset is empty; give at least one example.")
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > max_tokens:
            raise ValueError(
                f"example {longest} has length {self.lengths[longest]}, over max_tokens = {max_tokens}; "
                "raise max_tokens, or shorten or drop the example."
            )
        self._edges = self._cut(np.sort(self.lengths))

    def _cut(self, ascending: np.ndarray) -> list[tuple[int, int]]:
        """Where the batches begin and end in order of length; shuffling among equals does not move an edge."""
        edges, start = [], 0
        for position, length in enumerate(ascending.tolist()):
            if length * (position + 1 - start) > self.max_tokens:
                edges.append((start, position))
                start = position
        return [*edges, (start, len(ascending))]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the order of the next iteration, which leaves out the first `start` batches: a run goes on there.

        Raises ValueError for a `start` that is no number of batches of an epoch.
        """
        self.epoch, self.start = epoch, check_start(start, len(self))

    def __iter__(self) -> Iterator[list[int]]:
        indices, batches = np.arange(len(self.lengths)), np.arange(len(self._edges))
        if self.shuffle:
            generator = np.random.default_rng([self.seed, self.epoch])
            indices, batches = generator.permutation(indices), generator.permutation(batches)
        indices = indices[np.argsort(self.lengths[indices], kind="stable")]
        for batch in batches[self.start :]:
            start, end = self._edges[batch]
            yield indices[start:end].tolist()

    def __len__(self) -> int:
        """Batches of a whole epoch, also where an iteration begins later."""
        return len(self._edges)


def check_start(start: int, batches: int) -> int:
    """The first batch of an iteration, checked: from 0 to the number of batches of an epoch."""
    if not 0 <= start <= batches:
        raise ValueError(f"start is {start}; an epoch has {batches} batches: give a number from 0 to {batches}.")
    return start


def pair_loader(
    dataset: Dataset,
    collate: Callable[[list[Pair]], Any],
    max_tokens: int = 2048,
    shuffle: bool = True,
    seed: int = 0,
) -> DataLoader:
    """Batches of the rows of `encode_pairs`, each what `collate` makes of a list of (source ids, target ids).

    Call `loader.batch_sampler.set_epoch(epoch, start)` for another order, and to begin within it. Raises what
    `BucketBatchSampler` raises.
    """
    sampler = BucketBatchSampler(dataset["length"], max_tokens=max_tokens, shuffle=shuffle, seed=seed)
    # Without a generator of its own a loader draws from the global one at every iteration: to evaluate would change
    # what is trained next.
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=partial(_collate, collate), generator=generator)


def _collate(collate: Callable[[list[Pair]], Any], rows: list[dict]) -> Any:
    return collate([(row["source"], row["target"]) for row in rows])
