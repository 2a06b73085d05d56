"""A byte-level BPE tokenizer trained on the texts at hand, and kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .cache import cache_dir as resolve_cache_dir
from .cache import fingerprint, write_text

# fairseq's and BART's order. The pad is not 0 on purpose: code that takes 0 for the pad goes wrong here at once.
BOS_ID, PAD_ID, EOS_ID = 0, 1, 2
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>")
_FORMAT = "1"  # raise it when a change of this file changes what is trained


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 2000, cache_dir: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids; 0 is `<s>`, 1 `<pad>`, 2 `</s>`. From the cache where it is there.

    Encoding adds no special token, and `<s>` written in a text is three characters, not id 0; decoding gives any text
    back exactly and leaves special ids out. (That second property is `tokenizer.encode_special_tokens`, which the
    tokenizers library does not save: set it again on a tokenizer that you load yourself.)

    Raises ValueError for no text or a `vocab_size` under the 256 bytes and the special tokens, OSError for a cache
    folder (see `cache_dir`) that cannot be written.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts is one str, {texts[:20]!r}; give a list of them.")
    texts = list(texts)
    if not any(texts):
        raise ValueError(f"no text to train on: {len(texts)} texts, none with a character; give at least one.")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens alone take {smallest}; give more.")

    key = fingerprint("tokenizer", _FORMAT, str(vocab_size), *texts)
    path = resolve_cache_dir(cache_dir) / "tokenizers" / f"{key}.json"
    tokenizer = _read(path)
    if tokenizer is None:
        tokenizer = Tokenizer(models.BPE())
        # A space put before the text would come back from decoding.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        write_text(path, tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    return tokenizer


def _read(path: Path) -> Tokenizer | None:
    """The tokenizer in a cache file, None where there is none that is whole."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # the library raises Exception itself for text that is no tokenizer
        return None
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    return tokenizer if ids == [BOS_ID, PAD_ID, EOS_ID] else None
