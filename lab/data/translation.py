"""A corpus of pairs made ready to train on: tokenizer, splits, loaders, and ids back to text."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import ModelConfig
from ..labels import IGNORE_INDEX, collate_pairs
from ..presets import preset
from .corpora import load_pairs
from .pairs import Pair, encode_pairs, pair_loader
from .splits import SPLITS
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, train_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

SPECIAL_IDS = {"pad_id": PAD_ID, "bos_id": BOS_ID, "eos_id": EOS_ID}
Side = Literal["left", "right"]


def collate(examples: list[Pair], side: Side = "right") -> dict[str, Tensor]:
    """labels.collate_pairs with the special ids of our tokenizer."""
    return collate_pairs(examples, side=side, **SPECIAL_IDS)


@dataclass(frozen=True)
class Translation:
    """Encoded pairs of one corpus by split ("train", "validation", "test"), and the tokenizer of both languages."""

    name: str
    tokenizer: Tokenizer
    splits: dict[str, Dataset]

    def examples(self, split: str, rows: Iterable[int]) -> list[Pair]:
        """These rows of a split as (source ids, target ids)."""
        picked = self.splits[split].select(list(rows))
        return list(zip(picked["source"], picked["target"], strict=True))

    def batch(self, split: str, rows: Iterable[int], side: Side = "right") -> dict[str, Tensor]:
        """These rows of a split as one batch."""
        return collate(self.examples(split, rows), side)

    def loader(self, split: str, *, max_tokens: int = 2048, side: Side = "right", seed: int = 0) -> DataLoader:
        """Batches of similar length; shuffled for "train" alone."""
        return pair_loader(
            self.splits[split], partial(collate, side=side), max_tokens, shuffle=split == "train", seed=seed
        )

    def config(self, **changes: Any) -> ModelConfig:
        """The preset "translator" with this vocabulary and these special ids."""
        return preset("translator", vocab_size=self.tokenizer.get_vocab_size(), **SPECIAL_IDS, **changes)

    def text(self, ids: Tensor | list[int]) -> str:
        """One row of ids as text, up to its EOS, without special tokens and ignored labels."""
        row = [int(i) for i in ids]
        if EOS_ID in row:
            row = row[: row.index(EOS_ID)]
        return self.tokenizer.decode([i for i in row if i != IGNORE_INDEX])

    def tokens(self, ids: Tensor | list[int]) -> list[str]:
        """Each id of one row as a readable token: "▁" for a space, IGNORE_INDEX as its number."""
        return [str(int(i)) if int(i) == IGNORE_INDEX else self.token(int(i)) for i in ids]

    def token(self, index: int) -> str:
        name = self.tokenizer.id_to_token(index)
        return name if index in SPECIAL_IDS.values() else self.tokenizer.decode([index]).replace(" ", "▁")


def translation(
    name: str = "jupyterlab-fr",
    *,
    vocab_size: int = 2000,
    max_len: int = 48,
    data_dir: str | os.PathLike[str] | None = None,
) -> Translation:
    """A corpus of pairs, its training split's tokenizer, and its splits without pairs of over max_len ids a side.

    data_dir: where load_pairs looks first. Raises what load_pairs, train_tokenizer and encode_pairs raise.
    """
    pairs = {split: load_pairs(name, split, data_dir) for split in SPLITS}
    tokenizer = train_tokenizer([text for pair in pairs["train"] for text in pair], vocab_size)
    splits = {}
    for split, rows in pairs.items():
        encoded = encode_pairs(rows, tokenizer)
        splits[split] = encoded.select([i for i, length in enumerate(encoded["length"]) if length <= max_len])
    return Translation(name, tokenizer, splits)
